"""How much from where: channels are taken where they cost least accuracy for what they save.

The cost of a layer is its multiply-accumulates (or bytes) now, times the share of its filters that stay, times the
share of its input channels that stay. The loss of a group is what the criterion says removing its channels adds,
scaled by what was measured at the network's outputs (``_sensitivity``). Greedily, the step with the least loss for
each unit of cost saved is taken until the goal is met: for convex losses that is optimal (Fox 1966, "Discrete
Optimization Via Marginal Analysis"), and errors of a surgeon's order are nearly convex. The last step may save far more
than was still wanted, so steps that are not needed are then taken back, the ones with the greatest loss first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
    taken: list[int] = field(default_factory=lambda: [0])
    """How many were gone at first and after each step."""

    @property
    def gone(self) -> int:
        return self.taken[-1]

    def kept(self, gone: int | None = None) -> float:
        """Return the share that is kept when so many are gone; now, unless told."""
        return 1 - (self.gone if gone is None else gone) / self.size

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
    bill = _Bill(parts, _works(rankings, channels, costs), sum(costs.values()))
    if not _taken(parts, bill, goal):
        return None
    _take_back(parts, bill, goal)
    return [_removed(ranking, place, parts) for place, ranking in enumerate(rankings)]


class _Bill:
    """What the whole costs, for so many units kept of each stratum."""

    def __init__(self, strata: Iterable[Stratum], works: Sequence[_Work], total: float) -> None:
        self.total = total
        self._kept = dict.fromkeys(strata, 1.0)
        self._touched: dict[Stratum, list[_Work]] = {stratum: [] for stratum in self._kept}
        for work in works:
            for stratum in {stratum for shares in work.shares for stratum in shares}:
                self._touched[stratum].append(work)

    def saved(self, stratum: Stratum, kept: float) -> float:
        """Return what would be saved if that share of a stratum were kept, all else as it is."""
        before = self._cost(stratum)
        share, self._kept[stratum] = self._kept[stratum], kept
        after = self._cost(stratum)
        self._kept[stratum] = share
        return before - after

    def keep(self, stratum: Stratum, kept: float) -> None:
        """Keep that share of a stratum."""
        self.total -= self.saved(stratum, kept)
        self._kept[stratum] = kept

    def _cost(self, stratum: Stratum) -> float:
        return sum(work.at(self._kept) for work in self._touched[stratum])


def _taken(parts: Mapping[Stratum, _Part], bill: _Bill, goal: float) -> bool:
    """Take step after step until the goal is met; return whether it is."""
    queue = [(_price(part, stratum, bill), stratum) for stratum, part in parts.items()]
    heapq.heapify(queue)
    while bill.total > goal and queue:
        price, stratum = heapq.heappop(queue)
        if not math.isfinite(price):
            return False
        part = parts[stratum]
        current = _price(part, stratum, bill)
        if queue and current > queue[0][0] * (1 + 1e-9):
            heapq.heappush(queue, (current, stratum))  # its neighbours were narrowed since: it saves less now
            continue
        part.taken.append(part.next() or part.gone)
        bill.keep(stratum, part.kept())
        heapq.heappush(queue, (_price(part, stratum, bill), stratum))
    return bill.total <= goal


def _take_back(parts: Mapping[Stratum, _Part], bill: _Bill, goal: float) -> None:
    """Take steps back while the goal allows, the one with the greatest loss first."""
    while True:
        able = [
            (part.losses[part.gone] - part.losses[part.taken[-2]], stratum)
            for stratum, part in parts.items()
            if len(part.taken) > 1 and bill.total - bill.saved(stratum, part.kept(part.taken[-2])) <= goal
        ]
        if not able:
            return
        _, stratum = max(able)
        parts[stratum].taken.pop()
        bill.keep(stratum, parts[stratum].kept())


def _price(part: _Part, stratum: Stratum, bill: _Bill) -> float:
    """Return the loss that the next step adds for each unit of cost that it saves."""
    gone = part.next()
    if gone is None:
        return math.inf
    saved = bill.saved(stratum, part.kept(gone))
    return float(part.losses[gone] - part.losses[part.gone]) / saved if saved > 0 else math.inf


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


def _removed(ranking: Ranking, place: int, parts: Mapping[Stratum, _Part]) -> tuple[int, ...]:
    removed: list[int] = []
    for index, stratum in enumerate(ranking.group.strata):
        removed += ranking.order[np.isin(ranking.order, stratum)][: parts[place, index].gone].tolist()
    return tuple(sorted(removed))
