"""Choosing samples, and fitting them to a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnxslim.errors import SampleError
from onnxslim.samples import InputSpec, Samples

Array = np.ndarray[Any, np.dtype[Any]]


def numbered(count: int) -> Samples:
    return Samples.from_arrays(np.arange(count, dtype=np.float32), np.arange(count))


def labels(samples: Samples) -> list[int]:
    found = []
    for sample in samples:
        assert sample.label is not None
        assert sample.label == sample.feed["images"].item()
        found.append(sample.label)
    return found


def spec(dtype: str, *shape: int | str | None, name: str = "x") -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


# ---- choosing --------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 2**32), st.floats(0.01, 0.99))
@example(9, 0, 0.8)
@example(10, 0, 0.8)
def test_a_split_is_repeatable_and_loses_nothing(count: int, seed: int, fraction: float) -> None:
    parts = numbered(count).split(fraction, seed)
    calibration, evaluation = labels(parts.calibration), labels(parts.evaluation)
    again = numbered(count).split(fraction, seed)
    assert (calibration, evaluation) == (labels(again.calibration), labels(again.evaluation))
    assert parts.held_out == (count >= 10)
    if parts.held_out:
        assert sorted(calibration + evaluation) == list(range(count))
        assert len(calibration) == min(max(round(count * fraction), 1), count - 1)
    else:
        assert calibration == evaluation == list(range(count))


@given(st.integers(1, 60), st.integers(0, 2**32), st.integers(1, 70))
def test_a_shuffle_is_a_repeatable_permutation(count: int, seed: int, taken: int) -> None:
    shuffled = numbered(count).shuffled(seed)
    order = labels(shuffled)
    assert order == labels(shuffled) == labels(numbered(count).shuffled(seed))
    assert sorted(order) == list(range(count))
    assert labels(shuffled.take(taken)) == order[:taken]


def test_choosing_leaves_the_original_alone() -> None:
    samples = numbered(20)
    samples.shuffled(3)
    samples.take(2)
    assert labels(samples) == list(range(20))
    assert labels(samples.shuffled(0)) != labels(samples.shuffled(1)) != labels(samples)


def test_eighty_percent_calibrates() -> None:
    parts = numbered(50).split()
    assert (len(parts.calibration), len(parts.evaluation)) == (40, 10)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_split_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(SampleError, match="between 0 and 1"):
        numbered(20).split(fraction)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(SampleError, match="at least one"):
        numbered(3).take(0)
    with pytest.raises(SampleError, match="seed -1 is negative"):
        numbered(3).shuffled(-1)


def test_a_part_knows_whether_it_is_labelled() -> None:
    x = {"x": np.zeros(1, np.float32)}
    samples = Samples.from_feeds([x, (x, 4), x])
    assert samples.labelled
    assert not samples.take(1).labelled


# ---- fitting ---------------------------------------------------------------------------------------------


def test_one_array_goes_to_the_only_input() -> None:
    want = [spec("float32", "N", 4, name="input.1")]
    for samples in (
        Samples.from_arrays(np.zeros((3, 4), np.float32)),
        Samples.from_arrays({"whatever": np.zeros((3, 4), np.float32)}),
        Samples.from_feeds([{"images": np.zeros((1, 4), np.float32)}]),
    ):
        assert list(next(iter(samples.for_inputs(want))).feed) == ["input.1"]


def test_the_same_samples_serve_models_with_other_names() -> None:
    samples = Samples.from_arrays(np.zeros((3, 4), np.float32))
    first = samples.for_inputs([spec("float32", "N", 4, name="a")])
    assert list(next(iter(first.for_inputs([spec("float32", "N", 4, name="b")]))).feed) == ["b"]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([1.5, np.nan]), "float32"),
        (np.array([1.5], np.float32), "float16"),
        (np.array([1.5], ">f4"), "float32"),
        (np.array([1.5], np.float16), "float64"),
        (np.array([-7, 2**31 - 1]), "int32"),
        (np.array([200], np.uint8), "int64"),
        (np.array([0, 1]), "bool"),
        (np.array([True, False]), "int64"),
        (np.array([0.0, 255.0], np.float32), "uint8"),
        (np.array(["a", "b"]), "object"),
    ],
)
def test_casts_that_keep_the_values_are_done(values: Array, wanted: str) -> None:
    samples = Samples.from_feeds([{"x": values}]).for_inputs([spec(wanted, None)])
    (sample,) = samples
    got = sample.feed["x"]
    assert got.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize(
    ("values", "wanted", "fragment"),
    [
        (np.array([1]), "float32", "store them as float32"),
        (np.array([True]), "float32", "store them as float32"),
        (np.array([1], np.uint8), "float32", "--preprocess"),
        (np.array([1e39]), "float32", "store them as float32"),
        (np.array([1e6], np.float32), "float16", "store them as float16"),
        (np.array([0.5], np.float32), "int64", "store them as int64"),
        (np.array([np.nan], np.float32), "int64", "store them as int64"),
        (np.array([np.inf], np.float32), "int64", "store them as int64"),
        (np.array([2**31]), "int32", "store them as int32"),
        (np.array([-1]), "uint64", "store them as uint64"),
        (np.array([200], np.uint8), "int8", "store them as int8"),
        (np.array([2]), "bool", "store them as bool"),
        (np.array(["a"]), "float32", "store them as float32"),
        (np.array([1.0]), "object", "store them as object"),
        (np.array(["2020-01-01"], "M8[D]"), "int64", "store them as int64"),
    ],
)
def test_casts_that_change_values_are_refused(values: Array, wanted: str, fragment: str) -> None:
    samples = Samples.from_feeds([{"x": values}])
    with pytest.raises(SampleError) as caught:
        samples.for_inputs([spec(wanted, None)])
    assert str(caught.value).startswith("feeds[0] gives ")
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "inputs", "fragment"),
    [
        ({"a": (2, 4)}, [spec("float32", None, 4, 4)], "gives 1x4 for the input 'x', which takes ?x4x4"),
        ({"a": (2, 4)}, [spec("float32", None, 5)], "gives 1x4 for the input 'x', which takes ?x5"),
        ({"a": (2, 4)}, [spec("float32", 2, 4)], "which takes 2x4"),
        ({"a": (2,)}, [spec("float32", name="a"), spec("float32", name="b")], "no array for the model's input 'b'"),
        ({"a": (2,)}, [spec("float32", name="labels"), spec("float32", name="a")], "means the classes"),
        ({"a": (2,), "b": (2,)}, [spec("float32", None, name="a")], "an array 'b', and the model's inputs are 'a'"),
        ({"a": (2,), "b": (2,)}, [], "an array 'a', and the model's inputs are none"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    arrays: dict[str, tuple[int, ...]], inputs: list[InputSpec], fragment: str
) -> None:
    samples = Samples.from_arrays({name: np.zeros(shape, np.float32) for name, shape in arrays.items()})
    with pytest.raises(SampleError) as caught:
        samples.for_inputs(inputs)
    assert str(caught.value).startswith("arrays[0]")
    assert fragment in str(caught.value)


def test_a_later_sample_that_does_not_fit_is_named() -> None:
    feeds = [{"x": np.zeros((1, n), np.float32)} for n in (4, 4, 5)]
    bound = Samples.from_feeds(feeds).for_inputs([spec("float32", 1, 4)])
    with pytest.raises(SampleError, match=r"^feeds\[2\] gives 1x5"):
        list(bound)


def test_pixels_reach_a_model_that_takes_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    by_name = Samples.from_arrays({"x": images}).for_inputs([spec("uint8", "N", 4, 4, 3)])
    by_images = Samples.from_arrays(images, preprocess="layout=NHWC").for_inputs([spec("uint8", "N", 4, 4, 3)])
    for samples in (by_name, by_images):
        np.testing.assert_array_equal(np.concatenate([s.feed["x"] for s in samples]), images)


def test_uint8_images_of_no_known_shape_are_refused() -> None:
    samples = Samples.from_arrays(np.zeros((2, 4, 4, 7), np.uint8), preprocess="crop=2")
    with pytest.raises(SampleError, match=r"uint8 of 1x4x4x7: uint8 images are NxHxW"):
        list(samples)


def test_uint8_arrays_without_preprocessing_are_refused() -> None:
    with pytest.raises(SampleError, match="--preprocess"):
        Samples.from_arrays(np.zeros((2, 4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("feeds", "fragment"),
    [
        ([], "no feed"),
        ([np.zeros(3)], "is a ndarray"),
        ([{1: np.zeros(3)}], "a sample is a dict of arrays"),
        ([({"x": np.zeros(3)}, "cat")], "label 'cat'"),
        ([({"x": np.zeros(3)}, 1.5)], "label 1.5"),
        ([({"x": np.zeros(3)}, True)], "label True"),
        ([{"x": [[1], [1, 2]]}], "is no array"),
    ],
)
def test_bad_feeds_are_refused(feeds: list[Any], fragment: str) -> None:
    with pytest.raises(SampleError) as caught:
        Samples.from_feeds(feeds)
    assert fragment in str(caught.value)
