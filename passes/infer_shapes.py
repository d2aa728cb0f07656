"""infer-shapes: find out the type and shape of every tensor that inference can tell.

Given a graph in which some tensors have no shape → Result: the same graph, with more known about it. Nothing is edited;
other passes ask for shapes and leave alone what has none.

Where an input has a dynamic dimension, shapes that the file declares for intermediate tensors are not believed: people
make the batch dynamic by changing inputs and outputs alone, and what stays behind says 1. They are inferred afresh.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.analysis import forget_shapes, infer_shapes
from onnxslim.ir import Model, Rewriter
from onnxslim.pipeline import Effect, Pass, PassContext


@dataclass(frozen=True)
class InferShapes(Pass):
    """Infer tensor shapes, which other passes rely on."""

    name = "infer-shapes"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Learn what onnx's shape inference can tell."""
        if _is_dynamic(rewriter.model):
            forget_shapes(rewriter.model)
        infer_shapes(rewriter.model)


def _is_dynamic(model: Model) -> bool:
    shapes = [spec.shape for spec in model.inputs]
    return any(shape is None or not all(isinstance(dim, int) for dim in shape) for shape in shapes)
