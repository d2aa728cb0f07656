"""ShuffleNets: channels change places, so that groups and branches hear of each other."""

from __future__ import annotations

import onnx

from tools.gallery.builder import Builder


def _shuffle(b: Builder, x: str, groups: int) -> str:
    (height, width), channels = b.space(x), b.width(x)
    x = b.reshape(x, 0, groups, channels // groups, height, width)
    return b.reshape(b.transpose(x, 0, 2, 1, 3, 4), 0, -1, height, width)


def shufflenet_v2() -> onnx.ModelProto:
    """ShuffleNet v2 (Ma et al. 2018): half of the channels pass by, then both halves are shuffled."""
    b = Builder(3, 32, 32)
    x = b.pool(b.conv_norm_relu(b.input, 8, 3, 2), "MaxPool", 3, 2)
    for stage, out in enumerate((16, 24)):
        half = out // 2
        for block in range(3):
            with b.module(f"stage{stage + 2}.{block}"):
                if block:
                    left, right = b.split(x, half, half)
                else:
                    left = b.conv_norm_relu(b.norm(b.conv(x, b.width(x), 3, 2, group=b.width(x))), half, 1)
                    right = x
                right = b.conv_norm_relu(right, half, 1)
                right = b.norm(b.conv(right, half, 3, 1 if block else 2, group=half))
                x = _shuffle(b, b.concat(left, b.conv_norm_relu(right, half, 1)), 2)
    return b.build(b.classifier(b.conv_norm_relu(x, 32, 1)))


def shufflenet_v1() -> onnx.ModelProto:
    """ShuffleNet v1 (Zhang et al. 2018): grouped 1x1 convolutions with a shuffle between; opset 12."""
    b = Builder(3, 32, 32, opset=12)
    x = b.pool(b.conv_norm_relu(b.input, 12, 3, 2), "MaxPool", 3, 2)
    for block, stride in enumerate((2, 1, 1)):
        with b.module(f"stage2.{block}"):
            out = 24 - b.width(x) if stride == 2 else 24
            y = _shuffle(b, b.conv_norm_relu(x, 12, 1, group=3), 3)
            y = b.norm(b.conv(y, 12, 3, stride, group=12))
            y = b.norm(b.conv(y, out, 1, group=3), 0.5)
            x = b.relu(b.concat(b.pool(x, "AveragePool", 3, 2), y) if stride == 2 else b.op("Add", x, y))
    return b.build(b.classifier(x))
