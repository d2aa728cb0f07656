"""Rounding that looks again: never worse than rounding once, next to the best there is, and no more than it claims."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.passes import _adaround
from onnxslim.passes._adaround import adarounded, best_of, descended, errors
from onnxslim.passes._rounding import best_scale, rounded_in_metric
from onnxslim.passes._rounding_scale import refitted

Floats = npt.NDArray[np.float64]
Way = Callable[[Floats, Floats, int, Floats], Floats]
DIGITS = 1e-9
"""What sums in another order may differ by, relative."""

QUICK = partial(adarounded, iterations=30)
WAYS = [pytest.param(descended, id="descent"), pytest.param(QUICK, id="adaround")]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats, int, Floats]:
    """Weights, scales that clip some of them, a limit, and a metric of any condition."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups, outputs, width = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 14))
    limit = 2 ** (draw(st.integers(2, 8)) - 1) - 1
    condition = draw(st.floats(0, 6))
    patches = rng.normal(size=(groups, width, 2 * width)) * 10 ** rng.uniform(-condition / 2, 0, (groups, width, 1))
    patches += draw(st.floats(0, 5)) * rng.normal(size=(groups, width, 1)) * rng.normal(size=(groups, 1, 2 * width))
    metric = patches @ patches.swapaxes(1, 2)
    metric += 10.0**-condition * np.trace(metric, axis1=1, axis2=2)[:, None, None] / width * np.eye(width)
    weight = rng.normal(size=(groups, outputs, width)) * 10 ** draw(st.floats(-3, 3))
    scale = np.abs(weight).max(axis=2) * rng.uniform(0.4, 1.0, (groups, outputs)) / limit
    return weight, np.where(scale > 0, scale, 1.0), limit, metric


def alike(seed: int, outputs: int, width: int, limit: int = 7, common: float = 2.0) -> tuple[Floats, Floats, Floats]:
    """Weights, scales and the metric of patches whose columns have much in common."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(1, outputs, width))
    patches = rng.normal(size=(1, width, 4 * width))
    patches += common * rng.normal(size=(1, width, 1)) * rng.normal(size=(1, 1, 4 * width))
    metric = patches @ patches.swapaxes(1, 2) / (4 * width) + 1e-3 * np.eye(width)
    return weight, np.abs(weight).max(axis=2) / limit, metric


def nearest(weight: Floats, scale: Floats, limit: int) -> Floats:
    return np.asarray(np.clip(np.round(weight / scale[:, :, None]), -limit, limit))


def error(weight: Floats, scale: Floats, metric: Floats, integers: Floats) -> Floats:
    """Return ‖W − s·Q‖²_H of each output, the long way."""
    off = weight - scale[:, :, None] * integers
    return np.array([[row @ part @ row for row in rows] for rows, part in zip(off, metric, strict=True)])


def least(weight: Floats, scale: Floats, metric: Floats, limit: int, reach: tuple[int, ...]) -> Floats:
    """Return the least error of each output over every choice of integers around ⌊W/s⌋."""
    up = np.array(list(itertools.product(reach, repeat=weight.shape[2])), float)[:, None, None, :]
    tried = np.clip(np.floor(weight / scale[:, :, None]) + up, -limit, limit)
    off = weight - scale[:, :, None] * tried
    return np.asarray(np.einsum("cgod,gde,cgoe->cgo", off, metric, off, optimize=True).min(axis=0))


# ---- what never happens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems())
@settings(max_examples=60, deadline=None)
def test_no_output_is_worse_than_rounded_once(way: Way, problem: tuple[Floats, Floats, int, Floats]) -> None:
    weight, scale, limit, metric = problem
    found = way(weight, scale, limit, metric)
    assert found.shape == weight.shape
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.round(found))
    assert np.abs(found).max() <= limit
    ours = error(weight, scale, metric, found)
    for start in (nearest(weight, scale, limit), rounded_in_metric(weight, scale, limit, metric)):
        once = error(weight, scale, metric, start)
        room = DIGITS * error(weight, scale, metric, np.zeros_like(weight))
        assert (ours <= once + room).all()


@given(problem=problems())
@settings(max_examples=60, deadline=None)
def test_no_single_step_is_left(problem: tuple[Floats, Floats, int, Floats]) -> None:
    weight, scale, limit, metric = problem
    found = descended(weight, scale, limit, metric)
    ours = error(weight, scale, metric, found)
    room = 1e-6 * scale**2 * np.diagonal(metric, axis1=1, axis2=2).max(axis=1)[:, None]
    for column, change in itertools.product(range(weight.shape[2]), (-1, 1)):
        other = found.copy()
        other[:, :, column] += change
        allowed = np.abs(other[:, :, column]) <= limit
        assert (error(weight, scale, metric, other) >= ours - room)[allowed].all()


@pytest.mark.parametrize("way", WAYS)
@given(seed=st.integers(0, 999), groups=st.integers(1, 3), outputs=st.integers(1, 4), width=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_diagonal_metric_rounds_to_the_nearest(way: Way, seed: int, groups: int, outputs: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(groups, outputs, width))
    scale = np.abs(weight).max(axis=2) / 5  # clips some
    diagonal = np.stack([np.diag(rng.uniform(0.1, 9, width)) for _ in range(groups)])
    np.testing.assert_array_equal(way(weight, scale, 4, diagonal), nearest(weight, scale, 4))


@pytest.mark.parametrize("way", WAYS)
def test_the_same_is_found_again(way: Way) -> None:
    weight, scale, metric = alike(3, 9, 30)
    np.testing.assert_array_equal(way(weight, scale, 7, metric), way(weight.copy(), scale, 7, metric.copy()))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_given_stays(way: Way) -> None:
    given_ = alike(4, 5, 12)
    before = [array.copy() for array in given_]
    way(given_[0], given_[1], 7, given_[2])
    for array, was in zip(given_, before, strict=True):
        np.testing.assert_array_equal(array, was)


@pytest.mark.parametrize("room", [1, 40, 2**15])
def test_blocks_are_only_for_speed(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, metric = alike(5, 9, 20)
    whole = descended(weight, scale, 7, metric)
    monkeypatch.setattr(_adaround, "ROOM", room)
    np.testing.assert_array_equal(descended(weight, scale, 7, metric), whole)


def test_outputs_and_groups_do_not_see_each_other() -> None:
    parts = [alike(seed, 4, 10) for seed in range(3)]
    weight, scale, metric = (np.concatenate(each) for each in zip(*parts, strict=True))
    together = descended(weight, scale, 7, metric)
    for group, (own, its, metric_) in enumerate(parts):
        np.testing.assert_array_equal(together[group], descended(own, its, 7, metric_)[0])
        for row in range(4):
            alone = descended(own[:, row : row + 1], its[:, row : row + 1], 7, metric_)
            np.testing.assert_array_equal(together[group, row], alone[0, 0])


# ---- how good they are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "reached", "excess"),
    [(descended, 0.85, 0.06), (QUICK, 0.9, 0.05)],
    ids=["descent", "adaround"],
)
def test_it_is_next_to_the_best_of_all(way: Way, reached: float, excess: float) -> None:
    """Against all 3⁵ choices around the weight: how often the best is found, and by how much it is missed else."""
    shares, ratios = [], []
    for seed in range(30):
        weight, scale, metric = alike(seed, 8, 5)
        best = (
            least(weight, scale, metric, 7, (-1, 0, 1, 2)) if seed < 3 else least(weight, scale, metric, 7, (-1, 0, 1))
        )
        ours = error(weight, scale, metric, way(weight, scale, 7, metric))
        ratios.append(ours.sum() / best.sum())
        shares.append((ours <= best * (1 + 1e-9)).mean())
    assert np.mean(shares) >= reached
    assert np.mean(ratios) <= 1 + excess


@pytest.mark.parametrize("limit", [1, 7, 127])
def test_looking_longer_finds_better(limit: int) -> None:
    ways: dict[str, Way] = {
        "once": rounded_in_metric,
        "descent": descended,
        "adaround": partial(adarounded, iterations=200),
    }
    ratios = dict.fromkeys(ways, 0.0)
    for seed in range(5):
        weight, scale, metric = alike(seed, 16, 48, limit)
        plain = error(weight, scale, metric, nearest(weight, scale, limit)).sum()
        for name, way in ways.items():
            ratios[name] += error(weight, scale, metric, way(weight, scale, limit, metric)).sum() / plain / 5
    assert ratios["descent"] < 0.97 * ratios["once"]
    assert ratios["adaround"] < 0.99 * ratios["descent"]


def test_a_start_is_gone_on_from() -> None:
    weight, scale, metric = alike(6, 6, 16)
    bad = np.zeros_like(weight)
    for found in (descended(weight, scale, 7, metric, start=bad), QUICK(weight, scale, 7, metric, start=bad)):
        assert (error(weight, scale, metric, found) < 0.2 * error(weight, scale, metric, bad)).all()
    best = descended(weight, scale, 7, metric)
    np.testing.assert_array_equal(descended(weight, scale, 7, metric, start=best), best)


def test_the_first_of_the_best_is_taken() -> None:
    steps, metric = np.array([[[0.5, 0.5], [0.25, 1.0]]]), np.eye(2)[None]
    up, down = np.ones((1, 2, 2)), np.zeros((1, 2, 2))
    np.testing.assert_array_equal(best_of(steps, metric, [down, up]), [[[0, 0], [1, 1]]])
    np.testing.assert_array_equal(best_of(steps, metric, [up, down]), [[[1, 1], [1, 1]]])
    np.testing.assert_array_equal(errors(steps - up, metric), [[0.5, 0.5625]])


# ---- AdaRound on its own ---------------------------------------------------------------------------------------------


def loss(logits: Floats, goal: Floats, metric: Floats, progress: float) -> float:
    """Return what AdaRound minimizes, as the paper writes it."""
    share = np.clip(1.2 / (1 + np.exp(-logits)) - 0.1, 0, 1)
    fit = float(np.vdot((goal - share) @ metric, goal - share))
    if progress < 0.2:
        return fit
    power = 2 + 18 * (1 - progress) / 0.8
    return fit + _adaround.REGULARIZATION * float((1 - np.abs(2 * share - 1) ** power).sum())


def gradient_is_right(progress: float) -> bool:
    """Whether the gradient is that of finite differences, within a hundredth of its norm."""
    rng = np.random.default_rng(0)
    logits, goal = rng.uniform(-2, 2, (2, 3, 6)), rng.uniform(size=(2, 3, 6))
    patches = rng.normal(size=(2, 6, 12))
    metric = patches @ patches.swapaxes(1, 2) / 12
    expected = np.empty_like(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        rise = loss(logits + step, goal, metric, progress) - loss(logits - step, goal, metric, progress)
        expected[place] = rise / 2e-5
    singles = logits.astype(np.float32), goal.astype(np.float32), metric.astype(np.float32)
    found = _adaround._gradient(*singles, progress)
    return float(np.linalg.norm(found - expected)) < 0.01 * float(np.linalg.norm(expected))


def annealing_helps() -> bool:
    """Whether AdaRound, with nothing before or after it, does better than second-order rounding."""
    ours = theirs = 0.0
    for seed in range(3):
        weight, scale, metric = alike(seed, 8, 32, common=0.3)
        alone = _adaround._annealed(weight / scale[:, :, None], 7, metric, None, 200)
        ours += error(weight, scale, metric, alone).sum()
        theirs += error(weight, scale, metric, rounded_in_metric(weight, scale, 7, metric)).sum()
    return bool(ours < theirs)


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6, 0.99])
def test_the_gradient_is_that_of_the_loss(progress: float) -> None:
    assert gradient_is_right(progress)


def test_annealing_helps_by_itself() -> None:
    assert annealing_helps()


def test_a_gradient_of_the_wrong_sign_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _adaround._gradient
    monkeypatch.setattr(_adaround, "_gradient", lambda *given_: -right(*given_))
    assert not gradient_is_right(0.5)
    assert not annealing_helps()


def test_a_step_of_the_wrong_sign_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of several never shows it: what descent alone makes of a start does."""
    weight, scale, metric = alike(8, 6, 20)
    steps = weight / scale[:, :, None]
    start = nearest(weight, scale, 7)

    def alone() -> Floats:
        found = _adaround._walked(steps, 7, metric, start)
        return error(weight, scale, metric, found) / error(weight, scale, metric, start)

    assert (alone() < 0.9).all()
    right = _adaround._Walk._gains

    def wrong(walk: _adaround._Walk) -> Floats:
        walk._slope *= -1
        return right(walk)

    monkeypatch.setattr(_adaround._Walk, "_gains", wrong)
    assert (alone() > 0.9).any()


# ---- scales ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@given(problem=problems())
@settings(max_examples=60, deadline=None)
def test_scales_and_integers_only_improve(shared: bool, problem: tuple[Floats, Floats, int, Floats]) -> None:
    weight, scale, limit, metric = problem
    scale = np.full_like(scale, scale.max()) if shared else scale
    scale = scale.astype(np.float32).astype(np.float64)
    least_ = 0.9 * scale.min(axis=1, keepdims=True) * np.ones_like(scale)
    start = rounded_in_metric(weight, scale, limit, metric)
    integers, found = refitted(weight, scale, limit, metric, start, least=least_, shared=shared)
    assert np.abs(integers).max() <= limit
    np.testing.assert_array_equal(integers, np.round(integers))
    np.testing.assert_array_equal(found, found.astype(np.float32))
    assert (found >= least_).all()
    before, after = error(weight, scale, metric, start), error(weight, found, metric, integers)
    room = DIGITS * error(weight, scale, metric, np.zeros_like(weight))
    if shared:
        assert np.unique(found).size == 1
        assert after.sum() <= (before + room).sum()
    else:
        assert (after <= before + room).all()


def test_a_scale_that_is_off_is_put_right() -> None:
    rng = np.random.default_rng(0)
    _, _, metric = alike(0, 1, 20)
    integers = rng.integers(-7, 8, (1, 4, 20)).astype(np.float64)
    integers[:, :, 0] = 7
    true = rng.uniform(0.5, 2, (1, 4)).astype(np.float32).astype(np.float64)
    weight = integers * true[:, :, None]
    found, scale = refitted(weight, true * 1.02, 7, metric, integers)
    np.testing.assert_array_equal(found, integers)
    np.testing.assert_allclose(scale, true, rtol=1e-6)


def test_fitted_scales_win_something_at_few_bits() -> None:
    ratios = []
    for seed in range(5):
        weight, _, metric = alike(seed, 12, 40, 7)
        scale = best_scale(weight, 7, np.diagonal(metric, axis1=1, axis2=2)).astype(np.float32).astype(np.float64)
        start = descended(weight, scale, 7, metric)
        integers, found = refitted(weight, scale, 7, metric, start)
        ratios.append(error(weight, found, metric, integers).sum() / error(weight, scale, metric, start).sum())
    assert np.mean(ratios) < 0.98


def test_outputs_of_zeros_keep_their_scale() -> None:
    weight, scale, metric = np.zeros((1, 2, 3)), np.ones((1, 2)), np.eye(3)[None]
    integers, found = refitted(weight, scale, 7, metric, np.zeros_like(weight))
    np.testing.assert_array_equal(integers, 0)
    np.testing.assert_array_equal(found, scale)
