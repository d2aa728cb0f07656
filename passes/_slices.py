"""What a Slice cuts, in one form for all versions of the operator."""

from __future__ import annotations

import numpy as np

from onnxslim.ir import Node, array_of

Cuts = dict[int, tuple[int, int, int]]
"""Start, end and step by axis, as the node says them."""

TO_THE_END = 2**31 - 1
"""Exporters write at least this for an end that is not known in numbers."""


def cuts_of(node: Node) -> Cuts | None:
    """Return what a Slice cuts, None where its bounds are computed. Axes are as the node says them."""
    if "starts" in node.attrs:  # before opset 10
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        axes, steps = list(node.attrs.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        given = [array_of(tensor) if tensor.name else np.array([]) for tensor in node.inputs[1:5]]
        if any(array is None for array in given):
            return None
        lists = [[int(value) for value in array.reshape(-1)] for array in given if array is not None]
        starts, ends = lists[0], lists[1]
        axes = lists[2] if len(lists) > 2 and lists[2] else list(range(len(starts)))
        steps = lists[3] if len(lists) > 3 and lists[3] else [1] * len(starts)
    return {a: (s, e, step) for a, s, e, step in zip(axes, starts, ends, steps, strict=True)}
