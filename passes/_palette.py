"""A weight in few bits: W ≈ levels[index] · scale, with a scale for each output channel. In numbers, without a graph.

- int8: levels −128 … 127, scale max|W_c| / 127: no weight is off by more than half a step;
- int4: levels −8 … 7, the scale of either sign that leaves the least squared error, found by trying;
- kmeans: levels that k-means finds among all W_c / max|W_c|, each counting as its error would in W. (Han et al. 2016,
  "Deep Compression", §3, has one codebook for a tensor too; the scales make channels of different size share it.)
- sign: levels −1 and 1, scale mean|W_c|, the least squared error. (Courbariaux et al. 2015, "BinaryConnect"; Rastegari
  et al. 2016, "XNOR-Net", §3.1.)

Scales of int4 and kmeans then settle: the best scale for the indices, the nearest indices for the scale. Channels are
looked at a few at a time, so that little more than the weight itself is in memory.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.passes._palette_kmeans import codebook, gathered, nearest

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]

MOST_BITS = 8
BLOCK = 2**20
"""Weights that are looked at together, about."""
_SHARES = (8 / 7, *np.linspace(1.0, 0.55, 19))
"""Of int4's range, what the level −8 may stand for: at 8/7 of it, −7 and 7 are its ends."""
_SETTLING = 2
"""How often indices and scales follow each other; more gain nothing that shows."""


class GridChoice(enum.Enum):
    """What the levels are."""

    INT8 = "int8"
    INT4 = "int4"
    KMEANS = "kmeans"
    SIGN = "sign"

    def bits(self, wanted: int) -> int:
        """Return the bits of an index; ``wanted`` is k-means' own."""
        return {GridChoice.INT8: 8, GridChoice.INT4: 4, GridChoice.KMEANS: wanted, GridChoice.SIGN: 1}[self]


@dataclass(frozen=True)
class Palette:
    """A weight as stored."""

    index: Indices
    """Of the weight's shape."""
    levels: Array
    """Of shape (2^bits,), in order: int8, or float32 for a codebook."""
    scale: Scales
    """Of the weight's rank, 1 along all axes but the output channels'."""
    bits: int

    def values(self, dtype: npt.DTypeLike = np.float32) -> Array:
        """Return what the stored weight stands for: the product, rounded to float32 and then to ``dtype``."""
        return np.asarray(self.levels.astype(np.float32)[self.index] * self.scale, np.float32).astype(dtype, copy=False)


def palette_of(weight: Array, axes: tuple[int, ...], grid: GridChoice, bits: int) -> Palette:
    """Return ``weight`` (finite, not empty) on ``grid``, with a scale for each index of ``axes``, ascending."""
    order = (*axes, *(axis for axis in range(weight.ndim) if axis not in axes))
    shape = tuple(weight.shape[axis] for axis in order)
    rows = weight.transpose(order).reshape(math.prod(shape[: len(axes)]), -1)
    levels = levels_of(rows, grid, bits)
    parts = [_placed(block.astype(np.float64), grid, levels) for block in _blocks(rows)]
    index, scale = (np.concatenate(each) for each in zip(*parts, strict=True))
    back = index.reshape(shape).transpose(np.argsort(order))
    spread = [size if axis in axes else 1 for axis, size in enumerate(weight.shape)]
    return Palette(np.ascontiguousarray(back), levels, scale.reshape(spread), bits)


def _blocks(rows: Array) -> Iterator[Array]:
    count = max(1, BLOCK // rows.shape[1])
    return (rows[start : start + count] for start in range(0, len(rows), count))


def _placed(rows: Floats, grid: GridChoice, levels: Array) -> tuple[Indices, Scales]:
    scale = first_scale(rows, grid, levels)
    index = index_of(rows / usable(scale)[:, None], levels)
    for _ in range(_SETTLING if grid in (GridChoice.INT4, GridChoice.KMEANS) else 0):
        scale = best_scale(rows, levels[index], scale)
        index = index_of(rows / usable(scale)[:, None], levels)
    return index, scale.astype(np.float32)


# ---- parts, which fitting to samples has use for too ---------------------------------------------------------------


def levels_of(rows: Array, grid: GridChoice, bits: int, counts: Floats | None = None) -> Array:
    """Return the levels for weights of shape (channels, d).

    Args:
        counts: what the squared error of each weight of a channel counts, for each channel or for all. Shape
            (channels or 1, d).
    """
    if grid is GridChoice.INT8:
        return np.arange(-128, 128).astype(np.int8)
    if grid is GridChoice.INT4:
        return np.arange(-8, 8).astype(np.int8)
    if grid is GridChoice.SIGN:
        return np.array([-1, 1], np.int8)
    largest = _largest(rows)
    return codebook(*gathered(_units(rows, largest, counts)), 2**bits).astype(np.float32)


def _units(rows: Array, largest: Floats, counts: Floats | None) -> Iterator[tuple[Floats, Floats]]:
    """Yield weights between −1 and 1 and what they count, a few channels at a time."""
    most = float(largest.max()) or 1.0
    start = 0
    for block in _blocks(rows):
        stop = start + len(block)
        own = np.square(largest[start:stop, None] / most)
        if counts is not None:
            own = own * (counts if len(counts) == 1 else counts[start:stop])
        yield block / usable(largest[start:stop])[:, None], np.broadcast_to(own, block.shape)
        start = stop


def first_scale(rows: Floats, grid: GridChoice, levels: Array, counts: Floats | None = None) -> Floats:
    """Return a scale for each row, 0 for rows of zeros; the arguments are as for :func:`levels_of`."""
    largest = _largest(rows)
    if grid is GridChoice.INT8:
        return largest / 127
    if grid is GridChoice.KMEANS:
        return largest
    if grid is GridChoice.SIGN:
        return np.asarray(np.average(np.abs(rows), 1, None if counts is None else np.broadcast_to(counts, rows.shape)))
    return _tried(rows, levels, 1.0 if counts is None else counts)


def _tried(rows: Floats, levels: Array, counts: Floats | float) -> Floats:
    """Try scales of int4; −8, which has no counterpart, stands for the largest of whichever side reaches farther."""
    high, low = rows.max(axis=1), rows.min(axis=1)
    farthest = np.where(high > -low, high, low)
    best = np.zeros(len(rows))
    least = np.full(len(rows), np.inf)
    for share in _SHARES:
        scale = farthest * (-share / 8)
        found = levels[index_of(rows / usable(scale)[:, None], levels)] * scale[:, None]
        error = (np.square(found - rows) * counts).sum(axis=1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def index_of(units: Floats, levels: Array) -> Indices:
    """Return the index of the level nearest to each of ``units``, weights divided by their scales."""
    if levels.dtype != np.int8:
        return nearest(units, levels.astype(np.float64))
    first, step = float(levels[0]), float(levels[1]) - float(levels[0])
    return np.clip(np.rint((units - first) / step), 0, len(levels) - 1).astype(np.uint8)


def best_scale(rows: Floats, levels: Array, otherwise: Floats) -> Floats:
    """Return the scale of each row that leaves the least squared error; ``otherwise`` where any is as good.

    Args:
        levels: of each weight. Shape as ``rows``.
    """
    levels = levels.astype(np.float64)
    squares = np.einsum("od,od->o", levels, levels)
    return np.where(squares > 0, np.einsum("od,od->o", levels, rows) / np.where(squares > 0, squares, 1), otherwise)


def usable(scale: Floats) -> Floats:
    """Return what to divide by: 1 where a scale is too small for float32, or for its weights to be told from 0."""
    return np.where(np.abs(scale) > np.finfo(np.float32).tiny, scale, 1.0)


def _largest(rows: Array) -> Floats:
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1)).astype(np.float64)
    return np.where(largest > np.finfo(np.float32).tiny, largest, 0.0)
