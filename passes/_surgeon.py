"""The surgeon: which units to remove from the layers that read them, when what remains may adapt.

For a layer y = W·p with the centred Gram matrix G of p and H = G + λI, removing the columns S of W and letting the
others adapt adds the error  tr(W_S · ([H⁻¹]_SS)⁻¹ · W_Sᵀ), and what remains becomes

    W ← W − W_S · ([H⁻¹]_SS)⁻¹ · [H⁻¹]_S:        H⁻¹ ← H⁻¹ − [H⁻¹]_:S · ([H⁻¹]_SS)⁻¹ · [H⁻¹]_S:

(Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon"; with blocks and this
recursion: Frantar & Alistarh 2022, "Optimal Brain Compression", §4 and §5; for structures: Kurtic et al. 2023, "ZipLM",
§3.) A unit is a channel with all columns that belong to it, in every layer that reads it; errors of layers are added,
each as a fraction of its targets' energy. Units are removed greedily, the cheapest first.

When many units remain, several are removed in one step: the cheapest, as if they did not depend on each other. That is
an approximation of the *choice* alone; the errors reported for it are exact, from the Cholesky factor of [H⁻¹]_SS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular
from scipy.linalg.blas import dgemm
from scipy.linalg.lapack import dpotrf, dpotri

from onnxslim.analysis.second_order import Moments
from onnxslim.errors import PassError
from onnxslim.passes._least_squares import RIDGE, factorized, shrunk

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

STEP = 1 / 32
"""The share of the remaining units that one step removes at most; 0 for one at a time."""
LEAST_RIDGE = 1e-9
"""Below it, H⁻¹ would have too few right digits to be taken apart."""
_COMPACT = 0.7
"""When this share of a reader's columns remains, its matrices are computed afresh: smaller, and exact again."""


@dataclass(frozen=True)
class Reader:
    """A layer, or one group of it, that reads units."""

    gram: Floats
    """G, sums as in ``Moments``. Shape (d, d)."""
    weight: Floats
    """W: the best weights when nothing is removed, see ``_least_squares.refit``. Shape (O, d)."""
    units: Indices
    """The unit of each column; negative for columns that always stay. Shape (d,)."""
    energy: float
    """What its errors are fractions of; a reader whose targets are constant (0) does not count."""
    ridge: float = 0.0
    """λ that this reader needs at least, as a fraction of the mean diagonal: more where its patches are few."""


@dataclass(frozen=True)
class Order:
    """In which order units go, and what it costs."""

    units: Indices
    """First the one that goes first. Shape (removed,)."""
    errors: Floats
    """Error added when this unit and all before it are gone: summed over readers, each a fraction of its energy.

    Shape (removed,). Never falls.
    """


def readers_of(moments: Moments, weight: Floats, units: Indices) -> list[Reader]:
    """Return a layer as readers, one for each group.

    Args:
        weight: shape (groups, O/groups, d).
        units: the unit of each column. Shape (groups, d).
    """
    energy = moments.total_energy
    return [
        Reader(gram, part, columns, energy, shrunk(0.0, moments))
        for gram, part, columns in zip(moments.gram, weight, units, strict=True)
    ]


def removal_order(
    readers: Sequence[Reader],
    size: int,
    *,
    ridge: float = RIDGE,
    removable: npt.NDArray[np.bool_] | None = None,
    count: int | None = None,
    step: float = STEP,
) -> Order:
    """Return in which order to remove units so that all readers together lose least.

    Args:
        size: number of units, 0 to size − 1. One that no reader reads costs nothing.
        ridge: λ as a fraction of the mean diagonal of each G, at least ``LEAST_RIDGE``.
        removable: which units may go, shape (size,); all unless given.
        count: how many to remove; all that may go unless given.
        step: the share of the remaining units that go at once; 0 for exactly greedy.

    Raises:
        PassError: a Gram matrix is not definite, whatever the ridge.
    """
    states = [_State(reader, ridge) for reader in readers if reader.energy > 0]
    costs = np.zeros((len(states), size))
    for row, state in zip(costs, states, strict=True):
        row[state.present()] = state.costs()
    left = np.ones(size, np.bool_) if removable is None else removable.copy()
    wanted = int(left.sum()) if count is None else min(count, int(left.sum()))
    gone: list[int] = []
    errors: list[float] = []
    while len(gone) < wanted:
        free = np.flatnonzero(left)
        batch = min(max(1, int(step * len(free))), wanted - len(gone))
        total = costs[:, free].sum(axis=0)
        chosen = free[np.argsort(total, kind="stable")[:batch]]
        added = np.zeros(batch)
        for row, state in zip(costs, states, strict=True):
            if not state.reads(chosen):
                continue
            added += state.remove(chosen)
            row[state.present()] = state.costs()
        left[chosen] = False
        gone += chosen.tolist()
        errors += added.tolist()
    return Order(np.array(gone, np.int64), np.cumsum(errors))


class _State:
    """One reader while its units go: its columns, their weights and H⁻¹.

    Columns that are gone keep their place, as zeros, until the matrices are computed afresh without them.
    """

    def __init__(self, reader: Reader, ridge: float) -> None:
        self._energy = reader.energy
        self._hessian = _hessian(reader.gram, max(ridge, reader.ridge, LEAST_RIDGE))
        self._pulled = self._hessian @ reader.weight.T
        self._kept = np.arange(len(reader.units))
        self._alive = np.ones(len(reader.units), np.bool_)
        self._units = reader.units.copy()
        self._weight = reader.weight.copy()
        self._inverse = _inverse(self._hessian)

    def present(self) -> Indices:
        """Return the units that remain, in order."""
        units = np.unique(self._units)
        return units[units >= 0]

    def reads(self, units: Indices) -> bool:
        """Whether any of ``units`` remains here."""
        return bool(np.isin(self._units, units).any())

    def costs(self) -> Floats:
        """Return the error that removing each unit alone would add, in the order of :meth:`present`."""
        costs = np.zeros(len(self.present()))
        order = np.argsort(self._units, kind="stable")
        order = order[self._units[order] >= 0]
        _, starts, sizes = np.unique(self._units[order], return_index=True, return_counts=True)
        for size in np.unique(sizes):
            same = np.flatnonzero(sizes == size)
            columns = order[starts[same][:, None] + np.arange(size)]
            blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
            weights = self._weight[:, columns].transpose(1, 2, 0)
            costs[same] = np.einsum("uco,uco->u", weights, np.linalg.solve(blocks, weights))
        result: Floats = costs / self._energy
        return result

    def remove(self, units: Indices) -> Floats:
        """Remove ``units`` and let the rest adapt; return the error that each adds, one after the other.

        Raises:
            PassError: H of what remains is not definite.
        """
        try:
            return self._removed(units)
        except np.linalg.LinAlgError:  # many downdates have used up the digits of H⁻¹
            self._refresh()
        try:
            return self._removed(units)
        except np.linalg.LinAlgError:
            raise PassError("the statistics of a layer are too nearly singular: a larger ridge helps") from None

    def _removed(self, units: Indices) -> Floats:
        place = {int(unit): index for index, unit in enumerate(units)}
        positions = np.array([place.get(int(unit), -1) for unit in self._units])
        gone = np.flatnonzero(positions >= 0)
        gone = gone[np.argsort(positions[gone], kind="stable")]
        lower = np.linalg.cholesky(self._inverse[np.ix_(gone, gone)])
        halves = solve_triangular(lower, self._weight[:, gone].T, lower=True, check_finite=False)
        added = np.zeros(len(units))
        np.add.at(added, positions[gone], (halves**2).sum(axis=1) / self._energy)
        across = solve_triangular(lower, self._inverse[gone], lower=True, check_finite=False)
        self._units[gone], self._alive[gone] = -1, False
        if self._alive.sum() <= _COMPACT * len(self._alive):
            self._refresh()
        else:
            self._adapt(gone, across, halves)
        return added

    def _adapt(self, gone: Indices, across: Floats, halves: Floats) -> None:
        """Let all columns make up for those ``gone``, with L⁻¹·[H⁻¹]_S: and L⁻¹·W_Sᵀ."""
        self._inverse = dgemm(-1.0, across.T, across, beta=1.0, c=self._inverse, overwrite_c=1)
        self._weight -= halves.T @ across
        self._inverse[gone], self._inverse[:, gone], self._weight[:, gone] = 0.0, 0.0, 0.0

    def _refresh(self) -> None:
        """Compute H⁻¹ and W of the columns that remain from H itself."""
        self._kept, self._units = self._kept[self._alive], self._units[self._alive]
        self._alive = np.ones(len(self._kept), np.bool_)
        self._inverse = _inverse(self._hessian[np.ix_(self._kept, self._kept)])
        self._weight = (self._inverse @ self._pulled[self._kept]).T


def _hessian(gram: Floats, ridge: float) -> Floats:
    """Return G + λI, λ large enough for it to be definite; next to nothing where the input never changes."""
    scale = float(np.trace(gram)) / len(gram)
    if scale <= 0:
        return np.eye(len(gram)) * np.finfo(np.float64).tiny ** 0.5
    _, used = factorized(gram, ridge)
    hessian = gram.copy()
    hessian.flat[:: len(gram) + 1] += used * scale
    return hessian


def _inverse(hessian: Floats) -> Floats:
    """Return the inverse of a definite matrix, in the order of Fortran.

    Raises:
        PassError: it is not definite.
    """
    if not len(hessian):
        return hessian
    upper, failed = dpotrf(hessian, lower=0)
    if not failed:
        half, failed = dpotri(upper, lower=0)
    if failed:
        raise PassError("the statistics of a layer are too nearly singular: a larger ridge helps")
    inverse: Floats = np.asfortranarray(np.triu(half) + np.triu(half, 1).T)
    return inverse


# ---- without adapting ------------------------------------------------------------------------------------------------


def diagonal_costs(readers: Sequence[Reader], size: int) -> Floats:
    """Return the error that removing each unit would add if nothing adapted and columns were uncorrelated.

    Σ over the unit's columns of G_cc·w_c², as fractions of the readers' energies: Optimal Brain Damage (LeCun et al.
    1990), where ½·h_cc·w_c² is a weight's saliency. Shape (size,).
    """
    costs = np.zeros(size)
    for reader in readers:
        if reader.energy > 0:
            columns = np.diagonal(reader.gram) * (reader.weight**2).sum(axis=0) / reader.energy
            counted = reader.units >= 0
            np.add.at(costs, reader.units[counted], columns[counted])
    return costs
