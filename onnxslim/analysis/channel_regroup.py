"""What a Reshape does to channels.

A Reshape keeps the flat, row-major order of elements. Where the sizes of both shapes factor in common, each axis is a
run of *digits* of the flat index in a mixed radix:

Given   4 x 12 x 5 x 5  →  4 x 3 x 4 x 25      digits of the flat index: 4, 3, 4, 5, 5
        axis 1 (12) is the digits (3, 4); it becomes axis 1 (3) and axis 2 (4); axes 2 and 3 merge into axis 3

Removing a value of one digit removes whole slices on both sides. So an axis that splits is followed along one of its
parts, and parts that merge are followed along one of them: ``_choose`` says which. The others must stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from onnxslim.analysis.relations import Dimension, Relations, Sized
from onnxslim.ir import Node, Tensor, array_of, dims_of, only_consumer
from onnxslim.ir.lookup import Dim

BATCH = 1_000_003
"""Stands for the one size that is unknown on both sides: a prime, so that it is a digit of its own."""


@dataclass(frozen=True)
class _Run:
    """Consecutive digits of the flat index: all values from ``inner`` (exclusive) to ``outer`` in suffix products."""

    outer: int
    inner: int

    @property
    def size(self) -> int:
        return self.outer // self.inner

    def shared(self, other: _Run) -> _Run | None:
        outer, inner = min(self.outer, other.outer), max(self.inner, other.inner)
        return _Run(outer, inner) if outer > inner else None


def regroup_rule(node: Node, relations: Relations) -> None:
    """Reshape and Flatten."""
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    target = array_of(node.inputs[1]) if node.op == "Reshape" else None
    if before is None or after is None or (node.op == "Reshape" and target is None):
        relations.freeze_node(node, "a Reshape to a computed shape, or of one")
        return
    copied = [position for position, size in enumerate(target.tolist()) if size == 0] if target is not None else []
    start, end = _common(before, after, () if node.attrs.get("allowzero") else copied)
    pairs = [(i, i) for i in range(start)] + [(len(before) - i, len(after) - i) for i in range(1, end + 1)]
    for i, j in pairs:
        relations.relate(relations.axis(node.inputs[0], i), relations.axis(node.outputs[0], j))
    runs, others = _runs(before[start : len(before) - end]), _runs(after[start : len(after) - end])
    if runs is not None and others is not None and _fits(runs, others):
        pairs += list(_follow(node, start, runs, others, relations))
    if target is not None:
        for _, j in pairs:
            out = relations.axis(node.outputs[0], j)
            if out is not None and int(target[j]) > 0:
                relations.adjustments.append(Sized(node, 1, j, out))


def _common(before: Sequence[Dim], after: Sequence[Dim], copied: Sequence[int]) -> tuple[int, int]:
    """Return how many axes at the start, and at the end, are the same on both sides."""
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and (before[start] == after[start] is not None or start in copied):
        start += 1
    end = 0
    while end < shorter - start and isinstance(before[-1 - end], int) and before[-1 - end] == after[-1 - end]:
        end += 1
    return start, end


def _runs(dims: Sequence[Dim]) -> list[_Run] | None:
    """Return each axis as a run of digits, None where more than one size is unknown, or one is 0."""
    unknown = sum(not isinstance(dim, int) for dim in dims)
    if unknown > 1 or 0 in dims:
        return None
    sizes = [dim if isinstance(dim, int) else BATCH for dim in dims]
    return [_Run(math.prod(sizes[i:]), math.prod(sizes[i + 1 :])) for i in range(len(sizes))]


def _fits(before: list[_Run], after: list[_Run]) -> bool:
    """Whether both sides have common digits: every boundary divides the next larger one."""
    if not before or not after or before[0].outer != after[0].outer:
        return False
    bounds = sorted({bound for run in (*before, *after) for bound in (run.outer, run.inner)})
    return all(large % small == 0 for small, large in pairwise(bounds))


def _follow(
    node: Node, start: int, before: list[_Run], after: list[_Run], relations: Relations
) -> Iterator[tuple[int, int]]:
    """Relate the parts that are followed; yield their pairs of axes."""
    overlaps = [
        (i, j, shared)
        for i, run in enumerate(before)
        for j, other in enumerate(after)
        if (shared := run.shared(other)) is not None
    ]
    for i, j, shared in _choose(node, start, overlaps, before, relations):
        source = relations.axis(node.inputs[0], start + i)
        target = relations.axis(node.outputs[0], start + j)
        if source is None or target is None or shared.size % BATCH == 0:
            continue
        left, right = _digits(source, before[i], shared), _digits(target, after[j], shared)
        relations.couple(source, left)
        first = np.unique(left, return_index=True)[1].astype(np.int64)
        relations.relate(source, target, first[right], np.arange(target.size))
        yield start + i, start + j


def _digits(dimension: Dimension, run: _Run, shared: _Run) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return, for each index of an axis, the value of the shared digits."""
    return np.arange(dimension.size, dtype=np.int64) // (shared.inner // run.inner) % shared.size


def _choose(
    node: Node, start: int, overlaps: list[tuple[int, int, _Run]], before: list[_Run], relations: Relations
) -> list[tuple[int, int, _Run]]:
    """Choose for each axis at most one partner.

    Axes that filters make come first. Of an axis that splits, the part is followed that survives what comes next: of
    two, the outer one (heads, groups of a normalization), or the inner one of a channel shuffle, whose parts the next
    Transpose swaps; of three (query, key and value by heads by width), the middle one.
    """
    parts = [sum(i == k for i, _, _ in overlaps) for k in range(len(before))]
    inner = _is_swapped(node)

    def rank(overlap: tuple[int, int, _Run]) -> tuple[bool, int]:
        i = overlap[0]
        place = [o for o in overlaps if o[0] == i].index(overlap)
        wanted = 1 if parts[i] == 3 or (parts[i] == 2 and inner) else 0
        return not relations.is_alive(relations.axis(node.inputs[0], start + i)), abs(place - wanted)

    chosen: list[tuple[int, int, _Run]] = []
    for overlap in sorted(overlaps, key=rank):
        if all(overlap[0] != i and overlap[1] != j for i, j, _ in chosen):
            chosen.append(overlap)
    return chosen


def _is_swapped(node: Node) -> bool:
    """Whether a channel shuffle begins: a Transpose swaps two axes and a Reshape merges them again."""
    swap = only_consumer(node.outputs[0])
    if swap is None or swap.op != "Transpose" or "perm" not in swap.attrs:
        return False
    perm = [int(axis) for axis in swap.attrs["perm"]]
    moved = [axis for axis, place in enumerate(perm) if axis != place]
    merge = only_consumer(swap.outputs[0])
    merges = merge is not None and merge.op == "Reshape" and _rank(merge.outputs[0]) == _rank(node.inputs[0])
    return merges and len(moved) == 2 and moved[1] == moved[0] + 1


def _rank(tensor: Tensor) -> int:
    return len(dims_of(tensor) or ())
