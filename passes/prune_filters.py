"""prune-filters: remove the filters that matter least and everything that belongs to them, and repair what is left.

Given   y = Conv(x, W) with n filters, and consumers z = Conv(y, V) that read its n channels
Result  y' = Conv(x, W[kept]),  z = Conv(y', V'),  where V' = V[:, kept] without samples, and with samples the weights
        that give what the original gave, as well as the kept channels can (``_repair``)

(Li et al. 2017, "Pruning Filters for Efficient ConvNets", §3; He et al. 2017, "Channel Pruning for Accelerating Very
Deep Neural Networks", §3.) Channels that are coupled, through residual additions, depthwise and grouped convolutions,
concatenation, shuffles, heads or flattening, are removed together: see ``onnxslim.analysis.channels``. Without repair
the result equals the original in which every consumer's weights for the removed channels are zero.

How much: ``ratio`` takes as much from every stratum of every group (a stratum: the filters of one branch, of one
stage), ``layers`` says it layer by layer, and ``macs`` or ``bytes`` take it where it costs least: by measured
sensitivity where there are samples (``_sensitivity``, ``_allocation``), otherwise evenly.

Left alone, with the reason: channels of inputs and outputs of the model, those that an operator mixes (Softmax, LRN,
LayerNormalization) or that is not understood, computed weights, a subgraph's captures; the last channel of a stratum.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.channels import ChannelGroup, Channels, analyze_channels
from onnxslim.analysis.linear_layers import refusal
from onnxslim.errors import SpecError
from onnxslim.ir import Model, Node, Rewriter, anchor_of, selects
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import _cutting, _ranking, _repair
from onnxslim.passes._budget import Budget, Timed
from onnxslim.passes._ranking import PruneCriterion, Ranking, Unranked
from onnxslim.passes._sensitivity import Probe, divided
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option
from onnxslim.samples import Samples

RIDGE = 1e-4
"""Of the refits, as a fraction of the mean diagonal of each layer's Gram matrix."""
POSITIONS = 128
"""Output positions of a layer that a refit looks at for one sample."""


class Repair(enum.Enum):
    """Whether what a cut has damaged is repaired."""

    AUTO = "auto"
    """If there are samples."""
    OFF = "off"


class GroupCut(BaseModel):
    """What is removed from one group, known by the first layer's first output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    size: int
    remove: tuple[int, ...]
    sensitivity: float | None = None
    """Measured: relative error of the outputs for each unit of the criterion's loss."""


class RepairPlan(BaseModel):
    """How the layers behind the cuts are refitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[str, ...]
    samples: int
    ridge: float = RIDGE
    positions: int = POSITIONS


class PrunePlan(Plan):
    """Cuts of groups, their repair, and the groups that were left alone."""

    cuts: tuple[GroupCut, ...]
    repair: RepairPlan | None = None
    timed: tuple[Timed, ...] = ()
    """What was timed for a MACs budget: the first multiple, and coarser ones where it did not pay."""
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class PruneFilters(PlannedPass[PrunePlan]):
    """Remove the filters that matter least, with every channel coupled to them, and refit what reads the rest."""

    name = "prune-filters"
    effect = Effect.APPROXIMATE
    plan_type = PrunePlan

    ratio: float | None = option(None, "fraction of each layer's channels to remove, 0 to 1")
    layers: tuple[str, ...] = option((), "fractions layer by layer, the first pattern that fits: conv1=0.5|block*=0.3")
    macs: float | None = option(None, "fraction of the original's multiply-accumulates that may remain")
    bytes: float | None = option(None, "fraction of the original's constant bytes that may remain")
    criterion: PruneCriterion | None = option(
        None,
        "what makes a filter matter [obs with samples, otherwise l1]",
    )
    repair: Repair = option(Repair.AUTO, "refit the layers behind a cut on the samples: auto if there are any")
    samples: int = option(1024, "how many calibration samples to look at")
    multiple: int | None = option(None, "keep multiples of this many channels [1 with ratio, otherwise the target's]")
    clock: Clock = option(Clock.ON, "time what a MACs budget saves; where that is little, round to larger multiples")
    only: tuple[str, ...] = option((), "prune only groups with a layer that matches these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave groups with a layer that matches these patterns")

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        goals = {"ratio": self.ratio, "layers": self.layers or None, "macs": self.macs, "bytes": self.bytes}
        given = [name for name, value in goals.items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise SpecError(
                f"prune-filters takes exactly one of ratio, layers, macs and bytes, and got {found}: give one"
            )
        for name, value in (("ratio", self.ratio), ("macs", self.macs), ("bytes", self.bytes)):
            if value is not None and not 0 <= value <= 1:
                raise SpecError(f"option {name!r} of prune-filters is {value:g}: give a fraction between 0 and 1")
        for name, count in (("multiple", self.multiple), ("samples", self.samples)):
            if count is not None and count < 1:
                raise SpecError(f"option {name!r} of prune-filters is {count}: give 1 or more")
        _ratios(self.layers)

    def plan(self, model: Model, context: PassContext) -> PrunePlan:
        """Rank the units of every group and choose the weakest.

        Raises:
            PassError: a goal is out of reach, or activations are not finite.
            SpecError: a pattern fits no layer.
        """
        infer_shapes(model)
        channels = analyze_channels(model)
        self._refuse_unknown(channels.groups)
        refused = list(self._refused(channels.groups))
        left = {anchor for anchor, _ in refused}
        chosen = [group for group in channels.groups if group.anchor not in left]
        study = _Study(self, model, context, channels)
        rankings = study.rankings(chosen)
        refused += [(found.group.anchor, found.reason) for found in study.unranked]
        cuts = tuple(cut for cut in study.cuts(rankings) if cut.remove)
        refused += _disagreement(model, study.timed)
        return PrunePlan(cuts=cuts, repair=study.repair(cuts), timed=study.timed, refused=tuple(refused))

    def apply(self, rewriter: Rewriter, plan: PrunePlan, context: PassContext) -> None:
        """Cut every group, then refit the layers behind the cuts, on the samples that the plan was made with."""
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        if not plan.cuts:
            return
        infer_shapes(rewriter.model)
        reference = rewriter.model.copy() if plan.repair is not None else None
        kept = _cut(rewriter, plan.cuts)
        if reference is not None and plan.repair is not None:
            repair = plan.repair
            settings = _repair.RepairSettings(repair.layers, repair.samples, repair.ridge, repair.positions)
            _repair.repair(rewriter, reference, kept, settings, context)

    # ---- which groups ------------------------------------------------------------------------------------

    def _refuse_unknown(self, groups: Sequence[ChannelGroup]) -> None:
        nodes = [layer.node for group in groups for layer in group.producers]
        for pattern in (*self.only, *self.exclude, *(pattern for pattern, _ in _ratios(self.layers))):
            if not any(selects(node, (pattern,), ()) for node in nodes):
                raise SpecError(
                    f"no layer with filters is called {pattern!r}: see 'onnxslim inspect --channels' for their names"
                )

    def _refused(self, groups: Sequence[ChannelGroup]) -> Iterator[tuple[str, str]]:
        for group in groups:
            if group.frozen:
                yield group.anchor, "; ".join(group.frozen)
            elif not self._selects(group):
                yield group.anchor, "excluded by the options"
            elif group.size == 1:
                yield group.anchor, "it has one channel only"

    def _selects(self, group: ChannelGroup) -> bool:
        nodes = [layer.node for layer in group.producers]
        wanted = any(selects(node, self.only, ()) for node in nodes)
        named = not self.layers or any(ratio is not None for ratio in self.ratios(group))
        return wanted and named and all(selects(node, (), self.exclude) for node in nodes)

    def ratios(self, group: ChannelGroup) -> list[float | None]:
        """Return for each stratum what ``layers`` says of the first named layer whose filters it holds."""
        said = _ratios(self.layers)
        found: list[float | None] = []
        for stratum in group.strata:
            members = set(stratum.tolist())
            makers = [x.node for x in group.producers if members & set(group.units[x.dimension.key].tolist())]
            found.append(next((ratio for node in makers for ratio in (_said(node, said),) if ratio is not None), None))
        return found


def _ratios(layers: Sequence[str]) -> list[tuple[str, float]]:
    said = []
    for item in layers:
        pattern, separator, number = item.rpartition("=")
        try:
            ratio = float(number)
        except ValueError:
            ratio = -1.0
        if not separator or not pattern or not 0 <= ratio <= 1:
            raise SpecError(f"option 'layers' of prune-filters has {item!r}: write PATTERN=RATIO, ratio from 0 to 1")
        said.append((pattern, ratio))
    return said


def _said(node: Node, said: Sequence[tuple[str, float]]) -> float | None:
    return next((ratio for pattern, ratio in said if selects(node, (pattern,), ())), None)


def _disagreement(model: Model, timed: Sequence[Timed]) -> list[tuple[str, str]]:
    """Return, for the list of refusals, that fewer MACs did not give less time; nothing where they did."""
    chosen = next((each for each in timed if each.chosen), None)
    if chosen is None or chosen.pays:
        return []
    others = [f"{each.time:.0%} in multiples of {each.multiple}" for each in timed if each is not chosen]
    more = f"; {', '.join(others)}, at more loss or no gain" if others else ""
    reason = f"{chosen.macs:.0%} of the MACs take {chosen.time:.0%} of the time here, in multiples of "
    reason += f"{chosen.multiple} channels{more}"
    return [(model.graph.outputs[0].name, reason)]


# ---- choosing --------------------------------------------------------------------------------------------------------


class _Study:
    """One model under study: what its groups are worth and what may go."""

    def __init__(self, options: PruneFilters, model: Model, context: PassContext, channels: Channels) -> None:
        self.options = options
        self.model = model
        self.context = context
        self.channels = channels
        self.criterion = options.criterion or (PruneCriterion.L1 if context.samples is None else PruneCriterion.OBS)
        self.unranked: list[Unranked] = []
        self.timed: tuple[Timed, ...] = ()
        self._weights: dict[str, float] = {}
        needed = _ranking.needs_samples(self.criterion)
        given = context.require_samples(options.name) if needed else context.samples
        self.samples: Samples | None = None if given is None else given.take(options.samples)

    @property
    def _has_budget(self) -> bool:
        return self.options.macs is not None or self.options.bytes is not None

    def rankings(self, groups: Sequence[ChannelGroup]) -> list[Ranking]:
        """Rank the units of all groups; under a budget, measure what each group's loss means for the outputs."""
        probe, fitting = None, self.samples
        if self._has_budget and self.samples is not None and self.criterion is PruneCriterion.OBS:
            fitting, looking = divided(self.samples)
            probe = Probe(self.model, looking, self.context.threads)
        found = []
        for observed in _ranking.observe(self.criterion, self.model, groups, fitting, self.context):
            ranking = _ranking.rank(self.criterion, observed)
            if isinstance(ranking, Unranked):
                self.unranked.append(ranking)
                continue
            found.append(ranking)
            if probe is not None:
                self._weights[ranking.group.anchor] = probe.weight(observed, ranking, RIDGE)
        return found

    def cuts(self, rankings: Sequence[Ranking]) -> Sequence[GroupCut]:
        """Return what to remove from each group, nothing from some."""
        options = self.options
        if self._has_budget:
            weights = [self._weights[ranking.group.anchor] for ranking in rankings] if self._weights else None
            removed, self.timed = self._budget().choose(rankings, weights)
            return [self._cut(ranking, units) for ranking, units in zip(rankings, removed, strict=True)]
        multiple = options.multiple or 1
        cuts = []
        for ranking in rankings:
            ratio = options.ratio
            ratios = [said or 0.0 for said in options.ratios(ranking.group)] if ratio is None else None
            wanted = [ratio or 0.0] * len(ranking.group.strata) if ratios is None else ratios
            cuts.append(self._cut(ranking, _ranking.weakest(ranking, wanted, multiple)))
        return cuts

    def _budget(self) -> Budget:
        options = self.options
        name, goal = ("bytes", options.bytes) if options.macs is None else ("macs", options.macs)
        assert goal is not None  # noqa: S101  (there is a budget)
        return Budget(
            name,
            goal,
            options.multiple or self.context.target.channel_multiple,
            coarser=options.multiple is None,
            clock=options.clock is Clock.ON,
            model=self.model,
            channels=self.channels,
            context=self.context,
        )

    def _cut(self, ranking: Ranking, removed: tuple[int, ...]) -> GroupCut:
        group = ranking.group
        weight = self._weights.get(group.anchor)
        return GroupCut(anchor=group.anchor, size=group.size, remove=removed, sensitivity=weight)

    def repair(self, cuts: Sequence[GroupCut]) -> RepairPlan | None:
        """Return which layers to refit: the linear ones that read what is cut."""
        if self.options.repair is Repair.OFF or self.samples is None or not cuts:
            return None
        anchors = {cut.anchor for cut in cuts}
        groups = [group for group in self.channels.groups if group.anchor in anchors]
        readers = {layer.anchor for group in groups for layer in group.readers if refusal(layer.node) is None}
        order = [anchor_of(node) for node in self.model.graph.nodes]
        layers = tuple(anchor for anchor in order if anchor in readers)
        return RepairPlan(layers=layers, samples=len(self.samples)) if layers else None


def _cut(rewriter: Rewriter, cuts: Sequence[GroupCut]) -> dict[str, tuple[int, ...]]:
    return _cutting.cut(rewriter, {cut.anchor: (cut.size, cut.remove) for cut in cuts})
