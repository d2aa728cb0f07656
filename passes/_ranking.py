"""Which channels go first, and how many: rankings of units, and cuts of so many from each stratum."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.channels import ChannelGroup
from onnxslim.analysis.relations import Indices
from onnxslim.errors import PassError
from onnxslim.ir import Model
from onnxslim.passes import _criteria, _evidence
from onnxslim.passes._criteria import Floats
from onnxslim.passes._evidence import Observed
from onnxslim.passes._surgeon import removal_order
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples


class PruneCriterion(enum.Enum):
    """What makes a filter matter; ``_criteria`` says where each comes from."""

    L1 = "l1"
    L2 = "l2"
    FPGM = "fpgm"
    BN_SCALE = "bn-scale"
    ENERGY = "energy"
    ZEROS = "zeros"
    WANDA = "wanda"
    OBD = "obd"
    OBS = "obs"
    RANDOM = "random"


_OF_WEIGHTS = {
    PruneCriterion.L1: _criteria.l1,
    PruneCriterion.L2: _criteria.l2,
    PruneCriterion.FPGM: _criteria.geometric_median,
    PruneCriterion.BN_SCALE: _criteria.batchnorm_scale,
    PruneCriterion.RANDOM: _criteria.random,
}
_OF_ACTIVITY = {PruneCriterion.ENERGY: _criteria.activation_energy, PruneCriterion.ZEROS: _criteria.zeros}
_OF_MOMENTS = {PruneCriterion.WANDA: _criteria.wanda, PruneCriterion.OBD: _criteria.optimal_brain_damage}


@dataclass(frozen=True)
class Ranking:
    """The units of a group that may go, the least important first."""

    group: ChannelGroup
    order: Indices
    """Units. Shape (removable,)."""
    losses: Floats
    """What removing each adds, in the criterion's own measure. Shape (removable,)."""


@dataclass(frozen=True)
class Unranked:
    """A group about which the criterion can say nothing."""

    group: ChannelGroup
    reason: str


def needs_samples(criterion: PruneCriterion) -> bool:
    """Whether ``criterion`` looks at activations."""
    return criterion not in _OF_WEIGHTS


def observe(
    criterion: PruneCriterion,
    model: Model,
    groups: Sequence[ChannelGroup],
    samples: Samples | None,
    context: PassContext,
) -> Iterator[Observed]:
    """Yield each group with the evidence that ``criterion`` asks for."""
    if not needs_samples(criterion):
        return (_evidence.by_weights(group, context.seed) for group in groups)
    assert samples is not None  # noqa: S101  (the pass asked for them)
    look = _evidence.by_activity if criterion in _OF_ACTIVITY else _evidence.by_samples
    return look(model, groups, samples, context)


def rank(criterion: PruneCriterion, observed: Observed) -> Ranking | Unranked:
    """Rank the units of a group."""
    group, evidence = observed.group, observed.evidence
    free = ~group.held
    try:
        if criterion is PruneCriterion.OBS:
            if not evidence.readers:
                return Unranked(group, "no linear layer reads it, by whose output its channels could be judged")
            order = removal_order(evidence.readers, group.size, removable=free)
            return Ranking(group, order.units, np.diff(order.errors, prepend=0.0))
        scores = {**_OF_WEIGHTS, **_OF_ACTIVITY, **_OF_MOMENTS}[criterion](evidence)
    except PassError as error:
        return Unranked(group, str(error))
    units = np.flatnonzero(free)
    units = units[np.argsort(scores[units], kind="stable")]
    return Ranking(group, units, scores[units])


# ---- how many --------------------------------------------------------------------------------------------------------


def unit_step(group: ChannelGroup, multiple: int) -> int:
    """Return how many units make a multiple of ``multiple`` channels of the group's first layer."""
    dimension = group.producers[0].dimension
    width = max(1, dimension.size // len(np.unique(group.units[dimension.key])))
    return multiple // math.gcd(multiple, width)


def weakest(ranking: Ranking, ratios: Sequence[float], multiple: int) -> tuple[int, ...]:
    """Return the units to remove: of each stratum ceil(ratio·n), fewer to keep a multiple.

    Never all of a stratum, so that no layer and no branch loses all its channels; never a unit that is held.

    Args:
        ratios: one for each stratum of the group.
    """
    step = unit_step(ranking.group, multiple)
    removed: list[int] = []
    for stratum, ratio in zip(ranking.group.strata, ratios, strict=True):
        size = len(stratum)
        kept = max(1, size - math.ceil(ratio * size - 1e-9))
        kept = min(size, math.ceil(kept / step) * step)
        removed += ranking.order[np.isin(ranking.order, stratum)][: size - kept].tolist()
    return tuple(sorted(removed))
