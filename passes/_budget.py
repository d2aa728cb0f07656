"""How much may remain: cuts that meet a budget of MACs or bytes, and whether the clock agrees.

Fewer multiply-accumulates are not less time where kernels work on blocks of channels. So a cut under a MACs budget is
timed, on one thread, weights as they are (time does not depend on them), and where it saves less time than three
quarters of its MACs, channels are rounded to coarser multiples, if that is faster and the outputs hardly mind more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.analysis.channels import Channels
from onnxslim.errors import PassError
from onnxslim.ir import Model, Rewriter
from onnxslim.measure.stopwatch import Rounds, time_shares
from onnxslim.passes import _cutting
from onnxslim.passes._allocation import allocate
from onnxslim.passes._ranking import Ranking, weakest
from onnxslim.pipeline import PassContext
from onnxslim.runtime import RuntimeRefusal

FLOOR = 0.125
"""The least share of a stratum that a budget leaves."""
STEPS = 12
"""Halvings of the interval in which the ratio for a goal is sought: to a four-thousandth."""
CORRECTIONS = 6
"""How often the allocation is corrected where its sum of costs and the model's real costs differ."""
WORTH = 0.74
"""Share of the saved MACs that must be saved time: 20 % for 27 %."""
LEAST = 0.05
"""Saved MACs below which there is nothing to time."""
MINDED = 1.1
"""How much more loss a coarser cut may be expected to cost."""
COARSEST = 32
"""Channels; no kernel works on more at once."""
ROUNDS = Rounds(seconds=1.5, least=5, most=60)

Removed = Sequence[tuple[int, ...]]
"""Units to remove, for each ranking."""


class Timed(BaseModel):
    """What multiples of so many channels leave of the model at hand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    multiple: int
    macs: float
    time: float
    chosen: bool = False

    @property
    def pays(self) -> bool:
        """Whether enough of the saved MACs is saved time."""
        return 1 - self.time >= WORTH * (1 - self.macs)


@dataclass(frozen=True)
class Budget:
    """What may remain of the original's ``name``: "macs" or "bytes"."""

    name: str
    goal: float
    multiple: int
    coarser: bool
    """Whether ``multiple`` may be doubled."""
    clock: bool
    model: Model
    channels: Channels
    context: PassContext

    def choose(self, rankings: Sequence[Ranking], weights: Sequence[float] | None) -> tuple[Removed, tuple[Timed, ...]]:
        """Return what to remove, and what was timed for it.

        Args:
            weights: what the losses of each ranking are multiplied with; None to take as much from everywhere.

        Raises:
            PassError: the goal is out of reach, or costs are unknown.
        """
        nothing: Removed = [()] * len(rankings)
        if self._remaining(rankings, nothing) <= self.goal:
            return nothing, ()
        removed = self._met(rankings, weights, self.multiple)
        if removed is None:
            everything = [weakest(r, [1.0] * len(r.group.strata), self.multiple) for r in rankings]
            lowest = self._remaining(rankings, everything)
            raise PassError(
                f"{self.name}={self.goal:g} is out of reach: the narrowest layers leave {lowest:.3f} of the original"
            )
        if self.name != "macs" or not self.clock or self.context.feed is None:
            return removed, ()
        return self._timed(rankings, weights, removed)

    def _timed(
        self, rankings: Sequence[Ranking], weights: Sequence[float] | None, removed: Removed
    ) -> tuple[Removed, tuple[Timed, ...]]:
        """Return the cut, or a coarser one that takes less time where the clock does not agree."""
        best = self._clocked(rankings, removed, self.multiple)
        if best is None:
            return removed, ()
        tried = [best]
        multiple = self.multiple
        while not best.pays and self.coarser and multiple < COARSEST:
            multiple *= 2
            other = self._met(rankings, weights, multiple)
            found = None if other is None else self._clocked(rankings, other, multiple)
            if other is None or found is None:
                break
            tried.append(found)
            losses = [_loss(rankings, weights, each) for each in (removed, other)]
            if found.time < best.time and losses[1] <= MINDED * losses[0]:
                best, removed = found, other
        return removed, tuple(each.model_copy(update={"chosen": each is best}) for each in tried)

    def _clocked(self, rankings: Sequence[Ranking], removed: Removed, multiple: int) -> Timed | None:
        """Time a cut beside the model as it is; None where it saves next to nothing, or does not run."""
        trial = self._trial(rankings, removed)
        macs = self._cost(trial) / max(self._cost(self.model), 1)
        if macs > 1 - LEAST or self.context.feed is None:
            return None
        try:
            placed = [self.model.placed(), trial.placed()]  # their files live as long
            share = time_shares([each.data for each in placed], [self.context.feed] * 2, ROUNDS)[1]
        except RuntimeRefusal:
            return None
        return Timed(multiple=multiple, macs=round(macs, 4), time=round(share, 4))

    # ---- meeting the goal --------------------------------------------------------------------------------

    def _met(self, rankings: Sequence[Ranking], weights: Sequence[float] | None, multiple: int) -> Removed | None:
        choose = partial(self._evenly, rankings, multiple)
        return choose() if weights is None else self._by_sensitivity(rankings, weights, multiple) or choose()

    def _by_sensitivity(self, rankings: Sequence[Ranking], weights: Sequence[float], multiple: int) -> Removed | None:
        """Take channels where they cost least; correct the goal until the model itself meets it."""
        costs, whole = self._costs()
        aimed = self.goal
        for _ in range(CORRECTIONS):
            removed = allocate(rankings, weights, self.channels, costs, aimed * whole, multiple=multiple, floor=FLOOR)
            if removed is None:
                return None
            actual = self._remaining(rankings, removed)
            if actual <= self.goal:
                return removed
            aimed *= self.goal / actual * 0.999
        return None

    def _evenly(self, rankings: Sequence[Ranking], multiple: int) -> Removed | None:
        """Find the smallest ratio, the same for all, that meets the goal, by trying it out on a copy."""

        def at(ratio: float) -> Removed:
            return [weakest(ranking, [ratio] * len(ranking.group.strata), multiple) for ranking in rankings]

        if self._remaining(rankings, at(1.0)) > self.goal:
            return None
        low, high = 0.0, 1.0
        for step in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._remaining(rankings, at(middle)) <= self.goal else (middle, high)
            self.context.progress("prune-filters: search", step + 1, STEPS)
        return at(high)

    # ---- costs -------------------------------------------------------------------------------------------

    def _costs(self) -> tuple[dict[str, float], float]:
        """Return what each node costs, by anchor, and the cost of the whole original."""
        cost = model_cost(self.model, concrete_shapes(self.model, self.context.feed))
        if self.name == "bytes":
            return {layer.anchor: float(layer.bytes) for layer in cost.layers}, float(self._original)
        return {layer.anchor: float(layer.macs or 0) for layer in cost.layers}, float(self._original)

    def _remaining(self, rankings: Sequence[Ranking], removed: Removed) -> float:
        """Return what remains after a cut, as a fraction of the original."""
        return self._cost(self._trial(rankings, removed)) / self._original

    @property
    def _original(self) -> int:
        baseline = self.context.baseline
        return max((baseline.bytes if self.name == "bytes" else baseline.macs) or 1, 1)

    def _trial(self, rankings: Sequence[Ranking], removed: Removed) -> Model:
        trial = self.model.copy()
        rewriter = Rewriter(trial)
        pairs = zip(rankings, removed, strict=True)
        wanted = {ranking.group.anchor: (ranking.group.size, units) for ranking, units in pairs if units}
        if wanted:
            _cutting.cut(rewriter, wanted)
            rewriter.finish()
        return trial

    def _cost(self, model: Model) -> int:
        cost = model_cost(model, concrete_shapes(model, self.context.feed))
        if self.name == "bytes":
            return cost.bytes
        if cost.macs is None or self.context.baseline.macs is None:
            raise PassError("multiply-accumulates cannot be counted, because shapes are unknown: use ratio or bytes")
        return cost.macs


def _loss(rankings: Sequence[Ranking], weights: Sequence[float] | None, removed: Removed) -> float:
    """Return what a cut is expected to cost."""
    scales = weights or [1.0] * len(rankings)
    return sum(
        scale * float(np.maximum(ranking.losses[np.isin(ranking.order, units)], 0.0).sum())
        for ranking, scale, units in zip(rankings, scales, removed, strict=True)
    )
