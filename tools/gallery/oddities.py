"""Normalization over groups, other dimensions, and graphs that few tools expect."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh

from tools.gallery.builder import Builder


def group_norm() -> onnx.ModelProto:
    """A residual network with GroupNormalization as an operator, one scale per channel; opset 21."""
    b = Builder(3, 24, 24, opset=21)

    def norm(x: str) -> str:
        scale, shift = b.vector(b.width(x), "scale", 0.6, 1.4), b.vector(b.width(x))
        return b.op("GroupNormalization", x, scale, shift, shape=b.shape(x), num_groups=4, epsilon=1e-5)

    x = b.relu(norm(b.conv(b.input, 16, 3, 2)))
    for width in (16, 24):
        y = norm(b.conv(b.relu(norm(b.conv(x, width))), width))
        x = b.relu(b.op("Add", y, x if b.width(x) == width else b.conv(x, width, 1)))
    return b.build(b.classifier(x), all_shapes=True)


def group_norm_reshaped() -> onnx.ModelProto:
    """The same as torch exports it before: Reshape to groups, InstanceNormalization, Reshape back by Shape."""
    b = Builder(3, 24, 24)

    def norm(x: str) -> str:
        flat = b.op("InstanceNormalization", b.reshape(x, 0, 4, -1), b.literal([1.0] * 4, np.float32),
                    b.literal([0.0] * 4, np.float32))  # fmt: skip
        back = b.op("Reshape", flat, b.op("Shape", x), shape=b.shape(x))
        scale = b.weight(b.random.uniform(0.6, 1.4, (b.width(x), 1, 1)), "scale")
        return b.op("Add", b.op("Mul", back, scale), b.weight(b.random.uniform(-0.2, 0.2, (b.width(x), 1, 1)), "bias"))

    x = b.relu(norm(b.conv(b.input, 16, 3, 2)))
    for width in (16, 24):
        y = norm(b.conv(b.relu(norm(b.conv(x, width))), width))
        x = b.relu(b.op("Add", y, x if b.width(x) == width else b.conv(x, width, 1)))
    return b.build(b.classifier(x))


def audio() -> onnx.ModelProto:
    """1-D convolutions over sound of any length: dilated, gated as in WaveNet (van den Oord et al. 2016), MaxPool."""
    b = Builder(1, "time", opset=13)
    x = skips = b.relu(b.norm(b.conv(b.input, 8, 9, 4)))
    for dilation in (1, 2, 4):
        with b.module(f"block{dilation}"):
            filters = b.normal(16, 8, 3)
            both = b.op("Conv", x, filters, b.vector(16), pads=[dilation] * 2, dilations=[dilation], kernel_shape=[3])
            signal, gate = b.split(both, 8, 8)
            y = b.op("Mul", b.op("Tanh", signal), b.op("Sigmoid", gate))
            x = b.op("Add", x, b.conv(y, 8, 1, bias=True))
            skips = b.op("Add", skips, b.conv(y, 8, 1, bias=True))
    x = b.conv_norm_relu(b.pool(b.relu(skips)), 12)
    return b.build(b.linear(b.op("ReduceMean", x, axes=[2], keepdims=0), 10))


def video() -> onnx.ModelProto:
    """3-D convolutions over frames, factored into space and time (Tran et al. 2018, R(2+1)D)."""
    b = Builder(3, 4, 16, 16)
    x = b.conv_norm_relu(b.conv_norm_relu(b.input, 6, (1, 5, 5), (1, 2, 2)), 8, (3, 1, 1))

    def factored(y: str, out: int, step: int) -> str:
        return b.norm(b.conv(b.conv_norm_relu(y, 10, (1, 3, 3), (1, step, step)), out, (3, 1, 1), (step, 1, 1)))

    for width, stride in ((8, 1), (12, 2)):
        y = factored(b.relu(factored(x, width, stride)), width, 1)
        x = b.relu(b.op("Add", y, x if stride == 1 else b.norm(b.conv(x, width, 1, stride))))
    return b.build(b.classifier(x))


def tied_weights() -> onnx.ModelProto:
    """Two convolutions read one weight, as twin networks do; a fully connected layer is read both ways."""
    b = Builder(4, 16, 16)
    left, right = b.split(b.input, 2, 2)
    first, second, bias = b.normal(8, 2, 3, 3), b.normal(12, 8, 3, 3), b.vector(12)
    ends = []
    for x in (left, right):
        x = b.relu(b.op("Conv", x, first, pads=[1] * 4, strides=[2, 2]))  # noqa: PLW2901  (the branch so far)
        ends.append(b.op("Conv", x, second, bias, pads=[1] * 4))
    x = b.conv_norm_relu(b.op("Abs", b.op("Sub", *ends)), 16)
    table = b.normal(12, 16)
    code = b.relu(b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), table, transB=1))
    return b.build(b.linear(b.relu(b.op("Gemm", code, table)), 10))


def captured() -> onnx.ModelProto:
    """Both branches of an If read a channel tensor of the outer graph; convolutions on both sides stay prunable."""
    b = Builder(3, 16, 16)
    x = b.conv_norm_relu(b.conv_norm_relu(b.input, 8), 12)
    weight = b.normal(12, 12, 1, 1)
    then = oh.make_graph(
        [oh.make_node("Conv", [x, weight], ["then_conv"]), oh.make_node("Relu", ["then_conv"], ["then_out"])],
        "then", [], [oh.make_tensor_value_info("then_out", 1, b.shape(x))],
    )  # fmt: skip
    other = oh.make_graph(
        [oh.make_node("Neg", [x], ["else_out"])], "else", [], [oh.make_tensor_value_info("else_out", 1, b.shape(x))]
    )
    mean = b.op("ReduceMean", b.input, keepdims=0)
    condition = b.op("Greater", mean, b.literal(0, np.float32))
    y = b.op("If", condition, shape=b.shape(x), then_branch=then, else_branch=other)
    return b.build(b.classifier(b.conv_norm_relu(b.conv_norm_relu(y, 12), 12)))
