"""Cutting: remove units of coupled channels from constants, and mend what counts or points at channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.analysis import forget_shapes, infer_shapes
from onnxslim.analysis.channels import ChannelGroup, Channels, analyze_channels
from onnxslim.analysis.relations import Counted, Indices, Key, Picked, Pieces, Sized, Use, Window
from onnxslim.errors import PassError
from onnxslim.ir import Constant, Node, Rewriter, anchor_of, array_of

Kept = dict[Key, Indices]
"""The indices that stay, of each dimension of each group that is cut."""


def cut(rewriter: Rewriter, removed: Mapping[str, tuple[int, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """Remove units from groups; shapes are inferred anew.

    Args:
        removed: by anchor, the size that the group must have, and the units to remove.

    Returns:
        By anchor, the output channels that layers still have, where those are not all of them.

    Raises:
        PassError: the cuts do not fit the model.
    """
    channels = analyze_channels(rewriter.model)
    groups = {group.anchor: group for group in channels.groups}
    kept: Kept = {}
    for anchor, (size, units) in removed.items():
        kept.update(_kept(anchor, groups.get(anchor), size, units))
    outputs = _outputs(rewriter, kept)
    _cut_constants(rewriter, channels, kept)
    for adjustment in channels.adjustments:
        _ADJUST[type(adjustment)](rewriter, adjustment, kept)
    forget_shapes(rewriter.model)
    rewriter.finish()
    infer_shapes(rewriter.model)
    return outputs


def _outputs(rewriter: Rewriter, kept: Kept) -> dict[str, tuple[int, ...]]:
    found = {}
    for node in rewriter.model.graph.nodes:
        axis = 1 if node.op.startswith("Conv") else len(node.outputs[0].shape or ()) - 1
        indices = kept.get((id(node.outputs[0]), axis))
        if indices is not None:
            found[anchor_of(node)] = tuple(indices.tolist())
    return found


def _kept(anchor: str, group: ChannelGroup | None, size: int, units: tuple[int, ...]) -> Kept:
    if group is None or group.frozen or group.size != size:
        raise PassError(f"the plan does not fit the model: no prunable group of {size} channels at {anchor!r}")
    gone = np.zeros(size, np.bool_)
    if any(not 0 <= unit < size for unit in units):
        raise PassError(f"the plan removes channels that do not exist of the group at {anchor!r}")
    gone[list(units)] = True
    if (gone & group.held).any():
        raise PassError(f"the plan removes channels that must stay of the group at {anchor!r}")
    kept = {dimension.key: np.flatnonzero(~gone[group.units[dimension.key]]) for dimension in group.dimensions}
    if any(not len(indices) for indices in kept.values()):
        raise PassError(f"the plan removes all channels of a layer of the group at {anchor!r}")
    return kept


def _cut_constants(rewriter: Rewriter, channels: Channels, kept: Kept) -> None:
    """Give every reader its part of a constant; readers that keep the same share one."""
    cuts: dict[int, tuple[Constant | Use, dict[int, Indices]]] = {}
    for group in channels.groups:
        for dimension in group.dimensions:
            if dimension.key in kept and isinstance(dimension.owner, Constant | Use):
                _, axes = cuts.setdefault(id(dimension.owner), (dimension.owner, {}))
                axes[dimension.axis] = kept[dimension.key]
    shared: dict[tuple[Any, ...], Constant] = {}
    for owner, axes in cuts.values():
        constant = owner.constant if isinstance(owner, Use) else owner
        readers = [(owner.node, owner.slot)] if isinstance(owner, Use) else channels.weights[id(owner)]
        key = (id(constant), *((axis, indices.tobytes()) for axis, indices in sorted(axes.items())))
        if key not in shared:
            shared[key] = rewriter.constant(constant.name, _take(constant, axes))
        for node, slot in readers:
            rewriter.set_input(node, slot, shared[key])


def _take(constant: Constant, axes: Mapping[int, Indices]) -> npt.NDArray[Any]:
    values = array_of(constant)
    assert values is not None  # noqa: S101  (it is a constant)
    for axis, indices in axes.items():
        values = np.take(values, indices, axis=axis)
    return values


# ---- what counts or points at channels -------------------------------------------------------------------------------


def _count(rewriter: Rewriter, this: Counted, kept: Kept) -> None:
    if this.dimension.key in kept:
        rewriter.set_attr(this.node, this.attribute, len(kept[this.dimension.key]) // this.per)


def _size(rewriter: Rewriter, this: Sized, kept: Kept) -> None:
    if this.dimension.key in kept:
        _write(rewriter, this.node, "", this.slot, {this.position: len(kept[this.dimension.key])})


def _pieces(rewriter: Rewriter, this: Pieces, kept: Kept) -> None:
    if not any(output.key in kept for output in this.outputs):
        return
    sizes = [len(kept[output.key]) if output.key in kept else output.size for output in this.outputs]
    if rewriter.model.opset < 13:
        rewriter.set_attr(this.node, "split", sizes)
        return
    rewriter.set_attr(this.node, "num_outputs", None)
    rewriter.set_input(this.node, 1, rewriter.constant("split", np.array(sizes, np.int64)))


def _window(rewriter: Rewriter, this: Window, kept: Kept) -> None:
    if this.outer.key not in kept:
        return
    outer, inner = kept[this.outer.key], kept[this.inner.key]
    before = int((outer < this.start).sum())
    if this.node.op == "Slice":
        place = _place(this.node, this.axis, len(_integers(this.node, "starts", 1)))
        _write(rewriter, this.node, "starts", 1, {place: before})
        _write(rewriter, this.node, "ends", 2, {place: before + len(inner)})
        return
    count = len(_integers(this.node, "pads", 1)) // 2
    place = _place(this.node, this.axis, count)
    after = len(outer) - before - len(inner)
    _write(rewriter, this.node, "pads", 1, {place: before, place + count: after})


def _place(node: Node, axis: int, count: int) -> int:
    """Return where ``axis`` stands among the axes of a Slice or Pad."""
    axes = _integers(node, "axes", 3) or list(range(count))
    rank = len(node.inputs[0].shape)
    return [each % rank for each in axes].index(axis)


def _picked(rewriter: Rewriter, this: Picked, kept: Kept) -> None:
    if this.source.key not in kept:
        return
    constant = this.node.inputs[1]
    old = array_of(constant)
    assert old is not None  # noqa: S101  (the rule saw to it)
    values = np.where(old < 0, old + this.source.size, old)
    if this.picked is not None:
        values = values[kept[this.picked.key]]
    new = np.searchsorted(kept[this.source.key], values).astype(old.dtype)
    rewriter.set_input(this.node, 1, rewriter.constant(constant.name, new))


def _integers(node: Node, name: str, slot: int) -> list[int]:
    if name in node.attrs:
        return [int(value) for value in node.attrs[name]]
    values = array_of(node.inputs[slot]) if len(node.inputs) > slot else None
    return [] if values is None else [int(value) for value in values.reshape(-1)]


def _write(rewriter: Rewriter, node: Node, name: str, slot: int, changes: Mapping[int, int]) -> None:
    """Change single integers of an attribute, or of the constant input that later opsets have instead."""
    values = _integers(node, name, slot)
    for position, value in changes.items():
        values[position] = value
    if name in node.attrs:
        rewriter.set_attr(node, name, values)
        return
    old = node.inputs[slot]
    kind = array_of(old)
    assert kind is not None  # noqa: S101  (the rule saw to it)
    rewriter.set_input(node, slot, rewriter.constant(old.name, np.array(values, kind.dtype).reshape(kind.shape)))


_ADJUST: dict[type[Any], Any] = {
    Counted: _count,
    Sized: _size,
    Pieces: _pieces,
    Window: _window,
    Picked: _picked,
}
