"""Rules of operators that move channels, take some of them, or put them beside each other.

See ``channel_rules`` for what a rule is and for the table of them all.
"""

from __future__ import annotations

import numpy as np

from onnxslim.analysis.relations import Dimension, Picked, Pieces, Relations, Sized, Window, integers
from onnxslim.ir import Constant, Node, Tensor, array_of, dims_of


def _rank(tensor: Tensor) -> int:
    return len(dims_of(tensor) or ())


def transpose_rule(node: Node, relations: Relations) -> None:
    """Each axis goes where the permutation puts it; without one they are reversed."""
    rank = _rank(node.inputs[0])
    perm = integers(node, "perm") or list(range(rank))[::-1]
    if rank == 0 or len(perm) != rank:
        relations.freeze_node(node, "it permutes a tensor of unknown rank")
        return
    for target, source in enumerate(perm):
        relations.relate(relations.axis(node.inputs[0], source), relations.axis(node.outputs[0], target))


def squeeze_rule(node: Node, relations: Relations) -> None:
    """Axes of size 1 come or go; the others keep their order."""
    before, after = _rank(node.inputs[0]), _rank(node.outputs[0])
    longer = max(before, after)
    given = integers(node, "axes", 1)
    if given == [] and node.op == "Squeeze":
        given = [axis for axis, size in enumerate(dims_of(node.inputs[0]) or ()) if size == 1]
    touched = {axis % max(longer, 1) for axis in given or ()}
    if not before or len(touched) != abs(before - after):
        relations.freeze_node(node, f"axes of a {node.op} are unknown")
        return
    kept = [axis for axis in range(longer) if axis not in touched]
    for short, long in enumerate(kept):
        pair = (short, long) if node.op == "Unsqueeze" else (long, short)
        relations.relate(relations.axis(node.inputs[0], pair[0]), relations.axis(node.outputs[0], pair[1]))


def reduce_rule(node: Node, relations: Relations) -> None:
    """What is reduced is mixed; the other axes stay, and move up where it is dropped."""
    rank, given = _rank(node.inputs[0]), integers(node, "axes", 1)
    if node.op in ("ArgMax", "ArgMin"):
        given = [int(node.attrs.get("axis", 0))]
    if given is None or not rank:
        relations.freeze_node(node, f"{node.op} over unknown axes")
        return
    if not given and node.attrs.get("noop_with_empty_axes"):
        relations.keep(node.inputs[0], node.outputs[0])
        return
    reduced = {axis % rank for axis in given} or set(range(rank))
    for axis in range(rank):
        if axis in reduced:
            relations.freeze(relations.axis(node.inputs[0], axis), f"{node.op} mixes it")
            continue
        dropped = 0 if node.attrs.get("keepdims", 1) else sum(a < axis for a in reduced)
        relations.relate(relations.axis(node.inputs[0], axis), relations.axis(node.outputs[0], axis - dropped))


# ---- beside each other -------------------------------------------------------------------------------------------


def concat_rule(node: Node, relations: Relations) -> None:
    """Pieces follow each other along one axis, and agree along the others."""
    out, rank = node.outputs[0], _rank(node.outputs[0])
    axis = int(node.attrs["axis"]) % max(rank, 1)
    for other in range(rank):
        if other != axis:
            for slot in range(len(node.inputs)):
                relations.relate(relations.parameter(node, slot, other), relations.axis(out, other))
    pieces = [relations.parameter(node, slot, axis) for slot in range(len(node.inputs))]
    _lay_out(pieces, relations.axis(out, axis), relations)


def split_rule(node: Node, relations: Relations) -> None:
    """The reverse: pieces are taken one after the other."""
    source, rank = node.inputs[0], _rank(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % max(rank, 1)
    for other in range(rank):
        if other != axis:
            for tensor in node.outputs:
                relations.relate(relations.axis(source, other), relations.axis(tensor, other))
    pieces = [relations.axis(tensor, axis) for tensor in node.outputs]
    _lay_out(pieces, relations.axis(source, axis), relations)
    known = tuple(piece for piece in pieces if piece is not None)
    if len(known) == len(node.outputs):
        relations.adjustments.append(Pieces(node, known))


def _lay_out(pieces: list[Dimension | None], whole: Dimension | None, relations: Relations) -> None:
    """Relate each piece with its stretch of the whole."""
    known = [piece for piece in pieces if piece is not None]
    if whole is None or len(known) != len(pieces) or sum(piece.size for piece in known) != whole.size:
        for dimension in (*known, whole):
            relations.freeze(dimension, "the size of a piece beside it is unknown")
        return
    offset = 0
    for piece in known:
        index = np.arange(piece.size)
        relations.relate(piece, whole, index, index + offset)
        offset += piece.size


# ---- windows -----------------------------------------------------------------------------------------------------


def pad_rule(node: Node, relations: Relations) -> None:
    """Other axes are padded as they are; constant channels come before and after the input's."""
    source, out, rank = node.inputs[0], node.outputs[0], _rank(node.inputs[0])
    pads, axes = integers(node, "pads", 1), integers(node, "axes", 3)
    if not pads or axes is None or not rank:
        relations.freeze_node(node, "it pads by computed amounts")
        return
    places = [axis % rank for axis in axes] or list(range(rank))
    if len(pads) != 2 * len(places):
        relations.freeze_node(node, "it pads by amounts that do not fit")
        return
    amounts = {axis: (pads[i], pads[i + len(places)]) for i, axis in enumerate(places)}
    for axis in range(rank):
        before, after = amounts.get(axis, (0, 0))
        inner, outer = relations.axis(source, axis), relations.axis(out, axis)
        if not before and not after:
            relations.relate(inner, outer)
        elif min(before, after) >= 0 and node.attrs.get("mode", "constant") == "constant":
            _window(node, axis, outer, inner, before, relations)


def slice_rule(node: Node, relations: Relations) -> None:
    """Axes that are not sliced stay; channels are taken as a stretch."""
    source, out, rank = node.inputs[0], node.outputs[0], _rank(node.inputs[0])
    starts, ends, steps = integers(node, "starts", 1), integers(node, "ends", 2), integers(node, "steps", 4)
    axes = integers(node, "axes", 3)
    if starts is None or ends is None or axes is None or steps is None or not rank:
        relations.freeze_node(node, "it slices by computed bounds")
        return
    places = [axis % rank for axis in axes] or list(range(len(starts)))
    for axis in range(rank):
        inner, outer = relations.axis(out, axis), relations.axis(source, axis)
        if axis not in places:
            relations.relate(outer, inner)
        elif outer is not None and inner is not None and (not steps or steps[places.index(axis)] == 1):
            start = starts[places.index(axis)]
            start = max(start + outer.size, 0) if start < 0 else min(start, outer.size)
            _window(node, axis, outer, inner, start, relations)


def _window(
    node: Node, axis: int, outer: Dimension | None, inner: Dimension | None, start: int, relations: Relations
) -> None:
    if outer is None or inner is None or start + inner.size > outer.size:
        return
    index = np.arange(inner.size)
    relations.relate(inner, outer, index, index + start)
    relations.adjustments.append(Window(node, axis, outer, inner, start))


def gather_rule(node: Node, relations: Relations) -> None:
    """Constant indices pick channels; other axes stay and move by the rank of the indices.

    A constant table that computed indices look up has its filters along its columns (an embedding).
    """
    data, indices, out = node.inputs[0], array_of(node.inputs[1]), node.outputs[0]
    rank, added = _rank(data), _rank(node.inputs[1])
    if not rank or dims_of(node.inputs[1]) is None:
        relations.freeze_node(node, "it gathers from a tensor of unknown rank")
        return
    axis = int(node.attrs.get("axis", 0)) % rank
    for other in range(rank):
        if other != axis:
            target = relations.axis(out, other if other < axis else other + added - 1)
            relations.relate(relations.axis(node.inputs[0], other), target)
            if isinstance(data, Constant) and other == rank - 1:
                relations.produce(node, relations.axis(node.inputs[0], other))
    if indices is not None and added <= 1:
        _pick(node, axis, indices, relations)


def _pick(
    node: Node, axis: int, indices: np.ndarray[tuple[int, ...], np.dtype[np.int64]], relations: Relations
) -> None:
    source = relations.axis(node.inputs[0], axis)
    if source is None:
        return
    wanted = np.where(indices < 0, indices + source.size, indices).reshape(-1).astype(np.int64)
    if not wanted.size or wanted.min() < 0 or wanted.max() >= source.size:
        return
    picked = relations.axis(node.outputs[0], axis) if indices.ndim else None
    if picked is None:
        relations.freeze(source, "Gather takes one of its indices", wanted)
    else:
        relations.relate(source, picked, wanted, np.arange(picked.size))
    relations.adjustments.append(Picked(node, source, picked))


# ---- resizing ----------------------------------------------------------------------------------------------------


def resize_rule(node: Node, relations: Relations) -> None:
    """Axes whose scale is 1, or whose size stays, keep their indices."""
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    scales = _scales(node)
    if before is None or after is None or len(before) != len(after):
        relations.freeze_node(node, "it resizes a tensor of unknown rank")
        return
    sizes = array_of(node.inputs[3]) if len(node.inputs) > 3 else None
    for axis in range(len(before)):
        same = scales is not None and len(scales) == len(before) and scales[axis] == 1
        named = sizes is not None and len(sizes) == len(before) and int(sizes[axis]) == before[axis]
        if same or named:
            relations.relate(relations.axis(node.inputs[0], axis), relations.axis(node.outputs[0], axis))
        out = relations.axis(node.outputs[0], axis)
        if named and out is not None:
            relations.adjustments.append(Sized(node, 3, axis, out))


def _scales(node: Node) -> list[float] | None:
    if "scales" in node.attrs:  # of Upsample before opset 9
        return [float(scale) for scale in node.attrs["scales"]]
    slot = 2 if node.op == "Resize" and len(node.inputs) > 2 else 1
    values = array_of(node.inputs[slot]) if len(node.inputs) > slot else None
    return None if values is None or node.attrs.get("axes") else [float(scale) for scale in values.reshape(-1)]


def expand_rule(node: Node, relations: Relations) -> None:
    """Axes that are not repeated stay; a shape that names their size follows it."""
    target, source, out = array_of(node.inputs[1]), node.inputs[0], node.outputs[0]
    if target is None or dims_of(source) is None or dims_of(out) is None:
        relations.freeze_node(node, "it expands to a computed shape")
        return
    shift, lead = _rank(out) - _rank(source), _rank(out) - target.size
    for axis in range(_rank(source)):
        own, result = relations.parameter(node, 0, axis), relations.axis(out, axis + shift)
        if own is not None and result is not None and own.size == result.size:
            relations.relate(own, result)
            position = axis + shift - lead
            if position >= 0 and int(target.reshape(-1)[position]) > 1:
                relations.adjustments.append(Sized(node, 1, position, result))


def depth_to_space_rule(node: Node, relations: Relations) -> None:
    """b·b channels make one; DCR keeps them C apart, CRD side by side. SpaceToDepth is the reverse of DCR."""
    source, out = relations.axis(node.inputs[0], 1), relations.axis(node.outputs[0], 1)
    relations.relate(relations.axis(node.inputs[0], 0), relations.axis(node.outputs[0], 0))
    if source is None or out is None:
        return
    many, few = (source, out) if node.op == "DepthToSpace" else (out, source)
    index = np.arange(many.size)
    block = many.size // few.size
    side_by_side = node.op == "DepthToSpace" and node.attrs.get("mode", "DCR") == "CRD"
    relations.relate(many, few, index, index // block if side_by_side else index % few.size)


# ---- what looks at shapes ----------------------------------------------------------------------------------------


def shape_rule(node: Node, relations: Relations) -> None:
    """The sizes that readers look at must stay: all of them, unless each reader picks by constant indices."""
    rank = _rank(node.inputs[0])
    picked = set(range(rank)) if id(node.outputs[0]) in relations.outputs else set()
    for reader in node.outputs[0].outputs:
        values = array_of(reader.inputs[1]) if reader.op == "Gather" and reader.inputs[0] is node.outputs[0] else None
        if values is None or "start" in node.attrs or "end" in node.attrs:
            picked = set(range(rank))
            break
        picked |= {int(value) % max(rank, 1) for value in values.reshape(-1)}
    for axis in range(rank):
        if axis in picked:
            relations.freeze(relations.axis(node.inputs[0], axis), "its size is computed with")
        else:
            relations.leave(relations.axis(node.inputs[0], axis))
