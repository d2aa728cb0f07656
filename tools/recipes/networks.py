"""The networks of the classics in full width, with random weights: what is counted is real, what is computed is not."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

from onnxslim.ir import Model

FREE = "identity"
"""Start of the names of convolutions that stand for shortcuts without parameters; they cost nothing."""

VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Filters of each convolution; a pooling layer follows each inner tuple."""

INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""Filters of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool projection (Szegedy et al. 2015, Table 1)."""


class Shortcut(enum.Enum):
    """How a residual block hands its input on where the width grows."""

    PADDED = "padded"
    """Every other pixel, and zeros for the new channels: no parameters (He et al. 2016, option A)."""
    SELECTED = "selected"
    """The same as a 1x1 convolution whose constant weight is the identity: the stages' widths can differ freely."""
    PROJECTED = "projected"
    """A 1x1 convolution with BatchNormalization (option B)."""


def vgg16_cifar() -> Model:
    """Return VGG-16 for 32x32 images: 13 convolutions with BatchNormalization, then 512-512-10 fully connected.

    The convolutions are called conv1 to conv13.
    """
    net = _Network(size=32)
    x = net.input
    for widths in VGG16_WIDTHS:
        for width in widths:
            x = net.conv_norm_relu(x, width, 3)
        x = net.pool(x, "MaxPool", 2, 2)
    x = net.op("Relu", net.norm(net.dense(net.op("Flatten", x), 512)))
    return net.build(net.dense(x, 10))


def resnet_cifar(depth: int, shortcut: Shortcut = Shortcut.PADDED) -> Model:
    """Return the ResNet for 32x32 images of ``depth`` = 6n + 2 layers: 16, 32, 64 filters, n blocks each.

    Convolutions are called conv1, conv2, … in order, so that a block's first has an even number.

    Raises:
        ValueError: ``depth`` is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth {depth} is not 6n + 2: give 20, 32, 44, 56 or 110")
    net = _Network(size=32)
    x = net.conv_norm_relu(net.input, 16, 3)
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            x = _basic_block(net, x, width, 2 if stage and not block else 1, shortcut)
    return net.build(_classifier(net, x, 10))


def resnet34(shortcut: Shortcut = Shortcut.PADDED) -> Model:
    """Return ResNet-34 for 224x224 images, by default with shortcuts that have no parameters; names as above."""
    net = _Network(size=224)
    x = _imagenet_stem(net)
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        for block in range(blocks):
            x = _basic_block(net, x, width, 2 if stage and not block else 1, shortcut)
    return net.build(_classifier(net, x, 1000))


def resnet152() -> Model:
    """Return ResNet-152 for 224x224 images (He et al. 2016, Table 1): strides in the first 1x1, projections."""
    net = _Network(size=224)
    x = _imagenet_stem(net)
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 8, 36, 3), strict=True)):
        for block in range(blocks):
            x = _bottleneck(net, x, width, 2 if stage and not block else 1)
    return net.build(_classifier(net, x, 1000))


def googlenet() -> Model:
    """Return GoogLeNet for 224x224 images (Szegedy et al. 2015, Table 1), without the training-time side outputs."""
    net = _Network(size=224)
    x = net.pool(net.conv_relu(net.input, 64, 7, 2), "MaxPool", 3, 2)
    x = net.op("LRN", x, size=5, alpha=1e-4, beta=0.75)
    x = net.conv_relu(net.conv_relu(x, 64, 1), 192, 3)
    x = net.op("LRN", x, size=5, alpha=1e-4, beta=0.75)
    for blocks in INCEPTIONS:
        x = net.pool(x, "MaxPool", 3, 2)
        for widths in blocks:
            x = _inception(net, x, widths)
    return net.build(_classifier(net, x, 1000))


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _imagenet_stem(net: _Network) -> str:
    return net.pool(net.conv_norm_relu(net.input, 64, 7, 2), "MaxPool", 3, 2)


def _classifier(net: _Network, x: str, classes: int) -> str:
    return net.dense(net.op("Flatten", net.op("GlobalAveragePool", x)), classes)


def _basic_block(net: _Network, x: str, width: int, stride: int, shortcut: Shortcut) -> str:
    y = net.conv_norm_relu(x, width, 3, stride)
    y = net.norm(net.conv(y, width, 3))
    return net.op("Relu", net.op("Add", y, _shortcut(net, x, width, stride, shortcut)))


def _bottleneck(net: _Network, x: str, width: int, stride: int) -> str:
    y = net.conv_norm_relu(net.conv_norm_relu(x, width, 1, stride), width, 3)
    y = net.norm(net.conv(y, 4 * width, 1))
    return net.op("Relu", net.op("Add", y, _shortcut(net, x, 4 * width, stride, Shortcut.PROJECTED)))


def _shortcut(net: _Network, x: str, width: int, stride: int, kind: Shortcut) -> str:
    grown = width - net.widths[x]
    if stride == 1 and not grown:
        return x
    if kind is Shortcut.PROJECTED:
        return net.norm(net.projection(x, width, stride))
    if kind is Shortcut.SELECTED:
        return net.selection(x, width, stride)
    x = net.pool(x, "AveragePool", 1, stride)
    pads = net.constant(np.array([0, 0, 0, 0, 0, grown, 0, 0], np.int64))
    return net.op("Pad", x, pads, width=width)


def _inception(net: _Network, x: str, widths: Sequence[int]) -> str:
    one, reduce3, three, reduce5, five, pooled = widths
    branches = (
        net.conv_relu(x, one, 1),
        net.conv_relu(net.conv_relu(x, reduce3, 1), three, 3),
        net.conv_relu(net.conv_relu(x, reduce5, 1), five, 5),
        net.conv_relu(net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4), pooled, 1),
    )
    return net.op("Concat", *branches, axis=1, width=one + three + five + pooled)


class _Network:
    """A graph that grows node by node; every method returns the name of its output, which ``widths`` knows."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.input = "image"
        self.widths = {self.input: 3}
        self._size = size
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._layers = {"conv": 0, "fc": 0, "projection": 0, FREE: 0}

    def op(self, op: str, *inputs: str, name: str = "", width: int | None = None, **attributes: Any) -> str:
        """Add a node; it keeps the width of its first input unless ``width`` says otherwise."""
        output = f"t{len(self._nodes)}"
        self._nodes.append(oh.make_node(op, inputs, [output], name or f"{op.lower()}_{output}", **attributes))
        self.widths[output] = self.widths[inputs[0]] if width is None else width
        return output

    def constant(self, values: npt.NDArray[np.generic]) -> str:
        """Add an initializer."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, width: int, kernel: int, stride: int = 1, bias: bool = False) -> str:
        """Add the next convolution, padded to keep the size."""
        weights = [self._weight(width, self.widths[x], kernel, kernel)]
        weights += [self.constant(np.zeros(width, np.float32))] if bias else []
        attributes = {"pads": [kernel // 2] * 4, "strides": [stride] * 2, "kernel_shape": [kernel] * 2}
        return self.op("Conv", x, *weights, name=self._next("conv"), width=width, **attributes)

    def projection(self, x: str, width: int, stride: int) -> str:
        """Add a 1x1 convolution beside the numbered ones."""
        weight = self._weight(width, self.widths[x], 1, 1)
        return self.op("Conv", x, weight, name=self._next("projection"), width=width, strides=[stride] * 2)

    def selection(self, x: str, width: int, stride: int) -> str:
        """Add a 1x1 convolution that hands on every channel as it is, and zeros for new ones."""
        weight = self.constant(np.eye(width, self.widths[x], dtype=np.float32)[:, :, None, None])
        return self.op("Conv", x, weight, name=self._next(FREE), width=width, strides=[stride] * 2)

    def norm(self, x: str) -> str:
        """Add a BatchNormalization."""
        ones, zeros = np.ones(self.widths[x], np.float32), np.zeros(self.widths[x], np.float32)
        return self.op("BatchNormalization", x, *map(self.constant, (ones, zeros, zeros, ones)))

    def conv_relu(self, x: str, width: int, kernel: int, stride: int = 1) -> str:
        """Add a convolution with bias and Relu."""
        return self.op("Relu", self.conv(x, width, kernel, stride, bias=True))

    def conv_norm_relu(self, x: str, width: int, kernel: int, stride: int = 1) -> str:
        """Add a convolution, BatchNormalization and Relu."""
        return self.op("Relu", self.norm(self.conv(x, width, kernel, stride)))

    def pool(self, x: str, op: str, kernel: int, stride: int) -> str:
        """Add a pooling layer whose last window may stand over the edge, so that sizes halve."""
        return self.op(op, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, ceil_mode=int(kernel > stride))

    def dense(self, x: str, width: int) -> str:
        """Add a fully connected layer; its input's width is that of the channels: one pixel is left."""
        weights = self._weight(width, self.widths[x]), self.constant(np.zeros(width, np.float32))
        return self.op("Gemm", x, *weights, name=self._next("fc"), width=width, transB=1)

    def build(self, output: str) -> Model:
        """Return the model."""
        given = oh.make_tensor_value_info(self.input, TensorProto.FLOAT, ["n", 3, self._size, self._size])
        result = oh.make_tensor_value_info(output, TensorProto.FLOAT, ["n", self.widths[output]])
        graph = oh.make_graph(self._nodes, "network", [given], [result], self._constants)
        return Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))

    def _next(self, kind: str) -> str:
        self._layers[kind] += 1
        return f"{kind}{self._layers[kind]}"

    def _weight(self, *shape: int) -> str:
        values = self._random.standard_normal(shape, np.float32)
        values *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        return self.constant(values)
