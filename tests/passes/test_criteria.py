"""Criteria on cases where everyone can tell what matters least, and what is the same of all of them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.errors import PassError
from onnxslim.passes._criteria import CRITERIA, Criterion, Evidence, Rows, geometric_median, l1, l2, wanda
from onnxslim.passes._surgeon import Reader


def rows(values: object, units: object = None) -> Rows:
    array = np.asarray(values, np.float64)
    return Rows(array, np.arange(len(array)) if units is None else np.asarray(units))


def evidence(seed: int = 0, size: int = 5) -> Evidence:
    """Everything there is to know, with correlated inputs."""
    random = np.random.default_rng(seed)
    p = random.standard_normal((50, 2 * size)) @ random.standard_normal((2 * size, 2 * size))
    p -= p.mean(axis=0)
    weight = random.standard_normal((3, 2 * size))
    energy = float(((p @ weight.T) ** 2).sum())
    reader = Reader(p.T @ p, weight, np.repeat(np.arange(size), 2), energy)
    single = tuple(rows(random.uniform(0.1, 1, size)) for _ in range(3))
    return Evidence(
        size, (rows(random.standard_normal((size, 7))),), (single[0],), (single[1],), (single[2],), (reader,), seed
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_one_number_for_each_unit_and_the_same_every_time(name: str) -> None:
    scores = CRITERIA[name](evidence())
    assert scores.shape == (5,)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    np.testing.assert_array_equal(scores, CRITERIA[name](evidence()))
    assert len(set(scores.tolist())) == 5


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"random", "geometric-median"}))
def test_a_silent_unit_goes_first(name: str) -> None:
    """Unit 2 has no weights, is never active and nobody listens. (The geometric median asks something else: below.)"""
    known = evidence(1)
    for part in (*known.filters, *known.scales, *known.energies, *known.alive):
        part.values[2] = 0
    reader = known.readers[0]
    reader.weight[:, reader.units == 2] = 0
    reader.gram[reader.units == 2] = 0
    reader.gram[:, reader.units == 2] = 0
    assert int(np.argmin(CRITERIA[name](known))) == 2


@pytest.mark.parametrize("name", ["obd", "obs"])
def test_a_unit_that_repeats_another_is_worth_nothing_to_the_surgeon_alone(name: str) -> None:
    random = np.random.default_rng(0)
    p = random.standard_normal((50, 4))
    p[:, 3] = p[:, 0]
    p -= p.mean(axis=0)
    weight = np.array([[5.0, 1.0, 1.0, 5.0]])
    reader = Reader(p.T @ p, weight, np.arange(4), float(((p @ weight.T) ** 2).sum()))
    first = int(np.argmin(CRITERIA[name](Evidence(4, readers=(reader,)))))
    assert (first in (0, 3)) == (name == "obs")


def test_norms() -> None:
    known = Evidence(3, (rows([[3.0, -4.0], [6.0, 0.0], [1.0, 0.0]]),))
    np.testing.assert_allclose(l1(known), np.array([7, 6, 1]) / (14 / 3))
    np.testing.assert_allclose(l2(known), np.array([5, 6, 1]) / 4)


def test_the_middle_filter_goes_first() -> None:
    """The smallest filter is far from the others; the one between them can be replaced."""
    known = Evidence(4, (rows([[10.0, 1.0], [10.0, -1.0], [10.0, 0.0], [0.1, 0.0]]),))
    assert int(np.argmin(geometric_median(known))) == 2
    assert int(np.argmin(l1(known))) == 3


def test_distances_do_not_depend_on_how_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = np.random.default_rng(0).standard_normal((9, 4))
    monkeypatch.setattr("onnxslim.passes._criteria._AT_ONCE", 2)
    brute = np.linalg.norm(filters[:, None] - filters[None], axis=2).sum(axis=1)
    np.testing.assert_allclose(geometric_median(Evidence(9, (rows(filters),))), brute / brute.mean(), atol=1e-6)


def test_layers_count_alike_whatever_the_size_of_their_weights() -> None:
    small, large = rows([[1.0], [2.0], [3.0]]), rows([[3e3], [2e3], [1e3]])
    np.testing.assert_allclose(l1(Evidence(3, (small, large))), 1.0)


def test_units_of_several_filters_and_of_some_layers() -> None:
    """Units 0 and 1 have two filters each in one layer; unit 2 is of another layer alone."""
    first = rows([[1.0], [3.0], [5.0], [7.0]], [0, 0, 1, 1])
    second = rows([[4.0]], [2])
    np.testing.assert_allclose(l1(Evidence(3, (first, second))), [2 / 4, 6 / 4, 1.0])


def test_wanda_weighs_weights_by_what_they_read() -> None:
    gram = np.diag([4.0, 9.0, 1.0, 1.0])
    reader = Reader(gram, np.array([[1.0, -1.0, 2.0, 9.0]]), np.array([0, 0, 1, -1]), 1.0)
    np.testing.assert_allclose(wanda(Evidence(2, readers=(reader,))), np.array([5.0, 2.0]) / 3.5)


NEEDS = {
    "l1": "no weights",
    "l2": "no weights",
    "geometric-median": "no weights",
    "bn-scale": "folded",
    "energy": "not observed",
    "zeros": "not observed",
    "wanda": "no linear layer",
    "obd": "no linear layer",
    "obs": "no linear layer",
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_is_missing_is_said(name: str) -> None:
    criterion: Criterion = CRITERIA[name]
    with pytest.raises(PassError, match=NEEDS[name]):
        criterion(Evidence(3))


def test_random_depends_on_the_seed_alone() -> None:
    first, second = CRITERIA["random"](Evidence(9, seed=1)), CRITERIA["random"](Evidence(9, seed=2))
    assert set(first.tolist()) != set(second.tolist())
