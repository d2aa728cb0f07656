"""Blocks of weights on a few levels, with a scale for each block.

Given   W, a row for each output, and what an error in each column costs, h
Result  W ≈ s·(q − z),  q and z whole numbers from 0 to 2^bits − 1, with a scale s and a zero point z for each block of
        consecutive weights of a row, that have the least

    Σ h·(w − s·(q − z))²,   q rounded to the nearest and cut off at both ends

1. Symmetric: z = 2^(bits − 1), which leaves one level more on one side of zero; where scales may be negative, their
   sign says on which. (So does Q4_0 of llama.cpp; on normal numbers in blocks of 32 it is worth 0.5 dB of 4 bits.)
2. Otherwise z is where zero lies between the least and the greatest weight of the block, both including zero.

Scales are tried from the one that cuts off nothing downwards (clipping: Nagel et al. 2021, "A White Paper on Neural
Network Quantization", §3.1), and the best is put right once: for given q it is Σh·w·(q − z) / Σh·(q − z)², and rounding
again can only lower the error further. Blocks: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization",
§2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

Singles = npt.NDArray[np.float32]

SHARES = np.linspace(1.0, 0.3, 22, dtype=np.float32)
"""Of the scale that cuts off nothing: what is tried."""
SMALLEST = 16 * float(np.finfo(np.float32).tiny)
"""Scales below it become 1, and their weights zero: float32 would not hold what is tried."""
CHUNK = 2**16
"""Weights that are looked at together: they stay near the processor."""


@dataclass(frozen=True)
class GridStyle:
    """What blocks look like."""

    bits: int
    block: int
    """How many weights share a scale."""
    symmetric: bool
    signed: bool = False
    """Whether scales of symmetric blocks may be negative."""

    @property
    def top(self) -> int:
        """The highest level; the lowest is 0."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return int(2 ** (self.bits - 1))

    def count(self, width: int) -> int:
        """Return how many blocks a row of ``width`` weights has; the last may be shorter."""
        return -(-width // self.block)


@dataclass(frozen=True)
class Grids:
    """Scale and zero point of each block, both of shape (O, blocks)."""

    style: GridStyle
    scale: npt.NDArray[np.float32]
    zero: Bytes

    def columns(self, width: int) -> tuple[Floats, Floats]:
        """Return scale and zero point of each weight, both of shape (O, width)."""
        scale, zero = (np.repeat(part, self.style.block, axis=1)[:, :width] for part in (self.scale, self.zero))
        return scale.astype(np.float64), zero.astype(np.float64)


@dataclass(frozen=True)
class BlockWeight:
    """A matrix on its grids."""

    levels: Bytes
    """q. Shape (O, d)."""
    grids: Grids

    def values(self) -> Floats:
        """Return what it stands for. Shape (O, d)."""
        scale, zero = self.grids.columns(self.levels.shape[1])
        return scale * (self.levels - zero)


def rounded(weight: Floats, scale: Floats, zero: Floats, top: int) -> Floats:
    """Return the nearest level of each weight, as floats."""
    return np.clip(np.round(weight / scale + zero), 0, top)


def to_nearest(weight: Floats, grids: Grids) -> BlockWeight:
    """Return ``weight``, of shape (O, d), on the nearest level of its grids."""
    scale, zero = grids.columns(weight.shape[1])
    return BlockWeight(rounded(weight, scale, zero, grids.style.top).astype(np.uint8), grids)


def best_grids(weight: Floats, style: GridStyle, curvature: Floats | None = None) -> Grids:
    """Return the scale and zero point of each block with least error.

    Args:
        weight: finite. Shape (O, d).
        curvature: h, positive; all the same unless told. Shape (d,).
    """
    given = np.ones(weight.shape[1]) if curvature is None else curvature / curvature.max()
    costs = in_blocks(given.astype(np.float32), style.block)
    rows = max(1, CHUNK // max(costs.size, 1))
    found = []
    for start in range(0, len(weight), rows):
        parts = in_blocks(weight[start : start + rows].astype(np.float32), style.block)
        found.append(_searched(parts, costs, style))
    scale, zero = (np.concatenate(each) for each in zip(*found, strict=True))
    return Grids(style, scale, zero.astype(np.uint8))


def in_blocks(rows: Singles, block: int) -> Singles:
    """Return rows, of shape (…, d), in shape (…, blocks, block), the last filled up with zeros."""
    missing = -rows.shape[-1] % block
    filled = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)])
    return filled.reshape(*rows.shape[:-1], -1, block)


def _searched(parts: Singles, costs: Singles, style: GridStyle) -> tuple[Singles, Singles]:
    """Return scale and zero point of each block, of shape (rows, blocks). ``parts`` has one axis more."""
    zero, widest = _span(parts, style)
    parts = parts / widest[:, :, None]  # squares of very large or small weights would leave float32
    best, least = np.ones_like(widest), np.full_like(widest, np.inf)
    for sign in (1, -1) if style.signed else (1,):
        for share in SHARES:
            scale = np.full((1, 1), sign * share)
            error = _error(parts, costs, scale, zero, style.top)
            best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return widest * _refined(parts, costs, best, zero, style.top), zero


def _span(parts: Singles, style: GridStyle) -> tuple[Singles, Singles]:
    """Return the zero point of each block, and the scale that cuts off nothing by more than half a step."""
    low, high = np.minimum(parts.min(axis=2), 0), np.maximum(parts.max(axis=2), 0)
    widest = np.maximum(-low, high) / (style.middle - 1) if style.symmetric else (high - low) / style.top
    widest = np.where(widest > SMALLEST, widest, np.float32(1))
    return np.full_like(widest, style.middle) if style.symmetric else np.round(-low / widest), widest


def _error(parts: Singles, costs: Singles, scale: Singles, zero: Singles, top: int) -> Singles:
    off = parts - scale[:, :, None] * _steps(parts, scale, zero, top)
    error: Singles = np.einsum("rbk,rbk,bk->rb", off, off, costs)
    return error


def _steps(parts: Singles, scale: Singles, zero: Singles, top: int) -> Singles:
    """Return q − z of each weight."""
    least = -zero[:, :, None]
    steps: Singles = np.round(parts * np.reciprocal(scale[:, :, None]))
    return np.clip(steps, least, least + top, out=steps)


def _refined(parts: Singles, costs: Singles, scale: Singles, zero: Singles, top: int) -> Singles:
    """Return the best scale for the levels that ``scale`` gives; itself where nothing speaks for another."""
    steps = _steps(parts, scale, zero, top)
    squares = np.einsum("rbk,rbk,bk->rb", steps, steps, costs)
    better = np.einsum("rbk,rbk,bk->rb", parts, steps, costs) / np.where(squares > 0, squares, np.float32(1))
    return np.where(np.abs(better) > SHARES[-1] / 2, better, scale)
