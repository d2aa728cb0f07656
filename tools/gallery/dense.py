"""Networks that answer with images, maps and boxes."""

from __future__ import annotations

import numpy as np
import onnx

from tools.gallery.builder import Builder


def unet() -> onnx.ModelProto:
    """U-Net (Ronneberger et al. 2015): transposed convolutions back up, each beside what it once was."""
    b = Builder(3, 32, 32)

    def double(x: str, width: int) -> str:
        return b.conv_norm_relu(b.conv_norm_relu(x, width), width)

    x, skips = b.input, []
    for width in (8, 12, 16):
        x = double(x, width)
        skips.append(x)
        x = b.pool(x)
    x = double(x, 24)
    for skip in reversed(skips):
        x = double(b.concat(skip, b.conv_transpose(x, b.width(skip))), b.width(skip))
    return b.build(b.op("Sigmoid", b.conv(x, 2, 1, bias=True)))


def fpn() -> onnx.ModelProto:
    """Feature pyramid (Lin et al. 2017): lateral sums with Resize, and one head whose weights all levels read."""
    b = Builder(3, 64, 64, opset=13)
    x, levels = b.conv_norm_relu(b.input, 8, 3, 2), []
    for width in (12, 16, 20):
        x = b.conv_norm_relu(b.conv_norm_relu(x, width, 3, 2), width)
        levels.append(x)
    tops = [b.conv(levels[-1], 12, 1, bias=True)]
    for level in reversed(levels[:-1]):
        tops.append(b.op("Add", b.conv(level, 12, 1, bias=True), b.resize(tops[-1])))
    with b.module("head"):
        tower, tower_bias = b.normal(12, 12, 3, 3), b.vector(12)
        scores, scores_bias = b.normal(6, 12, 3, 3, name="cls.weight"), b.vector(6, "cls.bias")
        outputs = []
        for top in tops:
            y = b.relu(b.op("Conv", b.conv(top, 12, bias=True), tower, tower_bias, pads=[1] * 4))
            y = b.op("Conv", y, scores, scores_bias, pads=[1] * 4)
            outputs.append(b.op("Sigmoid", b.reshape(b.transpose(y, 0, 2, 3, 1), 0, -1, 3)))
    return b.build(*outputs, b.concat(*outputs))


def yolo() -> onnx.ModelProto:
    """YOLOv8-like: C2f blocks, pyramid pooling, two levels, boxes as distributions over distances; batch 1."""
    b = Builder(3, 64, 64, batch=1)

    def unit(x: str, out: int, kernel: int = 3, stride: int = 1) -> str:
        return b.swish(b.norm(b.conv(x, out, kernel, stride)))

    def c2f(x: str, out: int) -> str:
        left, right = b.split(unit(x, out, 1), out // 2, out // 2)
        y = b.op("Add", right, unit(unit(right, out // 2), out // 2))
        return unit(b.concat(left, right, y), out, 1)

    x = c2f(unit(unit(b.input, 8, 3, 2), 12, 3, 2), 12)
    near = c2f(unit(x, 16, 3, 2), 16)
    pools = [unit(c2f(unit(near, 24, 3, 2), 24), 12, 1)]
    pools += [b.pool(pools[0], "MaxPool", 5, 1)]
    pools += [b.pool(pools[-1], "MaxPool", 5, 1)]
    far = unit(b.concat(*pools), 24, 1)
    near = c2f(b.concat(b.resize(far), near), 16)
    far = c2f(b.concat(unit(near, 16, 3, 2), far), 24)
    with b.module("model.22"):
        flat = []
        for level in (near, far):
            boxes = b.conv(unit(unit(level, 16), 16), 4 * 8, 1, bias=True)
            classes = b.conv(unit(unit(level, 12), 12), 3, 1, bias=True)
            flat.append(b.reshape(b.concat(boxes, classes), 1, 4 * 8 + 3, -1))
        boxes, classes = b.split(b.concat(*flat, axis=2), 4 * 8, 3)
        cells = 64 + 16
        bins = b.op("Softmax", b.transpose(b.reshape(boxes, 1, 4, 8, cells), 0, 2, 1, 3), axis=1)
        with b.module("dfl"):
            distances = b.op("Conv", bins, b.weight(np.arange(8).reshape(1, 8, 1, 1)), kernel_shape=[1, 1])
        low, high = b.split(b.reshape(distances, 1, 4, cells), 2, 2)
        anchors = b.weight(np.arange(2 * cells).reshape(1, 2, cells) % 8 + 0.5, "anchors")
        low, high = b.op("Sub", anchors, low), b.op("Add", anchors, high)
        centre = b.op("Div", b.op("Add", low, high), b.literal(2, np.float32))
        strides = b.weight(np.repeat([8.0, 16.0], [64, 16]), "strides")
        scaled = b.op("Mul", b.concat(centre, b.op("Sub", high, low)), strides)
        return b.build(b.concat(scaled, b.op("Sigmoid", classes)), near, far)


def super_resolution() -> onnx.ModelProto:
    """EDSR (Lim et al. 2017), small: residual blocks without normalization, DepthToSpace as torch's PixelShuffle."""
    b = Builder(3, 16, 16)
    first = x = b.conv(b.input, 12, bias=True)
    for _ in range(3):
        y = b.conv(b.conv_relu(x, 16), 12, bias=True)
        x = b.op("Add", b.op("Mul", y, b.literal(0.3, np.float32)), x)
    x = b.op("Add", b.conv(x, 12, bias=True), first)
    x = b.op("DepthToSpace", b.conv(x, 48, bias=True), blocksize=2, mode="CRD")
    x = b.op("DepthToSpace", b.conv_relu(x, 32), blocksize=2, mode="DCR")
    return b.build(b.conv(x, 3, bias=True))


def centernet() -> onnx.ModelProto:
    """CenterNet (Zhou et al. 2019): upsampling by transposed convolutions, whole, in groups and of single channels."""
    b = Builder(3, 32, 32)
    near = b.conv_norm_relu(b.conv_norm_relu(b.input, 8, 3, 2), 12, 3, 2)
    x = b.relu(b.op("Add", b.norm(b.conv(b.conv_norm_relu(near, 12), 12)), near))
    far = b.conv_norm_relu(b.conv_norm_relu(x, 16, 3, 2), 12, 1)
    x = b.op("Add", b.conv_transpose(far, 12, 4, group=12), b.conv_norm_relu(x, 12, 1))
    x = b.relu(b.norm(b.conv_transpose(b.conv_norm_relu(x, 12), 16, 4, group=2)))
    x = b.relu(b.norm(b.conv_transpose(x, 10, 4)))
    heads = [b.conv(b.conv_relu(x, 8), width, 1, bias=True) for width in (3, 2, 2)]
    return b.build(b.op("Sigmoid", heads[0]), *heads[1:])


def segmentation() -> onnx.ModelProto:
    """DeepLab-like (Chen et al. 2017): dilated branches, an image-wide one, depthwise upsampling; opset 12."""
    b = Builder(3, 32, 32, opset=12)
    x = b.conv_norm_relu(b.conv_norm_relu(b.input, 8, 3, 2), 12, 3, 2)
    branches = [b.conv_norm_relu(x, 8, 1)]
    for rate in (2, 4):
        weight = b.normal(8, 12, 3, 3)
        dilated = b.op("Conv", x, weight, pads=[rate] * 4, dilations=[rate] * 2, kernel_shape=[3, 3])
        branches.append(b.relu(b.norm(dilated)))
    wide = b.op("GlobalAveragePool", x)
    sizes = b.op("Concat", b.take(b.op("Shape", x), 0, 0, 1), b.literal([8, 8, 8]), axis=0)
    wide = b.relu(b.conv(wide, 8, 1, bias=True))
    branches.append(
        b.op("Resize", wide, b.no_region(), b.literal([], np.float32), sizes, mode="linear", shape=("batch", 8, 8, 8))
    )
    x = b.conv_norm_relu(b.concat(*branches), 12, 1)
    x = b.relu(b.norm(b.conv_transpose(x, 12, 4, 2, group=3)))
    x = b.conv_transpose(b.conv(x, 6, 1, bias=True), 6, 4, 2, group=6)
    return b.build(x, b.op("ArgMax", x, axis=1))


def old_detector() -> onnx.ModelProto:
    """Tiny YOLOv2 (Redmon & Farhadi 2017) as of 2018: opset 8, IR 3, weights among the inputs, automatic padding."""
    b = Builder(3, 48, 48, opset=8, batch="None", name="image")

    def layer(x: str, out: int, kernel: int = 3) -> str:
        x = b.op("Conv", x, b.normal(out, b.width(x), kernel, kernel), b.vector(out), auto_pad="SAME_UPPER",
                 kernel_shape=[kernel] * 2, strides=[1, 1], dilations=[1, 1])  # fmt: skip
        return b.op("LeakyRelu", b.norm(x), alpha=0.1)

    x = b.op("Add", b.op("Mul", b.input, b.weight([0.5], "scalerPreprocessor_scale")),
             b.weight(b.random.uniform(-0.1, 0.1, (3, 1, 1)), "scalerPreprocessor_bias"))  # fmt: skip
    for width in (6, 8, 12):
        x = b.op("MaxPool", layer(x, width), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")
    passed = layer(x, 16)
    x = layer(b.op("MaxPool", passed, kernel_shape=[2, 2], strides=[2, 2]), 20)
    x = b.concat(b.op("SpaceToDepth", layer(passed, 4, 1), blocksize=2), layer(x, 20))
    return b.build(b.conv(layer(x, 16), 10, 1, bias=True), weights_as_inputs=True)


def style_transfer() -> onnx.ModelProto:
    """Fast style transfer (Johnson et al. 2016): reflected borders, InstanceNormalization, Resize; opset 13."""
    b = Builder(3, 24, 24, opset=13)

    def layer(x: str, out: int, kernel: int = 3, stride: int = 1) -> str:
        border = kernel // 2
        x = b.op("Pad", x, b.literal([0, 0, border, border, 0, 0, border, border]), mode="reflect")
        return b.conv(x, out, kernel, stride, bias=True, pad=0)

    def normal(x: str) -> str:
        return b.op("InstanceNormalization", x, b.vector(b.width(x), "scale", 0.6, 1.4), b.vector(b.width(x)))

    x = b.input
    for width, kernel, stride in ((8, 9, 1), (12, 3, 2), (16, 3, 2)):
        x = b.relu(normal(layer(x, width, kernel, stride)))
    for _ in range(3):
        x = b.op("Add", x, normal(layer(b.relu(normal(layer(x, 16))), 16)))
    for width in (12, 8):
        x = b.relu(normal(layer(b.resize(x), width)))
    return b.build(b.op("Tanh", layer(x, 3, 9)))


def spatial_attention() -> onnx.ModelProto:
    """CBAM (Woo et al. 2018): statistics over channels, a convolution with one output channel that scales all."""
    b = Builder(1, 24, 24, opset=13)
    x = b.conv_norm_relu(b.input, 12)
    for _ in range(2):
        x = b.conv_norm_relu(x, 12)
        both = b.concat(b.op("ReduceMean", x, axes=[1]), b.op("ReduceMax", x, axes=[1]))
        x = b.op("Mul", x, b.op("Sigmoid", b.conv(both, 1, 7)))
    mask = b.op("Sigmoid", b.conv(b.conv_relu(x, 8), 1, bias=True))
    return b.build(mask, b.classifier(b.op("Mul", b.conv_relu(x, 12), mask)))
