"""Ranges that operators promise whatever their input is, so that no sample has to show them.

1. Sigmoid, HardSigmoid, Softmax and Hardmax lie in [0, 1]; Tanh, Erf, Softsign, Sin and Cos in [−1, 1].
2. Clip, Relu, Min and Max with constants cut what comes in: one end each, or both (ReLU6 in any of its spellings).
3. Operators that only move values, or pick some of them, keep the range of their input.

Unknown are Relu and LogSoftmax alone, which are open at one end, and everything else. NaN is in no range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxslim.ir import Constant, Node, Tensor, array_of, attribute, is_standard, producer

Range = tuple[float, float]

BOUNDED: dict[str, Range] = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax", "Hardmax"), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Erf", "Softsign", "Sin", "Cos"), (-1.0, 1.0)),
}
"""What these operators make lies there, and nowhere else."""

_MOVING = ("Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "MaxPool")
_ANYTHING: Range = (-math.inf, math.inf)
_DEPTH = 8
"""Producers looked through: more would be a chain that no exporter writes."""

_NO_LIMIT = float(np.finfo(np.float32).max)
"""What Clip's attributes default to before opset 11."""


def known_range(node: Node) -> Range | None:
    """Return (low, high) that the first output of ``node`` never leaves, None where an end is open or unknown."""
    low, high = _interval(node, _DEPTH)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def narrowed(range_: Range, consumers: Sequence[Node]) -> Range:
    """Return what a Relu, Clip, Min or Max that alone reads a tensor lets through of its range; otherwise ``range_``.

    Values beyond may be clipped before it as well as behind it.

    Args:
        range_: of the tensor.
        consumers: every node that reads it, subgraphs' included. Do not ask for an output of the graph, which is read
            outside too.
    """
    if len(consumers) != 1:
        return range_
    cut = _cut(consumers[0])
    return range_ if cut is None else _clipped(range_, cut)


def _interval(node: Node, depth: int) -> Range:
    """Return the tightest known ends of the first output, infinite where open."""
    if not is_standard(node) or not node.inputs:
        return _ANYTHING
    if node.op in BOUNDED:
        return BOUNDED[node.op]
    if node.op in _MOVING:
        return _of(node.inputs[0], depth)
    cut = _cut(node)
    if cut is None:
        return _ANYTHING
    return _clipped(_of(_cut_input(node), depth), cut)


def _of(tensor: Tensor, depth: int) -> Range:
    maker = producer(tensor)
    if maker is None or depth == 0 or maker.outputs[0] is not tensor:
        return _ANYTHING
    return _interval(maker, depth - 1)


def _clipped(range_: Range, cut: Range) -> Range:
    low, high = (min(max(end, cut[0]), cut[1]) for end in range_)
    return low, high


def _cut(node: Node) -> Range | None:
    """Return the ends at which ``node`` clips its only computed input, None where it does not or nobody knows."""
    if is_standard(node, "Relu"):
        return 0.0, math.inf
    if is_standard(node, "Clip"):
        return _clip_bounds(node)
    if not is_standard(node, "Min", "Max") or sum(not _is_constant(tensor) for tensor in node.inputs) != 1:
        return None
    bounds = [_scalar(tensor, math.nan) for tensor in node.inputs if _is_constant(tensor)]
    if not bounds or any(map(math.isnan, bounds)):
        return None
    return (-math.inf, min(bounds)) if node.op == "Min" else (max(bounds), math.inf)


def _cut_input(node: Node) -> Tensor:
    return next((tensor for tensor in node.inputs if not _is_constant(tensor)), node.inputs[0])


def _clip_bounds(node: Node) -> Range | None:
    """Return the bounds of a Clip: attributes before opset 11, optional inputs since."""
    low = _limit(float(attribute(node, "min", -math.inf)))
    high = _limit(float(attribute(node, "max", math.inf)))
    if len(node.inputs) > 1 and node.inputs[1].name:
        low = _scalar(node.inputs[1], math.nan)
    if len(node.inputs) > 2 and node.inputs[2].name:
        high = _scalar(node.inputs[2], math.nan)
    return (low, high) if low <= high else None  # NaN, and bounds that cross: versions differ about those


def _limit(bound: float) -> float:
    return bound if abs(bound) < _NO_LIMIT else math.copysign(math.inf, bound)


def _is_constant(tensor: Tensor) -> bool:
    """Whether a weight holds the values, or a Constant node that nobody has folded yet."""
    maker = producer(tensor)
    return isinstance(tensor, Constant) or (maker is not None and is_standard(maker, "Constant"))


def _scalar(tensor: Tensor, otherwise: float) -> float:
    """Return the one value that a constant holds, ``otherwise`` where it is computed or holds several."""
    maker = producer(tensor)
    if maker is not None and is_standard(maker, "Constant"):
        tensor = attribute(maker, "value")
    array = array_of(tensor)
    return otherwise if array is None or array.size != 1 else float(array.reshape(-1)[0])
