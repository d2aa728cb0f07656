"""Rules of operators that carry channels to another place, or leave them where they are.

See ``channel_rules`` for what a rule is and for the table of them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxslim.analysis.relations import Relations
from onnxslim.ir import Node, array_of, dims_of


def keep_rule(node: Node, relations: Relations) -> None:
    """The output's channels are the input's."""
    axis = relations.axes.get(id(node.inputs[0]))
    if axis is None:
        relations.freeze_node(node, f"the input of {node.op} is not understood")
        return
    relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], axis))
    for extra in node.outputs[1:]:
        if extra.outputs:
            relations.freeze(relations.channel(node.inputs[0]), f"a second output of {node.op} is read")


def concat_rule(node: Node, relations: Relations) -> None:
    """Pieces follow each other along the channels, or lie side by side along another axis."""
    dims = dims_of(node.outputs[0]) or dims_of(node.inputs[0])
    axes = {relations.axes.get(id(tensor)) for tensor in node.inputs}
    if dims is None or len(axes) != 1 or None in axes:
        relations.freeze_node(node, "pieces of a Concat do not line up, or are not understood")
        return
    axis = axes.pop()
    out = relations.follow(node.outputs[0], axis or 0)
    if int(node.attrs["axis"]) % len(dims) != axis:
        for tensor in node.inputs:
            relations.relate(relations.channel(tensor), out)
        return
    offset = 0
    for tensor in node.inputs:
        piece = relations.channel(tensor)
        if piece is None or out is None:
            relations.freeze_node(node, "the size of a piece of a Concat is unknown")
            return
        index = np.arange(piece.size)
        relations.relate(piece, out, index, index + offset)
        offset += piece.size


def transpose_rule(node: Node, relations: Relations) -> None:
    """The channel axis moves to where the permutation puts it."""
    axis, perm = relations.axes.get(id(node.inputs[0])), node.attrs.get("perm")
    if axis is None or perm is None:
        relations.freeze_node(node, "it reverses all axes")
        return
    relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], list(perm).index(axis)))


def flatten_rule(node: Node, relations: Relations) -> None:
    """N x C x … to N x (C·…)."""
    if int(node.attrs.get("axis", 1)) != 1:
        relations.freeze_node(node, "it flattens the batch axis too")
        return
    _merge_tail(node, relations)


def reshape_rule(node: Node, relations: Relations) -> None:
    """N x C x … to N x (C·…), or the other way round when the rest is 1."""
    target, before, after = array_of(node.inputs[1]), dims_of(node.inputs[0]), dims_of(node.outputs[0])
    if target is None or before is None or after is None or relations.axes.get(id(node.inputs[0])) != 1:
        relations.freeze_node(node, "a Reshape whose effect on channels is not understood")
    elif len(after) == 2:
        if _merge_tail(node, relations) and int(target[1]) > 0:
            _note_target(node, relations)
    elif len(after) > 2 and all(d == 1 for d in (*before[2:], *after[2:])) and before[1] == after[1]:
        relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], 1))
        if int(target[1]) > 0:
            _note_target(node, relations)
    else:
        relations.freeze_node(node, "a Reshape whose effect on channels is not understood")


def _note_target(node: Node, relations: Relations) -> None:
    out = relations.channel(node.outputs[0])
    if out is not None:
        relations.targets.append((node, 1, out))


def _merge_tail(node: Node, relations: Relations) -> bool:
    """Couple entry i of the flattened tensor with channel i // (product of the axes after it)."""
    source, before = relations.channel(node.inputs[0]), dims_of(node.inputs[0])
    sizes = [dim for dim in (before or ())[2:] if isinstance(dim, int)]
    if before is None or source is None or source.axis != 1 or len(sizes) != len(before) - 2:
        relations.freeze_node(node, "it flattens a tensor of unknown size")
        return False
    inner = math.prod(sizes)
    dims = dims_of(node.outputs[0])
    out = relations.follow(node.outputs[0], 1)
    if dims is None or len(dims) != 2 or out is None or out.size != source.size * inner:
        relations.freeze_node(node, "it flattens a tensor of unknown size")
        return False
    index = np.arange(out.size)
    relations.relate(source, out, index // max(inner, 1), index)
    return True


def squeeze_rule(node: Node, relations: Relations) -> None:
    """Axes of size 1 come or go; the channel axis keeps its place among the others."""
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    axis, axes = relations.axes.get(id(node.inputs[0])), _axes(node)
    if before is None or after is None or axis is None or axes is None:
        relations.freeze_node(node, f"axes of a {node.op} are unknown")
        return
    longer = max(len(before), len(after))
    touched = {a % longer for a in axes}
    if node.op == "Squeeze" and axis in touched:
        relations.freeze_node(node, "it removes the channel axis")
        return
    kept = [a for a in range(longer) if a not in touched]
    new = kept[axis] if node.op == "Unsqueeze" else kept.index(axis)
    relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], new))


def reduce_rule(node: Node, relations: Relations) -> None:
    """Reducing other axes keeps channels; without keepdims their axis moves up."""
    before, axis, axes = dims_of(node.inputs[0]), relations.axes.get(id(node.inputs[0])), _axes(node)
    if before is None or axis is None or axes is None or axis in {a % len(before) for a in axes}:
        relations.freeze_node(node, f"{node.op} mixes channels")
        return
    dropped = 0 if node.attrs.get("keepdims", 1) else sum(a % len(before) < axis for a in axes)
    relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], axis - dropped))


def _axes(node: Node) -> Sequence[int] | None:
    """Return the axes of a Squeeze, Unsqueeze or reduction, as attribute or constant input."""
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    values = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if values is None else [int(axis) for axis in values.reshape(-1)]


def pad_rule(node: Node, relations: Relations) -> None:
    """Padding other axes keeps channels."""
    axis, dims = relations.axes.get(id(node.inputs[0])), dims_of(node.inputs[0])
    pads = node.attrs.get("pads")
    if pads is None and len(node.inputs) < 4:
        array = array_of(node.inputs[1])
        pads = None if array is None else array.tolist()
    if (
        axis is None
        or dims is None
        or pads is None
        or len(pads) != 2 * len(dims)
        or pads[axis]
        or pads[axis + len(dims)]
    ):
        relations.freeze_node(node, "it pads channels, or by computed amounts")
        return
    keep_rule(node, relations)


def slice_rule(node: Node, relations: Relations) -> None:
    """A Slice of other axes keeps channels; the output's channels are then as many as the input's."""
    source, after = relations.channel(node.inputs[0]), dims_of(node.outputs[0])
    axes = node.attrs.get("axes") if "starts" in node.attrs else None
    if axes is None and len(node.inputs) > 3:
        values = array_of(node.inputs[3])
        axes = None if values is None else values.tolist()
    if source is None or after is None or axes is None or source.axis in {int(a) % len(after) for a in axes}:
        relations.freeze_node(node, "it slices channels, or along computed axes")
        return
    keep_rule(node, relations)


def resize_rule(node: Node, relations: Relations) -> None:
    """Scales leave the channel axis alone when its scale is 1; sizes would name the number of channels."""
    axis = relations.axes.get(id(node.inputs[0]))
    scales = node.attrs.get("scales")  # of Upsample before opset 9
    if scales is None and 1 < len(node.inputs) < 4:
        array = array_of(node.inputs[2 if len(node.inputs) > 2 else 1])
        scales = None if array is None else array.reshape(-1).tolist()
    if axis is None or scales is None or axis >= len(scales) or scales[axis] != 1:
        relations.freeze_node(node, "it resizes channels, or to fixed sizes")
        return
    keep_rule(node, relations)
