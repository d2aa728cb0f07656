"""From what was seen of a tensor to the range that its integers cover: minimum and maximum, or something less.

A narrower range clips rare values and rounds all others finer. That trade is chosen here; every range holds zero.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.entropy_range import entropy_range
from onnxslim.analysis.grid_errors import expected_error, expected_errors
from onnxslim.analysis.histograms import Histogram

__all__ = ["PERCENTILE", "RangeMethod", "chosen_range", "expected_error"]

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]

PERCENTILE = 99.99
"""Percent of all values that a percentile range keeps."""

WORTH_CLIPPING = 0.99
"""A range replaces minimum and maximum only where its error is below this share of theirs: samples are not all that
will come, and an even distribution is best cut by half a step, which helps nobody."""

_COARSE = 2.0 ** (-np.arange(96) / 8)
"""Shares of the widest range, down to single bins."""

_FINE = 2.0 ** (np.linspace(-1, 1, 17) / 8)
"""Factors around the best coarse share."""


class RangeMethod(enum.StrEnum):
    """How a range is chosen."""

    MINMAX = "minmax"
    """All that was seen."""
    AVERAGE = "average"
    """The mean over samples of each one's minimum and maximum: what exponential moving averages (Jacob et al. 2018,
    §3.1) come to with a smoothing near one, without depending on the samples' order."""
    PERCENTILE = "percentile"
    """All but the same share of values at each end (Wu et al. 2020, "Integer quantization for deep learning inference",
    §3.2)."""
    MSE = "mse"
    """The least squared error on the integers' grid, clipping and rounding together, by search (Nagel et al. 2021, "A
    white paper on neural network quantization", §3.1)."""
    ENTROPY = "entropy"
    """The least Kullback-Leibler divergence (Migacz 2017, "8-bit inference with TensorRT")."""
    AUTO = "auto"
    """Whichever of these has the least squared error."""


def chosen_range(
    histogram: Histogram,
    method: RangeMethod,
    levels: int = 256,
    symmetric: bool = False,
    percentile: float = PERCENTILE,
) -> Range:
    """Return (low, high) with low ≤ 0 ≤ high, never wider than what was seen.

    Args:
        histogram: what was seen.
        method: how to choose.
        levels: integers on the grid: 256 for 8 bits.
        symmetric: whether low must be −high.
        percentile: percent of values that :attr:`RangeMethod.PERCENTILE` keeps.

    Raises:
        ValueError: the histogram is empty or met NaN or Inf, there are fewer than 2 levels, or the percentile is not
            above 0 and at most 100.
    """
    if not histogram.count or not histogram.finite:
        raise ValueError("a range needs values, all of them finite")
    if levels < 2:
        raise ValueError(f"{levels} levels: a grid needs at least 2")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile {percentile}: give more than 0 and at most 100")
    widest = _around_zero(histogram.low, histogram.high, symmetric)
    if method is RangeMethod.AUTO:
        others = [choose(histogram, levels, symmetric, percentile) for choose in _CHOICES.values()]
        return _least(histogram, widest, others, levels)
    return _CHOICES[method](histogram, levels, symmetric, percentile)


def _minmax(histogram: Histogram, levels: int, symmetric: bool, percentile: float) -> Range:
    return _around_zero(histogram.low, histogram.high, symmetric)


def _average(histogram: Histogram, levels: int, symmetric: bool, percentile: float) -> Range:
    return _around_zero(histogram.low_sum / histogram.samples, histogram.high_sum / histogram.samples, symmetric)


def _percentile(histogram: Histogram, levels: int, symmetric: bool, percentile: float) -> Range:
    cut = (1 - percentile / 100) / 2
    return _around_zero(histogram.quantile(cut), histogram.quantile(1 - cut), symmetric)


def _entropy(histogram: Histogram, levels: int, symmetric: bool, percentile: float) -> Range:
    return entropy_range(histogram, levels, symmetric=symmetric)


def _mse(histogram: Histogram, levels: int, symmetric: bool, percentile: float) -> Range:
    """Search for both ends together, then for one while the other stays, and for the first once more."""
    widest = _around_zero(histogram.low, histogram.high, symmetric)
    low, high = widest
    share = _best_share(histogram, lambda s: (s * low, s * high), levels)
    found = share * low, share * high
    if symmetric or not low < 0 < high:
        return _least(histogram, widest, [found], levels)
    tried = [found]
    for _ in range(2):
        share = _best_share(histogram, lambda s: (np.full_like(s, tried[-1][0]), s * high), levels)
        tried.append((tried[-1][0], share * high))
        share = _best_share(histogram, lambda s: (s * low, np.full_like(s, tried[-1][1])), levels)
        tried.append((share * low, tried[-1][1]))
    return _least(histogram, widest, tried, levels)


_CHOICES: dict[RangeMethod, Callable[[Histogram, int, bool, float], Range]] = {
    RangeMethod.MINMAX: _minmax,
    RangeMethod.AVERAGE: _average,
    RangeMethod.PERCENTILE: _percentile,
    RangeMethod.MSE: _mse,
    RangeMethod.ENTROPY: _entropy,
}


def _best_share(histogram: Histogram, ranges: Callable[[Floats], tuple[Floats, Floats]], levels: int) -> float:
    """Return the share in (0, 1] whose range has the least error, found coarsely and then finely."""
    best = 1.0
    for shares in (_COARSE, _FINE):
        tried = np.minimum(best * shares, 1.0)
        best = float(tried[np.argmin(expected_errors(histogram, *ranges(tried), levels))])
    return best


def _least(histogram: Histogram, widest: Range, others: list[Range], levels: int) -> Range:
    """Return the range of least error; the widest where no other is clearly better."""
    lows, highs = np.array([widest, *others]).T
    errors = expected_errors(histogram, lows, highs, levels)
    best = int(np.argmin(errors))
    return (widest, *others)[best] if errors[best] < WORTH_CLIPPING * errors[0] else widest


def _around_zero(low: float, high: float, symmetric: bool) -> Range:
    low, high = min(low, 0.0), max(high, 0.0)
    reach = max(-low, high)
    return (-reach, reach) if symmetric else (low, high)
