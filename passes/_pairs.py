"""Pairs of operations of which one suffices, or none: part of remove-noops.

Given → Result, numbered as in the code:

1. Transpose of Transpose → one Transpose; Cast of a Cast that lost nothing → one Cast;
2. Reshape of Reshape, Flatten, Squeeze or Unsqueeze → one Reshape;
3. Squeeze of Unsqueeze along the same axes, or the other way round → the first one's input;
4. Concat of Concats along the same axis → one Concat; Concat of all parts of a Split, in order → the Split's input;
5. Pad of Pad with the same constant → one Pad;
6. Relu of Relu, Relu of a Clip from 0 or more, Clip from 0 or more of a Relu → one of them.

The first of the two stays where others read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Graph, Node, Rewriter, Tensor, array_of, is_standard, numpy_dtype, producer
from onnxslim.pipeline import Rule

_MANTISSA_BITS = {"float16": 11, "float32": 24, "float64": 53}


class JoinPair(Rule):
    """Two operations of which one suffices, anchored at the second."""

    ops = frozenset()  # filled in below, from the table

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Let ``node`` do the work of its producer too, or both none."""
        if not node.inputs:
            return
        if node.op == "Concat":
            _join_concats(node, rewriter)
            return
        first = producer(node.inputs[0])
        if first is not None and is_standard(first) and first.inputs and first.inputs[0].name:
            _JOINS[node.op](first, node, rewriter)


# ---- case 1 -------------------------------------------------------------------------------------------------------


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
    """Whether every value of ``source`` has one in ``target``; numpy itself calls int64 to float64 safe."""
    if any(dtype.kind not in "biuf" or dtype.type.__module__ != "numpy" for dtype in (source, target)):
        return False
    if source.kind in "iu" and target.kind == "f":
        return 8 * source.itemsize <= _MANTISSA_BITS[target.name]
    return np.can_cast(source, target, "safe")


# ---- cases 2 and 3 ------------------------------------------------------------------------------------------------


def _join_reshapes(first: Node, second: Node, rewriter: Rewriter) -> None:
    """A 0 in the second shape copies a dimension of the tensor between, which would no longer be there."""
    target = array_of(second.inputs[1])
    if first.op not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") or target is None:
        return
    if second.attrs.get("allowzero") or (target == 0).any():
        return
    rewriter.set_input(second, 0, first.inputs[0])


def _cancel_squeezes(first: Node, second: Node, rewriter: Rewriter) -> None:
    axes = _axes(first)
    if {first.op, second.op} != {"Squeeze", "Unsqueeze"} or axes is None or axes != _axes(second):
        return
    if rewriter.replace(second.outputs[0], first.inputs[0]):
        rewriter.remove(second)


def _axes(node: Node) -> list[int] | None:
    """Return the axes that a Squeeze or Unsqueeze names, sorted; None where they are computed or not named."""
    if "axes" in node.attrs:  # before opset 13
        return sorted(node.attrs["axes"])
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if axes is None else sorted(axes.reshape(-1).tolist())


# ---- case 4 -------------------------------------------------------------------------------------------------------


def _join_concats(node: Node, rewriter: Rewriter) -> None:
    whole = _split_whole(node)
    if whole is not None:
        if rewriter.replace(node.outputs[0], whole):
            rewriter.remove(node)
        return
    inner = {id(t): n for t in node.inputs if (n := _private_concat(t, node.attrs["axis"], rewriter)) is not None}
    if inner:
        parts = [[tensor] if id(tensor) not in inner else list(inner[id(tensor)].inputs) for tensor in node.inputs]
        rewriter.set_inputs(node, [tensor for part in parts for tensor in part])


def _private_concat(tensor: Tensor, axis: int, rewriter: Rewriter) -> Node | None:
    maker = producer(tensor)
    if maker is None or not is_standard(maker, "Concat") or maker.attrs["axis"] != axis:
        return None
    return maker if rewriter.is_private(tensor) else None


def _split_whole(node: Node) -> Tensor | None:
    """Return the tensor that was split into exactly the inputs of ``node``, in order and along its axis."""
    split = producer(node.inputs[0])
    if split is None or not is_standard(split, "Split") or split.attrs.get("axis", 0) != node.attrs["axis"]:
        return None
    same = len(split.outputs) == len(node.inputs) and all(
        a is b for a, b in zip(split.outputs, node.inputs, strict=True)
    )
    return split.inputs[0] if same else None


# ---- case 5 -------------------------------------------------------------------------------------------------------


def _join_pads(first: Node, second: Node, rewriter: Rewriter) -> None:
    if first.op != "Pad" or not rewriter.is_private(first.outputs[0]):
        return
    (inner, inner_value), (outer, outer_value) = _padding(first), _padding(second)
    if inner is None or outer is None or len(inner) != len(outer) or min(*inner, *outer) < 0:
        return
    if inner_value is None or inner_value != outer_value:
        return
    total = [int(a + b) for a, b in zip(inner, outer, strict=True)]
    if "pads" in second.attrs:
        rewriter.set_attr(second, "pads", total)
    else:
        rewriter.set_input(second, 1, rewriter.constant(second.inputs[1].name, np.array(total, np.int64)))
    rewriter.set_input(second, 0, first.inputs[0])


def _padding(node: Node) -> tuple[Sequence[int] | None, Any]:
    """Return the pads and the value of a constant Pad of all axes, None for what is computed or another mode."""
    if node.attrs.get("mode", "constant") != "constant" or (len(node.inputs) > 3 and node.inputs[3].name):
        return None, None
    if "pads" in node.attrs:  # before opset 11
        return list(node.attrs["pads"]), float(node.attrs.get("value", 0.0))
    pads = array_of(node.inputs[1])
    value: npt.NDArray[Any] | None = np.zeros(1)
    if len(node.inputs) > 2 and node.inputs[2].name:
        value = array_of(node.inputs[2])
    return None if pads is None else pads.tolist(), None if value is None else value.reshape(-1)[0].item()


# ---- case 6 -------------------------------------------------------------------------------------------------------


def _join_relu(first: Node, second: Node, rewriter: Rewriter) -> None:
    done = first.op == "Relu" or (first.op == "Clip" and _is_never_negative(first))
    if done and rewriter.replace(second.outputs[0], first.outputs[0]):
        rewriter.remove(second)


def _join_clip(first: Node, second: Node, rewriter: Rewriter) -> None:
    if first.op == "Relu" and _is_never_negative(second):
        rewriter.set_input(second, 0, first.inputs[0])


def _is_never_negative(clip: Node) -> bool:
    """Whether both bounds are constant, none below 0, in order."""
    if len(clip.inputs) == 1:  # before opset 11
        low, high = float(clip.attrs.get("min", -np.inf)), float(clip.attrs.get("max", np.inf))
        return 0 <= low <= high
    bounds = [array_of(tensor) if tensor.name else None for tensor in clip.inputs[1:]]
    if any(bound is None and t.name for bound, t in zip(bounds, clip.inputs[1:], strict=True)) or bounds[0] is None:
        return False
    high = float(bounds[1].reshape(-1)[0]) if len(bounds) > 1 and bounds[1] is not None else np.inf
    return 0 <= float(bounds[0].reshape(-1)[0]) <= high


_JOINS: dict[str, Callable[[Node, Node, Rewriter], None]] = {
    "Transpose": _join_transposes,
    "Cast": _join_casts,
    "Reshape": _join_reshapes,
    "Squeeze": _cancel_squeezes,
    "Unsqueeze": _cancel_squeezes,
    "Pad": _join_pads,
    "Relu": _join_relu,
    "Clip": _join_clip,
}
JoinPair.ops = frozenset({*_JOINS, "Concat"})
