"""Partitions: the parts of a graph that run on a target without coming back to the CPU.

A provider's units are gathered as onnxruntime gathers them (core/providers/partitioning_utils.cc,
CreateSupportedPartitionNodeGroups): front to back, as long as nothing that is needed must be computed elsewhere first.
So a partition never waits for the CPU in its middle (it is convex), and partitions can run one after the other.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from onnxslim.ir import Constant, Graph, Node, Tensor, is_standard
from onnxslim.mobile.partition_units import PAIR, Unit


@dataclass(frozen=True)
class Partition:
    """Units that run as one, in order, and the tensors that cross its border."""

    units: tuple[Unit, ...]
    enters: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All its nodes."""
        return tuple(node for unit in self.units for node in unit.nodes)


def partition(
    graph: Graph, units: Sequence[Unit], taken: Collection[int], lonely: Collection[str] = ()
) -> list[Partition]:
    """Return the partitions of the main graph.

    Args:
        graph: the main graph.
        units: all of its units, in order.
        taken: by id of its node, the units that run on the target.
        lonely: operators that are no partition by themselves.
    """
    groups = _gather(units, set(taken))
    kept = [group for group in groups if not _is_lonely(group, lonely)]
    return [_bounded(graph, group) for group in kept]


def _is_lonely(group: list[Unit], lonely: Collection[str]) -> bool:
    if len(group) != 1 or group[0].is_group:
        return False
    return is_standard(group[0].node) and group[0].node.op in lonely


def _gather(units: Sequence[Unit], taken: set[int]) -> list[list[Unit]]:
    """Walk the units as onnxruntime does: what a unit at the border must wait for begins the next group."""
    after, waiting = _edges(units)
    ready = deque(index for index in range(len(units)) if not waiting[index])
    later: deque[int] = deque()
    groups: list[list[Unit]] = []
    group: list[Unit] = []
    border: set[int] = set()
    while ready or later:
        if not ready:
            groups, group, border = [*groups, group] if group else groups, [], set()
            ready, later = later, deque()
            continue
        index = ready.popleft()
        if id(units[index].node) not in taken:
            if index in border:
                later.append(index)
                continue
        else:
            group.append(units[index])
            border.discard(index)
            border |= after[index]
        for reader in sorted(after[index]):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return [*groups, group] if group else groups


def _edges(units: Sequence[Unit]) -> tuple[dict[int, set[int]], list[int]]:
    """Return, by index of a unit, the units that read it, and how many units each one waits for."""
    owner = {id(node): index for index, unit in enumerate(units) for node in unit.nodes}
    after: dict[int, set[int]] = defaultdict(set)
    before: dict[int, set[int]] = defaultdict(set)
    for index, unit in enumerate(units):
        for node in unit.nodes:
            for tensor in _read(node):
                maker = owner.get(id(tensor.inputs[0])) if tensor.inputs else None
                if maker is not None and maker != index:
                    after[maker].add(index)
                    before[index].add(maker)
    return after, [len(before[index]) for index in range(len(units))]


def _read(node: Node) -> list[Tensor]:
    """Return what a node reads, its subgraphs included."""
    found = list(node.inputs)
    stack = [value for value in node.attrs.values() if isinstance(value, Graph)]
    while stack:
        graph = stack.pop()
        found += [tensor for inner in graph.nodes for tensor in inner.inputs] + list(graph.outputs)
        stack += [v for inner in graph.nodes for v in inner.attrs.values() if isinstance(v, Graph)]
    return found


def _bounded(graph: Graph, group: list[Unit]) -> Partition:
    inside = {id(node) for unit in group for node in unit.nodes}
    nodes = [node for unit in group for node in unit.nodes]
    outputs = {id(tensor) for tensor in graph.outputs}
    enters: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}
    for node in nodes:
        for tensor in node.inputs:
            inner = isinstance(tensor, Constant) or tensor.is_empty()
            if not inner and not (tensor.inputs and id(tensor.inputs[0]) in inside):
                enters[id(tensor)] = tensor
        for tensor in node.outputs:
            if id(tensor) in outputs or any(id(reader) not in inside for reader in tensor.outputs):
                leaves[id(tensor)] = tensor
    return Partition(tuple(group), tuple(enters.values()), tuple(leaves.values()))


LONELY = frozenset(PAIR)
"""QuantizeLinear and DequantizeLinear: alone they only move data across and back."""
