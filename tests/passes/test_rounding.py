"""Rounding in the metric of a layer's patches: never worse than it says, and better where columns are alike."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.passes import _rounding
from onnxslim.passes._rounding import best_scale, rounded_in_metric

Floats = npt.NDArray[np.float64]


def problem(seed: int, groups: int, outputs: int, width: int, alike: float) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(groups, outputs, width))
    common = rng.normal(size=(groups, width, 1))
    patches = rng.normal(size=(groups, width, 4 * width)) + alike * common * rng.normal(size=(groups, 1, 4 * width))
    metric = patches @ patches.swapaxes(1, 2) / (4 * width) + 1e-3 * np.eye(width)
    return weight, np.abs(weight).max(axis=2) / 7, metric


def error_in_metric(weight: Floats, other: Floats, metric: Floats) -> float:
    """Return ‖weight − other‖²_H over all groups."""
    off = weight - other
    return float(np.vdot(off @ metric, off))


def nearest(weight: Floats, scale: Floats, limit: int) -> Floats:
    return np.clip(np.round(weight / scale[:, :, None]), -limit, limit)


@given(seed=st.integers(0, 999), groups=st.integers(1, 3), outputs=st.integers(1, 4), width=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_diagonal_metric_rounds_to_the_nearest(seed: int, groups: int, outputs: int, width: int) -> None:
    weight, scale, _ = problem(seed, groups, outputs, width, 0.0)
    diagonal = np.stack([np.diag(np.random.default_rng(seed).uniform(0.1, 9, width)) for _ in range(groups)])
    np.testing.assert_array_equal(rounded_in_metric(weight, scale, 7, diagonal), nearest(weight, scale, 7))


def test_what_columns_share_is_used() -> None:
    better = []
    for seed in range(20):
        weight, scale, metric = problem(seed, 2, 8, 24, 3.0)
        ours = rounded_in_metric(weight, scale, 7, metric) * scale[:, :, None]
        plain = nearest(weight, scale, 7) * scale[:, :, None]
        better.append(error_in_metric(weight, ours, metric) / error_in_metric(weight, plain, metric))
    assert max(better) < 0.8
    assert np.mean(better) < 0.5


def test_it_is_near_the_best_of_all() -> None:
    """Against every choice of rounding up or down, in three columns."""
    ratios = []
    for seed in range(30):
        weight, scale, metric = problem(seed, 1, 1, 3, 2.0)
        ours = rounded_in_metric(weight, scale, 7, metric) * scale[:, :, None]
        low = np.floor(weight / scale[:, :, None])
        choices = [np.clip(low + np.array(up), -7, 7) * scale[:, :, None] for up in itertools.product((0, 1), repeat=3)]
        best = min(error_in_metric(weight, choice, metric) for choice in choices)
        ratios.append(error_in_metric(weight, ours, metric) / max(best, 1e-12))
    assert np.median(ratios) < 1.3


def test_blocks_are_only_for_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, metric = problem(0, 1, 5, 40, 2.0)
    whole = rounded_in_metric(weight, scale, 7, metric)
    monkeypatch.setattr(_rounding, "BLOCK", 7)
    np.testing.assert_array_equal(rounded_in_metric(weight, scale, 7, metric), whole)


def test_integers_stay_within_the_limit() -> None:
    weight, scale, metric = problem(1, 2, 4, 12, 5.0)
    found = rounded_in_metric(weight, scale / 3, 7, metric)
    assert np.abs(found).max() <= 7
    np.testing.assert_array_equal(found, np.round(found))


def test_an_outlier_is_clipped_where_it_hardly_counts() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1, 3, 200))
    weight[0, 0, 0] = 9.0
    curvature = np.ones((1, 200))
    curvature[0, 0] = 1e-3
    widest = np.abs(weight).max(axis=2) / 7
    scale = best_scale(weight, 7, curvature)
    assert scale[0, 0] < 0.6 * widest[0, 0]
    for each in (scale, widest):
        assert (each > 0).all()

    def error(with_scale: Floats) -> Floats:
        off = weight - nearest(weight, with_scale, 7) * with_scale[:, :, None]
        return np.asarray(np.einsum("god,gd->go", off**2, curvature))

    assert (error(scale) <= error(widest)).all()


def test_filters_of_zeros_have_a_scale() -> None:
    scale = best_scale(np.zeros((1, 2, 3)), 127, np.ones((1, 3)))
    assert (scale > 0).all()
