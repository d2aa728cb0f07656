"""What the profiler itself costs, so that it can be taken off.

Within each node's time onnxruntime writes down the types and shapes of its inputs and outputs: some 25,000
instructions, more than a small layer needs. Small graphs of trivial nodes are counted with and without the profiler, in
the same emulated process as the models; their differences give

    overhead = per run + (per node + per tensor · its tensors + per character · the text of their shapes)

by kind of instruction, as the exact solution of as many equations as there are unknowns. How much of a node's overhead
lies within its time, and how much after it, is told by Identity, which does nothing: what a layer is said to take is
what it takes beyond an Identity of one element, to about a thousand instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh

from onnxslim.devices.arm_counts import Counted, Event, Spent

LARGEST_FACTOR = 1.15
"""By which a model's overhead may differ from what the probes say."""

_PROBES = (("Identity", 1, 1, 4), ("Identity", 1, 1, 44), ("Identity", 1, 6, 44), ("Concat", 8, 1, 24))
"""Operator, inputs, rank and number of nodes."""
_RULER = 1
"""The probe whose nodes say what lies within a node's time."""


def probes() -> list[onnx.ModelProto]:
    """Return the graphs whose counts :meth:`Overhead.fit` takes, to be run without optimizations."""
    return [_probe(*probe) for probe in _PROBES]


def _probe(op: str, inputs: int, rank: int, count: int) -> onnx.ModelProto:
    nodes = [oh.make_node(op, ["x"] * inputs, [f"y{i}"], name=f"y{i}") for i in range(count)]
    if op == "Concat":
        for node in nodes:
            node.attribute.append(oh.make_attribute("axis", 0))
    value = oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1] * rank)
    last = oh.make_tensor_value_info(f"y{count - 1}", onnx.TensorProto.FLOAT, None)
    graph = oh.make_graph(nodes, "probe", [value], [last])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


@dataclass(frozen=True)
class Overhead:
    """The profiler's own instructions: a row for each term, a column for each kind."""

    terms: npt.NDArray[np.float64]
    after: Spent
    """That part of a node's which comes after its time."""

    @classmethod
    def fit(cls, counts: Sequence[Counted]) -> Overhead:
        """Solve for the terms from what :func:`probes` took."""
        features = np.array([[1, c.nodes, c.tensors, c.characters] for c in counts], np.float64)
        terms = np.linalg.solve(features, np.stack([c.profiled - c.plain for c in counts])).astype(np.float64)
        ruler = counts[_RULER]
        whole = _features(ruler.events[0]) @ terms
        return cls(terms, whole - np.median(np.stack(ruler.spent), axis=0))

    def suiting(self, counted: Counted) -> Overhead:
        """Return this, scaled so that it explains the difference between a model's own two counts.

        Names and numbers that the profiler writes are longer in real models, by a few percent. Where a run takes
        billions, its own little variations are more than all overhead, hence the bounds.
        """
        factor = float((counted.profiled - counted.plain).sum()) / float(self.of_run(counted).sum())
        factor = min(max(factor, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
        return Overhead(self.terms * factor, self.after * factor)

    def of_node(self, event: Event) -> Spent:
        """Return what one node adds to its own time: its own part, and all that nodes of its subgraphs add."""
        inner = sum((_features(each) @ self.terms for each in event.inner), np.zeros(self.terms.shape[1]))
        own: Spent = _features(event) @ self.terms - self.after + inner
        return own

    def of_run(self, counted: Counted) -> Spent:
        """Return all that it adds to a run."""
        run: Spent = np.array([1, counted.nodes, counted.tensors, counted.characters], np.float64) @ self.terms
        return run


def _features(event: Event) -> npt.NDArray[np.float64]:
    return np.array([0, 1, event.tensors, event.characters], np.float64)
