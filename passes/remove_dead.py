"""remove-dead: drop nodes whose results nobody reads.

Given a node none of whose outputs is read by a node (of this graph or of a subgraph) or returned by a graph → Result:
the graph without it. ONNX operators have no side effects. Constants that nobody reads go with their readers.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.ir import Rewriter
from onnxslim.pipeline import Effect, Pass, PassContext


@dataclass(frozen=True)
class RemoveDead(Pass):
    """Remove nodes whose results nobody reads."""

    name = "remove-dead"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Walk each graph backwards, so that one sweep removes whole chains."""
        for graph in list(rewriter.model.graphs()):
            for node in reversed(graph.nodes):
                if rewriter.alive(node) and not any(t.outputs or rewriter.is_output(t) for t in node.outputs):
                    rewriter.remove(node)
