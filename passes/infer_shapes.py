"""infer-shapes: find out the type and shape of every tensor that inference can tell.

Given a graph in which some tensors have no shape → Result: the same graph, with more known about it. Nothing is edited;
other passes ask for shapes and leave alone what has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.analysis import infer_shapes
from onnxslim.ir import Rewriter
from onnxslim.pipeline import Effect, Pass, PassContext


@dataclass(frozen=True)
class InferShapes(Pass):
    """Infer tensor shapes, which other passes rely on."""

    name = "infer-shapes"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Learn what onnx's shape inference can tell."""
        infer_shapes(rewriter.model)
