"""Local rewrites: a rule looks at one node at a time; a RulePass sweeps its rules over every graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from onnxslim.ir import Graph, Node, Rewriter, is_standard
from onnxslim.pipeline.base import Effect, Pass, PassContext


class Rule(ABC):
    """One local pattern, anchored at a node of the standard domain whose operator is in ``ops``."""

    ops: ClassVar[frozenset[str]]

    @property
    def name(self) -> str:
        """The rule's name in refusals."""
        return type(self).__name__

    @abstractmethod
    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Rewrite the pattern at ``node`` if it is there and legal.

        Returns without a word where the pattern is not there, and after ``rewriter.refuse(...)`` where it is
        there but must stay. Guards first, the rewrite last.
        """


class RulePass(Pass):
    """An exact pass made of rules: one sweep in topological order; the manager repeats it to a fixed point."""

    effect: ClassVar[Effect] = Effect.EXACT
    rules: ClassVar[tuple[Rule, ...]]

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Offer every living node to every rule that owns its operator."""
        by_op: dict[str, list[Rule]] = {}
        for rule in self.rules:
            for op in rule.ops:
                by_op.setdefault(op, []).append(rule)
        for graph in rewriter.model.graphs():
            for node in list(graph.nodes):
                for rule in by_op.get(node.op, ()):
                    if rewriter.alive(node) and node.op in rule.ops and is_standard(node):
                        rule.rewrite(node, graph, rewriter)
