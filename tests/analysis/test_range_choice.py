"""Chosen ranges against brute force in plain numpy, and what they do to real values."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.analysis.grid_errors import expected_errors
from onnxslim.analysis.histograms import BINS, Histogram
from onnxslim.analysis.range_choice import WORTH_CLIPPING, RangeMethod, chosen_range, expected_error

Array = npt.NDArray[Any]
ALL = list(RangeMethod)


def histogram_of(values: Array, bins: int = BINS, parts: int = 20) -> Histogram:
    histogram = Histogram(bins)
    for part in np.array_split(values.astype(np.float32), parts):
        histogram.add(part)
    return histogram


def quantized(values: Array, low: float, high: float, levels: int = 256) -> Array:
    """Return values as the grid of a range holds them, as QuantizeLinear and DequantizeLinear compute it."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = float(np.float32((high - low) / (levels - 1))) or 1.0
    zero = np.clip(np.round(-low / step), 0, levels - 1)
    return np.asarray((np.clip(np.round(values / step) + zero, 0, levels - 1) - zero) * step)


def real_error(values: Array, range_: tuple[float, float], levels: int = 256) -> float:
    values = values.astype(np.float64)
    return float(np.mean((values - quantized(values, *range_, levels)) ** 2))


def normal(count: int = 200_000, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(count)


def relu6(count: int = 100_000) -> Array:
    return np.asarray(np.clip(3 * normal(count) + 1, 0, 6))


# ---- expected errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-4.5, 4.5), (-2.0, 1.0), (0.0, 3.0), (-0.7, 0.0), (-0.01, 0.02), (-9, 30)])
@pytest.mark.parametrize("levels", [256, 16, 3, 2])
def test_errors_are_the_integrals_over_evenly_filled_bins(low: float, high: float, levels: int) -> None:
    histogram = histogram_of(normal(3000), 64, 1)
    middles = (np.arange(4000) + 0.5) / 4000
    total = 0.0
    edges = np.clip(histogram.edges, histogram.low, histogram.high)
    for left, right, count in zip(edges[:-1], edges[1:], histogram.counts, strict=True):
        values = left + middles * (right - left)
        total += int(count) * float(np.mean((values - quantized(values, low, high, levels)) ** 2))
    assert expected_error(histogram, low, high, levels) == pytest.approx(total / 3000, rel=1e-4)


@pytest.mark.parametrize("values", [normal(), relu6(), np.random.default_rng(1).laplace(size=200_000)])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.25])
@pytest.mark.parametrize("levels", [256, 16])
def test_errors_are_those_of_the_real_values(values: Array, share: float, levels: int) -> None:
    histogram = histogram_of(values)
    range_ = share * histogram.low, share * histogram.high
    assert expected_error(histogram, *range_, levels) == pytest.approx(real_error(values, range_, levels), rel=0.03)


def test_many_ranges_at_once_are_one_after_the_other() -> None:
    histogram = histogram_of(normal(5000))
    shares = np.linspace(0.01, 1.5, 77)
    errors = expected_errors(histogram, -2 * shares, 3 * shares, 100)
    alone = [expected_error(histogram, -2 * share, 3 * share, 100) for share in shares]
    np.testing.assert_allclose(errors, alone, rtol=1e-12)


def test_zeros_and_a_bound_cost_nothing_where_they_lie_on_the_grid() -> None:
    histogram = histogram_of(np.repeat([0.0, 6.0], [900, 100]))
    assert expected_error(histogram, 0.0, 6.0) < 1e-12
    assert expected_error(histogram, 0.0, 3.0) == pytest.approx(0.1 * 9.0)
    assert expected_error(Histogram(), -1.0, 1.0) == 0.0


# ---- choices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("symmetric", [False, True])
@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_every_range_holds_zero_and_no_more_than_was_seen(
    method: RangeMethod, symmetric: bool, values: list[float]
) -> None:
    histogram = histogram_of(np.array(values), 256, 1)
    low, high = chosen_range(histogram, method, 256, symmetric)
    reach = max(abs(histogram.low), abs(histogram.high))
    assert low <= 0 <= high
    assert low >= (-reach if symmetric else min(histogram.low, 0))
    assert high <= (reach if symmetric else max(histogram.high, 0))
    assert not symmetric or low == -high


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0, 0.0], (0.0, 0.0)),
        ([5.0, 5.0], (0.0, 5.0)),
        ([-2.5], (-2.5, 0.0)),
        ([7 * 2.0**-149, 2.0**-149], (0.0, 7 * 2.0**-149)),
    ],
    ids=["zeros", "constant", "one-value", "denormal"],
)
def test_tensors_of_few_values_keep_them(
    method: RangeMethod, values: list[float], expected: tuple[float, float]
) -> None:
    low, high = chosen_range(histogram_of(np.array(values), parts=1), method)
    assert low == expected[0]
    assert high == pytest.approx(expected[1], rel=1e-3)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("histogram", [Histogram(), histogram_of(np.array([1.0, np.nan]), parts=1)])
def test_nothing_and_nan_have_no_range(method: RangeMethod, histogram: Histogram) -> None:
    with pytest.raises(ValueError, match="a range needs values"):
        chosen_range(histogram, method)


def test_limits_of_options_are_said() -> None:
    histogram = histogram_of(normal(10))
    with pytest.raises(ValueError, match="1 levels"):
        chosen_range(histogram, RangeMethod.MSE, 1)
    with pytest.raises(ValueError, match="percentile 101"):
        chosen_range(histogram, RangeMethod.PERCENTILE, percentile=101)


def test_averages_are_of_samples() -> None:
    samples = normal(1200).reshape(30, 40).astype(np.float32)
    found = chosen_range(histogram_of(samples.reshape(-1), parts=30), RangeMethod.AVERAGE)
    assert found == pytest.approx((samples.min(axis=1).mean(), samples.max(axis=1).mean()), rel=1e-6)


@pytest.mark.parametrize("percentile", [99.99, 99.0, 50.0, 100.0])
@pytest.mark.parametrize("values", [normal(), relu6(), np.exp(normal())])
def test_percentiles_cut_both_ends(values: Array, percentile: float) -> None:
    histogram = histogram_of(values)
    cut = (100 - percentile) / 2
    truth = np.percentile(values, [cut, 100 - cut])
    low, high = chosen_range(histogram, RangeMethod.PERCENTILE, percentile=percentile)
    assert low == pytest.approx(min(truth[0], 0.0), abs=2 * histogram.width)
    assert high == pytest.approx(truth[1], abs=2 * histogram.width)


@pytest.mark.parametrize("levels", [256, 16, 4])
@pytest.mark.parametrize("values", [normal(4000), np.exp(normal(4000)), normal(4000) ** 3, -relu6(4000)])
def test_no_pair_of_ends_is_much_better_than_the_least_error(values: Array, levels: int) -> None:
    histogram = histogram_of(values, 64, 1)
    edges = np.clip(histogram.edges, min(histogram.low, 0), max(histogram.high, 0))
    pairs = np.array([(a, b) for a, b in itertools.product(edges, edges) if a <= 0 <= b])
    least = expected_errors(histogram, pairs[:, 0], pairs[:, 1], levels).min()
    found = expected_error(histogram, *chosen_range(histogram, RangeMethod.MSE, levels), levels)
    assert found <= 1.03 * least / WORTH_CLIPPING


@pytest.mark.parametrize("levels", [256, 16])
def test_symmetric_least_errors_are_those_of_all_reaches(levels: int) -> None:
    histogram = histogram_of(np.exp(normal(100_000)) - 1, 256, 1)
    reaches = np.linspace(0.001, 1, 1000) * histogram.high
    least = expected_errors(histogram, -reaches, reaches, levels).min()
    found = expected_error(histogram, *chosen_range(histogram, RangeMethod.MSE, levels, symmetric=True), levels)
    assert found <= 1.03 * least / WORTH_CLIPPING


def divergences(counts: list[int], below: int, levels: int) -> dict[tuple[int, int], float]:
    """Return KL(P ‖ Q) of every range that entropy tries, bin by bin in plain Python."""
    found = {}
    above = len(counts) - below
    widest = max(below, above)
    for reach in {math.ceil(reach) for reach in np.linspace(widest, min(levels // 2, widest), 128)}:
        left, right = min(reach, below), min(reach, above)
        size = left + right
        if size < levels:
            continue
        start, stop = below - left, below + right
        inside = counts[start:stop]
        p = [float(c) for c in inside]
        p[0] += sum(counts[:start])
        p[-1] += sum(counts[stop:])
        q = [0.0] * size
        for level in range(levels):
            cell = [i for i in range(size) if i * levels // size == level]
            held = [i for i in cell if p[i]]
            for i in held:
                q[i] = sum(inside[j] for j in cell) / len(held)
        found[left, right] = divergence(smoothed(p), smoothed(q))
    return found


def smoothed(counts: list[float]) -> list[float]:
    empty = counts.count(0.0)
    taken = 1e-4 * empty / (len(counts) - empty)
    return [c - taken if c else 1e-4 for c in counts]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("values", [normal(3000), np.exp(normal(3000)), np.maximum(normal(3000), 0)])
def test_entropies_are_those_of_plain_python(values: Array) -> None:
    histogram = histogram_of(values, 128, 1)
    counts = histogram.counts.copy()
    counts[-histogram.first] -= histogram.zeros
    last = int(np.flatnonzero(counts)[-1])
    found = divergences([int(c) for c in counts[: last + 1]], -histogram.first, 16)
    left, right = min(found, key=lambda pair: (found[pair], -sum(pair)))
    low, high = chosen_range(histogram, RangeMethod.ENTROPY, 16)
    assert low == max(-left * histogram.width, min(histogram.low, 0.0))
    assert high == min(right * histogram.width, histogram.high)


def test_entropy_uses_all_levels_on_the_side_that_a_relu_leaves() -> None:
    values = np.maximum(np.random.default_rng(0).laplace(size=400_000), 0)
    values[17] = 200.0
    low, high = chosen_range(histogram_of(values), RangeMethod.ENTROPY)
    assert low == 0.0
    assert 5 < high < 50


# ---- what they are for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [RangeMethod.PERCENTILE, RangeMethod.MSE, RangeMethod.ENTROPY, RangeMethod.AUTO])
@pytest.mark.parametrize("symmetric", [False, True])
def test_an_outlier_does_not_stretch_the_grid(method: RangeMethod, symmetric: bool) -> None:
    values = normal(1_000_000)
    values[123] = 25.0
    histogram = histogram_of(values, parts=50)
    low, high = chosen_range(histogram, method, symmetric=symmetric)
    minmax = chosen_range(histogram, RangeMethod.MINMAX, symmetric=symmetric)
    assert -9 < low < -3
    assert 3 < high < 9 < minmax[1] / 2.5
    assert real_error(values, (low, high)) < 0.5 * real_error(values, minmax)


@pytest.mark.parametrize("levels", [256, 16])
def test_least_errors_are_least_on_the_real_values(levels: int) -> None:
    values = np.random.default_rng(5).standard_t(4, 1_000_000)
    histogram = histogram_of(values, parts=50)
    errors = {method: real_error(values, chosen_range(histogram, method, levels), levels) for method in ALL}
    assert errors[RangeMethod.MSE] < 0.5 * errors[RangeMethod.MINMAX]
    for method in (RangeMethod.MSE, RangeMethod.AUTO):
        assert errors[method] <= 1.03 * min(errors.values())


@pytest.mark.parametrize("method", [RangeMethod.MSE, RangeMethod.AUTO])
@pytest.mark.parametrize(
    "values",
    [np.random.default_rng(2).uniform(-1, 3, 50_000), relu6(50_000), np.random.default_rng(2).choice([-1.0, 1.0], 99)],
    ids=["uniform", "relu6", "signs"],
)
def test_what_fills_its_range_keeps_it(method: RangeMethod, values: Array) -> None:
    histogram = histogram_of(values)
    assert chosen_range(histogram, method) == (min(histogram.low, 0), histogram.high)


@pytest.mark.parametrize("seed", range(6))
def test_auto_is_never_clearly_worse_than_any_method(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal(5000) ** random.integers(1, 5) * random.choice([1, -1], 5000) ** (seed % 2)
    histogram = histogram_of(np.where(random.random(5000) < 0.3, 0, values))
    errors = [expected_error(histogram, *chosen_range(histogram, method)) for method in ALL[:-1]]
    assert expected_error(histogram, *chosen_range(histogram, RangeMethod.AUTO)) <= min(errors) / WORTH_CLIPPING
