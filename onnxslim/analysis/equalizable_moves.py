"""Rules of operators that move channels, take some of them, or put them beside each other: numpy moves their scales.

See ``equalizable_rules`` for what a rule is and for the table of them all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxslim.analysis.equalizable import Flow, Labels
from onnxslim.analysis.relations import integers
from onnxslim.ir import Node, array_of, dims_of
from onnxslim.ir.lookup import Dim

UNKNOWN = 1_000_003
"""Stands for the one size that is unknown on both sides: a prime."""

LARGEST = 2**22
"""Elements of a label array that a Reshape may spread channels over."""


def _transpose(node: Node, flow: Flow) -> None:
    labels = flow.of(node.inputs[0])
    perm = integers(node, "perm") or list(range(labels.ndim))[::-1]
    flow.give(node.outputs[0], np.transpose(labels, perm) if len(perm) == labels.ndim else labels)


def _squeeze(node: Node, flow: Flow) -> None:
    labels, after = flow.of(node.inputs[0]), dims_of(node.outputs[0])
    axes = integers(node, "axes", 1)
    if not labels.any():
        return
    if axes is None or after is None:
        flow.hold(labels, f"axes of a {node.op} are unknown")
        return
    if node.op == "Unsqueeze":
        flow.give(node.outputs[0], np.expand_dims(labels, tuple(axes)))
        return
    places = axes or [axis for axis, size in enumerate(dims_of(node.inputs[0]) or ()) if size == 1]
    flow.give(node.outputs[0], np.squeeze(labels, tuple(places)))


def _concat(node: Node, flow: Flow) -> None:
    """Pieces follow each other along one axis; along the others they share their scales."""
    if not any(flow.is_scaled(tensor) for tensor in node.inputs):
        return
    dims = [dims_of(tensor) or () for tensor in node.inputs]
    rank = len(dims[0])
    if not rank or any(len(dim) != rank for dim in dims):
        flow.hold_inputs(node, "Concat joins pieces of unknown rank")
        return
    axis = int(node.attrs["axis"]) % rank
    parts, sizes = [flow.of(tensor) for tensor in node.inputs], [dim[axis] for dim in dims]
    if any(part.shape[axis] == 1 != size for part, size in zip(parts, sizes, strict=True)) and all(
        part.shape[axis] == 1 for part in parts
    ):
        flow.give(node.outputs[0], functools.reduce(flow.same, parts))  # not along the channels
        return
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes):
        flow.hold_inputs(node, "Concat joins pieces of unknown size")
        return
    whole = np.broadcast_shapes(*((*part.shape[:axis], 1, *part.shape[axis + 1 :]) for part in parts))
    spread = [
        np.broadcast_to(part, (*whole[:axis], size, *whole[axis + 1 :]))
        for part, size in zip(parts, known, strict=True)
    ]
    flow.give(node.outputs[0], np.concatenate(spread, axis))


def _split(node: Node, flow: Flow) -> None:
    labels = flow.of(node.inputs[0])
    if not labels.any():
        return
    axis = int(node.attrs.get("axis", 0)) % labels.ndim
    if labels.shape[axis] == 1:
        for tensor in node.outputs:
            flow.give(tensor, labels)
        return
    sizes = [(dims_of(tensor) or (None,) * labels.ndim)[axis] for tensor in node.outputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes) or sum(known) != labels.shape[axis]:
        flow.hold(labels, "Split makes pieces of unknown size")
        return
    for tensor, piece in zip(node.outputs, np.split(labels, np.cumsum(known)[:-1], axis), strict=True):
        flow.give(tensor, piece)


def _slice(node: Node, flow: Flow) -> None:
    labels = flow.of(node.inputs[0])
    if not labels.any():
        return
    starts, ends, steps = integers(node, "starts", 1), integers(node, "ends", 2), integers(node, "steps", 4)
    axes = integers(node, "axes", 3)
    if starts is None or ends is None or axes is None or steps is None:
        flow.hold(labels, "Slice has computed bounds")
        return
    index: list[Any] = [slice(None)] * labels.ndim
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[place] if axes else place) % labels.ndim
        if labels.shape[axis] != 1:
            step = steps[place] if steps else 1
            stop = None if step < 0 and end < -labels.shape[axis] else end
            index[axis] = slice(start, stop, step)
    flow.give(node.outputs[0], labels[tuple(index)])


def _gather(node: Node, flow: Flow) -> None:
    labels, indices = flow.of(node.inputs[0]), array_of(node.inputs[1])
    if not labels.any():
        return
    axis = int(node.attrs.get("axis", 0)) % labels.ndim
    added = dims_of(node.inputs[1])
    if labels.shape[axis] == 1 and added is not None:
        shape = labels.shape[:axis] + (1,) * len(added) + labels.shape[axis + 1 :]
        flow.give(node.outputs[0], labels.reshape(shape))
    elif indices is None or added is None:
        flow.hold(labels, "Gather picks channels by computed indices")
    elif indices.size and not -labels.shape[axis] <= indices.min() <= indices.max() < labels.shape[axis]:
        flow.hold(labels, "Gather picks channels that do not exist")
    else:
        flow.give(node.outputs[0], np.take(labels, indices.astype(np.int64), axis))


def _pad(node: Node, flow: Flow) -> None:
    """Zeros have any scale: channels of zeros get variables of their own."""
    labels = flow.of(node.inputs[0])
    if not labels.any():
        return
    pads, axes = integers(node, "pads", 1), integers(node, "axes", 3)
    if pads is None or axes is None or min(pads, default=0) < 0:
        flow.hold(labels, "Pad adds computed amounts, or takes some away")
        return
    value = _pad_value(node)
    places = [axis % labels.ndim for axis in axes] or list(range(labels.ndim))
    widths = [(0, 0)] * labels.ndim
    for place, axis in enumerate(places):
        widths[axis] = (pads[place], pads[place + len(places)])
    along = [axis for axis, width in enumerate(widths) if any(width) and labels.shape[axis] != 1]
    constant = node.attrs.get("mode", "constant") == "constant"
    if constant and value != 0 and any(map(any, widths)):
        flow.hold(labels, "Pad adds something other than zeros")
    elif not along:
        flow.give(node.outputs[0], labels)
    elif not constant:
        flow.hold(labels, "Pad repeats its channels")
    else:
        kept = [widths[axis] if axis in along else (0, 0) for axis in range(labels.ndim)]
        padded = np.pad(labels, kept, constant_values=-1)
        padded[padded == -1] = flow.fresh(int((padded == -1).sum()))
        flow.give(node.outputs[0], padded)


def _pad_value(node: Node) -> float | None:
    """Return what is added, None where that is computed."""
    if len(node.inputs) > 2 and node.inputs[2].name:
        values = array_of(node.inputs[2])
        return None if values is None else float(values.reshape(-1)[0])
    return float(node.attrs.get("value", 0.0))


def _reshape(node: Node, flow: Flow) -> None:
    """Reshape and Flatten: element by element where axes are split or merged."""
    labels, before, after = flow.of(node.inputs[0]), dims_of(node.inputs[0]), dims_of(node.outputs[0])
    if not labels.any():
        return
    moved = None if before is None or after is None else reshaped(labels, before, after)
    if moved is None:
        flow.hold(labels, f"{node.op} mixes its channels with an axis of unknown size")
    else:
        flow.give(node.outputs[0], moved)


def reshaped(labels: Labels, before: Sequence[Dim], after: Sequence[Dim]) -> Labels | None:
    """Return the labels of a reshaped tensor, None where they cannot be told.

    Axes that are the same from either end stay as they are. Those between are cut where products of sizes agree, and a
    part is spread out, element by element, only if scales vary in it.
    """
    start, end = _common(before, after)
    middle = slice(start, len(before) - end), slice(start, len(after) - end)
    own, left, right = labels.shape[middle[0]], _sizes(before[middle[0]]), _sizes(after[middle[1]])
    spread, new = [1] * len(own), [1] * (len(after) - start - end)
    if any(size != 1 for size in own):
        if left is None or right is None or math.prod(left) != math.prod(right):
            return None
        for i, j in _parts(left, right):
            if any(size != 1 for size in own[i]):
                if UNKNOWN in left[i]:
                    return None
                spread[i], new[j] = left[i], right[j]
    head, tail = labels.shape[:start], labels.shape[len(before) - end :]
    if math.prod((*head, *spread, *tail)) > LARGEST:
        return None
    return _narrowed(np.broadcast_to(labels, (*head, *spread, *tail)).reshape((*head, *new, *tail)))


def _narrowed(labels: Labels) -> Labels:
    """Return labels without the axes along which they do not vary."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis)
        labels = first if (labels == first).all() else labels
    return labels


def _common(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[int, int]:
    """Return how many axes at the start, and at the end, are the same on both sides."""
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and before[start] == after[start] is not None:
        start += 1
    end = 0
    while end < shorter - start and before[-1 - end] == after[-1 - end] is not None:
        end += 1
    return start, end


def _sizes(dims: Sequence[Dim]) -> list[int] | None:
    """Return all sizes as numbers, one unknown as a prime; None where two are unknown, or one is 0."""
    if sum(not isinstance(dim, int) for dim in dims) > 1 or 0 in dims:
        return None
    return [dim if isinstance(dim, int) else UNKNOWN for dim in dims]


def _parts(left: Sequence[int], right: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield stretches of axes that hold as many elements on both sides, as short as can be."""
    i = j = 0
    while i < len(left) and j < len(right):
        first = i, j
        a, b = left[i], right[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * left[i], i + 1
            else:
                b, j = b * right[j], j + 1
        yield slice(first[0], i), slice(first[1], j)


def _expand(node: Node, flow: Flow) -> None:
    labels, after = flow.of(node.inputs[0]), dims_of(node.outputs[0])
    if labels.any() and after is None:
        flow.hold(labels, "Expand makes a shape that is not known")
    elif after is not None:
        flow.give(node.outputs[0], labels.reshape((1,) * (len(after) - labels.ndim) + labels.shape))


def _depth_to_space(node: Node, flow: Flow) -> None:
    """Channels of a block lie apart (DCR) or side by side (CRD); all that make one channel share its scale."""
    labels, dims = flow.of(node.inputs[0]), dims_of(node.inputs[0])
    if not labels.any():
        return
    block = int(node.attrs["blocksize"]) ** 2
    if labels.size != labels.shape[1] or dims is None or not isinstance(dims[1], int):
        flow.hold(labels, f"{node.op} mixes scales")
        return
    channels = np.broadcast_to(labels.reshape(-1), (dims[1],))
    if node.op == "SpaceToDepth":
        flow.give(node.outputs[0], np.tile(channels, block).reshape(1, -1, 1, 1))
        return
    rows = channels.reshape(-1, block).T if node.attrs.get("mode", "DCR") == "CRD" else channels.reshape(block, -1)
    for row in rows[1:]:
        flow.same(rows[0], row)
    flow.give(node.outputs[0], rows[0].reshape(1, -1, 1, 1))


RULES = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _depth_to_space,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
}
"""Rules by operator of the standard domain."""
