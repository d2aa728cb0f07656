"""What converters from TensorFlow write: channels last, a Transpose on both sides of every convolution."""

from __future__ import annotations

import onnx

from tools.gallery.builder import Builder
from tools.gallery.graph_builder import Literals


def _conv(b: Builder, x: str, out: int, kernel: int, stride: int = 1, group: int = 1) -> str:
    """Convolve, then scale and shift: BatchNormalization as its converter folds it."""
    y = b.conv(b.transpose(x, 0, 3, 1, 2), out, kernel, stride, group=group)
    y = b.transpose(y, 0, 2, 3, 1)
    return b.op("Add", b.op("Mul", y, b.vector(out, "scale", 0.6, 1.4)), b.vector(out, "offset"))


def tensorflow_resnet() -> onnx.ModelProto:
    """A residual network: Add and ReduceMean with channels last, MatMul as head; opset 13."""
    b = Builder(32, 32, 3, opset=13, literals=Literals.INITIALIZERS, batch="unk__1", name="serving_input")
    x = b.relu(_conv(b, b.input, 8, 3, 2))
    for width, stride in ((8, 1), (12, 2), (16, 2)):
        y = _conv(b, b.relu(_conv(b, x, width, 3, stride)), width, 3)
        x = b.relu(b.op("Add", y, x if stride == 1 else _conv(b, x, width, 1, stride)))
    x = b.op("ReduceMean", x, axes=[1, 2], keepdims=0)
    return b.build(b.op("Softmax", b.op("Add", b.op("MatMul", x, b.normal(16, 10)), b.vector(10)), axis=1))


def tensorflow_mobilenet() -> onnx.ModelProto:
    """MobileNet v2: ReLU6 as Min and Max, depthwise filters, Flatten of the last pixels by Reshape; opset 12."""
    b = Builder(32, 32, 3, opset=12, literals=Literals.INITIALIZERS, batch="unk__1", name="serving_input")

    def relu6(x: str) -> str:
        return b.op("Min", b.relu(x), b.literal(6, "float32"))

    x = relu6(_conv(b, b.input, 8, 3, 2))
    for width, stride in ((8, 1), (12, 2), (12, 1), (16, 2)):
        wide = 3 * b.width(x, 3)
        y = relu6(_conv(b, relu6(_conv(b, x, wide, 1)), wide, 3, stride, group=wide))
        y = _conv(b, y, width, 1)
        x = b.op("Add", x, y) if stride == 1 and b.width(x, 3) == width else y
    x = b.reshape(b.pool(b.transpose(x, 0, 3, 1, 2), "AveragePool"), -1, 16 * 4)
    return b.build(b.op("Add", b.op("MatMul", x, b.normal(16 * 4, 10)), b.vector(10)))
