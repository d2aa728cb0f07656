"""Numerics, metrics and races: planted faults are noticed, and nothing is claimed that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxslim.errors import ModelError, SampleError
from onnxslim.ir import Model, TensorSpec
from onnxslim.measure import (
    Comparison,
    MetricTracker,
    OutputNumerics,
    RaceSettings,
    ValidationSettings,
    compare_latency,
    drop_interval,
    layer_sqnr,
    validate,
    within_exact_tolerance,
)
from onnxslim.measure.latency import is_stable, ratio_with_interval
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Samples

MODELS = Path(__file__).resolve().parents[2] / "models"
DATA = MODELS / "digits_eval.npz"


def compare(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> OutputNumerics:
    comparison = Comparison()
    comparison.add({"y": reference}, {"y": candidate})
    return comparison.result()[0]


def test_equal_outputs() -> None:
    values = np.random.default_rng(0).standard_normal((1, 10)).astype(np.float32)
    result = compare(values, values)
    assert (result.max_abs, result.sqnr_db, result.top1_agreement) == (0.0, 200.0, 1.0)
    assert result.cosine == pytest.approx(1)


def test_figures_by_their_definitions() -> None:
    reference, candidate = np.array([[3.0, 4.0]]), np.array([[3.0, 3.0]])  # argmax 1 and, of equals, the first
    result = compare(reference, candidate)
    assert result.max_abs == 1
    assert result.mean_abs == 0.5
    assert result.max_rel == 1
    assert result.cosine == pytest.approx(21 / (5 * 18**0.5))
    assert result.sqnr_db == pytest.approx(10 * np.log10(25))
    assert result.top1_agreement == 0.0


def test_nan_that_the_reference_lacks_is_not_finite() -> None:
    clean = np.ones((1, 3), np.float32)
    broken = np.array([[1, np.nan, 1]], np.float32)
    assert not compare(clean, broken).finite
    assert compare(broken, broken).finite
    assert within_exact_tolerance([compare(clean, broken)], {}) is not None


@pytest.mark.parametrize(
    ("shape", "scores"),
    [
        ((1, 10), True),
        ((1, 10, 1, 1), True),
        ((1, 1), False),
        ((1, 4420, 2), False),
        ((1, 1, 8, 8), False),
        ((10,), False),
    ],
)
def test_agreement_only_where_the_output_is_scores(shape: tuple[int, ...], scores: bool) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert (compare(values, values).top1_agreement is not None) is scores


def test_another_shape_is_refused() -> None:
    with pytest.raises(ModelError, match="differs in shape"):
        compare(np.zeros((1, 3)), np.zeros((1, 4)))


def test_exactness_is_relative_to_the_range() -> None:
    reference = np.linspace(0, 100, 11).reshape(1, 11)
    assert within_exact_tolerance([compare(reference, reference + 9e-4)], {}) is None
    assert within_exact_tolerance([compare(reference, reference + 2e-3)], {}) is not None
    flat = np.full((1, 11), 0.5)
    assert within_exact_tolerance([compare(flat, flat + 1e-6)], {}) is not None
    assert within_exact_tolerance([compare(flat, flat + 1e-6)], {"y": 1.0}) is None


# ---- metrics -----------------------------------------------------------------------------------------------------


def test_top1_and_top5() -> None:
    outputs = {"y": np.array([[0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6]])}
    for name, label, value in (("top1", 2, 1.0), ("top1", 1, 0.0), ("top5", 3, 1.0), ("top5", 0, 0.0)):
        tracker = MetricTracker(name)
        tracker.add(outputs, label)
        assert tracker.values == [value]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """2,000 draws of 300 pairs with a true drop of two points: the interval misses it in about 5 % of them."""
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(2000):
        draws = random.random(300)
        reference = np.ones(300)
        candidate = np.ones(300)
        candidate[draws < 0.05] = 0
        reference[(draws >= 0.05) & (draws < 0.08)] = 0
        interval = drop_interval(reference, candidate)
        assert interval is not None
        missed += not interval[0] <= 0.02 <= interval[1]
    assert 0.03 <= missed / 2000 <= 0.065


def test_no_disagreement_still_has_a_width() -> None:
    same = np.ones(300)
    interval = drop_interval(same, same)
    assert interval is not None
    assert interval[0] == -interval[1]
    assert 0.005 < interval[1] < 0.02


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_interval_holds_the_point_estimate_nearly(pairs: list[tuple[bool, bool]]) -> None:
    reference, candidate = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    interval = drop_interval(reference, candidate)
    assert interval is not None
    assert -1 <= interval[0] <= interval[1] <= 1
    assert interval[0] - 1e-9 <= (reference - candidate).mean() * len(pairs) / (len(pairs) + 2) <= interval[1] + 1e-9


def test_a_metric_that_does_not_exist() -> None:
    for name in ("top3", "no_such_module:metric"):
        with pytest.raises(SampleError):
            MetricTracker(name)


# ---- validation --------------------------------------------------------------------------------------------------


def planted(scale: float) -> bytes:
    model = onnx.load(str(MODELS / "nin.onnx"))
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(scale), weight.name))
    return model.SerializeToString()


def test_a_wrong_weight_is_noticed() -> None:
    original, samples = planted(1.0), Samples.from_path(DATA).take(40)
    samples = samples.for_inputs([_spec()])
    same = validate(original, original, samples, ValidationSettings(threads=2))
    assert (same.sqnr_db, same.arm, same.kernels) == (200.0, None, None)
    assert same.metric is not None
    assert same.metric.drop == 0
    wrong = validate(original, planted(-1.0), samples, ValidationSettings(threads=2))
    assert wrong.sqnr_db is not None
    assert wrong.sqnr_db < 10
    assert wrong.metric is not None
    assert wrong.metric.drop > 0.2


def _spec() -> TensorSpec:
    return Model.load(MODELS / "nin.onnx").inputs[0]


def test_layers_show_where_it_begins() -> None:
    samples = Samples.from_path(DATA).take(3).for_inputs([_spec()])
    layers = layer_sqnr(planted(1.0), planted(1.01), samples, threads=1)
    assert layers[0].sqnr_db == pytest.approx(40, abs=0.5)
    assert len(layers) > 20


def test_results_come_in_order() -> None:
    assert list(map_in_order(lambda x: x * x, range(50), threads=4)) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda x: 1 // x, [1, 0], threads=2))


# ---- latency -----------------------------------------------------------------------------------------------------


def test_a_model_against_itself_and_against_a_larger_one() -> None:
    small, large = ((MODELS / f"{name}.onnx").read_bytes() for name in ("vgg", "nin"))
    feed = {"input": np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)}
    itself, faster = compare_latency([large, large, small], feed, RaceSettings(seconds=1.0))
    assert itself.speedup == pytest.approx(1, abs=0.15)
    assert faster.speedup is not None
    assert faster.speedup > 2
    assert faster.interval is not None
    assert faster.interval[0] > 1.5
    assert faster.reference.peak_rss_bytes is not None
    assert {layer.origin for layer in faster.layers} > {None}
    assert sum(layer.share or 0 for layer in faster.layers) == pytest.approx(1)


def test_ratios_are_paired_and_their_interval_repeats() -> None:
    random = np.random.default_rng(0)
    load = random.uniform(1, 3, 60)
    reference, candidate = 10 * load, 5 * load * random.normal(1, 0.01, 60)
    speedup, interval = ratio_with_interval(reference, candidate, 0)
    assert speedup == pytest.approx(2, rel=0.01)
    assert interval[1] - interval[0] < 0.05
    assert ratio_with_interval(reference, candidate, 0)[1] == interval


def test_noise_larger_than_the_effect_is_not_stable() -> None:
    assert is_stable(1.5, (0.99, 1.01))
    assert is_stable(1.0, (0.98, 1.02))
    assert not is_stable(1.05, (0.9, 1.02))
    assert is_stable(2.0, (0.8, 1.2))
