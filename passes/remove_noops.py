"""remove-noops: drop operations that change nothing, and join pairs that undo or repeat each other.

Given → Result, numbered as in the code:

1. Identity, Dropout at inference, Cast to the same type, Transpose to the same order, Concat or Sum of one tensor,
   pooling over one element → their input;
2. Reshape, Flatten, Squeeze, Unsqueeze, Expand, Tile, Slice or Pad to the shape that is there already → their input;
3. adding or subtracting 0, multiplying with or dividing by 1, where the shape stays → the operand;
4. Transpose of Transpose → one Transpose; Cast of a Cast that lost nothing → one Cast;
5. Reshape of Reshape, Flatten, Squeeze or Unsqueeze → one Reshape;
6. Relu of Relu → one Relu.

Left alone: what returns a graph's input or constant under an output's name (nothing else could bear the name); shapes
that are not known to be equal; a training Dropout, or one whose mask is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim.ir import Graph, Node, Rewriter, Tensor, array_of, dims_of, is_standard, numpy_dtype, producer
from onnxslim.pipeline import Rule, RulePass


class RemoveNoop(Rule):
    """One operation whose first output always equals its first input (cases 1 to 3)."""

    ops = frozenset()  # filled in below, from the table of conditions

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Let readers of the output read the input."""
        if any(t.outputs or rewriter.is_output(t) for t in node.outputs[1:]) or not node.inputs:
            return
        kept = _NOOPS[node.op](node)
        if kept is not None and rewriter.replace(node.outputs[0], kept):
            rewriter.remove(node)


class JoinPair(Rule):
    """Two operations of which one suffices (cases 4 to 6); the first stays if others read it."""

    ops = frozenset({"Transpose", "Cast", "Reshape", "Relu"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Let ``node`` do the work of its producer too."""
        first = producer(node.inputs[0])
        if first is not None and is_standard(first) and first.inputs and first.inputs[0].name:
            _JOINS[node.op](first, node, rewriter)


# ---- cases 1 to 3: which input the output equals, None where it may differ ------------------------------------------

Condition = Callable[[Node], Tensor | None]


def _always(node: Node) -> Tensor | None:
    return node.inputs[0]


def _single(node: Node) -> Tensor | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _dropout(node: Node) -> Tensor | None:
    training = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if training is None:
        return node.inputs[0]
    value = array_of(training)
    return node.inputs[0] if value is not None and not value.any() else None


def _cast(node: Node) -> Tensor | None:
    source = numpy_dtype(node.inputs[0].dtype)
    return node.inputs[0] if source is not None and source == numpy_dtype(int(node.attrs["to"])) else None


def _transpose(node: Node) -> Tensor | None:
    perm = node.attrs.get("perm")
    return node.inputs[0] if perm is not None and list(perm) == sorted(perm) else None


def _pool(node: Node) -> Tensor | None:
    ones = [*node.attrs.get("kernel_shape", [0]), *node.attrs.get("strides", [1])]
    return node.inputs[0] if set(ones) == {1} and not any(node.attrs.get("pads", [])) else None


def _same_shape(node: Node) -> Tensor | None:
    """Compare dimensions; equal symbols are equal sizes, unknown ones are not known to be."""
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    return node.inputs[0] if before is not None and None not in before and before == after else None


def _slice(node: Node) -> Tensor | None:
    """Steps other than 1 could turn the data around and keep the shape."""
    steps = array_of(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
    return _same_shape(node) if steps is not None and (steps == 1).all() else None


def _pad(node: Node) -> Tensor | None:
    """Pads of +1 and −1 could shift the data and keep the shape."""
    pads = node.attrs["pads"] if "pads" in node.attrs else array_of(node.inputs[1])
    return node.inputs[0] if pads is not None and not np.any(pads) else None


def _tile(node: Node) -> Tensor | None:
    repeats = array_of(node.inputs[1])
    return node.inputs[0] if repeats is not None and (repeats == 1).all() else None


def _neutral(value: float, *, either_side: bool) -> Condition:
    """Return the condition that one operand is the scalar ``value`` everywhere and does not enlarge the other."""

    def check(node: Node) -> Tensor | None:
        pairs = [tuple(node.inputs)] + ([tuple(node.inputs[::-1])] if either_side else [])
        for data, other in pairs:
            constant, dims = array_of(other), dims_of(data)
            if constant is None or constant.dtype == object or dims is None or not (constant == value).all():
                continue
            if constant.size == 1 and constant.ndim <= len(dims):
                return data
        return None

    return check


_NOOPS: dict[str, Condition] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Concat": _single,
    "Sum": _single,
    "Max": _single,
    "Min": _single,
    "Mean": _single,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Squeeze": _same_shape,
    "Unsqueeze": _same_shape,
    "Expand": _same_shape,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "Add": _neutral(0, either_side=True),
    "Sub": _neutral(0, either_side=False),
    "Mul": _neutral(1, either_side=True),
    "Div": _neutral(1, either_side=False),
}
RemoveNoop.ops = frozenset(_NOOPS)


# ---- cases 4 to 6 -------------------------------------------------------------------------------------------------


def _join_transposes(first: Node, second: Node, rewriter: Rewriter) -> None:
    if first.op != "Transpose" or "perm" not in first.attrs or "perm" not in second.attrs:
        return
    perm = [first.attrs["perm"][axis] for axis in second.attrs["perm"]]
    rewriter.set_input(second, 0, first.inputs[0])
    rewriter.set_attr(second, "perm", perm)


def _join_casts(first: Node, second: Node, rewriter: Rewriter) -> None:
    if first.op != "Cast":
        return
    source, middle = numpy_dtype(first.inputs[0].dtype), numpy_dtype(int(first.attrs["to"]))
    if source is not None and middle is not None and _loses_nothing(source, middle):
        rewriter.set_input(second, 0, first.inputs[0])


def _loses_nothing(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    builtin = all(dtype.kind in "biuf" and dtype.type.__module__ == "numpy" for dtype in (source, target))
    return builtin and np.can_cast(source, target, "safe")


def _join_reshapes(first: Node, second: Node, rewriter: Rewriter) -> None:
    """A 0 in the second shape copies a dimension of the tensor between, which would no longer be there."""
    target = array_of(second.inputs[1])
    if first.op not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") or target is None:
        return
    if second.attrs.get("allowzero") or (target == 0).any():
        return
    rewriter.set_input(second, 0, first.inputs[0])


def _join_relus(first: Node, second: Node, rewriter: Rewriter) -> None:
    if first.op == "Relu" and rewriter.replace(second.outputs[0], first.outputs[0]):
        rewriter.remove(second)


_JOINS: dict[str, Callable[[Node, Node, Rewriter], None]] = {
    "Transpose": _join_transposes,
    "Cast": _join_casts,
    "Reshape": _join_reshapes,
    "Relu": _join_relus,
}


@dataclass(frozen=True)
class RemoveNoops(RulePass):
    """Remove operations that change nothing, and join pairs that undo or repeat each other."""

    name = "remove-noops"
    rules = (RemoveNoop(), JoinPair())
