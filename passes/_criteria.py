"""What makes a channel matter: one function for each criterion, all of one signature, each with its source.

A criterion takes the :class:`Evidence` about the units of one coupled group and returns one number for each unit: the
smallest goes first. Units are scored layer by layer and the layers' scores, each scaled to a mean of one, are averaged:
otherwise the layer with the largest weights would decide for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.errors import PassError
from onnxslim.passes._surgeon import Reader, diagonal_costs, removal_order

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_AT_ONCE = 1024
"""Filters whose distances to all others are held at once."""


@dataclass(frozen=True)
class Rows:
    """Something about each filter of a layer that makes the units, or each channel of a tensor that holds them."""

    values: Floats
    """One row for each filter: weights, shape (n, fan-in); or one number each, shape (n,)."""
    units: Indices
    """The unit of each. Shape (n,)."""


@dataclass(frozen=True)
class Evidence:
    """What is known about the units of one coupled group; what a criterion does not need may be missing."""

    size: int
    """Number of units."""
    filters: Sequence[Rows] = ()
    """Weights of the layers that make them, filters as rows."""
    scales: Sequence[Rows] = ()
    """Scales of BatchNormalizations that stand alone behind those layers, one number each."""
    energies: Sequence[Rows] = ()
    """Mean squares of the channels as their readers see them, one number each."""
    alive: Sequence[Rows] = ()
    """Shares of the channels' values that are not zero, one number each."""
    readers: Sequence[Reader] = ()
    """The layers that read them, with the second moments of what they read."""
    seed: int = 0


Criterion = Callable[[Evidence], Floats]


def l1(evidence: Evidence) -> Floats:
    """Sum of absolute weights (Li et al. 2017, "Pruning Filters for Efficient ConvNets", §3.1)."""
    return _average(evidence, [_each(rows, np.abs(rows.values).sum(axis=1)) for rows in _filters(evidence)])


def l2(evidence: Evidence) -> Floats:
    """Euclidean norm (He et al. 2018, "Soft Filter Pruning for Accelerating Deep CNNs", §3.2, with p = 2)."""
    return _average(evidence, [_each(rows, np.sqrt((rows.values**2).sum(axis=1))) for rows in _filters(evidence)])


def geometric_median(evidence: Evidence) -> Floats:
    """Sum of distances to all filters of the layer: what lies in their middle can be replaced by the others.

    He et al. 2019, "Filter Pruning via Geometric Median for Deep CNNs Acceleration" (FPGM), §3.3.
    """
    return _average(evidence, [_each(rows, _distances(rows.values)) for rows in _filters(evidence)])


def batchnorm_scale(evidence: Evidence) -> Floats:
    """Size of the BatchNormalization's scale (Liu et al. 2017, "Network Slimming", §3).

    Raises:
        PassError: there is none; a scale that was folded into the weights before it cannot be told from them.
    """
    if not evidence.scales:
        raise PassError("no BatchNormalization scales these channels, or it was folded: use another criterion")
    return _average(evidence, [_each(rows, np.abs(rows.values)) for rows in evidence.scales])


def activation_energy(evidence: Evidence) -> Floats:
    """Mean square of the channel on samples.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", §2.2 (activation).

    Raises:
        PassError: it was not observed.
    """
    return _average(evidence, _observed(evidence.energies))


def zeros(evidence: Evidence) -> Floats:
    """Share of values that are not zero, one less APoZ (Hu et al. 2016, "Network Trimming", §3.1).

    Raises:
        PassError: it was not observed.
    """
    return _average(evidence, _observed(evidence.alive))


def wanda(evidence: Evidence) -> Floats:
    """Sum of |w|·‖x‖ over the weights that read the channel (Sun et al. 2024, "A Simple and Effective Pruning Approach
    for Large Language Models", §3, with a channel's weights together).

    ‖x‖ is taken around the mean: what a constant input contributes, the bias takes over.

    Raises:
        PassError: no reader was observed.
    """
    parts = []
    for reader in _readers(evidence):
        norms = np.sqrt(np.maximum(np.diagonal(reader.gram), 0.0))
        counted = reader.units >= 0
        sums = np.abs(reader.weight).sum(axis=0) * norms
        parts.append((_summed(reader.units[counted], sums[counted], evidence.size), reader.units[counted]))
    return _average(evidence, [(score, np.bincount(units, minlength=evidence.size) > 0) for score, units in parts])


def optimal_brain_damage(evidence: Evidence) -> Floats:
    """Error that removing the unit adds when nothing adapts and inputs are uncorrelated (LeCun et al. 1990).

    Raises:
        PassError: no reader was observed.
    """
    return diagonal_costs(_readers(evidence), evidence.size)


def optimal_brain_surgeon(evidence: Evidence) -> Floats:
    """Place in the order in which units go when what remains adapts (see ``_surgeon``): 1 for the first.

    Raises:
        PassError: no reader was observed.
    """
    order = removal_order(_readers(evidence), evidence.size)
    places = np.empty(evidence.size)
    places[order.units] = np.arange(1, evidence.size + 1)
    return places


def random(evidence: Evidence) -> Floats:
    """Seeded noise: what any criterion has to beat (Mittal et al. 2018, "Recovering from Random Pruning")."""
    return np.random.default_rng(evidence.seed).random(evidence.size)


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "geometric-median": geometric_median,
    "bn-scale": batchnorm_scale,
    "energy": activation_energy,
    "zeros": zeros,
    "wanda": wanda,
    "obd": optimal_brain_damage,
    "obs": optimal_brain_surgeon,
    "random": random,
}
"""By name."""

# ---- together --------------------------------------------------------------------------------------------------------

_Part = tuple[Floats, npt.NDArray[np.bool_]]
"""Scores of one layer by unit, shape (size,), and which units it has."""


def _each(rows: Rows, scores: Floats) -> Rows:
    return Rows(scores, rows.units)


def _average(evidence: Evidence, parts: Sequence[Rows] | Sequence[_Part]) -> Floats:
    """Return the mean over layers of each unit's score, each layer scaled to a mean of one over its units."""
    totals, counts = np.zeros(evidence.size), np.zeros(evidence.size)
    for part in parts:
        scores, present = _by_unit(part, evidence.size) if isinstance(part, Rows) else part
        mean = float(scores[present].mean()) if present.any() else 0.0
        totals[present] += scores[present] / mean if mean > 0 else scores[present]
        counts[present] += 1
    averages: Floats = totals / np.maximum(counts, 1)
    return averages


def _by_unit(rows: Rows, size: int) -> _Part:
    """Return the mean over the filters of each unit."""
    counts = np.bincount(rows.units, minlength=size)
    return _summed(rows.units, rows.values, size) / np.maximum(counts, 1), counts > 0


def _summed(units: Indices, values: Floats, size: int) -> Floats:
    sums = np.zeros(size)
    np.add.at(sums, units, values)
    return sums


def _distances(filters: Floats) -> Floats:
    """Return for each row the sum of its distances to all rows."""
    squares = (filters**2).sum(axis=1)
    sums = np.zeros(len(filters))
    for start in range(0, len(filters), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        gaps = squares[part, None] + squares[None] - 2 * filters[part] @ filters.T
        sums[part] = np.sqrt(np.maximum(gaps, 0.0)).sum(axis=1)
    return sums


def _filters(evidence: Evidence) -> Sequence[Rows]:
    if not evidence.filters:
        raise PassError("the layers that make these channels have no weights to look at")
    return evidence.filters


def _observed(rows: Sequence[Rows]) -> Sequence[Rows]:
    if not rows:
        raise PassError("these channels were not observed on samples")
    return rows


def _readers(evidence: Evidence) -> Sequence[Reader]:
    if not evidence.readers:
        raise PassError("no linear layer that reads these channels was observed on samples")
    return evidence.readers
