"""Where the time goes, by the layers of the original: two profiles side by side, in rows that add up.

Nodes of the candidate that the original lacks (stages of a factorized layer, conversions) count for the layer that they
work for; what a kernel of the original swallowed counts for that kernel. What the runtime inserted itself has no layer.
A profiler costs time of its own, so profiles tell shares, and their sums are those of runs without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx

from onnxslim.runtime.profile import NodeTime

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class LayerLatency:
    """One node's time on both sides; ``origin`` is None for what the runtime inserted."""

    node: str
    op: str
    origin: str | None
    """A layer of the original, one that has a kernel of its own there."""
    reference_us: float | None
    candidate_us: float | None
    share: float | None


@dataclass(frozen=True)
class Profiled:
    """A model with the times of its nodes."""

    graph: onnx.GraphProto
    times: Sequence[NodeTime]
    total_us: float
    """Of one inference without the profiler."""

    def scaled(self) -> list[tuple[NodeTime, float]]:
        """Return each node with its part of the total."""
        profiled = sum(time.microseconds for time in self.times) or 1.0
        return [(time, time.microseconds * self.total_us / profiled) for time in self.times]


def layer_table(reference: Profiled, candidate: Profiled | None) -> tuple[LayerLatency, ...]:
    """Return the nodes of the candidate in order, then those of the reference that it has no more.

    Args:
        reference: the original.
        candidate: None for the original alone.
    """
    heads = heads_of(reference.graph, {time.anchor for time in reference.times})
    before: dict[str | None, float] = {time.anchor: us for time, us in reference.scaled() if time.anchor is not None}
    if candidate is None:
        candidate, origin_of = reference, heads
    else:
        origins = origins_of(reference.graph, candidate.graph)
        origin_of = {name: heads.get(layer, layer) for name, layer in origins.items()}
    total = candidate.total_us or 1.0
    rows, seen = [], set()
    for time, us in candidate.scaled():
        origin = None if time.anchor is None else origin_of.get(time.anchor, time.anchor)
        own = before.get(time.anchor) if time.anchor is not None else None
        seen.add(time.anchor)
        rows.append(LayerLatency(time.anchor or time.name, time.op, origin, own, us, us / total))
    gone = [(time, us) for time, us in reference.scaled() if time.anchor is None or time.anchor not in seen]
    rows += [LayerLatency(t.anchor or t.name, t.op, heads.get(t.anchor or ""), us, None, None) for t, us in gone]
    return tuple(rows)


def origins_of(reference: onnx.GraphProto, candidate: onnx.GraphProto) -> dict[str, str]:
    """Return the layer of ``reference`` that each node of ``candidate`` works for; both known by their first outputs.

    1. A node that makes a tensor of the original's is that layer.
    2. Another works for the nearest one behind it, or before it where the graph ends.
    """
    layers = {name: anchor(node) for node in reference.node for name in node.output if name}
    found: dict[str, str] = {}
    of_tensor: dict[str, str] = {}  # the layer that the reader of a tensor works for
    for node in reversed(candidate.node):
        layer = next((layers[name] for name in node.output if name in layers), None)
        layer = layer or next((of_tensor[name] for name in node.output if name in of_tensor), None)
        if layer is not None:
            found[anchor(node)] = layer
            of_tensor.update({name: layer for name in node.input if name})
    made: dict[str, str] = {}  # the layer that the maker of a tensor works for
    for node in candidate.node:
        name = anchor(node)
        if name not in found:
            layer = next((made[tensor] for tensor in node.input if tensor in made), None)
            if layer is not None:
                found[name] = layer
        if name in found:
            made.update(dict.fromkeys(node.output, found[name]))
    return found


def heads_of(graph: onnx.GraphProto, timed: Collection[str | None]) -> Mapping[str, str]:
    """Return the layer that each layer of ``graph`` counts for, where kernels hold several.

    A kernel is known by one of its nodes: where it has weights, on x86 by the last and elsewhere by the first. It
    counts for the one with weights; what has no kernel otherwise, for the layer that it reads.

    Args:
        timed: layers by which kernels are known.
    """
    makers = {name: node for node in graph.node for name in node.output if name}
    readers = Counter(name for node in graph.node for name in node.input)
    heads: dict[str, str] = {}
    for node in graph.node:
        if anchor(node) in timed and anchor(node) not in heads:
            held = list(_swallowed(node, makers, readers, timed, heads))
            held = held if held[-1].op_type in _WEIGHTED else [node]
            heads.update(dict.fromkeys(map(anchor, held), anchor(held[-1])))
    of_tensor: dict[str, str] = {}
    for node in graph.node:
        name = anchor(node)
        if name not in heads:
            heads[name] = next((of_tensor[tensor] for tensor in node.input if tensor in of_tensor), name)
        of_tensor.update(dict.fromkeys(node.output, heads[name]))
    return heads


def _swallowed(
    node: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, int],
    timed: Collection[str | None],
    known: Collection[str],
) -> Iterator[onnx.NodeProto]:
    """Yield a node and those before it that have no kernel and that nobody else reads, up to one with weights."""
    while True:
        yield node
        if node.op_type in _WEIGHTED:
            return
        before = (makers[name] for name in node.input if name in makers and readers[name] == 1)
        own = [maker for maker in before if anchor(maker) not in timed and anchor(maker) not in known]
        if not own:
            return
        node = next((maker for maker in own if maker.op_type in _WEIGHTED), own[0])


def anchor(node: onnx.NodeProto) -> str:
    """Return the name of the first output."""
    return next((name for name in node.output if name), node.name)


class Row(Protocol):
    """What :func:`by_origin` asks of a row."""

    @property
    def node(self) -> str: ...  # noqa: D102
    @property
    def op(self) -> str: ...  # noqa: D102
    @property
    def origin(self) -> str | None: ...  # noqa: D102
    @property
    def reference_us(self) -> float | None: ...  # noqa: D102
    @property
    def candidate_us(self) -> float | None: ...  # noqa: D102
    @property
    def share(self) -> float | None: ...  # noqa: D102


@dataclass
class LayerSum:
    """A layer of the original with all that works for it; or an operator that the runtime inserted, all of them."""

    node: str
    op: str
    origin: str | None
    reference_us: float | None = None
    candidate_us: float | None = None
    share: float | None = None
    nodes: int = 0
    """Of the candidate."""

    def add(self, row: Row) -> None:
        """Count one more row."""
        self.reference_us = _sum(self.reference_us, row.reference_us)
        self.candidate_us = _sum(self.candidate_us, row.candidate_us)
        self.share = _sum(self.share, row.share)
        self.nodes += row.candidate_us is not None
        if row.node == row.origin:
            self.op = row.op


def by_origin(rows: Iterable[Row]) -> list[LayerSum]:
    """Return one row for each layer of the original, and one for each operator that the runtime inserted."""
    sums: dict[tuple[str, bool], LayerSum] = {}
    for row in rows:
        name = row.op if row.origin is None else row.origin
        sums.setdefault((name, row.origin is None), LayerSum(name, row.op, row.origin)).add(row)
    return list(sums.values())


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other
