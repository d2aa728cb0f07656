"""Histograms against plain numpy: what is counted, where, and that neither order nor division matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gallery import GALLERY, Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxslim.analysis.histograms import COUNTED, LARGEST, Histogram
from onnxslim.analysis.ranges import observe_histograms, observe_ranges
from onnxslim.runtime import Session
from onnxslim.samples import Samples

Array = npt.NDArray[Any]

FLOATS = (np.float16, np.float32, np.float64)
TINIEST = 1e-280
"""Smaller values of float64 may be taken for zero beside very large ones."""

ELEMENTS: dict[Any, st.SearchStrategy[float]] = {
    np.float16: st.floats(-65504, 65504, width=16),
    np.float32: st.floats(-LARGEST, LARGEST, width=32),
    np.float64: st.floats(TINIEST, LARGEST) | st.floats(-LARGEST, -TINIEST) | st.just(0.0),
}
ARRAYS = st.sampled_from(FLOATS).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=2, max_side=4), elements=ELEMENTS[dtype])
)
SEVERAL = st.lists(ARRAYS, min_size=1, max_size=3)


def histogram_of(*arrays: Array, bins: int = 64) -> Histogram:
    histogram = Histogram(bins)
    for array in arrays:
        histogram.add(array)
    return histogram


def same(one: Histogram, other: Histogram) -> bool:
    """Whether two histograms are equal but for the rounding of sums."""
    exact = ("low", "high", "count", "zeros", "samples", "finite", "exponent", "first")
    return all(getattr(one, name) == getattr(other, name) for name in exact) and np.array_equal(
        one.counts, other.counts
    )


@settings(max_examples=80, deadline=None)
@given(SEVERAL)
def test_every_value_is_counted_where_it_lies(arrays: list[Array]) -> None:
    histogram = histogram_of(*arrays)
    values = np.sort(np.concatenate([array.reshape(-1).astype(np.float64) for array in arrays]))
    assert histogram.counts.sum() == histogram.count == values.size
    assert (histogram.low, histogram.high) == (values[0], values[-1])
    assert histogram.zeros == np.count_nonzero(values == 0)
    below = np.searchsorted(values, histogram.edges, side="left")
    np.testing.assert_array_equal(histogram.counts, np.diff(below))
    assert below[0] == 0
    assert below[-1] == values.size


@settings(max_examples=60, deadline=None)
@given(SEVERAL)
def test_bins_are_as_narrow_as_their_number_allows(arrays: list[Array]) -> None:
    histogram = histogram_of(*arrays)
    reach = max(histogram.high, 0.0) - min(histogram.low, 0.0)
    if reach > 1e-290:
        assert reach / (histogram.bins + 1) < histogram.width < 4 * reach / (histogram.bins - 1)


@settings(max_examples=60, deadline=None)
@given(SEVERAL, st.randoms(use_true_random=False))
def test_order_does_not_matter(arrays: list[Array], random: Any) -> None:
    shuffled = list(arrays)
    random.shuffle(shuffled)
    assert same(histogram_of(*arrays), histogram_of(*shuffled))


@settings(max_examples=60, deadline=None)
@given(SEVERAL, SEVERAL, SEVERAL)
def test_merging_is_counting_together(a: list[Array], b: list[Array], c: list[Array]) -> None:
    parts = [histogram_of(*arrays) for arrays in (a, b, c)]
    together = histogram_of(*a, *b, *c)
    assert same(parts[0].merged(parts[1]).merged(parts[2]), together)
    assert same(parts[0].merged(parts[1].merged(parts[2])), together)
    assert same(Histogram(64).merged(together), together)


@settings(max_examples=60, deadline=None)
@given(SEVERAL, st.floats(0, 1))
def test_quantiles_are_those_of_the_values_within_a_bin(arrays: list[Array], share: float) -> None:
    histogram = histogram_of(*arrays)
    values = np.concatenate([array.reshape(-1).astype(np.float64) for array in arrays])
    nearest = [np.quantile(values, share, method=method) for method in ("inverted_cdf", "higher", "lower")]
    found = histogram.quantile(share)
    assert min(nearest) - 1.001 * histogram.width <= found <= max(nearest) + 1.001 * histogram.width


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_large_tensor_is_counted_in_part_but_its_extremes_are_exact(dtype: Any) -> None:
    random = np.random.default_rng(3)
    histogram = Histogram()
    arrays = [random.standard_normal((1, 8, 112, 112)).astype(dtype) for _ in range(6)]
    arrays[2][0, 3, 5, 7] = 30
    for array in arrays:
        histogram.add(array)
    values = np.sort(np.concatenate(arrays, axis=None).astype(np.float64))
    assert arrays[0].size > COUNTED
    assert histogram.counts.sum() == histogram.count == values.size
    assert (histogram.low, histogram.high) == (values[0], 30.0)
    assert histogram.counts[int(30 / histogram.width) - histogram.first] >= 1
    shares = np.cumsum(histogram.counts) / histogram.count
    truth = np.searchsorted(values, histogram.edges[1:], side="left") / values.size
    assert np.abs(shares - truth).max() < 0.01


def test_the_part_that_is_counted_sees_all_columns() -> None:
    image = np.tile(np.arange(1, 129, dtype=np.float32), (4 * 512, 1))
    histogram = histogram_of(image, bins=256)
    counted = histogram.counts[1:129] if histogram.width == 1 else histogram.counts[2:258:2]
    assert counted.min() > 0.9 * image.shape[0]
    assert counted.max() < 1.1 * image.shape[0]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_no_number_is_said(poison: float) -> None:
    histogram = histogram_of(np.array([1.0, poison]), np.array([2.0]))
    assert not histogram.finite
    assert histogram.count == 0
    assert not histogram_of(np.array([1.0])).merged(histogram).finite


def test_empty_arrays_are_no_samples() -> None:
    histogram = histogram_of(np.zeros((0, 3)), np.zeros(4), np.zeros(0))
    assert (histogram.samples, histogram.count, histogram.zeros) == (1, 4, 4)
    assert (histogram.low, histogram.high) == (0.0, 0.0)


def test_extremes_of_samples_are_summed() -> None:
    histogram = histogram_of(np.array([-1.0, 2.0]), np.array([3.0, 5.0]))
    assert (histogram.low_sum, histogram.high_sum, histogram.samples) == (2.0, 7.0, 2)


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [
        ([0, 0, 0], [0], []),
        ([0, 5, 5], [5, 5], [2]),
        ([0, 1.5, 6, 6, 6], [1.5, 1.625, 6], [1, 3]),
        ([-3, 0, 0], [-3, -2.9375], [1]),
    ],
    ids=["zeros", "constant", "spike-at-the-top", "negative"],
)
def test_what_is_not_zero_lies_between_exact_ends(values: list[float], edges: list[float], counts: list[int]) -> None:
    found, kept = histogram_of(np.array(values)).without_zeros()
    occupied = np.flatnonzero(kept)
    assert kept[occupied].tolist() == counts
    assert found[0] == edges[0]
    assert found[-1] == edges[-1] or len(counts) == 1


def test_float32_denormals_keep_their_bins() -> None:
    tiny = np.array([1, 2, 4095, -7], np.float64) * 2.0**-149
    histogram = histogram_of(tiny.astype(np.float32), bins=8192)
    assert histogram.width == 2.0**-149
    assert np.flatnonzero(histogram.counts).tolist() == [0, 8, 9, 4102]


@pytest.mark.parametrize("bins", [0, 1, 3, 1000])
def test_bins_are_a_power_of_two(bins: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Histogram(bins)


def test_histograms_of_different_bins_do_not_merge() -> None:
    with pytest.raises(ValueError, match="64 and 128"):
        Histogram(64).merged(Histogram(128))


def test_inner_tensors_are_observed_on_all_samples() -> None:
    model = GALLERY["resnet"](Builder())
    x = np.random.default_rng(0).standard_normal((5, 1, 3, 16, 16)).astype(np.float32)
    samples = Samples.from_feeds([{"x": value} for value in x])
    names = ["x", *(node.outputs[0].name for node in model.graph.nodes)]
    seen: list[tuple[str, int, int]] = []
    found = observe_histograms(model, names, samples, 1, lambda *step: seen.append(step))
    ranges = observe_ranges(model, names, samples, 1)
    assert {name: (h.low, h.high) for name, h in found.items()} == ranges
    session = Session(model.placed(names[1:]).data)
    for name in (names[0], names[4], names[-1]):
        truth = Histogram()
        for value in x:
            truth.add(value if name == "x" else session.run({"x": value}, [name])[name])
        assert same(found[name], truth)
    assert seen == [("calibrate", index, 5) for index in range(1, 6)]
