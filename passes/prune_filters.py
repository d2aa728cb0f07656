"""prune-filters: remove the filters that matter least, and everything that belongs to them.

Given   y = Conv(x, W) with n filters, and consumers z = Conv(y, V) that read its n channels
Result  y' = Conv(x, W[kept]),  z = Conv(y', V[:, kept])        where Σ|W_i| of the removed filters i is smallest

(Li et al. 2017, "Pruning Filters for Efficient ConvNets", §3.) Channels that are coupled, through residual additions,
depthwise convolutions, concatenation or flattening, are removed together: see ``onnxslim.analysis.channels``. A removed
channel's constant contribution to its consumers goes with it; nothing is retrained.

The result equals the original in which every consumer's weights for the removed channels are zero.

Left alone, with the reason: groups that hold an input or output of the model, an operator that is not understood,
computed or grouped weights, or a subgraph's capture; the last channel of any group.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis import concrete_shapes, infer_shapes, model_cost
from onnxslim.analysis.channels import ChannelGroup, analyze_channels
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Rewriter, selects
from onnxslim.passes import _cutting, _prune
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option

Scored = Sequence[tuple[ChannelGroup, _prune.Scores]]

STEPS = 12
"""Halvings of the interval in which the ratio for a goal is sought: to a four-thousandth."""


class PruneCriterion(enum.Enum):
    """What makes a filter matter."""

    L1 = "l1"
    L2 = "l2"
    RANDOM = "random"


class GroupCut(BaseModel):
    """What is removed from one group, known by the first layer's first output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    size: int
    remove: tuple[int, ...]


class PrunePlan(Plan):
    """Cuts of groups, and the groups that were left alone."""

    cuts: tuple[GroupCut, ...]
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class PruneFilters(PlannedPass[PrunePlan]):
    """Remove the filters with the smallest norm, and every channel coupled to them."""

    name = "prune-filters"
    effect = Effect.APPROXIMATE
    plan_type = PrunePlan

    ratio: float | None = option(None, "fraction of each coupled group's channels to remove, 0 to 1")
    macs: float | None = option(None, "fraction of the original's multiply-accumulates that may remain")
    bytes: float | None = option(None, "fraction of the original's constant bytes that may remain")
    criterion: PruneCriterion = option(PruneCriterion.L1, "what makes a filter matter: l1, l2 or random")
    multiple: int | None = option(None, "keep multiples of this many channels [1 with ratio, otherwise the target's]")
    only: tuple[str, ...] = option((), "prune only groups with a layer that matches these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave groups with a layer that matches these patterns")

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        goals = {"ratio": self.ratio, "macs": self.macs, "bytes": self.bytes}
        given = {name: value for name, value in goals.items() if value is not None}
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise SpecError(f"prune-filters takes exactly one of ratio, macs and bytes, and got {found}: give one")
        for name, value in given.items():
            if not 0 <= value <= 1:
                raise SpecError(f"option {name!r} of prune-filters is {value:g}: give a fraction between 0 and 1")
        if self.multiple is not None and self.multiple < 1:
            raise SpecError(f"option 'multiple' of prune-filters is {self.multiple}: give 1 or more")

    def plan(self, model: Model, context: PassContext) -> PrunePlan:
        """Score the units of every group and choose the weakest."""
        infer_shapes(model)
        groups = analyze_channels(model).groups
        chosen = [group for group in groups if not group.frozen and self._selects(group)]
        refused = [(group.anchor, "; ".join(group.frozen)) for group in groups if group.frozen]
        refused += [(g.anchor, "excluded by the options") for g in groups if not g.frozen and not self._selects(g)]
        refused += [(g.anchor, "it has one channel only") for g in chosen if g.size == 1]
        scores = [(group, self._scores(group, context.seed)) for group in chosen if group.size > 1]
        multiple = self.multiple or (1 if self.ratio is not None else context.target.channel_multiple)
        if self.ratio is not None:
            cuts = _cuts(scores, self.ratio, multiple)
        else:
            cuts = self._cuts_for_goal(model, context, scores, multiple)
        return PrunePlan(cuts=cuts, refused=tuple(refused))

    def apply(self, rewriter: Rewriter, plan: PrunePlan, context: PassContext) -> None:
        """Slice every constant of every cut group."""
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        if plan.cuts:
            infer_shapes(rewriter.model)
            _apply(rewriter, plan.cuts)

    # ---- choosing ----------------------------------------------------------------------------------------

    def _selects(self, group: ChannelGroup) -> bool:
        nodes = [layer.node for layer in group.producers]
        wanted = any(selects(node, self.only, ()) for node in nodes)
        return wanted and all(selects(node, (), self.exclude) for node in nodes)

    def _scores(self, group: ChannelGroup, seed: int) -> _prune.Scores:
        if self.criterion is PruneCriterion.RANDOM:
            digest = sum(ord(c) * 31**i for i, c in enumerate(group.anchor[:32])) % 2**32
            return np.random.default_rng((seed, digest)).random(group.size)
        return _prune.group_scores(group, _prune.l1 if self.criterion is PruneCriterion.L1 else _prune.l2)

    def _cuts_for_goal(self, model: Model, context: PassContext, scores: Scored, multiple: int) -> tuple[GroupCut, ...]:
        """Find the smallest ratio, the same for all groups, that meets the goal, by trying it out on a copy."""
        measure = partial(_remaining, self, model, context)
        name, goal = ("bytes", self.bytes) if self.macs is None else ("macs", self.macs)
        assert goal is not None  # noqa: S101  (one of ratio, macs and bytes is given)
        if measure(()) <= goal:
            return ()
        lowest = measure(_cuts(scores, 1.0, multiple))
        if lowest > goal:
            raise PassError(f"{name}={goal:g} is out of reach: the narrowest layers leave {lowest:.3f} of the original")
        low, high = 0.0, 1.0
        for step in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if measure(_cuts(scores, middle, multiple)) <= goal else (middle, high)
            context.progress("prune-filters: search", step + 1, STEPS)
        return _cuts(scores, high, multiple)


def _cuts(scores: Scored, ratio: float, multiple: int) -> tuple[GroupCut, ...]:
    cuts = []
    for group, values in scores:
        removed = _prune.weakest(group, values, ratio, multiple)
        if removed:
            cuts.append(GroupCut(anchor=group.anchor, size=group.size, remove=removed))
    return tuple(cuts)


def _apply(rewriter: Rewriter, cuts: Sequence[GroupCut]) -> None:
    _cutting.cut(rewriter, {cut.anchor: (cut.size, cut.remove) for cut in cuts})


def _remaining(options: PruneFilters, model: Model, context: PassContext, cuts: Sequence[GroupCut]) -> float:
    """Return what remains of MACs or bytes after ``cuts``, as a fraction of the original."""
    trial = model.copy()
    rewriter = Rewriter(trial)
    if cuts:
        _apply(rewriter, cuts)
        rewriter.finish()
    cost = model_cost(trial, concrete_shapes(trial, context.feed))
    if options.macs is None:
        return cost.bytes / max(context.baseline.bytes, 1)
    if cost.macs is None or context.baseline.macs is None:
        raise PassError("multiply-accumulates cannot be counted, because shapes are unknown: use ratio or bytes")
    return cost.macs / max(context.baseline.macs, 1)
