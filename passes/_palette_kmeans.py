"""k-means in one dimension: the few values that stand for many with the least squared error.

On a line clusters are intervals, so a dynamic programme finds the best: with C(i, j) the error of points i to j − 1
around their mean, E_k(j) = min_i E_{k−1}(i) + C(i, j). (Wang & Song 2011, "Ckmeans.1d.dp".) Of many points it sees
bins, some equally wide and some equally full. Lloyd's algorithm (1982) then settles on the points themselves. Many
levels are laid as dense as the cube root of the values instead, which fine levels approach. (Panter & Dite 1951.)
Nothing is random, and nothing is sorted but what :func:`gathered` leaves of values, however many those are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

FINE = 2**17
"""Bins between −1 and 1 that values are gathered in: far finer than any two levels."""
BINS, LEAST_BINS = 6, 256
"""Bins that the programme sees, for each level and at least: more find no better levels."""
EXACT = 64
"""Levels up to which the programme runs; more are laid by density, and it would gain less than 0.5 dB."""
MOST_STEPS = 100
"""Of Lloyd's algorithm; it settles long before."""


@dataclass(frozen=True)
class _Sums:
    """Points on a line in order, as running sums of weight, weight·x and weight·x², each with a zero in front."""

    weight: Floats
    first: Floats
    second: Floats

    def error(self, start: Array, stop: Array) -> Floats:
        """Return the squared error of points start to stop − 1 around their mean; 0 where there are none."""
        weight = self.weight[stop] - self.weight[start]
        first = self.first[stop] - self.first[start]
        within = self.second[stop] - self.second[start] - first * first / np.where(weight > 0, weight, 1.0)
        return np.asarray(np.maximum(within, 0.0))

    def means(self, bounds: Array, otherwise: Floats) -> Floats:
        """Return the mean of each interval between neighbours in ``bounds``; ``otherwise`` where it is empty."""
        weight = np.diff(self.weight[bounds])
        return np.where(weight > 0, np.diff(self.first[bounds]) / np.where(weight > 0, weight, 1.0), otherwise)


def gathered(parts: Iterable[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Return points that stand for many: the means of values in fine bins, and what they count.

    Args:
        parts: pairs of (values between −1 and 1, what the squared error of each counts, 0 or more) of the same shape.

    Returns:
        Points in order, and positive numbers: one 0 that counts 1 where nothing counts.
    """
    counts, sums = np.zeros(FINE), np.zeros(FINE)
    for values, weights in parts:
        places = np.clip((values + 1) * (FINE / 2), 0, FINE - 1).astype(np.int64).reshape(-1)
        counts += np.bincount(places, weights.reshape(-1), FINE)
        sums += np.bincount(places, (weights * values).reshape(-1), FINE)
    held = counts > np.finfo(np.float64).tiny
    return (sums[held] / counts[held], counts[held]) if held.any() else (np.zeros(1), np.ones(1))


def codebook(values: Array, weights: Array, count: int) -> Floats:
    """Return ``count`` values in order (repeated, where there are fewer to tell apart) that stand for ``values``.

    Args:
        values: of shape (n,), finite, n > 0.
        weights: of shape (n,), positive: what the squared error of each value counts.
        count: 1 or more.
    """
    order = np.argsort(values, kind="stable")
    x, w = values[order].astype(np.float64), weights[order].astype(np.float64)
    distinct = x[np.concatenate(([True], np.diff(x) > 0))]
    if len(distinct) <= count:
        return np.concatenate((distinct, np.full(count - len(distinct), distinct[-1])))
    points = _sums(x, w)
    laid = _by_programme(x, w, count) if count <= EXACT else _by_density(x, w, count)
    starts = (laid, np.linspace(x[0], x[-1], count))  # never worse than a uniform grid
    found = [_settled(x, points, start) for start in starts]
    return min(found, key=lambda pair: pair[0])[1]


def nearest(values: Array, book: Floats) -> npt.NDArray[np.uint8]:
    """Return the index in ``book`` (in order, at most 256) of what is nearest to each of ``values``."""
    return np.searchsorted(_middles(book), values).astype(np.uint8)


def _middles(book: Floats) -> Floats:
    return np.asarray((book[1:] + book[:-1]) / 2)


def _sums(x: Floats, w: Floats) -> _Sums:
    return _Sums(*(np.concatenate(([0.0], np.cumsum(term))) for term in (w, w * x, w * x * x)))


def _settled(x: Floats, points: _Sums, book: Floats) -> tuple[float, Floats]:
    """Return (squared error, centres) where Lloyd's algorithm ends: no step of it makes the error larger."""
    bounds = np.empty(0, np.int64)
    for _ in range(MOST_STEPS):
        before, bounds = bounds, np.concatenate(([0], np.searchsorted(x, _middles(book)), [len(x)]))
        if np.array_equal(before, bounds):
            break
        book = np.sort(points.means(bounds, book))
    return float(points.error(bounds[:-1], bounds[1:]).sum()), book


def _by_programme(x: Floats, w: Floats, count: int) -> Floats:
    """Return the best centres of bins of the values, each bin standing at its mean."""
    whole = _sums(x, w)
    ends = _bins(x, whole, max(BINS * count, LEAST_BINS))
    points = _Sums(whole.weight[ends], whole.first[ends], whole.second[ends])
    size = len(ends)
    i, j = np.arange(size)[:, None], np.arange(size)[None, :]
    errors = np.where(i <= j, points.error(np.minimum(i, j), np.broadcast_to(j, (size, size))), np.inf)
    least, choices = errors[0], []
    for _ in range(count - 1):
        total = least[:, None] + errors
        best = total.argmin(axis=0)
        least = total[best, np.arange(size)]
        choices.append(best)
    bounds = [size - 1]
    for best in reversed(choices):
        bounds.append(int(best[bounds[-1]]))
    return np.sort(points.means(np.array([0, *reversed(bounds)]), np.full(count, x[0])))


def _bins(x: Floats, points: _Sums, most: int) -> npt.NDArray[np.int64]:
    """Return where up to ``most`` bins of the values end, 0 in front: each value its own where that is enough."""
    if len(x) <= most:
        return np.arange(len(x) + 1)
    wide = np.searchsorted(x, np.linspace(x[0], x[-1], most // 2 + 1)[1:-1])
    full = np.searchsorted(points.weight, np.linspace(0, points.weight[-1], most // 2 + 1)[1:-1])
    return np.unique(np.concatenate(([0], wide, full, [len(x)])))


def _by_density(x: Floats, w: Floats, count: int) -> Floats:
    """Return ``count`` values in order between the least and the greatest, as dense as the cube root of the weights."""
    density, edges = np.histogram(x, 8 * count, weights=w)
    share = np.concatenate(([0.0], np.cumsum(np.cbrt(density))))
    return np.asarray(np.interp((np.arange(count) + 0.5) / count * share[-1], share, edges))
