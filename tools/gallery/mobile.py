"""Networks made for phones: depthwise convolutions, inverted residuals, cheap channels."""

from __future__ import annotations

import numpy as np
import onnx

from tools.gallery.builder import Builder


def mobilenet_v1() -> onnx.ModelProto:
    """MobileNet v1 (Howard et al. 2017): depthwise and pointwise in turn, ReLU6 as Clip; opset 12."""
    b = Builder(3, 32, 32, opset=12)
    x = b.relu6(b.norm(b.conv(b.input, 8, 3, 2)))
    for width, stride in ((12, 1), (16, 2), (16, 1), (24, 2), (24, 1), (32, 2)):
        x = b.relu6(b.norm(b.conv(x, b.width(x), 3, stride, group=b.width(x))))
        x = b.relu6(b.norm(b.conv(x, width, 1)))
    return b.build(b.classifier(x))


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNet v2 (Sandler et al. 2018): inverted residuals with linear bottlenecks; ReduceMean head."""
    b = Builder(3, 32, 32)
    x = b.relu6(b.norm(b.conv(b.input, 8, 3, 2)))
    for index, (width, stride, factor) in enumerate(
        ((8, 1, 1), (12, 2, 3), (12, 1, 3), (16, 2, 3), (16, 1, 3), (16, 1, 3), (20, 1, 3))
    ):
        with b.module(f"features.{index + 1}"):
            y = x if factor == 1 else b.relu6(b.norm(b.conv(x, factor * b.width(x), 1)))
            y = b.relu6(b.norm(b.conv(y, b.width(y), 3, stride, group=b.width(y))))
            y = b.norm(b.conv(y, width, 1))
            x = b.op("Add", x, y) if stride == 1 and b.width(x) == width else y
    x = b.relu6(b.norm(b.conv(x, 40, 1)))
    return b.build(b.linear(b.op("ReduceMean", x, axes=[2, 3], keepdims=0), 10))


def mobilenet_v3() -> onnx.ModelProto:
    """MobileNet v3 (Howard et al. 2019): HardSwish, squeeze-and-excitation with HardSigmoid, a head of its own."""
    b = Builder(3, 32, 32)
    x = b.op("HardSwish", b.norm(b.conv(b.input, 8, 3, 2)))
    rows = ((16, 8, 3, 1, True, "Relu"), (24, 12, 3, 2, False, "Relu"), (28, 12, 3, 1, False, "Relu"),
            (32, 16, 5, 2, True, "HardSwish"), (40, 16, 5, 1, True, "HardSwish"))  # fmt: skip
    for index, (wide, width, kernel, stride, excited, activation) in enumerate(rows):
        with b.module(f"features.{index + 1}"):
            y = b.op(activation, b.norm(b.conv(x, wide, 1)))
            y = b.op(activation, b.norm(b.conv(y, wide, kernel, stride, group=wide)))
            y = b.excite(y, wide // 4, gate="HardSigmoid") if excited else y
            y = b.norm(b.conv(y, width, 1))
            x = b.op("Add", y, x) if stride == 1 and b.width(x) == width else y
    x = b.op("GlobalAveragePool", b.op("HardSwish", b.norm(b.conv(x, 48, 1))))
    x = b.op("HardSwish", b.linear(b.op("Flatten", x), 40))
    return b.build(b.linear(x, 10))


def efficientnet() -> onnx.ModelProto:
    """EfficientNet (Tan & Le 2019): swish as Sigmoid and Mul, also inside squeeze-and-excitation; opset 13."""
    b = Builder(3, 32, 32, opset=13)
    x = b.swish(b.norm(b.conv(b.input, 8, 3, 2)))
    for width, kernel, stride in ((12, 3, 2), (12, 3, 1), (16, 5, 2), (16, 5, 1)):
        with b.module("blocks"):
            wide = 4 * b.width(x)
            y = b.swish(b.norm(b.conv(x, wide, 1)))
            y = b.swish(b.norm(b.conv(y, wide, kernel, stride, group=wide)))
            gate = b.swish(b.conv(b.op("ReduceMean", y, axes=[2, 3], keepdims=1), b.width(x) // 4, 1, bias=True))
            y = b.op("Mul", b.op("Sigmoid", b.conv(gate, wide, 1, bias=True)), y)
            y = b.norm(b.conv(y, width, 1))
            x = b.op("Add", y, x) if stride == 1 and b.width(x) == width else y
    return b.build(b.classifier(b.swish(b.norm(b.conv(x, 40, 1)))))


def ghostnet() -> onnx.ModelProto:
    """GhostNet (Han et al. 2020): most channels are cheap depthwise images of the others; too many are sliced off."""
    b = Builder(3, 32, 32)

    def ghost(x: str, out: int, ratio: int, activate: bool) -> str:
        with b.module("ghost"):
            own = -(-out // ratio)
            first = b.norm(b.conv(x, own, 1))
            first = b.relu(first) if activate else first
            cheap = b.norm(b.conv(first, own * (ratio - 1), 3, group=own))
            whole = b.concat(first, b.relu(cheap) if activate else cheap)
            return b.take(whole, 1, 0, out)

    x = b.conv_norm_relu(b.input, 8, 3, 2)
    for wide, width, stride in ((16, 8, 1), (24, 12, 2), (32, 12, 1), (36, 16, 2)):
        y = ghost(x, wide, 3, activate=True)
        if stride > 1:
            y = b.norm(b.conv(y, wide, 3, stride, group=wide))
        y = ghost(b.excite(y, wide // 4, gate="HardSigmoid"), width, 2, activate=False)
        if stride > 1 or b.width(x) != width:
            x = b.norm(b.conv(b.norm(b.conv(x, b.width(x), 3, stride, group=b.width(x))), width, 1))
        x = b.op("Add", y, x)
    return b.build(b.classifier(x))


def split_before_depthwise() -> onnx.ModelProto:
    """Mixed kernels (Tan & Le 2019, MixNet): a Split, depthwise convolutions, Concat, a Gather that mixes."""
    b = Builder(3, 24, 24, opset=13)
    x = b.conv_norm_relu(b.input, 12, 3, 2)
    for sizes in ((4, 4, 4), (8, 4)):
        wide = b.conv_norm_relu(x, 12, 1)
        pieces = b.split(wide, *sizes)
        pieces = [b.conv(piece, b.width(piece), 3 + 2 * i, group=b.width(piece)) for i, piece in enumerate(pieces)]
        order = b.literal(np.arange(12).reshape(3, 4).T.reshape(-1))
        mixed = b.op("Gather", b.concat(*pieces), order, axis=1)
        x = b.op("Add", x, b.norm(b.conv(b.relu(b.norm(b.conv(mixed, 12, 3, group=12))), 12, 1)))
    return b.build(b.classifier(x))
