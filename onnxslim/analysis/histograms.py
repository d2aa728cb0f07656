"""Histograms of streamed values: a fixed number of bins, however many values come and wherever they lie.

Bins are [k·w, (k+1)·w) with w a power of two. Where the range outgrows them, w doubles and neighbours merge, which
moves no edge that stays. So w follows from the extremes alone, and counts do not depend on the order in which values
came, nor on how they were divided among histograms that are merged later.

Extremes are exact. Of a tensor with many values a strided part is counted, each for all that it stands for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BINS = 4096
"""At least half of them lie between zero and the extremes: eight for each step of 8 bits."""

COUNTED = 2**15
"""Values of one array that are looked at one by one."""

LARGEST = float(np.finfo(np.float32).max)
"""Larger values count as infinite: no float32 scale leads to them."""

_LOWEST_EXPONENT = -1000
"""Finer bins would have no reciprocal. What is that small may count as zero beside large values."""


@dataclass
class Histogram:
    """Counts of values in ``bins`` bins between the extremes and zero, in fixed memory.

    Args:
        bins: a power of two.

    Raises:
        ValueError: it is none.
    """

    bins: int = BINS
    low: float = math.inf
    """Smallest value, exact; infinite before the first."""
    high: float = -math.inf
    """Largest value, exact."""
    count: int = 0
    """Number of values; the sum of ``counts``."""
    zeros: int = 0
    """How many of the counted are exactly zero (they are in ``counts`` too)."""
    samples: int = 0
    """Arrays added that were not empty."""
    low_sum: float = 0.0
    """Sum of the samples' smallest values."""
    high_sum: float = 0.0
    """Sum of the samples' largest values."""
    finite: bool = True
    """False once a value was NaN, infinite or beyond float32; nothing is counted from then on."""
    exponent: int = _LOWEST_EXPONENT
    """log2 of the bins' width."""
    first: int = 0
    """k of the first bin."""
    counts: Counts = field(init=False)
    """Shape (bins,)."""

    def __post_init__(self) -> None:
        if self.bins < 2 or self.bins & (self.bins - 1):
            raise ValueError(f"{self.bins} bins: their number must be a power of two")
        self.counts = np.zeros(self.bins, np.int64)

    @property
    def width(self) -> float:
        """Width of one bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> Floats:
        """Edges of all bins, ascending. Shape (bins + 1,)."""
        return self.width * np.arange(self.first, self.first + self.bins + 1, dtype=np.float64)

    def add(self, values: Array) -> None:
        """Count the values of one sample's tensor, of any real type and shape; an empty one is no sample."""
        if not values.size or not self.finite:
            return
        flat = values.reshape(-1)
        with np.errstate(invalid="ignore"):
            low, high = float(flat.min()), float(flat.max())
        if not (low >= -LARGEST and high <= LARGEST):  # NaN compares as neither
            self.finite = False
            return
        self._cover(low, high)
        self._count(flat, low, high)
        self.samples += 1
        self.count += flat.size
        self.low_sum += low
        self.high_sum += high

    def merged(self, other: Histogram) -> Histogram:
        """Return a histogram of what both have seen; neither changes.

        Raises:
            ValueError: they differ in their number of bins.
        """
        if self.bins != other.bins:
            raise ValueError(f"histograms of {self.bins} and {other.bins} bins cannot be merged")
        result = Histogram(self.bins)
        for part in (self, other):
            if part.count:
                result._cover(part.low, part.high)
        for part in (self, other):
            result.counts += part._placed(result.exponent, result.first)
            for name in ("count", "zeros", "samples", "low_sum", "high_sum"):
                setattr(result, name, getattr(result, name) + getattr(part, name))
            result.finite = result.finite and part.finite
        return result

    def without_zeros(self) -> tuple[Floats, Counts]:
        """Return edges and counts of the values that are not zero, from the first occupied bin to the last.

        The outermost edges are the exact extremes, where those are not zero: values that all lie at a bound have a bin
        of no width. Shapes (n + 1,) and (n,), n = 0 where all are zero.
        """
        counts = self.counts.copy()
        if self.zeros:
            counts[-self.first] -= self.zeros
        used = np.flatnonzero(counts)
        if not used.size:
            return np.zeros(1), np.zeros(0, np.int64)
        start, stop = int(used[0]), int(used[-1]) + 1
        edges = self.edges[start : stop + 1]
        return np.clip(edges, self.low, self.high), counts[start:stop]

    def quantile(self, share: float) -> float:
        """Return the value below which ``share`` (0 to 1) of all lie, to within one bin.

        Raises:
            ValueError: nothing was counted.
        """
        if not self.count:
            raise ValueError("nothing was counted")
        below = np.cumsum(self.counts)
        target = share * float(below[-1])
        index = min(int(np.searchsorted(below, target)), self.bins - 1)
        inside = int(self.counts[index])
        part = 1.0 if not inside else (target - (float(below[index]) - inside)) / inside
        return min(max((self.first + index + part) * self.width, self.low), self.high)

    # ---- inside ------------------------------------------------------------------------------------------

    def _cover(self, low: float, high: float) -> None:
        """Take ``low`` and ``high`` into the range, and double the bins' width until they hold it."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent, first = _layout(min(self.low, 0.0), max(self.high, 0.0), self.bins)
        if (exponent, first) != (self.exponent, self.first):
            self.counts = self._placed(exponent, first)
            self.exponent, self.first = exponent, first

    def _placed(self, exponent: int, first: int) -> Counts:
        """Return the counts in wider bins that start at ``first``."""
        used = np.flatnonzero(self.counts)
        places = ((used + self.first) >> min(exponent - self.exponent, 63)) - first
        counts = np.zeros(self.bins, np.int64)
        np.add.at(counts, places, self.counts[used])
        return counts

    def _count(self, flat: Array, low: float, high: float) -> None:
        if flat.size <= COUNTED:
            self._put(flat, 1)
            return
        stride = _stride(flat.size)
        length = (flat.size - 2) // stride
        picked = flat[self.samples % stride :: stride][:length]
        self._put(picked, stride)
        self._put(picked[-1:], flat.size - 2 - stride * length)
        self._put(np.array([low, high]), 1)

    def _put(self, values: Array, weight: int) -> None:
        """Count values that the bins hold, each ``weight`` times."""
        if values.dtype != np.float32 or not -126 <= self.exponent <= 0:  # elsewhere scaling in float32 is not exact
            values = values.astype(np.float64)
        scaled = np.floor(values * values.dtype.type(math.ldexp(1.0, -self.exponent)))
        places = scaled.astype(np.intp)
        places -= self.first
        self.counts += np.bincount(places, minlength=self.bins) * weight
        if self.low <= 0 <= self.high:
            self.zeros += (values.size - int(np.count_nonzero(values))) * weight


def _layout(low: float, high: float, bins: int) -> tuple[int, int]:
    """Return the smallest exponent with which ``bins`` bins reach from ``low`` ≤ 0 to ``high`` ≥ 0, and the first k."""
    largest = max(-low, high)
    exponent = _LOWEST_EXPONENT
    if largest > 0:
        exponent = max(exponent, math.frexp(largest)[1] - bins.bit_length() + 1)
    while _place(high, exponent) - _place(low, exponent) >= bins:
        exponent += 1
    return exponent, _place(low, exponent)


def _place(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _stride(size: int) -> int:
    """Return a stride that picks at most ``COUNTED`` values and shares no factor with ``size``.

    Such a stride meets rows, columns and channels alike; one that divides the width would see a single column.
    """
    stride = -(-size // COUNTED)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride
