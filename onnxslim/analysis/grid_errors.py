"""What an affine integer grid does to values: the mean squared error of clipping and rounding, from a histogram.

x ↦ s·q,  q = clip(round(x / s), −z, L − 1 − z),  s = (high − low) / (L − 1),  z = round(−low / s)     (L levels)

Inside a bin values count as spread evenly, so the error is an integral with a closed form. With t = x / s

    ∫ (t − q)² dt  =  G(t)  =  q / 12 + (t − q)³ / 3     (+ a constant; it is continuous where q changes)

clipping included, and an even density between two edges costs G at one less G at the other. Exact zeros cost nothing,
as zero is on the grid. (The split in clipping and rounding: Banner et al. 2019, "Post training 4-bit quantization of
convolutional networks for rapid-deployment", §2.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.histograms import Histogram

Floats = npt.NDArray[np.float64]

_AT_ONCE = 32
"""Grids evaluated together: their intermediate results stay in the cache."""

_POINT = 1e-3
"""Bins narrower than this share of the others count as one point, where differences of G would cancel."""


def expected_error(histogram: Histogram, low: float, high: float, levels: int = 256) -> float:
    """Return the mean squared error of the histogram's values on the grid of one range; 0 where nothing was counted.

    Args:
        low: smallest value to represent; the range is widened to hold zero.
        high: largest value to represent.
        levels: integers on the grid, 2 or more.
    """
    return float(expected_errors(histogram, np.array([low]), np.array([high]), levels)[0])


def expected_errors(histogram: Histogram, lows: Floats, highs: Floats, levels: int = 256) -> Floats:
    """Return :func:`expected_error` of many ranges. Shapes (ranges,)."""
    edges, counts = histogram.without_zeros()
    if not counts.size:
        return np.zeros(len(lows))
    shares = counts / histogram.count
    widths = np.diff(edges)
    points = widths < _POINT * histogram.width
    places = (edges[:-1] + edges[1:])[points] / 2
    density = np.where(points, 0.0, shares / np.where(points, 1.0, widths))
    steepness = -np.diff(density, prepend=0.0, append=0.0)  # of the sum over edges that the sum over bins comes down to
    used = np.flatnonzero(steepness)
    errors = np.empty(len(lows))
    for start in range(0, len(lows), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        step, least, most = _grids(lows[part], highs[part], levels)
        integral, _ = _integrals(edges[used], step, least, most)
        _, squares = _integrals(places, step, least, most)
        errors[part] = step**3 * (integral @ steepness[used]) + step**2 * (squares @ shares[points])
    return np.maximum(errors, 0.0)


def _grids(lows: Floats, highs: Floats, levels: int) -> tuple[Floats, Floats, Floats]:
    """Return step, smallest and largest q of each range, with the step as float32 holds it."""
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    step = ((highs - lows) / (levels - 1)).astype(np.float32).astype(np.float64)
    step = np.where(step > 0, step, 1.0)
    zero = np.clip(np.rint(-lows / step), 0, levels - 1)
    return step, -zero, levels - 1 - zero


def _integrals(values: Floats, step: Floats, least: Floats, most: Floats) -> tuple[Floats, Floats]:
    """Return G and (t − q)² of values on each grid. Shapes (grids, values)."""
    t = values / step[:, None]
    q = np.rint(t)
    np.clip(q, least[:, None], most[:, None], out=q)
    t -= q
    squares = t * t
    return (q / 4 + squares * t) / 3, squares
