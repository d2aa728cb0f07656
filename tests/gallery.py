"""Small networks of many shapes with random weights, built in code, for tests of passes that change channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

from onnxslim.ir import Model


class Builder:
    """Adds nodes one after the other; every method returns the name of its output."""

    def __init__(self, channels: int = 3, size: int = 16, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.widths = {"x": channels}
        self.input = oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, size, size])

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def normal(self, *shape: int) -> str:
        return self.constant(self.random.standard_normal(shape) / max(1.0, float(np.prod(shape[1:])) ** 0.5))

    def op(self, op: str, *inputs: str, width: int | None = None, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(oh.make_node(op, list(inputs), [name], name=f"{op.lower()}{len(self.nodes)}", **attributes))
        self.widths[name] = self.widths.get(inputs[0], 0) if width is None else width
        return name

    def conv(self, x: str, out: int, kernel: int = 3, stride: int = 1, group: int = 1, bias: bool = True) -> str:
        weight = self.normal(out, self.widths[x] // group, kernel, kernel)
        extra = [self.normal(out)] if bias else []
        pad = kernel // 2
        attributes = {"pads": [pad] * 4, "strides": [stride] * 2, "group": group, "kernel_shape": [kernel] * 2}
        return self.op("Conv", x, weight, *extra, width=out, **attributes)

    def norm(self, x: str) -> str:
        width = self.widths[x]
        variance = self.constant(self.random.uniform(0.5, 2, width))
        return self.op("BatchNormalization", x, self.normal(width), self.normal(width), self.normal(width), variance)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def gemm(self, x: str, inputs: int, out: int) -> str:
        return self.op("Gemm", x, self.normal(out, inputs), self.normal(out), transB=1, width=out)

    def head(self, x: str, classes: int = 5) -> str:
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.gemm(pooled, self.widths[x], classes)

    def build(self, *outputs: str) -> Model:
        declared = [oh.make_empty_tensor_value_info(name) for name in outputs]
        graph = oh.make_graph(self.nodes, "g", [self.input], declared, self.weights)
        proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
        return Model.load(onnx.shape_inference.infer_shapes(proto))


def vgg(b: Builder) -> Model:
    x = b.op("MaxPool", b.relu(b.conv("x", 8)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("MaxPool", b.relu(b.conv(x, 12)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.relu(b.gemm(b.op("Flatten", x), 12 * 16, 20))
    return b.build(b.gemm(x, 20, 5))


def reshaped_head(b: Builder) -> Model:
    x = b.relu(b.conv("x", 6, stride=4))
    x = b.op("Reshape", x, b.constant([0, 6 * 16], np.int64), width=96)
    return b.build(b.gemm(x, 96, 5))


def resnet(b: Builder) -> Model:
    x = b.relu(b.norm(b.conv("x", 8, bias=False)))
    y = b.norm(b.conv(b.relu(b.norm(b.conv(x, 8, bias=False))), 8, bias=False))
    x = b.relu(b.op("Add", x, y))
    short = b.conv(x, 12, 1, 2)
    y = b.conv(b.relu(b.conv(x, 10, 3, 2)), 12)
    return b.build(b.head(b.relu(b.op("Add", y, short))))


def inception(b: Builder) -> Model:
    x = b.relu(b.conv("x", 8))
    pool = b.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    pieces = [b.relu(b.conv(x, 4, 1)), b.relu(b.conv(b.relu(b.conv(x, 6, 1)), 8)), b.relu(b.conv(pool, 5, 1))]
    x = b.op("Concat", *pieces, axis=1, width=17)
    return b.build(b.head(b.relu(b.conv(b.norm(x), 9))))


def mobilenet(b: Builder) -> Model:
    def block(x: str, out: int, stride: int) -> str:
        wide = 4 * b.widths[x]
        y = b.op("Clip", b.conv(x, wide, 1), b.constant(0.0), b.constant(6.0))
        y = b.op("Clip", b.conv(y, wide, 3, stride, wide), b.constant(0.0), b.constant(6.0))
        return b.conv(y, out, 1)

    x = b.conv("x", 8, 3, 2)
    x = b.op("Add", x, block(x, 8, 1))
    return b.build(b.head(block(x, 12, 2)))


def squeeze_excitation(b: Builder) -> Model:
    x = b.relu(b.conv("x", 12))
    gate = b.relu(b.conv(b.op("GlobalAveragePool", x), 4, 1))
    gate = b.op("HardSigmoid", b.conv(gate, 12, 1))
    x = b.op("Mul", x, gate)
    scaled = b.op("Mul", x, b.normal(12, 1, 1))
    return b.build(b.head(b.relu(b.conv(scaled, 6))))


def decoder(b: Builder) -> Model:
    x = b.relu(b.conv("x", 8, 3, 2))
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2]}
    x = b.op("ConvTranspose", x, b.normal(8, 6, 2, 2), b.normal(6), width=6, **attributes)
    x = b.op("PRelu", x, b.normal(6, 1, 1))
    scales = b.constant([1.0, 1.0, 2.0, 2.0])
    x = b.op("Resize", x, "", scales, mode="nearest")
    return b.build(b.conv(x, 2, 1))


def matmul_head(b: Builder) -> Model:
    x = b.op("LeakyRelu", b.conv("x", 10))
    x = b.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    x = b.op("MatMul", x, b.normal(10, 8), width=8)
    x = b.op("Tanh", b.op("Add", x, b.normal(8)))
    return b.build(b.op("MatMul", x, b.normal(8, 5), width=5))


def channels_last(b: Builder) -> Model:
    x = b.relu(b.conv("x", 8))
    x = b.op("Transpose", x, perm=[0, 2, 3, 1])
    x = b.relu(b.op("Add", b.op("MatMul", x, b.normal(8, 6), width=6), b.normal(6)))
    x = b.op("Transpose", x, perm=[0, 3, 1, 2])
    return b.build(b.head(x))


def depth_multiplier(b: Builder) -> Model:
    x = b.relu(b.conv("x", 6))
    x = b.relu(b.conv(x, 12, 3, 1, 6))
    return b.build(b.head(x))


def padded_shortcut(b: Builder) -> Model:
    """The shortcut pads channels, which freezes the trunk; the inner channels of the block stay prunable."""
    x = b.relu(b.conv("x", 8))
    y = b.conv(b.relu(b.conv(x, 10)), 12)
    short = b.op("Pad", x, b.constant([0, 2, 0, 0, 0, 2, 0, 0], np.int64), width=12)
    return b.build(b.head(b.op("Add", y, short)))


GALLERY: dict[str, Callable[[Builder], Model]] = {
    "vgg": vgg,
    "reshaped-head": reshaped_head,
    "resnet": resnet,
    "inception": inception,
    "mobilenet": mobilenet,
    "squeeze-excitation": squeeze_excitation,
    "decoder": decoder,
    "matmul-head": matmul_head,
    "channels-last": channels_last,
    "depth-multiplier": depth_multiplier,
    "padded-shortcut": padded_shortcut,
}
