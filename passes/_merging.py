"""Two linear layers in a row as one: what it would be, and its weights. The algebra of merge-linear.

Seen along one axis, a convolution reads x at s·j + d·t − p for output j and tap t, with zeros outside. Reading that way
what an earlier convolution with one tap (stride s₁, padding p₁) has read gives

    s₁·(s·j + d·t − p) − p₁ :   stride s₁·s,  dilation s₁·d,  padding p₁ + s₁·p

with as many outputs, since ⌊⌊n/s₁⌋/s⌋ = ⌊n/(s₁·s)⌋. The zeros that the later one pads stand for outputs of the earlier
one, which are zeros only where that has no bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.linear_layers import LinearLayer
from onnxslim.ir import array_of

Floats = npt.NDArray[np.float64]

MATRICES = ("Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Axis:
    """What a convolution, or a transposed one, does along one axis."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    end: int = 0
    rule: str | None = None
    """SAME_UPPER or SAME_LOWER where the runtime finds the padding; never beside a single tap, which needs none."""
    extra: int = 0
    """A transposed convolution's output padding."""

    @property
    def pads(self) -> bool:
        """Whether anything is padded."""
        return self.rule is not None or self.begin + self.end > 0

    @property
    def plain(self) -> bool:
        """Whether every output belongs to one input, in order."""
        return self.kernel == self.stride == 1 and not self.pads and not self.extra

    @property
    def span(self) -> int:
        """Distance of the last tap from the first."""
        return self.dilation * (self.kernel - 1)


@dataclass(frozen=True)
class Piece:
    """A layer, or several as one: everything but the weights."""

    op: str
    """A transposed convolution that only mixes channels is a Conv here."""
    groups: int
    inputs: int
    outputs: int
    """Channels, of all groups."""
    axes: tuple[Axis, ...]
    """Empty for matrices."""
    shifted: bool
    """Whether it may have a bias that is not zero."""

    @property
    def elements(self) -> int:
        """Numbers in its weight: multiply-accumulates at each position."""
        return self.outputs * (self.inputs // self.groups) * math.prod(axis.kernel for axis in self.axes)

    @property
    def plain(self) -> bool:
        """Whether it only mixes channels."""
        return all(axis.plain for axis in self.axes)


def piece_of(layer: LinearLayer) -> Piece:
    """Return the layer without its weights."""
    axes = _axes_of(layer)
    plain = all(axis.plain for axis in axes)
    op = "Conv" if layer.kernel and plain else layer.node.op
    inputs = layer.groups * layer.width // layer.taps
    return Piece(op, layer.groups, inputs, layer.channels, axes, bool(layer.bias().any()))


def _axes_of(layer: LinearLayer) -> tuple[Axis, ...]:
    attrs, rank = layer.node.attrs, len(layer.kernel)
    rule = attrs.get("auto_pad", "NOTSET")
    pads = (attrs.get("pads") if rule == "NOTSET" else None) or [0] * 2 * rank
    strides, dilations = attrs.get("strides") or [1] * rank, attrs.get("dilations") or [1] * rank
    extras = attrs.get("output_padding") or [0] * rank
    axes = []
    for index, kernel in enumerate(layer.kernel):
        own_rule = rule if rule.startswith("SAME") and kernel > 1 else None
        dilation = int(dilations[index]) if kernel > 1 else 1
        begin, end, extra = int(pads[index]), int(pads[index + rank]), int(extras[index])
        axes.append(Axis(kernel, int(strides[index]), dilation, begin, end, own_rule, extra))
    return tuple(axes)


# ---- what the two would be -------------------------------------------------------------------------------------------


def joined(first: Piece, second: Piece) -> Piece | str:
    """Return ``second`` after ``first`` as one piece, or why it is none, said of the second layer.

    Both are matrices, or both are convolutions over as many axes.
    """
    if first.outputs != second.inputs:
        return "it reads another number of channels than the layer before it makes"
    if max(first.groups, second.groups) % min(first.groups, second.groups):
        return f"its {second.groups} groups and the {first.groups} of the layer before it do not nest"
    axes = _joined_axes(first, second)
    if isinstance(axes, str):
        return axes
    op = _joined_op(first, second)
    groups = min(first.groups, second.groups)
    return Piece(op, groups, first.inputs, second.outputs, axes, first.shifted or second.shifted)


def _joined_op(first: Piece, second: Piece) -> str:
    """A Gemm's input has two dimensions, so a MatMul before or after it can be one too."""
    ops = {first.op, second.op}
    return next(op for op in ("Gemm", "MatMul", "ConvTranspose", "Conv") if op in ops)


def _joined_axes(first: Piece, second: Piece) -> tuple[Axis, ...] | str:
    transposed = "ConvTranspose" in (first.op, second.op)
    if transposed and first.op != second.op and not (first.plain or second.plain):
        return "it or the layer before it is a transposed convolution, and the other does more than mix channels"
    reaches = not second.plain if transposed else any(axis.pads for axis in second.axes)
    if first.shifted and reaches:
        return "the layer before it has a bias, and zeros take its place at the border"
    step = _transposed_axis if transposed else _axis
    axes = [step(a, b) for a, b in zip(first.axes, second.axes, strict=True)]
    found = tuple(axis for axis in axes if isinstance(axis, Axis))
    if len(found) < len(axes):
        return next(axis for axis in axes if isinstance(axis, str))
    rules = {axis.rule for axis in found if axis.rule or axis.kernel > 1 or axis.pads}
    return found if len(rules) < 2 else "one of the two pads by rule (auto_pad), the other does not"


def _axis(first: Axis, second: Axis) -> Axis | str:
    """Return what two convolutions are along an axis; the second pads only where the first has no bias."""
    if second.kernel == 1 and not second.pads:
        if first.rule and second.stride > 1:
            return "the layer before it pads by rule (auto_pad), which depends on the stride"
        return replace(first, stride=first.stride * second.stride)
    if first.kernel > 1:
        same = "it and the layer before it have windows along the same axis"
        return same if second.kernel > 1 else "it pads around what the window of the layer before it made"
    if second.rule:
        return second if first.plain else "it pads by rule (auto_pad), and the layer before it has strides or pads"
    step = first.stride
    begin, end = first.begin + step * second.begin, first.end + step * second.end
    return Axis(second.kernel, step * second.stride, step * second.dilation, begin, end)


def _transposed_axis(first: Axis, second: Axis) -> Axis | str:
    if second.plain:
        return first
    return second if first.plain else "it and the layer before it have windows along the same axis"


# ---- its weights -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The numbers of a piece, in float64."""

    weight: Floats
    """(groups, outputs of a group, inputs of a group, k…)."""
    bias: Floats | None
    """(outputs,)."""


def weights_of(layer: LinearLayer) -> Weights:
    """Return the numbers of a layer, a Gemm's alpha and beta included."""
    matrix = layer.matrix()
    has_bias = len(layer.node.inputs) > 2 and array_of(layer.node.inputs[2]) is not None
    return Weights(matrix.reshape(*matrix.shape[:2], -1, *layer.kernel), layer.bias() if has_bias else None)


def product(first: Weights, second: Weights) -> Weights:
    """Return the numbers of two pieces that are :func:`joined`: W = W₂·W₁ and b = W₂·b₁ + b₂."""
    bias = second.bias
    if first.bias is not None and first.bias.any():
        ours = _moved(first.bias, second.weight)
        bias = ours if bias is None else ours + bias
    elif first.bias is not None and bias is None:
        bias = np.zeros(second.weight.shape[0] * second.weight.shape[1])
    return Weights(_contracted(first.weight, second.weight), bias)


def magnitudes(part: Weights) -> Weights:
    """Return the absolute values."""
    return Weights(np.abs(part.weight), None if part.bias is None else np.abs(part.bias))


def _moved(bias: Floats, weight: Floats) -> Floats:
    """Return what a bias, shape (inputs,), adds to each output: where nothing is padded, every tap sees it."""
    groups, _, inputs = weight.shape[:3]
    taps = weight.reshape(*weight.shape[:3], -1).sum(axis=3)
    moved: Floats = (taps @ bias.reshape(groups, inputs, 1)).reshape(-1)
    return moved


def _contracted(first: Floats, second: Floats) -> Floats:
    """Return W₂·W₁ in as many groups as the one with fewer has.

    The groups of the other lie within those, and each of them meets its own part of W₂'s columns, or of W₁'s rows.
    """
    groups, parts = sorted((len(first), len(second)))
    within, rank = parts // groups, first.ndim - 3
    middle, outer = first.shape[0] * first.shape[1] // parts, first.shape[2]
    rows = second.reshape(groups, -1, *second.shape[2:])
    if len(second) > len(first):
        left = second.reshape(groups, within, *second.shape[1:])
    else:
        left = rows.reshape(groups, rows.shape[1], within, middle, *second.shape[3:]).swapaxes(1, 2)
    right = first.reshape(groups, within, middle, -1)
    flat = np.moveaxis(left, 3, -1)
    whole = flat.reshape(groups, within, -1, middle) @ right
    whole = whole.reshape(groups, within, left.shape[2], *second.shape[3:], outer, *first.shape[3:])
    whole = _inputs_second(whole, rank)
    if len(second) > len(first):
        whole = whole.reshape(groups, -1, *whole.shape[3:])
    else:
        whole = whole.swapaxes(1, 2).reshape(groups, whole.shape[2], -1, *whole.shape[4:])
    kernel = [a * b for a, b in zip(first.shape[3:], second.shape[3:], strict=True)]
    return np.ascontiguousarray(whole).reshape(*whole.shape[:3], *kernel)


def _inputs_second(whole: Floats, rank: int) -> Floats:
    """Return (g, parts, outputs, k₂…, inputs, k₁…) as (g, parts, outputs, inputs, k₂ k₁ of each axis)."""
    pairs = chain.from_iterable((3 + axis, 4 + rank + axis) for axis in range(rank))
    return whole.transpose(0, 1, 2, 3 + rank, *pairs)
