"""The refit against numpy's own least squares on the rows themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.analysis.second_order import Moments
from onnxslim.errors import PassError
from onnxslim.passes._least_squares import Bias, Pull, best_bias, error_of, factorized, refit, shrunk

Floats = npt.NDArray[np.float64]


def moments_of(p: Floats, y: Floats) -> Moments:
    """Moments of rows p, shape (rows, groups, d), and y, shape (rows, O)."""
    groups = p.shape[1]
    mean, target_mean = p.mean(axis=0), y.mean(axis=0)
    centred, wanted = p - mean, (y - target_mean).reshape(len(y), groups, -1)
    gram = np.einsum("rgd,rge->gde", centred, centred)
    cross = np.einsum("rgd,rgo->gdo", centred, wanted)
    return Moments(len(p), len(p), mean, gram, target_mean, cross, ((y - target_mean) ** 2).sum(axis=0))


def problem(seed: int, rows: int = 60, groups: int = 1, width: int = 5, out: int = 4) -> tuple[Any, ...]:
    """Correlated rows, targets that they do not quite explain, and some weights."""
    random = np.random.default_rng(seed)
    p = random.standard_normal((rows, groups, width)) @ random.standard_normal((width, width)) + 3
    y = np.einsum("rgd,god->rgo", p, random.standard_normal((groups, out // groups, width))).reshape(rows, out)
    y = y + random.standard_normal((rows, out)) - 1
    weight, bias = random.standard_normal((groups, out // groups, width)), random.standard_normal(out)
    return p, y, weight, bias


def misfit(p: Floats, y: Floats, weight: Floats, bias: Floats) -> float:
    predicted = np.einsum("rgd,god->rgo", p, weight).reshape(y.shape) + bias
    return float(((y - predicted) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


@given(st.integers(0, 99), st.sampled_from([1, 2, 4]))
@settings(max_examples=30, deadline=None)
def test_without_ridge_it_is_least_squares(seed: int, groups: int) -> None:
    p, y, weight, bias = problem(seed, groups=groups)
    found = refit(moments_of(p, y), weight, bias, ridge=0.0)
    for group in range(groups):
        columns = np.concatenate((p[:, group], np.ones((len(p), 1))), axis=1)
        wanted = y.reshape(len(y), groups, -1)[:, group]
        exact = np.linalg.lstsq(columns, wanted, rcond=None)[0].T
        np.testing.assert_allclose(found.weight[group], exact[:, :-1], atol=1e-7)
        np.testing.assert_allclose(found.bias.reshape(groups, -1)[group], exact[:, -1], atol=1e-7)


@given(st.integers(0, 99), st.sampled_from(Pull), st.sampled_from(Bias), st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_errors_are_those_of_the_rows(seed: int, pull: Pull, kind: Bias, ridge: float) -> None:
    p, y, weight, bias = problem(seed, groups=2)
    found = refit(moments_of(p, y), weight, bias, ridge, pull, kind)
    assert found.before == pytest.approx(misfit(p, y, weight, bias), rel=1e-9)
    assert found.after == pytest.approx(misfit(p, y, found.weight, found.bias), rel=1e-6)
    if pull is Pull.ORIGINAL or ridge == 0:
        assert found.after <= found.before + 1e-9


@given(st.integers(0, 99), st.sampled_from(Pull), st.sampled_from(Bias))
@settings(max_examples=30, deadline=None)
def test_the_penalized_error_has_its_least_there(seed: int, pull: Pull, kind: Bias) -> None:
    """Steps in any direction make Σ‖y − Wp − b‖² + λ‖W − W₀‖² larger."""
    p, y, weight, bias = problem(seed, groups=1)
    moments, ridge = moments_of(p, y), 0.3
    found = refit(moments, weight, bias, ridge, pull, kind)
    inner = moments.gram[0] + (0 if kind is Bias.FITTED else len(p) * np.outer(moments.mean[0], moments.mean[0]))
    strength = ridge * float(np.trace(inner)) / len(inner)
    centre = weight if pull is Pull.ORIGINAL else np.zeros_like(weight)

    def penalized(w: Floats) -> float:
        b = bias if kind is Bias.FIXED else best_bias(moments, w)
        return misfit(p, y, w, b) * moments.total_energy + strength * float(((w - centre) ** 2).sum())

    random = np.random.default_rng(seed)
    for _ in range(5):
        step = 1e-3 * random.standard_normal(weight.shape)
        assert penalized(found.weight + step) > penalized(found.weight)


def test_a_strong_ridge_keeps_what_it_pulls_towards() -> None:
    p, y, weight, bias = problem(0)
    moments = moments_of(p, y)
    np.testing.assert_allclose(refit(moments, weight, bias, 1e9).weight, weight, atol=1e-6)
    np.testing.assert_allclose(refit(moments, weight, bias, 1e9, Pull.ZERO).weight, 0, atol=1e-6)


def test_a_fixed_bias_stays() -> None:
    p, y, weight, bias = problem(0)
    found = refit(moments_of(p, y), weight, bias, 0.0, kind=Bias.FIXED)
    np.testing.assert_array_equal(found.bias, bias)
    exact = np.linalg.lstsq(p[:, 0], y - bias, rcond=None)[0].T
    np.testing.assert_allclose(found.weight[0], exact, atol=1e-7)


def test_good_weights_are_kept_to_the_last_digits() -> None:
    p, _, weight, bias = problem(0)
    y = np.einsum("rgd,god->rgo", p, weight).reshape(len(p), -1) + bias
    found = refit(moments_of(p, y), weight, bias, 1e-4)
    np.testing.assert_allclose(found.weight, weight, atol=1e-10)
    assert found.before < 1e-12


def test_fewer_rows_than_columns_need_a_ridge_and_say_so() -> None:
    p, y, weight, bias = problem(0, rows=4, width=9)
    found = refit(moments_of(p, y), weight, bias, ridge=0.0)
    assert 0 < found.ridge <= 1e-3
    assert np.isfinite(found.weight).all()
    assert found.after < 1e-3  # so few rows can be met


def test_columns_that_never_change_keep_their_weights() -> None:
    p, y, weight, bias = problem(0)
    p[:, :, 2] = 7.0
    found = refit(moments_of(p, y), weight, bias)
    np.testing.assert_allclose(found.weight[..., 2], weight[..., 2], atol=1e-9)
    p[:] = 7.0
    still = refit(moments_of(p, y), weight, bias)
    np.testing.assert_array_equal(still.weight, weight)
    assert still.after == pytest.approx(1.0)


def test_constant_targets() -> None:
    p, y, weight, bias = problem(0)
    y[:] = 2.0
    found = refit(moments_of(p, y), weight, bias, 0.0)
    np.testing.assert_allclose(found.weight, 0, atol=1e-9)
    assert found.after == 0.0
    assert np.isinf(found.before)


def test_only_the_bias() -> None:
    p, y, weight, bias = problem(0, groups=2)
    moments = moments_of(p, y)
    corrected = best_bias(moments, weight)
    predicted = np.einsum("rgd,god->rgo", p, weight).reshape(y.shape) + corrected
    np.testing.assert_allclose((y - predicted).mean(axis=0), 0, atol=1e-9)
    assert error_of(moments, weight, corrected) < error_of(moments, weight, bias)


def test_what_no_ridge_mends_is_refused() -> None:
    p, y, weight, bias = problem(0)
    moments = moments_of(p, y)
    with pytest.raises(PassError, match="not definite"):
        factorized(np.array([[1.0, 3e9], [3e9, 1.0]]), 1e-4)
    moments.gram[0, 0, 0] = np.nan
    with pytest.raises(PassError, match="not finite"):
        refit(moments, weight, bias)


def test_neighbours_in_an_image_are_believed_less_than_independent_rows() -> None:
    """Twenty rows that are nearly one count for little more than one: what predicts new rows best is a stronger ridge
    than independent rows would need.
    """
    random = np.random.default_rng(0)
    width, scenes, near = 24, 36, 20
    truth = random.standard_normal((1, 1, width))

    def rows(count: int) -> tuple[Floats, Floats]:
        scene, surprise = random.standard_normal((count, 1, width)), 2 * random.standard_normal((count, 1))
        p = (scene[:, None] + 0.1 * random.standard_normal((count, near, 1, width))).reshape(-1, 1, width)
        return p, np.einsum("rgd,god->ro", p, truth) + np.repeat(surprise, near, axis=0)

    weak: list[float] = []
    strong: list[float] = []
    for _ in range(12):
        p, y = rows(scenes)
        moments = moments_of(p, y)
        known = truth + 0.3 * random.standard_normal(truth.shape)
        fresh = rows(400)
        ours = shrunk(1e-4, moments)
        for ridge, errors in ((ours / 20, weak), (ours, strong)):
            found = refit(moments, known, np.zeros(1), ridge=ridge)
            errors.append(misfit(*fresh, found.weight, found.bias))
    assert ours == pytest.approx(2 * width / (scenes * near))
    assert np.mean(strong) < 0.97 * np.mean(weak)
