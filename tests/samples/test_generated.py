"""Samples from a user's function, and random ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.errors import SampleError
from onnxslim.samples import InputSpec, Samples, Source

FLOAT = np.dtype(np.float32)
WANT = [InputSpec("x", FLOAT, (1, 2))]


def feeds(count: int = 30) -> Iterator[Any]:
    for index in range(count):
        feed = {"x": np.full((1, 2), index, np.float32)}
        yield (feed, index) if index % 2 else feed


def values(samples: Samples) -> list[float]:
    return [float(sample.feed["x"][0, 0]) for sample in samples]


# ---- a function ------------------------------------------------------------------------------------------


def test_a_function_is_called_anew_for_every_walk() -> None:
    samples = Samples.from_callable(feeds).for_inputs(WANT)
    assert len(samples) == 30
    assert values(samples) == values(samples) == list(range(30))
    assert [sample.label for sample in samples.take(4)] == [None, 1, None, 3]
    assert samples.labelled


def test_a_function_is_not_called_on_opening() -> None:
    def fail() -> Iterator[Any]:
        raise AssertionError("called")

    Samples.from_callable(fail)


def test_parts_of_a_function_keep_its_order() -> None:
    samples = Samples.from_callable(feeds).for_inputs(WANT)
    parts = samples.split(0.8, seed=1)
    calibration, evaluation = values(parts.calibration), values(parts.evaluation)
    assert sorted(calibration) == calibration
    assert sorted(calibration + evaluation) == list(range(30))
    assert evaluation != list(range(24, 30))


def test_only_one_feed_of_a_function_is_held() -> None:
    alive: list[int] = []

    class Tracked(dict[str, Any]):
        def __init__(self) -> None:
            super().__init__(x=np.zeros((1, 2), np.float32))
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    samples = Samples.from_callable(lambda: (Tracked() for _ in range(20)))
    assert max(len(alive) for _ in samples) <= 2


def test_a_generator_handed_over_twice_is_found_out() -> None:
    spent = feeds()
    samples = Samples.from_callable(lambda: spent, name="m:f")
    with pytest.raises(SampleError, match=r"m:f first yielded 30 feeds and then fewer"):
        list(samples)


def test_failures_of_the_function_are_told() -> None:
    def broken() -> Iterator[Any]:
        yield from feeds(2)
        raise KeyError("lost")

    for function in (broken, lambda: 3, list, lambda: ["text"]):
        samples = Samples.from_callable(function, name="m:f")  # type: ignore[arg-type]
        with pytest.raises(SampleError, match=r"^m:f"):
            len(samples)


def test_module_and_callable_are_found_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_feeds_3721.py").write_text(
        "import numpy as np\n"
        "class Data:\n"
        "    @staticmethod\n"
        "    def calib():\n"
        "        return [{'x': np.ones((1, 2), np.float32)}] * 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    samples = Samples.from_path("my_feeds_3721:Data.calib", limit=2).for_inputs(WANT)
    assert (len(samples), samples.description) == (2, "2 of 3 samples of my_feeds_3721:Data.calib")
    assert next(iter(samples)).origin.startswith("my_feeds_3721:Data.calib[")
    sys.modules.pop("my_feeds_3721")


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("no_such_module_3721:feeds", "cannot be imported (ModuleNotFoundError"),
        ("math:feeds", "'math' has no callable 'feeds'"),
        ("math:pi", "'math' has no callable 'pi'"),
        ("broken_3721:feeds", "cannot be imported (ZeroDivisionError"),
    ],
)
def test_a_function_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fragment: str
) -> None:
    (tmp_path / "broken_3721.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SampleError) as caught:
        Samples.from_path(text)
    assert fragment in str(caught.value)


# ---- synthetic -------------------------------------------------------------------------------------------


def every_type() -> list[InputSpec]:
    names = ("float32", "float16", "float64", "int64", "int32", "uint8", "bool", "object")
    return [InputSpec(name, np.dtype(name), ("N", 3, 4)) for name in names]


def test_synthetic_feeds_are_seeded_and_typed() -> None:
    samples = Samples.synthetic(every_type(), count=3, seed=5)
    assert (len(samples), samples.source, samples.labelled) == (3, Source.SYNTHETIC, False)
    for first, second in zip(samples, Samples.synthetic(every_type(), count=3, seed=5), strict=True):
        assert (first.origin, first.label) == (second.origin, None)
        for spec in every_type():
            array = first.feed[spec.name]
            assert (array.dtype, array.shape) == (spec.dtype, (1, 3, 4))
            np.testing.assert_array_equal(array, second.feed[spec.name])
            if array.dtype.kind in "iub":
                assert set(np.unique(array)) <= {0, 1}
    first, second, _ = samples
    assert not np.array_equal(first.feed["float32"], second.feed["float32"])
    assert all(isinstance(text, str) for text in first.feed["object"].ravel())


def test_synthetic_floats_are_standard_normal() -> None:
    (sample,) = Samples.synthetic([InputSpec("x", FLOAT, ("N", 3, 64, 64))], count=1)
    assert abs(sample.feed["x"].mean()) < 0.05
    assert sample.feed["x"].std() == pytest.approx(1, abs=0.05)


def test_another_seed_gives_other_values_and_order_does_not() -> None:
    samples = Samples.synthetic(WANT, count=20, seed=0)
    assert values(samples) != values(Samples.synthetic(WANT, count=20, seed=1))
    assert sorted(values(samples.shuffled(3))) == sorted(values(samples))


@pytest.mark.parametrize("dynamic", ["S", None])
def test_another_dynamic_dimension_needs_a_shape(dynamic: str | None) -> None:
    spec = InputSpec("ids", FLOAT, ("N", 3, dynamic, 8))
    with pytest.raises(SampleError, match=r"--shape ids=1x3x\?x8, or give --data"):
        Samples.synthetic([spec])


@pytest.mark.parametrize(
    ("dtype", "shape", "fragment"),
    [
        ("float32", None, "no known shape"),
        (None, (1, 2), "no known element type"),
        ("complex64", (1, 2), "elements of complex64"),
        ("float32", (10**6, 10**6), "1000000000000 elements"),
    ],
)
def test_inputs_that_have_no_random_values(dtype: str | None, shape: tuple[int, ...] | None, fragment: str) -> None:
    with pytest.raises(SampleError) as caught:
        Samples.synthetic([InputSpec("x", None if dtype is None else np.dtype(dtype), shape)])
    assert fragment in str(caught.value)


def test_the_word_synthetic_waits_for_the_model() -> None:
    samples = Samples.from_path("synthetic", seed=5)
    assert (len(samples), samples.source) == (8, Source.SYNTHETIC)
    assert values(samples.for_inputs(WANT)) == values(Samples.synthetic(WANT, seed=5))
    assert len(Samples.from_path("synthetic", limit=20)) == 20
    with pytest.raises(SampleError, match="for_inputs"):
        list(samples)


def test_bad_counts_and_seeds_are_refused() -> None:
    with pytest.raises(SampleError, match="at least one"):
        Samples.synthetic(WANT, count=0)
    with pytest.raises(SampleError, match="negative"):
        Samples.synthetic(WANT, seed=-1)
