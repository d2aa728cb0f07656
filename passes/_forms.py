"""Forms of a factorized layer: which stages replace it, what they cost, and how they are written as nodes.

    channel    k×k to r channels, then 1×1; a matrix as two           Zhang et al. 2015, "Accelerating Very Deep
               (the bottleneck of Network In Network)                  Convolutional Networks …", §3.1
    spatial    k×1 to r channels, then 1×k                             Jaderberg et al. 2014, "Speeding up Convolutional
               (as Inception turns 7×7 into 1×7, 7×1)                  Neural Networks with Low Rank Expansions", §2.2
    tucker     1×1 down, k×k in the middle, 1×1 up                     Kim et al. 2016, "Compression of Deep
               (the bottleneck of ResNet)                              Convolutional Neural Networks …", §3 (Tucker-2)
    separable  depthwise k×k, m filters a channel, then 1×1            Chollet 2017, "Xception", §1; exact at m = k²
    cp         1×1 down, k×1 and 1×k depthwise, 1×1 up                 Lebedev et al. 2015, "Speeding-up Convolutional
                                                                       Neural Networks Using Fine-tuned CP-…", §3

Stages follow each other with nothing between. Strides, dilations and padding along an axis stay with the stage whose
window lies along it, so that a padding's zeros are zeros still: no stage but the last has a bias.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.linear_layers import LinearLayer, rounded
from onnxslim.analysis.recurrent_inputs import RecurrentInput
from onnxslim.ir import Constant, Rewriter, dims_of, numpy_dtype

Floats = npt.NDArray[np.float64]

_GEMM_WITHOUT_BIAS = 11
"""The operator set since which Gemm's bias is optional."""


class Scheme(enum.Enum):
    """Which stages replace a layer."""

    CHANNEL = "channel"
    SPATIAL = "spatial"
    TUCKER = "tucker"
    SEPARABLE = "separable"
    CP = "cp"


@dataclass(frozen=True)
class Form:
    """A scheme and its ranks."""

    scheme: Scheme
    rank: int
    """Channels between the stages, of each group; filters a channel where separable."""
    inner: int | None = None
    """Channels before the middle of Tucker's three."""


@dataclass(frozen=True)
class Stage:
    """One of the layers that replace another; the last has the layer's bias."""

    op: str
    weight: Floats
    """As the operator stores it; of a matrix (inputs, outputs)."""
    attrs: dict[str, Any]


def misfit(layer: LinearLayer, scheme: Scheme) -> str | None:
    """Return why ``layer`` has no such form, None where it has."""
    if scheme is Scheme.CHANNEL:
        return None
    if layer.taps == 1:
        return f"{scheme.value} is for windows"
    if layer.groups != 1:
        return f"{scheme.value} is not for groups"
    if scheme is Scheme.TUCKER:
        return None
    if layer.node.op != "Conv":
        return f"{scheme.value} is not for {layer.node.op}"
    if scheme in (Scheme.SPATIAL, Scheme.CP) and (len(layer.kernel) != 2 or min(layer.kernel) < 2):
        return f"{scheme.value} is for windows with two axes"
    return None


def full_rank(layer: LinearLayer, scheme: Scheme) -> int:
    """Return the largest rank that the scheme can use; for CP, the largest that any tensor of this shape may need."""
    inputs, outputs = layer.width // layer.taps, layer.channels // layer.groups
    if scheme is Scheme.SPATIAL:
        return min(inputs * layer.kernel[0], outputs * layer.kernel[1])
    if scheme is Scheme.SEPARABLE:
        return min(outputs, layer.taps)
    if scheme is Scheme.CP:
        sizes = (outputs, inputs, *layer.kernel)
        return math.prod(sizes) // max(sizes)
    return outputs if scheme is Scheme.TUCKER else min(outputs, layer.width)


def full(layer: LinearLayer, scheme: Scheme) -> Form:
    """Return the form that keeps everything."""
    inner = min(layer.width // layer.taps, layer.channels * layer.taps)
    return Form(scheme, full_rank(layer, scheme), inner if scheme is Scheme.TUCKER else None)


# ---- what it costs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions:
    """How many positions the stages of a layer compute in one inference."""

    inputs: int
    between: int
    """After a window along the first axis alone."""
    outputs: int


def positions_of(layer: LinearLayer, shapes: tuple[Sequence[int], Sequence[int]]) -> Positions:
    """Return the positions for an input and an output of these shapes."""
    given, made = shapes
    if not layer.kernel:
        rows = math.prod(given[:-1])
        return Positions(rows, rows, rows)
    batch, inside, outside = made[0], given[2:], made[2:]
    between = batch * math.prod((outside[0], *inside[1:]))
    return Positions(batch * math.prod(inside), between, batch * math.prod(outside))


def own_macs(layer: LinearLayer, positions: Positions) -> int:
    """Return the multiply-accumulates of the layer as it is."""
    at = positions.inputs if layer.node.op == "ConvTranspose" else positions.outputs
    return layer.channels * layer.width * at


def macs(layer: LinearLayer, form: Form, positions: Positions) -> int:
    """Return the multiply-accumulates of all stages."""
    p = positions
    window = p.inputs if layer.node.op == "ConvTranspose" else p.outputs
    return sum(size * at for size, at in zip(_sizes(layer, form), _places(form.scheme, p, window), strict=True))


def elements(layer: LinearLayer, form: Form) -> int:
    """Return how many numbers all stages hold."""
    return sum(_sizes(layer, form))


def _sizes(layer: LinearLayer, form: Form) -> tuple[int, ...]:
    inputs, outputs, r = layer.width // layer.taps, layer.channels, form.rank
    if form.scheme is Scheme.CHANNEL:
        return layer.groups * r * layer.width, outputs * r
    if form.scheme is Scheme.TUCKER:
        inner = form.inner or 1
        return inner * inputs, r * inner * layer.taps, outputs * r
    if form.scheme is Scheme.SEPARABLE:
        return inputs * r * layer.taps, outputs * inputs * r
    high, wide = layer.kernel
    if form.scheme is Scheme.SPATIAL:
        return r * inputs * high, outputs * r * wide
    return r * inputs, r * high, r * wide, outputs * r


def _places(scheme: Scheme, p: Positions, window: int) -> tuple[int, ...]:
    return {
        Scheme.CHANNEL: (window, p.outputs),
        Scheme.TUCKER: (p.inputs, window, p.outputs),
        Scheme.SEPARABLE: (p.outputs, p.outputs),
        Scheme.SPATIAL: (p.between, p.outputs),
        Scheme.CP: (p.inputs, p.between, p.outputs, p.outputs),
    }[scheme]


# ---- stages ----------------------------------------------------------------------------------------------------------


def down_up(layer: LinearLayer, down: Floats, up: Floats) -> tuple[Stage, Stage]:
    """Return the two stages of a matrix. ``down``: (rank, inputs), ``up``: (outputs, rank)."""
    if isinstance(layer, RecurrentInput):
        return Stage("MatMul", down.T, {}), Stage(layer.node.op, layer.stored(up), dict(layer.node.attrs))
    return Stage("MatMul", down.T, {}), Stage("MatMul", up.T, {})


def pointwise(weight: Floats, rank: int, group: int = 1) -> Stage:
    """Return a 1×1 convolution over ``rank`` axes. ``weight``: (outputs, inputs of a group)."""
    attrs: dict[str, Any] = {"kernel_shape": [1] * rank}
    return Stage("Conv", weight.reshape(*weight.shape, *[1] * rank), attrs | ({"group": group} if group > 1 else {}))


def windowed(layer: LinearLayer, weight: Floats, group: int | None = None) -> Stage:
    """Return a stage that has the layer's own window and stride. ``weight``: (groups, outputs of a group, d)."""
    attrs = dict(layer.node.attrs)
    groups, outputs, _ = weight.shape
    if layer.node.op == "ConvTranspose":
        parts = weight.reshape(groups, outputs, -1, layer.taps).swapaxes(1, 2)
        return Stage("ConvTranspose", parts.reshape(-1, outputs, *layer.kernel), attrs)
    attrs["group"] = group or groups
    return Stage("Conv", weight.reshape(groups * outputs, -1, *layer.kernel), attrs)


def along(layer: LinearLayer, weight: Floats, axis: int, group: int = 1) -> Stage:
    """Return a stage with the layer's window along one of two axes alone.

    Args:
        weight: shape (outputs, inputs of a group, k).
    """
    attrs = layer.node.attrs
    kept: dict[str, Any] = {"kernel_shape": _only(layer.kernel, axis, 1), "group": group}
    for name in ("strides", "dilations"):
        kept[name] = _only(attrs.get(name) or [1, 1], axis, 1)
    if attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        pads = [0] * 4 if attrs.get("auto_pad") == "VALID" else attrs.get("pads") or [0] * 4
        kept["pads"] = [*_only(pads[:2], axis, 0), *_only(pads[2:], axis, 0)]
    else:
        kept["auto_pad"] = attrs["auto_pad"]
    shape = [1, 1]
    shape[axis] = weight.shape[2]
    return Stage("Conv", weight.reshape(*weight.shape[:2], *shape), kept)


def _only(values: Sequence[int], axis: int, other: int) -> list[int]:
    return [int(value) if index == axis else other for index, value in enumerate(values)]


def blank(layer: LinearLayer, form: Form, random: np.random.Generator) -> tuple[Stage, ...]:
    """Return the stages of ``form`` with noise for weights."""

    def noise(*shape: int) -> Floats:
        return random.standard_normal(shape)

    inputs, outputs, r, axes = layer.width // layer.taps, layer.channels, form.rank, len(layer.kernel)
    if not layer.kernel:
        return down_up(layer, noise(r, layer.width), noise(outputs, r))
    if form.scheme is Scheme.CHANNEL:
        last = pointwise(noise(outputs, r), axes, layer.groups)
        return windowed(layer, noise(layer.groups, r, layer.width)), last
    if form.scheme is Scheme.TUCKER:
        inner = form.inner or 1
        middle = windowed(layer, noise(1, r, inner * layer.taps))
        return pointwise(noise(inner, inputs), axes), middle, pointwise(noise(outputs, r), axes)
    if form.scheme is Scheme.SEPARABLE:
        first = windowed(layer, noise(inputs * r, 1, layer.taps), inputs)
        return first, pointwise(noise(outputs, inputs * r), axes)
    high, wide = layer.kernel
    if form.scheme is Scheme.SPATIAL:
        return along(layer, noise(r, inputs, high), 0), along(layer, noise(outputs, r, wide), 1)
    halves = along(layer, noise(r, 1, high), 0, r), along(layer, noise(r, 1, wide), 1, r)
    return pointwise(noise(r, inputs), 2), *halves, pointwise(noise(outputs, r), 2)


# ---- nodes -----------------------------------------------------------------------------------------------------------


def place(
    layer: LinearLayer, form: Form, stages: Sequence[Stage], weights: Sequence[Constant], rewriter: Rewriter
) -> None:
    """Put all stages but the last before the layer's node, which becomes the last: it keeps its name, bias and output.

    Args:
        weights: of the stages, see :func:`stored`.
    """
    node = layer.node
    out = next(tensor for tensor in node.outputs if tensor.name)
    given = node.inputs[0]
    for index, (stage, weight) in enumerate(zip(stages[:-1], weights[:-1], strict=True)):
        hint = f"{out.name}_{form.scheme.value}{form.rank}_{index}"
        middle = rewriter.variable(hint, out.dtype, _between(layer, form))
        name = f"{node.name or out.name}_{form.scheme.value}{form.rank}_{index}"
        inputs, attrs = [given, weight], dict(stage.attrs)
        if node.op == "Gemm":
            attrs = {"transB": 1} if is_transposed(layer) else {}
            if rewriter.model.opset < _GEMM_WITHOUT_BIAS:
                inputs.append(rewriter.constant(f"{weight.name}_bias", np.zeros(1, numpy_dtype(layer.weight.dtype))))
        op = "Gemm" if node.op == "Gemm" else stage.op
        rewriter.insert(op, inputs, [middle], attrs, name=name, domain=node.domain)
        given = middle
    last = stages[-1]
    if layer.kernel:
        rewriter.set_op(node, last.op, dict(last.attrs))
    rewriter.set_input(node, 0, given)
    rewriter.set_input(node, 1, weights[-1])


def _between(layer: LinearLayer, form: Form) -> list[int | str | None] | None:
    """Return the shape between the two stages of a channel bottleneck, where that of the output is known."""
    if form.scheme is not Scheme.CHANNEL or layer.node.op == "ConvTranspose":
        return None
    if isinstance(layer, RecurrentInput):
        given = dims_of(layer.node.inputs[0])
        return None if given is None else [*given[:-1], form.rank]
    dims = dims_of(layer.node.outputs[0])
    if not dims:
        return None
    axis = 1 if layer.kernel else len(dims) - 1
    return [*dims[:axis], form.rank * layer.groups, *dims[axis + 1 :]]


def is_transposed(layer: LinearLayer) -> bool:
    """Whether the weight is a matrix stored outputs first; then its stages' are too, and a layer that stores the same
    weight inputs first has the same two in the other order."""
    return layer.node.op == "Gemm" and bool(layer.node.attrs.get("transB"))


def stored(layer: LinearLayer, stages: Sequence[Stage], rewriter: Rewriter) -> list[Constant]:
    """Return the stages' weights as new constants of the layer's type.

    Raises:
        PassError: a value does not fit the type.
    """
    alpha = float(layer.node.attrs.get("alpha", 1.0)) if layer.node.op == "Gemm" else 1.0
    values = [*(stage.weight for stage in stages[:-1]), stages[-1].weight / alpha]
    if is_transposed(layer):
        values = [value.T for value in values]
    hints = [f"{layer.weight.name}_{index}" for index in range(len(stages))]
    dtype = numpy_dtype(layer.weight.dtype)
    return [
        rewriter.constant(hint, rounded(value, dtype, layer.anchor)) for hint, value in zip(hints, values, strict=True)
    ]


def set_bias(layer: LinearLayer, bias: Floats, rewriter: Rewriter) -> None:
    """Give the layer's node a new bias, shape (O,)."""
    node = layer.node
    hint = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2].name else f"{layer.weight.name}_bias"
    values = layer.stored_bias(bias)
    if node.op == "Gemm" and float(node.attrs.get("beta", 1.0)) != 1.0:
        rewriter.set_attr(node, "beta", None)
    rewriter.set_input(node, 2, rewriter.constant(hint, values))
