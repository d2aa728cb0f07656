"""A weight in few bits: W ≈ levels[index] · scale, with a scale for each output channel. In numbers, without a graph.

- int8: levels −127 … 127, scale max|W_c| / 127: no weight is off by more than half a step;
- int4: levels −8 … 7, the scale of either sign that leaves the least squared error, found by trying;
- kmeans: levels that k-means finds among all W_c / max|W_c|, each counting as its error would in W. (Han et al. 2016,
  "Deep Compression", §3, has one codebook for a tensor too; the scales make channels of different size share it.)
- sign: levels −1 and 1, scale mean|W_c|, the least squared error. (Courbariaux et al. 2015, "BinaryConnect"; Rastegari
  et al. 2016, "XNOR-Net", §3.1.)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.passes._palette_kmeans import codebook, nearest

Array = npt.NDArray[Any]
Scales = npt.NDArray[np.float32]

MOST_BITS = 8
_TRIED = np.linspace(0.55, 1.0, 19)
"""Fractions of the range that int4's levels may span."""


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

    index: npt.NDArray[np.uint8]
    """Of the weight's shape."""
    levels: Array
    """Of shape (2^bits,), in order: int8, or float32 for a codebook."""
    scale: Scales
    """Of the weight's rank, 1 along all axes but the output channels'."""
    bits: int

    def values(self) -> npt.NDArray[np.float32]:
        """Return what the stored weight stands for, rounded as float32 is: once, by the product."""
        return np.asarray(self.levels.astype(np.float32)[self.index] * self.scale, np.float32)


def palette_of(weight: Array, axes: tuple[int, ...], grid: GridChoice, bits: int) -> Palette:
    """Return ``weight`` (finite float32, not empty) on ``grid``, with a scale for each index of ``axes``."""
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    find = {GridChoice.INT8: _int8, GridChoice.INT4: _int4, GridChoice.SIGN: _sign}.get(grid)
    return _kmeans(weight, others, bits) if find is None else find(weight, others)


def _int8(weight: Array, others: tuple[int, ...]) -> Palette:
    scale = _nonzero(np.abs(weight).max(axis=others, keepdims=True).astype(np.float64) / 127)
    steps = np.clip(np.rint(weight / scale.astype(np.float64)), -127, 127)
    return Palette((steps + 128).astype(np.uint8), np.arange(-128, 128).astype(np.int8), scale, 8)


def _int4(weight: Array, others: tuple[int, ...]) -> Palette:
    """Try scales; a negative one lets −8, which has no counterpart, stand for the largest of the positive side."""
    high, low = weight.max(axis=others, keepdims=True), weight.min(axis=others, keepdims=True)
    farthest = np.where(high > -low, high, low).astype(np.float64)
    best = _nonzero(-farthest / 8)
    least = _error(weight, best, others)
    for fraction in _TRIED:
        scale = _nonzero(-farthest * (fraction / 8))
        error = _error(weight, scale, others)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return Palette((_steps(weight, best) + 8).astype(np.uint8), np.arange(-8, 8).astype(np.int8), best, 4)


def _steps(weight: Array, scale: Scales) -> Array:
    return np.asarray(np.clip(np.rint(weight / scale), -8, 7))


def _error(weight: Array, scale: Scales, others: tuple[int, ...]) -> Array:
    return np.asarray(np.square(_steps(weight, scale) * scale - weight, dtype=np.float64).sum(others, keepdims=True))


def _kmeans(weight: Array, others: tuple[int, ...], bits: int) -> Palette:
    scale = _nonzero(np.abs(weight).max(axis=others, keepdims=True))
    unit = weight / scale
    counts = np.broadcast_to(np.square(scale / scale.max(), dtype=np.float64), weight.shape)
    levels = codebook(unit.reshape(-1), np.maximum(counts, np.finfo(np.float32).tiny).reshape(-1), 2**bits)
    levels = levels.astype(np.float32)
    index = nearest(unit.reshape(-1), levels).reshape(weight.shape)
    return Palette(index, levels, scale, bits)


def _sign(weight: Array, others: tuple[int, ...]) -> Palette:
    scale = np.abs(weight).mean(axis=others, keepdims=True, dtype=np.float64).astype(np.float32)
    return Palette((weight >= 0).astype(np.uint8), np.array([-1, 1], np.int8), scale, 1)


def _nonzero(scale: Array) -> Scales:
    """Return scales in float32, 1 where all weights are zero or too small for a float to hold their scale."""
    return np.where(np.abs(scale) > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)
