"""Ranges by entropy: the clipping after which a coarse histogram tells least about the fine one that it lost.

For each candidate, P is the histogram inside the range, with what lies outside moved to its ends, and Q is the inside
alone, summed up to one cell for each level and spread evenly again over the bins that hold anything. The range with the
least Kullback-Leibler divergence KL(P ‖ Q) wins. (Migacz 2017, "8-bit inference with TensorRT"; smoothing of empty
bins as in MXNet's and onnxruntime's calibration.)

Candidates reach equally far on both sides of zero, but nowhere beyond what was seen: after a ReLU there is one side
only, and all levels serve it. Exact zeros are left out, as NVIDIA's pytorch-quantization leaves out the first bin:
every range holds them, and half of all values in one bin would hide the rest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.histograms import Histogram

Floats = npt.NDArray[np.float64]

CANDIDATES = 128
"""Ranges tried, in even steps."""

SMOOTHING = 1e-4
"""Count that an empty bin is given, out of what the others hold."""


def entropy_range(histogram: Histogram, levels: int, *, symmetric: bool) -> tuple[float, float]:
    """Return the range of least divergence, its ends on edges of bins or at the extremes.

    Where fewer bins than levels are in use nothing can be told, and it is minimum and maximum.

    Args:
        histogram: of at least one value.
        levels: integers on the grid.
        symmetric: whether both sides reach equally far.
    """
    counts, below = _around_zero(histogram, symmetric=symmetric)
    sides = below, len(counts) - below
    best, least = sides, np.inf
    for reach in _reaches(max(sides), levels // 2):
        left, right = min(reach, sides[0]), min(reach, sides[1])
        found = _divergence(counts, below - left, below + right, levels) if left + right >= levels else np.inf
        if found < least:
            best, least = (left, right), found
    low, high = -best[0] * histogram.width, best[1] * histogram.width
    widest = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        high = min(high, max(-widest[0], widest[1]))
        return -high, high
    return max(low, widest[0]), min(high, widest[1])


def _reaches(widest: int, narrowest: int) -> list[int]:
    """Return how many bins to reach from zero, from all of them down."""
    reaches = np.linspace(widest, min(narrowest, widest), CANDIDATES)
    return list(dict.fromkeys(int(reach) for reach in np.ceil(reaches)))


def _around_zero(histogram: Histogram, *, symmetric: bool) -> tuple[Floats, int]:
    """Return the counts that are not zeros from the lowest bin in use to the highest, and how many lie below zero."""
    counts = histogram.counts.astype(np.float64)
    zero = -histogram.first
    if histogram.zeros:
        counts[zero] -= histogram.zeros
    used = np.flatnonzero(counts)
    if not used.size:
        return np.zeros(0), 0
    below, above = max(zero - int(used[0]), 0), max(int(used[-1]) + 1 - zero, 0)
    if symmetric:
        reach = max(below, above)
        padded = np.zeros(2 * reach)
        padded[reach - below : reach + above] = counts[zero - below : zero + above]
        return padded, reach
    return counts[zero - below : zero + above], below


def _divergence(counts: Floats, start: int, stop: int, levels: int) -> float:
    """Return KL(P ‖ Q) of the range of bins [start, stop)."""
    inside = counts[start:stop]
    whole = inside.copy()
    whole[0] += counts[:start].sum()
    whole[-1] += counts[stop:].sum()
    used = whole > 0
    cells = np.arange(inside.size) * levels // inside.size
    each = np.bincount(cells, inside, levels) / np.maximum(np.bincount(cells, used, levels), 1)
    p, q = _smoothed(whole), _smoothed(np.where(used, each[cells], 0.0))
    if p is None or q is None:
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float(p @ np.log(p / q))


def _smoothed(counts: Floats) -> Floats | None:
    """Return counts that are nowhere zero, with the same sum; None where the others have too little to give."""
    empty = counts == 0
    missing = int(np.count_nonzero(empty))
    if missing == counts.size:
        return None
    smoothed = np.where(empty, SMOOTHING, counts - SMOOTHING * missing / (counts.size - missing))
    return smoothed if smoothed.min() > 0 else None
