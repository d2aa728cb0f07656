"""Which units of a coupled group matter least, and how many to remove."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.channels import ChannelGroup
from onnxslim.analysis.relations import Layer
from onnxslim.ir import Constant

Scores = npt.NDArray[np.float64]
Criterion = Callable[[npt.NDArray[np.float64]], Scores]
"""Takes a layer's filters as rows, returns one number for each: the smallest goes first."""


def l1(filters: npt.NDArray[np.float64]) -> Scores:
    """Sum of absolute weights (Li et al. 2017, "Pruning Filters for Efficient ConvNets", §3.1)."""
    scores: Scores = np.abs(filters).sum(axis=1)
    return scores


def l2(filters: npt.NDArray[np.float64]) -> Scores:
    """Euclidean norm (He et al. 2018, "Soft Filter Pruning for Accelerating Deep CNNs", §3.2, with p = 2)."""
    scores: Scores = np.sqrt((filters**2).sum(axis=1))
    return scores


def group_scores(group: ChannelGroup, criterion: Criterion) -> Scores:
    """Return one score for each unit: the mean over its filters, each layer scaled to a mean of one.

    Without the scaling, the layer with the largest weights of a residual group would decide for all of them.
    """
    totals, counts = np.zeros(group.size), np.zeros(group.size)
    for layer in group.producers:
        units = group.units[layer.dimension.key]
        scores = criterion(_filters(layer))
        mean = scores.mean()
        np.add.at(totals, units, scores / mean if mean > 0 else scores)
        np.add.at(counts, units, 1)
    return totals / np.maximum(counts, 1)


def _filters(layer: Layer) -> npt.NDArray[np.float64]:
    """Return the layer's filters as rows."""
    constant = layer.dimension.tensor
    assert isinstance(constant, Constant)  # noqa: S101  (layers of a group have constant weights)
    moved = np.moveaxis(constant.values, layer.dimension.axis, 0)
    return moved.reshape(moved.shape[0], -1).astype(np.float64)


def weakest(group: ChannelGroup, scores: Scores, ratio: float, multiple: int) -> tuple[int, ...]:
    """Return the units to remove: of each stratum ceil(ratio·n) of the smallest scores, fewer to keep a multiple.

    Never all of a stratum, so that no layer and no branch loses all its channels; never a unit that is held.
    """
    step = multiple // math.gcd(multiple, unit_width(group))
    removed: list[int] = []
    for stratum in group.strata:
        size = len(stratum)
        kept = max(1, size - math.ceil(ratio * size - 1e-9))
        kept = min(size, math.ceil(kept / step) * step)
        free = stratum[~group.held[stratum]]
        removed += free[np.argsort(scores[free], kind="stable")[: size - kept]].tolist()
    return tuple(sorted(removed))


def unit_width(group: ChannelGroup) -> int:
    """Return how many filters of its first layer a unit has."""
    dimension = group.producers[0].dimension
    return max(1, dimension.size // len(np.unique(group.units[dimension.key])))
