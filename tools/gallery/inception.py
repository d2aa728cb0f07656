"""Inception networks: branches of different depth that meet in a Concat."""

from __future__ import annotations

import onnx

from tools.gallery.builder import Builder


def googlenet() -> onnx.ModelProto:
    """GoogLeNet (Szegedy et al. 2015): local response normalization, then nine inception modules."""
    b = Builder(3, 64, 64)
    x = b.op("LRN", b.pool(b.conv_relu(b.input, 8, 7, 2), "MaxPool", 3, 2), size=5, alpha=0.1)  # signals are small
    x = b.pool(b.conv_relu(b.conv_relu(x, 8, 1), 12, 3), "MaxPool", 3, 2)
    for name in ("3a", "3b", "pool", "4a", "4b", "4c", "4d", "4e", "pool", "5a", "5b"):
        if name == "pool":
            x = b.pool(x, "MaxPool", 3, 2)
            continue
        with b.module(f"inception{name}"):
            branches = [
                b.conv_relu(x, 6, 1),
                b.conv_relu(b.conv_relu(x, 6, 1), 8, 3),
                b.conv_relu(b.conv_relu(x, 4, 1), 4, 5),
                b.conv_relu(b.pool(x, "MaxPool", 3, 1), 4, 1),
            ]
            x = b.concat(*branches)
    return b.build(b.classifier(x))


def _factored(b: Builder, x: str, *steps: tuple[int, int | tuple[int, int]]) -> str:
    for width, kernel in steps:
        x = b.conv_norm_relu(x, width, kernel)
    return x


def inception_v3() -> onnx.ModelProto:
    """Blocks A, C and E of Inception-v3 (Szegedy et al. 2016): 1x7 and 7x1, reductions, Concat of Concat."""
    b = Builder(3, 48, 48)
    x = b.pool(b.conv_norm_relu(b.conv_norm_relu(b.input, 6, 3, 2), 8), "MaxPool", 3, 2)
    with b.module("Mixed_5b"):
        pooled = b.conv_norm_relu(b.pool(x, "AveragePool", 3, 1), 4, 1)
        x = b.concat(_factored(b, x, (6, 1)), _factored(b, x, (4, 1), (6, 5)), _factored(b, x, (6, 1), (8, 3)), pooled)
    with b.module("Mixed_6a"):
        x = b.concat(b.conv_norm_relu(x, 10, 3, 2), b.pool(x, "MaxPool", 3, 2))
    with b.module("Mixed_6b"):
        far = _factored(b, x, (6, 1), (6, (7, 1)), (6, (1, 7)), (6, (7, 1)), (8, (1, 7)))
        near = _factored(b, x, (6, 1), (6, (1, 7)), (8, (7, 1)))
        x = b.concat(_factored(b, x, (8, 1)), near, far, _factored(b, b.pool(x, "AveragePool", 3, 1), (8, 1)))
    with b.module("Mixed_7b"):
        y = _factored(b, x, (10, 1))
        z = _factored(b, x, (10, 1), (8, 3))
        near = b.concat(_factored(b, y, (6, (1, 3))), _factored(b, y, (6, (3, 1))))
        far = b.concat(_factored(b, z, (6, (1, 3))), _factored(b, z, (6, (3, 1))))
        x = b.concat(_factored(b, x, (8, 1)), near, far, _factored(b, b.pool(x, "AveragePool", 3, 1), (6, 1)))
    return b.build(b.classifier(x))


def inception_v4() -> onnx.ModelProto:
    """The stem of Inception-v4 and a block of Inception-ResNet (Szegedy et al. 2017): Concat, scale, Add; opset 13."""
    b = Builder(3, 48, 48, opset=13)
    x = b.conv_norm_relu(b.conv_norm_relu(b.input, 6, 3, 2), 8)
    x = b.concat(b.pool(x, "MaxPool", 3, 2), b.conv_norm_relu(x, 8, 3, 2))
    left = _factored(b, x, (8, 1), (10, 3))
    right = _factored(b, x, (8, 1), (8, (7, 1)), (8, (1, 7)), (10, 3))
    x = b.concat(left, right)
    x = b.concat(b.conv_norm_relu(x, 12, 3, 2), b.pool(x, "MaxPool", 3, 2))
    for index in range(3):
        with b.module(f"block17_{index}"):
            y = b.concat(_factored(b, x, (8, 1)), _factored(b, x, (6, 1), (6, (1, 7)), (8, (7, 1))))
            y = b.op("Mul", b.conv(y, b.width(x), 1, bias=True), b.literal(0.2, "float32"))
            x = b.relu(b.op("Add", x, y))
    return b.build(b.classifier(x))
