"""Chains of convolutions, with and without bypasses that concatenate."""

from __future__ import annotations

import onnx

from tools.gallery.builder import Builder


def vgg() -> onnx.ModelProto:
    """VGG-16 (Simonyan & Zisserman 2015): Flatten of 2x2 pixels, then three fully connected layers."""
    b = Builder(3, 64, 64)
    x = b.input
    with b.module("features"):
        for width, count in ((6, 2), (8, 2), (12, 3), (16, 3), (16, 3)):
            for _ in range(count):
                x = b.conv_relu(x, width)
            x = b.pool(x)
    with b.module("classifier"):
        x = b.op("Dropout", b.relu(b.linear(b.op("Flatten", x), 32)))
        return b.build(b.linear(b.relu(b.linear(x, 24)), 10))


def network_in_network() -> onnx.ModelProto:
    """Network in network (Lin et al. 2014): 1x1 convolutions, classes averaged; opset 12."""
    b = Builder(3, 32, 32, opset=12)
    x = b.input
    for widths, kernel, pool in (((12, 10, 8), 5, "MaxPool"), ((12, 12, 12), 5, "AveragePool"), ((12, 12, 10), 3, "")):
        x = b.conv_relu(x, widths[0], kernel)
        for width in widths[1:]:
            x = b.conv_relu(x, width, 1)
        x = b.pool(x, pool, 3, 2) if pool else x
    x = b.op("GlobalAveragePool", x)
    return b.build(b.op("Softmax", b.reshape(x, 0, -1), axis=1))


def squeezenet() -> onnx.ModelProto:
    """SqueezeNet 1.1 (Iandola et al. 2016): fire modules expand into two branches."""
    b = Builder(3, 48, 48)
    x = b.pool(b.conv_relu(b.input, 8, 3, 2), "MaxPool", 3, 2)
    for squeeze, expand in ((4, 8), (4, 8), (0, 0), (6, 12), (6, 12), (0, 0), (8, 16), (8, 16)):
        if not squeeze:
            x = b.pool(x, "MaxPool", 3, 2)
            continue
        with b.module("fire"):
            small = b.conv_relu(x, squeeze, 1)
            x = b.concat(b.conv_relu(small, expand, 1), b.conv_relu(small, expand, 3))
    x = b.op("GlobalAveragePool", b.conv_relu(b.op("Dropout", x), 10, 1))
    return b.build(b.op("Flatten", x))


def densenet() -> onnx.ModelProto:
    """DenseNet (Huang et al. 2017): every layer reads all before it, through BN-ReLU of the whole chain."""
    b = Builder(3, 32, 32, opset=13)
    x = b.pool(b.conv_norm_relu(b.input, 12, 3, 2), "MaxPool", 3, 2)
    for block in range(3):
        for _ in range(4):
            with b.module(f"denseblock{block + 1}"):
                y = b.conv(b.relu(b.norm(x)), 16, 1)
                x = b.concat(x, b.conv(b.relu(b.norm(y)), 6))
        if block < 2:
            with b.module(f"transition{block + 1}"):
                x = b.pool(b.conv(b.relu(b.norm(x)), b.width(x) // 2, 1), "AveragePool")
    return b.build(b.classifier(b.relu(b.norm(x))))


def prelu_face() -> onnx.ModelProto:
    """A face network (as in MTCNN and ArcFace): PReLU with a slope per channel, BN after Gemm, a unit-length output."""
    b = Builder(3, 32, 32, opset=12)

    def slope(y: str) -> str:
        return b.op("PRelu", y, b.weight(b.random.uniform(0.1, 0.4, (b.width(y), 1, 1)), "slope"))

    x = slope(b.norm(b.conv(b.input, 8, 3, 2)))
    for width, stride in ((8, 1), (12, 2), (12, 1), (16, 2)):
        y = b.norm(b.conv(slope(b.norm(b.conv(b.norm(x), width))), width, 3, stride))
        same = stride == 1 and b.width(x) == width
        x = b.op("Add", y, x if same else b.norm(b.conv(x, width, 1, stride)))
    x = b.norm(b.linear(b.op("Flatten", b.norm(x)), 16))
    length = b.op("ReduceL2", x, axes=[1], keepdims=1)
    return b.build(b.op("Div", x, length))
