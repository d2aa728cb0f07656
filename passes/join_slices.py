"""join-slices: two Slices become one, and a Slice that undoes a Concat becomes the piece it wants.

Given   Slice(Slice(x, axes a), axes b)  with no axis in both      → Result: one Slice over a and b
Given   Slice(Concat(…, xᵢ, …))  along the same axis, cutting exactly at the edges of xᵢ      → Result: xᵢ

Left alone: bounds that are computed, axes cut twice or counted from the end, pieces whose size is unknown. The first
node stays where others read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Graph, Node, Rewriter, Tensor, dims_of, is_standard, producer
from onnxslim.passes._slices import Cuts, cuts_of
from onnxslim.pipeline import Rule, RulePass


class SliceOfSlice(Rule):
    """Slice, then Slice."""

    ops = frozenset({"Slice"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Let ``node`` cut what its producer cuts too."""
        first = producer(node.inputs[0])
        if first is None or not is_standard(first, "Slice"):
            return
        before, after = cuts_of(first), cuts_of(node)
        if before is None or after is None or before.keys() & after.keys():
            return
        if any(axis < 0 for axis in (*before, *after)):
            return
        joined = {**before, **after}
        if "starts" in node.attrs:
            if any(step != 1 for _, _, step in joined.values()):
                return
            for index, name in enumerate(("starts", "ends")):
                rewriter.set_attr(node, name, [cut[index] for cut in joined.values()])
            rewriter.set_attr(node, "axes", list(joined))
        else:
            _set_inputs(node, joined, rewriter)
        rewriter.set_input(node, 0, first.inputs[0])


def _set_inputs(node: Node, cuts: Cuts, rewriter: Rewriter) -> None:
    columns = [[cut[0] for cut in cuts.values()], [cut[1] for cut in cuts.values()], list(cuts)]
    columns.append([cut[2] for cut in cuts.values()])
    for index, (hint, values) in enumerate(zip(("starts", "ends", "axes", "steps"), columns, strict=True), start=1):
        rewriter.set_input(node, index, rewriter.constant(f"{node.outputs[0].name}_{hint}", np.array(values, np.int64)))


class SliceOfConcat(Rule):
    """Concat, then a Slice of exactly one of its pieces."""

    ops = frozenset({"Slice"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Let readers of the Slice read the piece."""
        concat = producer(node.inputs[0])
        if concat is None or not is_standard(concat, "Concat") or rewriter.home(concat) is not graph:
            return
        cuts = cuts_of(node)
        dims = dims_of(concat.outputs[0])
        if cuts is None or len(cuts) != 1 or dims is None:
            return
        ((axis, (start, end, step)),) = cuts.items()
        if step != 1 or axis % len(dims) != int(concat.attrs["axis"]) % len(dims):
            return
        piece = _piece(concat, axis, start, end)
        if piece is not None and rewriter.replace(node.outputs[0], piece):
            rewriter.remove(node)


def _piece(concat: Node, axis: int, start: int, end: int) -> Tensor | None:
    """Return the input of ``concat`` that lies exactly between ``start`` and ``end``."""
    sizes: list[int] = []
    for tensor in concat.inputs:
        dims = dims_of(tensor)
        size = None if dims is None else dims[axis]
        if not isinstance(size, int):
            return None
        sizes.append(size)
    begin, stop, _ = slice(start, end).indices(sum(sizes))
    offset = 0
    for tensor, size in zip(concat.inputs, sizes, strict=True):
        if (offset, offset + size) == (begin, stop):
            return tensor
        offset += size
    return None


@dataclass(frozen=True)
class JoinSlices(RulePass):
    """Join Slices of Slices, and read a piece of a Concat directly."""

    name = "join-slices"
    rules = (SliceOfSlice(), SliceOfConcat())
