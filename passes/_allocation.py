"""How much from where: channels are taken where they cost least accuracy for what they save.

The cost of a layer is its multiply-accumulates (or bytes) now, times the share of its filters that stay, times the
share of its input channels that stay. The loss of a group is what the criterion says removing its channels adds,
scaled by what was measured at the network's outputs (``_sensitivity``). Greedily, the step with the least loss for
each unit of cost saved is taken until the goal is met: for convex losses that is optimal (Fox 1966, "Discrete
Optimization Via Marginal Analysis"), and errors of a surgeon's order are nearly convex.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.channels import Channels
from onnxslim.analysis.relations import Key
from onnxslim.passes._criteria import Floats
from onnxslim.passes._ranking import Ranking, unit_step

Stratum = tuple[int, int]
"""A ranking, by its place, and a stratum of its group."""


@dataclass
class _Part:
    """A stratum while channels are taken from it."""

    size: int
    step: int
    least: int
    losses: Floats
    """Loss after 0, 1, 2 … units of it are gone."""
    gone: int = 0

    def next(self) -> int | None:
        """Return how many would be gone after one more step, None where no more may go."""
        kept = self.size - self.gone
        kept = math.ceil(kept / self.step - 1) * self.step
        gone = self.size - kept
        return gone if kept >= self.least and gone < len(self.losses) else None


@dataclass(frozen=True)
class _Work:
    """What a node costs, and on which dimensions that depends: for each, the shares that strata have in it."""

    cost: float
    shares: tuple[Mapping[Stratum, float], ...]

    def at(self, kept: Mapping[Stratum, float]) -> float:
        cost = self.cost
        for shares in self.shares:
            cost *= 1.0 - sum(share * (1.0 - kept[stratum]) for stratum, share in shares.items())
        return cost


def allocate(
    rankings: Sequence[Ranking],
    weights: Sequence[float],
    channels: Channels,
    costs: Mapping[str, float],
    goal: float,
    *,
    multiple: int,
    floor: float,
) -> list[tuple[int, ...]] | None:
    """Return the units to remove for each ranking so that costs fall to ``goal``; None where they cannot.

    Args:
        weights: what the losses of each ranking are multiplied with.
        costs: cost of each node by anchor.
        goal: what may remain of the sum of costs.
        floor: the least share of a stratum's units that stays.
    """
    parts = _parts(rankings, weights, multiple, floor)
    works = _works(rankings, channels, costs)
    touched: dict[Stratum, list[_Work]] = {stratum: [] for stratum in parts}
    for work in works:
        for stratum in {stratum for shares in work.shares for stratum in shares}:
            touched[stratum].append(work)
    kept = dict.fromkeys(parts, 1.0)
    total = sum(costs.values())
    queue = [(_price(parts, touched, kept, stratum), stratum) for stratum in parts]
    heapq.heapify(queue)
    while total > goal and queue:
        price, stratum = heapq.heappop(queue)
        if not math.isfinite(price):
            return None
        current = _price(parts, touched, kept, stratum)
        if queue and current > queue[0][0] * (1 + 1e-9):
            heapq.heappush(queue, (current, stratum))  # its neighbours were narrowed since: it saves less now
            continue
        part = parts[stratum]
        before = sum(work.at(kept) for work in touched[stratum])
        part.gone = part.next() or part.gone
        kept[stratum] = 1 - part.gone / part.size
        total -= before - sum(work.at(kept) for work in touched[stratum])
        heapq.heappush(queue, (_price(parts, touched, kept, stratum), stratum))
    return [_removed(ranking, place, parts) for place, ranking in enumerate(rankings)] if total <= goal else None


def _parts(rankings: Sequence[Ranking], weights: Sequence[float], multiple: int, floor: float) -> dict[Stratum, _Part]:
    parts = {}
    for place, (ranking, weight) in enumerate(zip(rankings, weights, strict=True)):
        step = unit_step(ranking.group, multiple)
        for index, stratum in enumerate(ranking.group.strata):
            losses = ranking.losses[np.isin(ranking.order, stratum)]
            sums = np.concatenate(([0.0], np.cumsum(np.maximum(losses, 0.0)))) * weight
            least = max(1, math.ceil(floor * len(stratum)), min(step, len(stratum)))
            parts[place, index] = _Part(len(stratum), step, least, sums)
    return parts


def _works(rankings: Sequence[Ranking], channels: Channels, costs: Mapping[str, float]) -> list[_Work]:
    ours: dict[Key, tuple[int, Ranking]] = {}
    for place, ranking in enumerate(rankings):
        ours.update((dimension.key, (place, ranking)) for dimension in ranking.group.dimensions)
    keys: dict[str, dict[Key, None]] = {}
    for group in channels.groups:
        for layer in (*group.producers, *group.readers):
            keys.setdefault(layer.anchor, {})[layer.dimension.key] = None
    works = []
    for anchor, cost in costs.items():
        shares = [_shares(*ours[key], key) for key in keys.get(anchor, ()) if key in ours]
        if shares:
            works.append(_Work(cost, tuple(shares)))
    return works


def _shares(place: int, ranking: Ranking, key: Key) -> dict[Stratum, float]:
    units = ranking.group.units[key]
    counts = [np.isin(units, stratum).mean() for stratum in ranking.group.strata]
    return {(place, index): float(share) for index, share in enumerate(counts) if share > 0}


def _price(
    parts: Mapping[Stratum, _Part], touched: Mapping[Stratum, list[_Work]], kept: dict[Stratum, float], stratum: Stratum
) -> float:
    """Return the loss that the next step adds for each unit of cost that it saves."""
    part = parts[stratum]
    gone = part.next()
    if gone is None:
        return math.inf
    before = sum(work.at(kept) for work in touched[stratum])
    share, kept[stratum] = kept[stratum], 1 - gone / part.size
    saved = before - sum(work.at(kept) for work in touched[stratum])
    kept[stratum] = share
    return float(part.losses[gone] - part.losses[part.gone]) / saved if saved > 0 else math.inf


def _removed(ranking: Ranking, place: int, parts: Mapping[Stratum, _Part]) -> tuple[int, ...]:
    removed: list[int] = []
    for index, stratum in enumerate(ranking.group.strata):
        removed += ranking.order[np.isin(ranking.order, stratum)][: parts[place, index].gone].tolist()
    return tuple(sorted(removed))
