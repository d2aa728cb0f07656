"""Linear layers as products of a matrix: which rows of numbers a layer multiplies its weight with.

Every output position of a linear layer is y = W·p + b, where p is what of the input the position sees: a patch of a
convolution (im2col), a row of a matrix. A patch is ordered as the weight's own axes (channel of the group, kernel…), so
that a weight reshaped to (outputs, d) multiplies it. Patches are the columns of the arrays here, shape (d, rows).

A convolution along one axis reads input i = o·stride + k·dilation − pad for output o and tap k; a transposed one reads
i = (o + pad − k·dilation) / stride where that is whole (Dumoulin & Visin 2016, "A guide to convolution arithmetic for
deep learning", §4). Both become a table of i by (o, k), −1 outside; everything after the table is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import PassError
from onnxslim.ir import Constant, Node, anchor_of, array_of, is_standard, numpy_dtype

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class LinearLayer:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weights, seen as y = W·p + b. Build it with
    :func:`linear_layer`.
    """

    node: Node
    weight: Constant
    groups: int
    width: int
    """d: length of a patch, within one group."""
    channels: int
    """O: output channels, of all groups."""
    kernel: tuple[int, ...]
    """Taps along each axis; empty for matrices."""

    @property
    def anchor(self) -> str:
        """The layer's first output, which is also what y is called."""
        return anchor_of(self.node)

    @property
    def source(self) -> str:
        """Name of the input tensor."""
        return str(self.node.inputs[0].name)

    @property
    def taps(self) -> int:
        """Columns of the matrix for each input channel."""
        return math.prod(self.kernel)

    @property
    def has_bias(self) -> bool:
        """Whether the operator has a bias or can be given one."""
        return self.node.op != "MatMul"

    def channel_of_column(self) -> Indices:
        """Return the input channel of each column, numbered over all groups. Shape (groups, d)."""
        channels = np.repeat(np.arange(self.groups * self.width // self.taps), self.taps)
        return channels.reshape(self.groups, self.width)

    def matrix(self) -> Floats:
        """Return W, a Gemm's alpha included. Shape (groups, O/groups, d), float64."""
        values = array_of(self.weight)
        assert values is not None  # noqa: S101  (it is a constant)
        values = values.astype(np.float64)
        if self.node.op == "ConvTranspose":
            values = values.reshape(self.groups, -1, self.channels // self.groups, self.taps).swapaxes(1, 2)
        elif self.node.op != "Conv" and not self.node.attrs.get("transB"):
            values = values.T
        alpha = float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0
        matrix: Floats = alpha * values.reshape(self.groups, self.channels // self.groups, self.width)
        return matrix

    def stored(self, matrix: Floats) -> Array:
        """Return ``matrix``, of the shape that :meth:`matrix` returns, as the weight is stored: its shape and type.

        The node keeps its attributes: a Gemm's alpha is divided out.

        Raises:
            PassError: a value does not fit the type.
        """
        alpha = float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0
        values: Array = matrix / alpha
        if self.node.op == "ConvTranspose":
            parts = values.reshape(self.groups, self.channels // self.groups, -1, self.taps)
            values = parts.swapaxes(1, 2)
        elif self.node.op != "Conv" and not self.node.attrs.get("transB"):
            values = values[0].T
        return _rounded(values.reshape(tuple(self.weight.shape)), numpy_dtype(self.weight.dtype), self.anchor)

    def bias(self) -> Floats:
        """Return b, a Gemm's beta included; zeros where the layer has none. Shape (O,), float64."""
        if len(self.node.inputs) < 3 or not self.node.inputs[2].name:
            return np.zeros(self.channels)
        values = array_of(self.node.inputs[2])
        assert values is not None  # noqa: S101  (linear_layer saw to it)
        beta = float(self.node.attrs.get("beta", 1.0)) if self.node.op == "Gemm" else 1.0
        vector: Floats = beta * np.broadcast_to(values.astype(np.float64).reshape(-1), (self.channels,))
        return vector

    def stored_bias(self, bias: Floats) -> Array:
        """Return ``bias``, shape (O,), in the weight's type. A Gemm's beta must be 1 (or absent) beside it.

        Raises:
            PassError: a value does not fit the type.
        """
        return _rounded(bias, numpy_dtype(self.weight.dtype), self.anchor)


def _rounded(values: Array, dtype: np.dtype[Any] | None, anchor: str) -> Array:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values.astype(dtype))
    if not np.isfinite(rounded).all():
        raise PassError(f"the new weights of {anchor!r} do not fit {dtype}")
    return rounded


# ---- which nodes are such layers -------------------------------------------------------------------------------------


def linear_layer(node: Node) -> LinearLayer:
    """Return ``node`` as a linear layer.

    Raises:
        PassError: it is none; the message names it and says why (see :func:`refusal`).
    """
    reason = refusal(node)
    if reason is not None:
        raise PassError(f"{anchor_of(node)!r} is no linear layer with constant weights: {reason}")
    weight = node.inputs[1]
    assert isinstance(weight, Constant)  # noqa: S101  (or it would have been refused)
    shape = tuple(int(size) for size in weight.shape)
    groups = int(node.attrs.get("group", 1)) if node.op.startswith("Conv") else 1
    if node.op == "Conv":
        return LinearLayer(node, weight, groups, math.prod(shape[1:]), shape[0], shape[2:])
    if node.op == "ConvTranspose":
        width = shape[0] // groups * math.prod(shape[2:])
        return LinearLayer(node, weight, groups, width, shape[1] * groups, shape[2:])
    inner, outer = shape[::-1] if node.attrs.get("transB") else shape
    return LinearLayer(node, weight, 1, inner, outer, ())


def refusal(node: Node) -> str | None:
    """Return why ``node`` cannot be seen as y = W·p + b with constant W and b, None where it can."""
    if not is_standard(node, *LAYERS) or len(node.inputs) < 2:
        return f"{node.op} is not one of {', '.join(LAYERS)}"
    weight = node.inputs[1]
    if not isinstance(weight, Constant):
        return "its weights are computed"
    if numpy_dtype(weight.dtype) not in _FLOATS or 0 in weight.shape:
        return "its weights are no floating-point numbers"
    if node.op in ("Gemm", "MatMul"):
        return _matrix_refusal(node, weight)
    return _convolution_refusal(node, weight)


def _matrix_refusal(node: Node, weight: Constant) -> str | None:
    if len(weight.shape) != 2:
        return "its weights are no matrix"
    if node.attrs.get("transA"):
        return "its input is transposed"
    if node.op == "Gemm" and float(node.attrs.get("alpha", 1.0)) == 0.0:
        return "its alpha is 0"
    outer = int(weight.shape[0 if node.attrs.get("transB") else 1])
    return _bias_refusal(node, outer) if node.op == "Gemm" else None


def _bias_refusal(node: Node, channels: int) -> str | None:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    bias = node.inputs[2]
    if not isinstance(bias, Constant):
        return "its bias is computed"
    size = math.prod(map(int, bias.shape))
    per_channel = size == 1 or (size == channels and int(bias.shape[-1]) == channels)
    return None if per_channel else "its bias is not one number for each channel"


def _convolution_refusal(node: Node, weight: Constant) -> str | None:
    rank, groups = len(weight.shape) - 2, int(node.attrs.get("group", 1))
    if not 1 <= rank <= 3:
        return f"it is a convolution over {rank} axes"
    if groups < 1 or int(weight.shape[0]) % groups:
        return f"its channels do not divide into {groups} groups"
    if any(int(pad) < 0 for pad in node.attrs.get("pads", ())):
        return "it crops with negative pads"
    rule = node.attrs.get("auto_pad", "NOTSET")
    if node.op == "ConvTranspose" and (rule not in ("NOTSET", "VALID") or "output_shape" in node.attrs):
        return "it leaves its padding to the runtime"
    channels = int(weight.shape[0]) if node.op == "Conv" else int(weight.shape[1]) * groups
    return _bias_refusal(node, channels)


# ---- patches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatchMap:
    """Where the patches of a layer lie in an input of one size. Build it with :func:`patch_map`."""

    layer: LinearLayer
    extent: tuple[int, ...]
    """Input positions along each axis."""
    tables: tuple[Indices, ...]
    """For each axis the input index by (output, tap), −1 where the tap sees padding. Empty for matrices."""
    outputs: tuple[int, ...]
    """Output positions along each axis."""

    @property
    def positions(self) -> int:
        """Number of output positions, that is of patches, of one item."""
        return math.prod(self.outputs)

    def indices(self, picks: Indices) -> Indices:
        """Return flat input positions seen from output positions ``picks``; one past the end for padding.

        Shape (taps, len(picks)).
        """
        flat = np.zeros((1, len(picks)), np.int64)
        seen = np.ones((1, len(picks)), np.bool_)
        coordinates = np.unravel_index(picks, self.outputs)
        for table, size, along in zip(self.tables, self.extent, coordinates, strict=True):
            index = table[along].T
            flat = (flat[:, None] * size + index[None]).reshape(-1, len(picks))
            seen = (seen[:, None] & (index >= 0)[None]).reshape(-1, len(picks))
        return np.where(seen, flat, math.prod(self.extent))

    def patches(self, item: Array, picks: Indices) -> Array:
        """Return the patches at output positions ``picks`` of one item of the input.

        Args:
            item: (channels, positions) for a convolution, (positions, channels) for a matrix.

        Returns:
            (groups·d, len(picks)), in the item's type: the groups follow each other.
        """
        if not self.tables:
            return item[picks].T
        index = self.indices(picks)
        channels, size = item.shape
        if index.size and int(index.max()) == size:
            item = np.concatenate((item, np.zeros((channels, 1), item.dtype)), axis=1)
        return np.take(item, index.reshape(-1), axis=1).reshape(-1, len(picks))

    def targets(self, item: Array, picks: Indices) -> Array:
        """Return one item of the output at ``picks``, given as :meth:`patches` wants its input. (O, len(picks))."""
        return np.take(item, picks, axis=1) if self.tables else item[picks].T


def patch_map(layer: LinearLayer, shape: Sequence[int]) -> PatchMap:
    """Return where the patches of ``layer`` lie in an input of ``shape``, the batch included."""
    if not layer.kernel:
        rows = math.prod(shape[1:-1])
        return PatchMap(layer, (rows,), (), (rows,))
    extent = tuple(int(size) for size in shape[2:])
    tables = tuple(_table(layer, axis, size) for axis, size in enumerate(extent))
    return PatchMap(layer, extent, tables, tuple(len(table) for table in tables))


def items(layer: LinearLayer, array: Array) -> Array:
    """Return an input or output of ``layer`` item by item, positions flattened, as :class:`PatchMap` wants them.

    Shape (items, channels, positions) for convolutions, (items, positions, channels) for matrices, where all that
    lies between the first and the last axis counts as positions.
    """
    if layer.kernel:
        return array.reshape(*array.shape[:2], -1)
    return array.reshape(array.shape[0] if array.ndim > 1 else 1, -1, array.shape[-1])


def _table(layer: LinearLayer, axis: int, size: int) -> Indices:
    attrs, rank = layer.node.attrs, len(layer.kernel)
    kernel = layer.kernel[axis]
    stride = int((attrs.get("strides") or [1] * rank)[axis])
    dilation = int((attrs.get("dilations") or [1] * rank)[axis])
    reach = (kernel - 1) * dilation + 1
    before, after = _pads(attrs, axis, rank, (size, stride, reach))
    taps = np.arange(kernel)[None] * dilation
    if layer.node.op == "Conv":
        count = (size + before + after - reach) // stride + 1
        index = np.arange(max(count, 0))[:, None] * stride + taps - before
    else:
        extra = int((attrs.get("output_padding") or [0] * rank)[axis])
        count = stride * (size - 1) + extra + reach - before - after
        wide = np.arange(max(count, 0))[:, None] + before - taps
        index = np.where(wide % stride == 0, wide // stride, -1)
    return np.where((index >= 0) & (index < size), index, -1).astype(np.int64)


def _pads(attrs: dict[str, Any], axis: int, rank: int, along: tuple[int, int, int]) -> tuple[int, int]:
    """Return the padding before and after one axis; ``along`` is its (size, stride, reach of the kernel)."""
    rule = attrs.get("auto_pad", "NOTSET")
    if rule == "VALID":
        return 0, 0
    if rule == "NOTSET":
        pads = attrs.get("pads") or [0] * (2 * rank)
        return int(pads[axis]), int(pads[axis + rank])
    size, stride, reach = along
    total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
    return (total // 2, total - total // 2) if rule == "SAME_UPPER" else (total - total // 2, total // 2)
