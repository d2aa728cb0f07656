"""remove-noops: drop operations that change nothing, and join pairs that undo or repeat each other.

Given → Result, numbered as in the code:

1. Identity, Dropout at inference, Cast to the same type, Transpose to the same order, Concat, Sum, Max, Min or Mean of
   one tensor, Split into one, pooling over one element, Clip without bounds, Resize by 1 → their input;
2. Reshape, Flatten, Squeeze, Unsqueeze, Expand, Tile, Slice or Pad to the shape that is there already → their input;
3. adding or subtracting 0, multiplying with, dividing by or raising to 1, where the shape stays → the operand;
4. pairs: see ``_pairs.py``.

Shapes with symbols are compared with care: a symbol on a graph's output is what its author called the dimension, and
may stand on another tensor too. So Slice and Expand are judged by what they are told to do; the others keep the number
of elements, which proves that one dimension is equal when all others are.

Left alone: what returns a graph's input or constant under an output's name (nothing else could bear the name); shapes
that are not known to be equal; a training Dropout, or one whose mask is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Graph, Node, Rewriter, Tensor, array_of, dims_of, numpy_dtype
from onnxslim.passes._pairs import JoinPair
from onnxslim.passes._slices import TO_THE_END, cuts_of
from onnxslim.pipeline import Rule, RulePass

Condition = Callable[[Node], bool]


class RemoveNoop(Rule):
    """One operation whose first output always equals its first input (cases 1 and 2)."""

    ops = frozenset()  # filled in below, from the table of conditions

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Let readers of the output read the input."""
        if any(t.outputs or rewriter.is_output(t) for t in node.outputs[1:]) or not node.inputs:
            return
        if _NOOPS[node.op](node) and rewriter.replace(node.outputs[0], node.inputs[0]):
            rewriter.remove(node)


class RemoveNeutral(Rule):
    """Arithmetic with a neutral constant (case 3)."""

    ops = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Let readers of the result read the operand."""
        neutral = 0 if node.op in ("Add", "Sub") else 1
        sides = (0, 1) if node.op in ("Add", "Mul") else (0,)
        for side in sides:
            data, other = node.inputs[side], node.inputs[1 - side]
            if _is_neutral(data, other, neutral) and rewriter.replace(node.outputs[0], data):
                rewriter.remove(node)
                return


def _is_neutral(data: Tensor, other: Tensor, neutral: int) -> bool:
    """Whether ``other`` holds nothing but ``neutral`` and does not broadcast ``data`` to a larger shape."""
    dims, shape = dims_of(data), dims_of(other)
    constant = array_of(other)
    if constant is None or constant.dtype == object or dims is None or shape is None or len(shape) > len(dims):
        return False
    if any(size not in (1, dim) for size, dim in zip(reversed(shape), reversed(dims), strict=False)):
        return False
    return constant.size > 0 and bool(constant.flat[0] == neutral) and bool((constant == neutral).all())


# ---- cases 1 and 2 ------------------------------------------------------------------------------------------------


def _always(node: Node) -> bool:
    return True


def _single(node: Node) -> bool:
    return len(node.inputs) == 1


def _dropout(node: Node) -> bool:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    training = array_of(node.inputs[2])
    return training is not None and not training.any()


def _cast(node: Node) -> bool:
    source = numpy_dtype(node.inputs[0].dtype)
    target = node.attrs["to"] if node.op == "Cast" else node.inputs[1].dtype
    return source is not None and source == numpy_dtype(target)


def _transpose(node: Node) -> bool:
    perm = node.attrs.get("perm")
    return perm is not None and list(perm) == sorted(perm)


def _pool(node: Node) -> bool:
    ones = [*node.attrs.get("kernel_shape", [0]), *node.attrs.get("strides", [1])]
    return set(ones) == {1} and not any(node.attrs.get("pads", []))


def _clip(node: Node) -> bool:
    return not ({"min", "max"} & node.attrs.keys()) and not any(tensor.name for tensor in node.inputs[1:])


_EXACT_AT_ONE = {"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"}


def _resize(node: Node) -> bool:
    scales = array_of(node.inputs[1 if len(node.inputs) == 2 else 2]) if len(node.inputs) in (2, 3) else None
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    return scales is not None and scales.size > 0 and bool((scales == 1).all()) and mode in _EXACT_AT_ONE


def _same_elements(node: Node) -> bool:
    """Whether an operation that keeps the elements, in order, keeps the shape too."""
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    if before is None or before != after or None in before or 0 in before:
        return False
    return sum(isinstance(dim, str) for dim in before) <= 1


def _reshape(node: Node) -> bool:
    """A target of zeros (copy this dimension), dimensions as they are and one −1 says: as it is."""
    dims, target = dims_of(node.inputs[0]), array_of(node.inputs[1])
    if dims is None or target is None or node.attrs.get("allowzero") or 0 in dims or len(dims) != target.size:
        return _same_elements(node)
    told = target.reshape(-1).tolist()
    kept = sum(element in (0, dim) for element, dim in zip(told, dims, strict=True))
    return kept == len(dims) or (kept == len(dims) - 1 and -1 in told) or _same_elements(node)


def _flatten(node: Node) -> bool:
    dims = dims_of(node.inputs[0])
    return (dims is not None and len(dims) == 2 and node.attrs.get("axis", 1) in (1, -1)) or _same_elements(node)


def _expand(node: Node) -> bool:
    dims, target = dims_of(node.inputs[0]), array_of(node.inputs[1])
    if dims is None:
        return False
    if target is None:
        return dims == dims_of(node.outputs[0]) and all(isinstance(dim, int) for dim in dims)
    told = target.reshape(-1).tolist()
    return len(told) <= len(dims) and all(size in (1, dim) for size, dim in zip(told[::-1], dims[::-1], strict=False))


def _slice(node: Node) -> bool:
    dims, cuts = dims_of(node.inputs[0]), cuts_of(node)
    if cuts is None or dims is None:
        return False
    for axis, (start, end, step) in cuts.items():
        dim = dims[axis]
        whole = end >= (dim if isinstance(dim, int) else TO_THE_END)
        if step != 1 or start != 0 or not whole:
            return False
    return True


def _pad(node: Node) -> bool:
    """Pads of +1 and −1 could shift the data and keep the shape."""
    pads = node.attrs["pads"] if "pads" in node.attrs else array_of(node.inputs[1])
    return pads is not None and not np.any(pads)


def _tile(node: Node) -> bool:
    repeats = array_of(node.inputs[1])
    return repeats is not None and bool((repeats == 1).all())


_NOOPS: dict[str, Condition] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "Transpose": _transpose,
    "Concat": _single,
    "Sum": _single,
    "Max": _single,
    "Min": _single,
    "Mean": _single,
    "Split": lambda node: len(node.outputs) == 1,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Clip": _clip,
    "Resize": _resize,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _same_elements,
    "Unsqueeze": _same_elements,
    "Expand": _expand,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
}
RemoveNoop.ops = frozenset(_NOOPS)


@dataclass(frozen=True)
class RemoveNoops(RulePass):
    """Remove operations that change nothing, and join pairs that undo or repeat each other."""

    name = "remove-noops"
    rules = (RemoveNoop(), RemoveNeutral(), JoinPair())
