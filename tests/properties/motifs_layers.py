"""Random layers with weights: convolutions, matrices, normalizations, attention, recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from properties.builder import Graph, Value
from properties.motifs_arithmetic import squeezed


def window(g: Graph, x: Value, kernel: list[int], *, dilate: bool = True) -> dict[str, Any]:
    """Strides, dilations and paddings for a window, spelt in one of the ways that ONNX knows."""
    dims = len(kernel)
    attributes: dict[str, Any] = {}
    if g.chance(0.4):
        attributes["strides"] = [g.whole(1, 2) for _ in range(dims)]
    room = all(size >= 2 * k for size, k in zip(x.shape[2:], kernel, strict=True))
    if dilate and room and g.chance(0.2):
        attributes["dilations"] = [g.whole(1, 2) for _ in range(dims)]
    how = g.choose("pads", "pads", "same", "none", "SAME_UPPER", "SAME_LOWER", "VALID")
    if how == "same":
        attributes["pads"] = [k // 2 for k in kernel] * 2
    elif how == "pads":
        attributes["pads"] = [g.whole(0, k - 1) for k in (*kernel, *kernel)]
    elif how != "none" and "dilations" not in attributes:
        attributes["auto_pad"] = how
        if "strides" in attributes:  # a stride beyond the window would need a padding below zero
            attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]
    return attributes


def _kernel(g: Graph, x: Value) -> list[int]:
    return [min(g.whole(1, 3), size) for size in x.shape[2:]]


def conv(g: Graph) -> None:
    x = g.image()
    fixed = 1 not in x.free
    group = g.choose(1, 1, 1, x.channels, 2) if x.channels % 2 == 0 and fixed else 1
    out = group * g.whole(1, 2) if group > 2 else group * g.whole(1, 6)
    kernel = _kernel(g, x)
    fan = x.channels // group * int(np.prod(kernel))
    inputs = [x, g.normal(out, x.channels // group, *kernel, fan=fan), g.normal(out)]
    g.op(
        "Conv",
        *inputs[: g.choose(2, 3)],
        group=group if group > 1 or g.chance(0.5) else None,
        kernel_shape=kernel if g.chance(0.7) else None,
        **window(g, x, kernel),
    )


def shared_conv(g: Graph) -> None:
    x = g.image()
    kernel = _kernel(g, x)
    weight = g.normal(x.channels, x.channels, *kernel, fan=x.channels * int(np.prod(kernel)))
    bias = g.normal(x.channels)
    first = g.op("Conv", x, weight, bias, auto_pad="SAME_UPPER")
    g.op("Conv", g.op("Relu", first), weight, bias if g.chance(0.5) else None, auto_pad="SAME_UPPER")


def conv_transpose(g: Graph) -> None:
    x = g.image()
    group = 2 if x.channels % 2 == 0 and g.chance(0.3) else 1
    kernel = [g.whole(1, 3) for _ in x.shape[2:]]
    inputs = [x, g.normal(x.channels, g.whole(1, 4), *kernel, fan=x.channels), None]
    attributes: dict[str, Any] = {"group": group, "strides": [g.whole(1, 2) for _ in kernel]}
    if g.chance(0.4):
        attributes["pads"] = [k // 2 for k in kernel] * 2
    if g.chance(0.5):
        weight = inputs[1]
        assert weight is not None
        inputs[2] = g.normal(weight.shape[1] * group)
    g.op("ConvTranspose", *[i for i in inputs if i is not None], **attributes)


def residual(g: Graph) -> None:
    x = g.image()
    y = g.op(
        "Conv", x, g.normal(x.channels, x.channels, *[1 for _ in x.shape[2:]], fan=x.channels), g.normal(x.channels)
    )
    if g.chance(0.5):
        y = _batchnorm(g, y)
    y = g.op("Add", *((x, y) if g.chance(0.5) else (y, x)))
    if g.chance(0.5):
        g.op("Relu", y)


def squeeze_excitation(g: Graph) -> None:
    x = g.image()
    ones = [1 for _ in x.shape[2:]]
    inner = g.whole(1, 4)
    y = g.op("GlobalAveragePool", x)
    y = g.op("Relu", g.op("Conv", y, g.normal(inner, x.channels, *ones, fan=x.channels), g.normal(inner)))
    y = g.op("Sigmoid", g.op("Conv", y, g.normal(x.channels, inner, *ones, fan=inner), g.normal(x.channels)))
    g.op("Mul", *((x, y) if g.chance(0.5) else (y, x)))


def inverted_residual(g: Graph) -> None:
    x = g.image()
    ones, wide = [1 for _ in x.shape[2:]], x.channels * 2
    y = g.op("Conv", x, g.normal(wide, x.channels, *ones, fan=x.channels), g.normal(wide))
    y = g.op("Relu", _batchnorm(g, y) if g.chance(0.5) else y)
    kernel = [min(3, size) for size in x.shape[2:]]
    y = g.op("Conv", y, g.normal(wide, 1, *kernel, fan=9), g.normal(wide), group=wide, auto_pad="SAME_UPPER")
    y = g.op("Conv", y, g.normal(x.channels, wide, *ones, fan=wide))
    g.op("Add", x, y)


def gemm(g: Graph) -> None:
    x = g.pick(lambda v: v.rank == 2)
    trans_a = g.chance(0.15) and x.shape[0] != x.shape[1]
    width = x.shape[0] if trans_a else x.shape[1]
    rows = x.shape[1] if trans_a else x.shape[0]
    if (0 if trans_a else 1) in x.free:
        return
    out, trans_b = g.whole(1, 8), g.chance(0.5)
    weight = g.normal(*((out, width) if trans_b else (width, out)), fan=width)
    bias = None
    if g.opset < 11 or g.chance(0.7):
        bias = g.normal(*g.choose((out,), (out,), (1, out), (1,), (), (rows, out) if not x.free else (out,)))
    scales = {"alpha": float(g.choose(0.5, 2.0, 1.0))} if g.chance(0.3) else {}
    if g.chance(0.3):
        scales["beta"] = float(g.choose(0.5, 0.0, 2.0))
    g.op(
        "Gemm", x, weight, *([bias] if bias else []), transA=int(trans_a) or None, transB=int(trans_b) or None, **scales
    )


def matmul(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2 and v.rank - 1 not in v.free and v.rank - 2 not in v.free)
    out, last = g.whole(1, 8), x.shape[-1]
    how = g.choose("right", "right", "right", "bias", "bias", "batched", "left", "self", "vector")
    if how in ("right", "bias"):
        y = g.op("MatMul", x, g.normal(last, out, fan=last))
        if how == "bias":
            bias = g.normal(*g.choose((out,), (1, out), (1,)))
            g.op("Add", *((y, bias) if g.chance(0.5) else (bias, y)))
    elif how == "batched":
        g.op("MatMul", x, g.normal(*(1 for _ in x.shape[:-2]), last, out, fan=last))
    elif how == "left":
        g.op("MatMul", g.normal(out, x.shape[-2], fan=x.shape[-2]), x)
    elif how == "vector":
        g.op("MatMul", x, g.normal(last, fan=last))
    else:
        order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
        y = g.op("MatMul", x, g.op("Transpose", x, perm=order))
        g.op("Mul", y, g.constant(1 / last))


def _batchnorm(g: Graph, x: Value) -> Value:
    c = x.channels
    inputs = [x, g.normal(c), g.normal(c), g.normal(c), g.positive(c)]
    return g.op("BatchNormalization", *inputs, epsilon=1e-3 if g.chance(0.5) else None)


def batchnorm(g: Graph) -> None:
    _batchnorm(g, g.pick(lambda v: v.rank >= 2 and 1 not in v.free))


def conv_batchnorm(g: Graph) -> None:
    conv(g)
    y = g.values[-1]
    if y.rank >= 3:
        g.op("Relu", _batchnorm(g, y))


def upconv_batchnorm(g: Graph) -> None:
    """A transposed convolution, grouped or not, between two per-channel scalings."""
    _per_channel(g, g.image())
    conv_transpose(g)
    _per_channel(g, g.values[-1])


def scaled_conv(g: Graph) -> None:
    """A convolution, grouped or not, that reads what was scaled per channel."""
    _per_channel(g, g.image())
    conv(g)


def _per_channel(g: Graph, x: Value) -> None:
    if g.chance(0.5):
        _batchnorm(g, x)
    else:
        g.op(g.choose("Mul", "Div"), x, g.positive(x.channels, *(1 for _ in x.shape[2:])))


def classifier(g: Graph) -> None:
    """Convolution, activation, everything flattened, then a matrix."""
    x = g.image()
    ones, out = [1 for _ in x.shape[2:]], g.whole(2, 5)
    y = g.op("Relu", g.op("Conv", x, g.normal(out, x.channels, *ones, fan=x.channels), g.normal(out)))
    y = g.op("Flatten", y)
    if 1 in y.free:
        return
    g.op("Gemm", y, g.normal(y.shape[1], 3, fan=y.shape[1]), g.normal(3))


def instance_norm(g: Graph) -> None:
    x = g.image(2)
    g.op("InstanceNormalization", x, g.normal(x.channels), g.normal(x.channels), epsilon=0.1)


def attention(g: Graph) -> None:
    x = g.pick(lambda v: v.rank == 3 and 2 not in v.free)
    width = x.shape[2]
    q, k, v = (g.op("MatMul", x, g.normal(width, 4, fan=width)) for _ in range(3))
    scores = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), g.constant(0.5))
    y = g.op("MatMul", g.op("Softmax", scores, axis=2), v)
    g.op("Add", x, g.op("MatMul", y, g.normal(4, width, fan=4)))


def recurrent(g: Graph) -> None:
    x = g.pick(lambda v: v.rank == 3 and 2 not in v.free and v.shape[0] <= 16)
    hidden, op = g.whole(1, 4), g.choose("LSTM", "GRU", "RNN")
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    both = g.chance(0.3)
    ways = 2 if both else 1
    inputs = [
        x,
        g.normal(ways, gates * hidden, x.shape[2], fan=x.shape[2]),
        g.normal(ways, gates * hidden, hidden, fan=hidden),
        g.normal(ways, 2 * gates * hidden),
    ]
    y, _ = g.many(op, inputs[: g.choose(3, 4)], 2, hidden_size=hidden, direction="bidirectional" if both else "forward")
    if not both and g.chance(0.7):
        squeezed(g, y, [1])
