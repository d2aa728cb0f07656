"""Writing networks as exporters do: one method for each kind of layer.

Every method adds nodes and returns the name of their output. onnx infers its shape there and then, so a network can
ask how wide a tensor is, and a mistake shows where it is made. Weights are random, seeded, and scaled so that signals
keep their size; no two are alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.gallery.graph_builder import GraphBuilder

Kernel = int | tuple[int, ...]


class Builder(GraphBuilder):
    """Layers, as torch's exporter writes them."""

    # ---- layers ------------------------------------------------------------------------------------------

    def conv(
        self,
        x: str,
        out: int,
        kernel: Kernel = 3,
        stride: Kernel = 1,
        *,
        group: int = 1,
        bias: bool = False,
        pad: Kernel | None = None,
    ) -> str:
        """Add a convolution that keeps the size (at stride 1), in as many dimensions as its input has."""
        rank = len(self.shape(x)) - 2
        sizes, strides = _each(kernel, rank), _each(stride, rank)
        pads = [size // 2 for size in sizes] if pad is None else _each(pad, rank)
        with self.module(self._leaf("conv")):
            inputs = [self.normal(out, self.width(x) // group, *sizes)]
            inputs += [self.vector(out)] if bias else []
            return self.op(
                "Conv", x, *inputs, kernel_shape=sizes, strides=strides, pads=[*pads, *pads],
                dilations=[1] * rank, group=group,
            )  # fmt: skip

    def conv_transpose(self, x: str, out: int, kernel: int = 2, stride: int = 2, *, group: int = 1) -> str:
        """Add a transposed convolution with bias."""
        rank = len(self.shape(x)) - 2
        with self.module(self._leaf("up")):
            weight = self.normal(self.width(x), out // group, *[kernel] * rank, fan=self.width(x) // group)
            pads = [(kernel - stride) // 2] * (2 * rank)
            attributes: dict[str, Any] = {
                "kernel_shape": [kernel] * rank,
                "strides": [stride] * rank,
                "pads": pads,
                "group": group,
            }
            return self.op("ConvTranspose", x, weight, self.vector(out), **attributes)

    def norm(self, x: str, size: float = 1.0) -> str:
        """Add a BatchNormalization with scales around ``size``."""
        width = self.width(x)
        with self.module(self._leaf("bn")):
            scale = self.vector(width, "weight", 0.6 * size, 1.4 * size)
            return self.op(
                "BatchNormalization", x, scale, self.vector(width), self.vector(width, "running_mean"),
                self.vector(width, "running_var", 0.6, 1.4), epsilon=1e-5,
            )  # fmt: skip

    def relu(self, x: str) -> str:
        """Add a Relu."""
        return self.op("Relu", x)

    def relu6(self, x: str) -> str:
        """Add a Clip to 0…6."""
        return self.op("Clip", x, self.literal(0, np.float32), self.literal(6, np.float32))

    def swish(self, x: str) -> str:
        """Add x · Sigmoid(x), as torch exports SiLU."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def gelu(self, x: str) -> str:
        """Add a Gelu in the five nodes that exporters write before opset 20."""
        half, root, one = (self.literal(value, np.float32) for value in (0.5, 2**0.5, 1.0))
        inner = self.op("Add", self.op("Erf", self.op("Div", x, root)), one)
        return self.op("Mul", self.op("Mul", x, inner), half)

    def conv_relu(self, x: str, out: int, kernel: Kernel = 3, stride: Kernel = 1, **options: Any) -> str:
        """Add a convolution with bias, and Relu."""
        return self.relu(self.conv(x, out, kernel, stride, bias=True, **options))

    def conv_norm_relu(self, x: str, out: int, kernel: Kernel = 3, stride: Kernel = 1, **options: Any) -> str:
        """Add a convolution, BatchNormalization and Relu."""
        return self.relu(self.norm(self.conv(x, out, kernel, stride, **options)))

    def linear(self, x: str, out: int, *, bias: bool = True) -> str:
        """Add a fully connected layer: Gemm on matrices, MatMul and Add on what has more axes, as torch does."""
        width = self.width(x, -1)
        with self.module(self._leaf("fc")):
            if len(self.shape(x)) == 2:
                return self.op("Gemm", x, self.normal(out, width), self.vector(out), transB=1)
            product = self.op("MatMul", x, self.normal(width, out, fan=2 * width))
            return self.op("Add", self.vector(out), product) if bias else product

    def layer_norm(self, x: str) -> str:
        """Normalize over the last axis: one operator from opset 17 on, nine nodes before."""
        width = self.width(x, -1)
        with self.module(self._leaf("norm")):
            scale, shift = self.vector(width, "weight", 0.6, 1.4), self.vector(width)
            if self.opset >= 17:
                return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)
            centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
            squared = self.op("Pow", centred, self.literal(2, np.float32))
            variance = self.op("Add", self.op("ReduceMean", squared, axes=[-1]), self.literal(1e-5, np.float32))
            return self.op("Add", self.op("Mul", self.op("Div", centred, self.op("Sqrt", variance)), scale), shift)

    # ---- pools, shapes, heads ----------------------------------------------------------------------------

    def pool(self, x: str, op: str = "MaxPool", kernel: int = 2, stride: int = 2) -> str:
        """Add a pooling layer; odd kernels are padded to keep the size (at stride 1)."""
        rank = len(self.shape(x)) - 2
        pads = [kernel // 2 if kernel % 2 else 0] * (2 * rank)
        return self.op(op, x, kernel_shape=[kernel] * rank, strides=[stride] * rank, pads=pads)

    def concat(self, *pieces: str, axis: int = 1) -> str:
        """Add a Concat, by default of channels."""
        return self.op("Concat", *pieces, axis=axis)

    def split(self, x: str, *sizes: int, axis: int = 1) -> list[str]:
        """Add a Split into pieces of given sizes, as this opset writes it."""
        if self.opset < 13:
            return self.ops("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
        return self.ops("Split", x, self.literal(sizes), outputs=len(sizes), axis=axis)

    def reshape(self, x: str, *dims: int) -> str:
        """Add a Reshape; 0 copies the batch."""
        return self.op("Reshape", x, self.literal(dims))

    def transpose(self, x: str, *perm: int) -> str:
        """Add a Transpose."""
        return self.op("Transpose", x, perm=list(perm))

    def squeeze(self, x: str, *axes: int) -> str:
        """Add a Squeeze, as this opset writes it."""
        return self.op("Squeeze", x, axes=list(axes)) if self.opset < 13 else self.op("Squeeze", x, self.literal(axes))

    def take(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        """Add a Slice along one axis."""
        return self.op("Slice", x, *(self.literal([value]) for value in (start, end, axis, step)))

    def resize(self, x: str, factor: int = 2) -> str:
        """Add an upsampling of the nearest pixels."""
        scales = self.literal([1, 1, *[factor] * len(self.space(x))], np.float32)
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.op("Resize", x, self.no_region(), scales, **how)

    def no_region(self) -> str:
        """Return what a Resize has instead of a region of interest: nothing, or before opset 13 nothing in a tensor."""
        return "" if self.opset >= 13 else self.literal([], np.float32)

    def excite(self, x: str, reduced: int, *, gate: str = "Sigmoid", inner: str = "Relu") -> str:
        """Add squeeze-and-excitation: channels are scaled by a function of their means."""
        squeezed = self.op(inner, self.conv(self.op("GlobalAveragePool", x), reduced, 1, bias=True))
        return self.op("Mul", x, self.op(gate, self.conv(squeezed, self.width(x), 1, bias=True)))

    def classifier(self, x: str, classes: int = 10) -> str:
        """Add global average pooling, Flatten and a fully connected layer."""
        return self.linear(self.op("Flatten", self.op("GlobalAveragePool", x)), classes)


def _each(size: Kernel, rank: int) -> list[int]:
    return [size] * rank if isinstance(size, int) else list(size)
