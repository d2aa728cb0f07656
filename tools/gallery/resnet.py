"""Residual networks: branches that are added to what they started from."""

from __future__ import annotations

import numpy as np
import onnx

from tools.gallery.builder import Builder


def _shortcut(b: Builder, x: str, out: int, stride: int) -> str:
    if stride == 1 and b.width(x) == out:
        return x
    with b.module("downsample"):
        return b.norm(b.conv(x, out, 1, stride))


def _basic(b: Builder, x: str, width: int, stride: int) -> str:
    y = b.norm(b.conv(b.conv_norm_relu(x, width, 3, stride), width), 0.5)
    return b.relu(b.op("Add", y, _shortcut(b, x, width, stride)))


def _bottleneck(b: Builder, x: str, width: int, stride: int, group: int = 1, expansion: int = 4) -> str:
    y = b.conv_norm_relu(b.conv_norm_relu(x, width, 1), width, 3, stride, group=group)
    y = b.norm(b.conv(y, expansion * width, 1), 0.5)
    return b.relu(b.op("Add", y, _shortcut(b, x, expansion * width, stride)))


def _stem(b: Builder, width: int) -> str:
    return b.pool(b.conv_norm_relu(b.input, width, 7, 2), "MaxPool", 3, 2)


def _basic_network(blocks: tuple[int, ...]) -> onnx.ModelProto:
    b = Builder(3, 32, 32)
    x = _stem(b, 8)
    for stage, (count, width) in enumerate(zip(blocks, (8, 12, 16, 20), strict=True)):
        for block in range(count):
            with b.module(f"layer{stage + 1}"), b.module(f"{block}"):
                x = _basic(b, x, width, 2 if stage and not block else 1)
    return b.build(b.classifier(x))


def _bottleneck_network(blocks: tuple[int, ...]) -> onnx.ModelProto:
    b = Builder(3, 32, 32)
    x = _stem(b, 8)
    for stage, (count, width) in enumerate(zip(blocks, (4, 6, 8, 10), strict=True)):
        for block in range(count):
            with b.module(f"layer{stage + 1}"), b.module(f"{block}"):
                x = _bottleneck(b, x, width, 2 if stage and not block else 1)
    return b.build(b.classifier(x))


def resnet18() -> onnx.ModelProto:
    """ResNet-18 (He et al. 2016): two basic blocks in each stage."""
    return _basic_network((2, 2, 2, 2))


def resnet34() -> onnx.ModelProto:
    """ResNet-34: basic blocks at full depth."""
    return _basic_network((3, 4, 6, 3))


def resnet50() -> onnx.ModelProto:
    """ResNet-50: bottlenecks at full depth."""
    return _bottleneck_network((3, 4, 6, 3))


def resnet152() -> onnx.ModelProto:
    """ResNet-152: bottlenecks at full depth, 3 + 8 + 36 + 3 of them."""
    return _bottleneck_network((3, 8, 36, 3))


def resnet_cifar() -> onnx.ModelProto:
    """ResNet-20 for CIFAR with option A: shortcuts take every other pixel and pad zero channels."""
    b = Builder(3, 32, 32, opset=13)
    x = b.conv_norm_relu(b.input, 8)
    for stage, width in enumerate((8, 12, 16)):
        for block in range(3):
            with b.module(f"layer{stage + 1}"), b.module(f"{block}"):
                stride = 2 if stage and not block else 1
                y = b.norm(b.conv(b.conv_norm_relu(x, width, 3, stride), width), 0.5)
                if stride > 1:
                    x = b.op("Slice", x, *(b.literal(v) for v in ([0, 0], [2**63 - 1] * 2, [2, 3], [2, 2])))
                    more = width - b.width(x)
                    pads = b.literal([0, more // 2, 0, 0, 0, more - more // 2, 0, 0])
                    x = b.op("Pad", x, pads, b.literal(0, np.float32), mode="constant")
                x = b.relu(b.op("Add", y, x))
    return b.build(b.classifier(x))


def resnext() -> onnx.ModelProto:
    """ResNeXt (Xie et al. 2017): 3x3 convolutions in groups."""
    b = Builder(3, 32, 32)
    x = _stem(b, 8)
    for stage, width in enumerate((16, 24, 32)):
        for block in range(2):
            with b.module(f"layer{stage + 1}"), b.module(f"{block}"):
                x = _bottleneck(b, x, width, 2 if stage and not block else 1, group=4, expansion=2)
    return b.build(b.classifier(x))


def regnet() -> onnx.ModelProto:
    """RegNetY (Radosavovic et al. 2020): groups of fixed width, squeeze-and-excitation inside; opset 13."""
    b = Builder(3, 32, 32, opset=13)
    x = b.conv_norm_relu(b.input, 8, 3, 2)
    for stage, (width, blocks) in enumerate(((16, 1), (24, 2), (32, 2))):
        for block in range(blocks):
            with b.module(f"block{stage + 1}-{block}"):
                stride = 2 if not block else 1
                y = b.conv_norm_relu(b.conv_norm_relu(x, width, 1), width, 3, stride, group=width // 8)
                y = b.norm(b.conv(b.excite(y, b.width(x) // 4), width, 1), 0.5)
                x = b.relu(b.op("Add", _shortcut(b, x, width, stride), y))
    return b.build(b.classifier(x))
