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

from onnxslim.analysis.linear_layers import Array, Indices, LinearLayer, linear_layer, refusal

__all__ = ["LinearLayer", "PatchMap", "items", "linear_layer", "patch_map", "refusal"]


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
