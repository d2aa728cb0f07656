"""The surgeon against brute force: every error from a least-squares problem solved by itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.analysis.second_order import Moments
from onnxslim.passes._surgeon import Reader, _State, diagonal_costs, readers_of, removal_order

RIDGE = 1e-4


def reader(seed: int, units: Sequence[int], out: int = 3, rows: int = 40, energy: float | None = None) -> Reader:
    """A layer whose inputs are correlated."""
    random = np.random.default_rng(seed)
    width = len(units)
    p = random.standard_normal((rows, width)) @ (np.eye(width) + 0.5 * random.standard_normal((width, width)))
    p -= p.mean(axis=0)
    weight = random.standard_normal((out, width))
    given = float(((p @ weight.T) ** 2).sum()) if energy is None else energy
    return Reader(p.T @ p, weight, np.array(units), given)


def exact_error(readers: Sequence[Reader], gone: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """Error added when the columns of units ``gone`` are zero and the others the best there are."""
    total = 0.0
    for one in readers:
        hessian = one.gram + RIDGE * np.trace(one.gram) / len(one.gram) * np.eye(len(one.gram))
        kept = np.flatnonzero(~np.isin(one.units, gone))
        best = np.zeros_like(one.weight)
        best[:, kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], (hessian @ one.weight.T)[kept]).T
        off = best - one.weight
        total += float(np.trace(off @ hessian @ off.T)) / one.energy
    return total


def joint(seed: int, size: int = 6) -> list[Reader]:
    """Three readers of the same units: with one, two and three columns for each, in orders of their own."""
    random = np.random.default_rng(seed)
    return [reader(seed + k, random.permutation(np.repeat(np.arange(size), k)).tolist()) for k in (1, 2, 3)]


@given(st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_the_first_to_go_is_the_cheapest_of_all(seed: int) -> None:
    readers = joint(seed)
    order = removal_order(readers, 6, ridge=RIDGE, step=0)
    errors = [exact_error(readers, [unit]) for unit in range(6)]
    assert errors[order.units[0]] == pytest.approx(min(errors), rel=1e-9)


@given(st.integers(0, 500), st.sampled_from([0.0, 0.4, 1.0]))
@settings(max_examples=30, deadline=None)
def test_errors_are_those_of_least_squares(seed: int, step: float) -> None:
    """After every unit, also of a step that removes several; the last error is that of no unit at all."""
    readers = joint(seed)
    order = removal_order(readers, 6, ridge=RIDGE, step=step)
    assert sorted(order.units) == list(range(6))
    for count, error in enumerate(order.errors, start=1):
        assert error == pytest.approx(exact_error(readers, order.units[:count]), rel=1e-8, abs=1e-10)


@given(st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_each_greedy_step_is_the_cheapest(seed: int) -> None:
    readers = joint(seed)
    order = removal_order(readers, 6, ridge=RIDGE, step=0)
    for count in range(1, 6):
        before = list(order.units[:count])
        rest = [unit for unit in range(6) if unit not in before]
        errors = [exact_error(readers, [*before, unit]) for unit in rest]
        assert order.errors[count] == pytest.approx(min(errors), rel=1e-8)


def test_greedy_is_near_the_best_subset() -> None:
    """Summed over problems, within a fifth of the best of all subsets, and far below the mean subset."""
    greedy, best, mean = 0.0, 0.0, 0.0
    for seed in range(12):
        readers = joint(seed, 8)
        errors = [exact_error(readers, gone) for gone in itertools.combinations(range(8), 4)]
        greedy += float(removal_order(readers, 8, ridge=RIDGE, step=0).errors[3])
        best, mean = best + min(errors), mean + float(np.mean(errors))
    assert best <= greedy < 1.2 * best
    assert greedy < 0.7 * mean


def test_several_at_once_cost_little_more() -> None:
    readers = [reader(0, np.repeat(np.arange(64), 4).tolist(), out=16, rows=2000)]
    exact = removal_order(readers, 64, step=0).errors[31]
    assert removal_order(readers, 64, step=1 / 16).errors[31] < 1.05 * exact


def test_long_runs_keep_their_digits() -> None:
    """Badly conditioned, and many downdates: matrices are computed afresh now and then."""
    random = np.random.default_rng(0)
    p = random.standard_normal((500, 60)) * np.logspace(0, -4, 60) @ random.standard_normal((60, 60))
    p -= p.mean(axis=0)
    weight = random.standard_normal((5, 60))
    one = Reader(p.T @ p, weight, np.arange(60), float(((p @ weight.T) ** 2).sum()))
    order = removal_order([one], 60, ridge=RIDGE, step=0)
    for count in (1, 30, 59, 60):
        assert order.errors[count - 1] == pytest.approx(exact_error([one], order.units[:count]), rel=1e-6)


def test_lost_digits_are_computed_again() -> None:
    """What downdates left of H⁻¹ is no longer definite: the matrices are computed afresh, and errors are right."""
    one = reader(4, list(range(8)))
    state = _State(one, RIDGE)
    first = state.remove(np.array([3]))[0]
    state._inverse *= -1.0
    second = state.remove(np.array([5]))[0]
    assert first + second == pytest.approx(exact_error([one], [3, 5]), rel=1e-8)


def test_units_that_must_stay_stay() -> None:
    readers = joint(3)
    removable = np.array([True, False, True, True, False, True])
    order = removal_order(readers, 6, removable=removable)
    assert sorted(order.units) == [0, 2, 3, 5]
    assert removable.sum() == 4  # the caller's array is the caller's
    assert len(removal_order(readers, 6, removable=removable, count=2).units) == 2


def test_columns_of_no_unit_stay_and_adapt() -> None:
    with_rest = reader(5, [0, 1, 2, -1, -1])
    order = removal_order([with_rest], 3, ridge=RIDGE, step=0)
    assert order.errors[-1] == pytest.approx(exact_error([with_rest], [0, 1, 2]), rel=1e-8)
    assert order.errors[-1] < 1.0


def test_units_that_nobody_reads_go_first() -> None:
    order = removal_order([reader(1, [0, 0, 2, 2])], 4, step=0)
    assert sorted(order.units[:2]) == [1, 3]
    assert order.errors[1] == 0


def test_readers_that_say_nothing_are_no_trouble() -> None:
    silent = Reader(np.zeros((4, 4)), np.ones((2, 4)), np.array([0, 1, 2, 3]), 1.0)
    constant = reader(1, [0, 1, 2, 3], energy=0.0)
    loud = reader(2, [0, 1, 2, 3])
    both = removal_order([silent, constant, loud], 4, step=0)
    alone = removal_order([loud], 4, step=0)
    assert both.units.tolist() == alone.units.tolist()
    np.testing.assert_allclose(both.errors, alone.errors, rtol=1e-9)


def test_energies_weigh_readers() -> None:
    """The layer with the larger outputs does not decide for both."""
    large = Reader(np.diag([100.0, 200.0]), np.ones((1, 2)), np.array([0, 1]), 300.0)
    small = Reader(np.diag([0.9, 0.1]), np.ones((1, 2)), np.array([0, 1]), 1.0)
    assert removal_order([large, small], 2, step=0).units.tolist() == [1, 0]


def moments(groups: int, width: int, out: int) -> tuple[Moments, npt.NDArray[np.float64]]:
    random = np.random.default_rng(0)
    p = random.standard_normal((groups, 50, width))
    p -= p.mean(axis=1, keepdims=True)
    weight = random.standard_normal((groups, out, width))
    gram, cross = p.swapaxes(1, 2) @ p, p.swapaxes(1, 2) @ p @ weight.swapaxes(1, 2)
    energy = np.einsum("god,gdo->go", weight, cross).reshape(-1)
    zeros = np.zeros((groups, width)), np.zeros(groups * out)
    return Moments(50, 50, zeros[0], gram, zeros[1], cross, energy), weight


def test_groups_are_readers_that_share_their_energy() -> None:
    found, weight = moments(3, 4, 2)
    units = np.array([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]])
    readers = [replace(reader, ridge=0.0) for reader in readers_of(found, weight, units)]
    order = removal_order(readers, 6, step=0)
    assert len(readers) == 3
    assert order.errors[-1] == pytest.approx(1.0, rel=0.01)  # the ridge counts, a little


# ---- without adapting --------------------------------------------------------------------------------------------


def test_diagonal_costs_are_exact_for_uncorrelated_columns() -> None:
    random = np.random.default_rng(0)
    one = Reader(np.diag(random.uniform(0.1, 2, 6)), random.standard_normal((3, 6)), np.array([0, 0, 1, 1, 2, -1]), 7.0)
    costs = diagonal_costs([one, one], 4)
    for unit in range(4):
        columns = one.units == unit
        lost = one.weight[:, columns]
        assert costs[unit] == pytest.approx(2 * np.trace(lost @ one.gram[np.ix_(columns, columns)] @ lost.T) / 7)
    order = removal_order([one], 3, ridge=1e-9, step=0)
    np.testing.assert_allclose(np.diff(order.errors, prepend=0), costs[order.units] / 2, rtol=1e-6)
