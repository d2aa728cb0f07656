"""factor-low-rank: a layer becomes several thinner ones in a row, and loses as little of its output as can be.

Given   y = W·p + b      Gemm, MatMul, Conv or ConvTranspose with constant W; p: what of the input an output sees
Result  y = A·(T·p) + b' in stages with nothing between: see ``_forms`` for the forms and their sources

With samples the factors minimize the error of the layer's *output* against the original network, given what the
network with the layers before already factorized feeds it (the asymmetric problem of Zhang et al. 2015, §3.3; algebra
in ``_factors``), and the bias is fitted too; on request, the error of what a ReLU leaves (``analysis.rectified``).
Without samples they minimize that of the weights (Eckart & Young 1936).

Ranks follow from one goal: a ratio, an energy or a rank for each layer, an estimate, or what may remain of the whole
model's MACs or bytes: then every layer offers forms and ranks, and the least loss for what is saved wins, a layer's
loss being scaled by what was measured at the outputs (``_ranks``, ``_sensitivity``). Unless bytes are the goal, a form
is timed in onnxruntime beside the layer, and one that does not pay is not used (``_form_clock``).

A bottleneck that is there already is factorized stage by stage: with ``merge-linear`` behind, it gets another rank.
Of a recurrent layer it is the input matrix, with a MatMul in front; its recurrent weights act inside the operator.

Left alone, with the reason: computed weights, NaN or Inf in them; transposed inputs; recurrent weights; subgraphs;
layers that would not get cheaper, or not faster. Nodes that share a weight share its factors, those of the weights
alone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.recurrent_inputs import linear_part
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Node, Rewriter, anchor_of, is_standard
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes._eligible import OPS, eligible, why_not
from onnxslim.passes._factoring import POSITIONS, Fit, factor_fitted, fitted_alone, problem_of, write_factors
from onnxslim.passes._forms import Form, Scheme, full, misfit
from onnxslim.passes._least_squares import RIDGE
from onnxslim.passes._rank_choice import Whole, choose
from onnxslim.passes._rank_study import Study
from onnxslim.passes._rank_subject import Decision
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option


class SchemeChoice(enum.Enum):
    """Which forms are considered."""

    AUTO = "auto"
    """Those that keep most for what they cost: all but CP."""
    CHANNEL = "channel"
    SPATIAL = "spatial"
    TUCKER = "tucker"
    SEPARABLE = "separable"
    CP = "cp"


class Estimate(enum.Enum):
    """How ranks are estimated."""

    VBMF = "vbmf"


class Refine(enum.Enum):
    """What factors are fitted to beyond the layer's own output."""

    OFF = "off"
    RELU = "relu"
    """Where a ReLU follows, to what it leaves."""


REFINEMENTS = 2
"""How often they are fitted again then."""


class LayerRank(BaseModel):
    """How one layer, known by its first output, is factorized."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    scheme: str
    rank: int
    full_rank: int
    inner: int | None = None
    """Tucker's rank of the inputs."""
    error: float | None = None
    """What was expected to be lost: of the layer's output, as a fraction of its energy; under a budget with samples, of
    the model's outputs."""
    macs: float | None = None
    """Share of the layer's multiply-accumulates."""
    time: float | None = None
    """Share of the layer's time, where it was measured."""


class FitPlan(BaseModel):
    """On what the factors are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    positions: int = POSITIONS
    ridge: float = RIDGE
    refinements: int = 0


class LowRankPlan(Plan):
    """The layers to factorize, in order, and those left alone."""

    layers: tuple[LayerRank, ...]
    fit: FitPlan | None = None
    whole: Whole | None = None
    """What was measured of the whole model with these forms."""
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class FactorLowRank(PlannedPass[LowRankPlan]):
    """Split layers into thinner ones: bottlenecks by channels, axes or both, kept where the clock agrees."""

    name = "factor-low-rank"
    effect = Effect.APPROXIMATE
    plan_type = LowRankPlan

    ratio: float | None = option(None, "fraction of each layer's full rank to remove, 0 to 1")
    energy: float | None = option(None, "fraction of each layer's output (weights, without samples) to keep, 0 to 1")
    rank: int | None = option(None, "rank of every layer")
    estimate: Estimate | None = option(None, "estimate each layer's rank: vbmf")
    macs: float | None = option(None, "fraction of the original's multiply-accumulates that may remain")
    bytes: float | None = option(None, "fraction of the original's constant bytes that may remain")
    scheme: SchemeChoice = option(SchemeChoice.AUTO, "form of the stages; auto: the best under a budget, else channel")
    samples: int = option(1024, "how many calibration samples to look at")
    refine: Refine = option(Refine.OFF, "relu: where a ReLU follows, fit factors to what it leaves; takes longer")
    clock: Clock = option(Clock.ON, "time forms in onnxruntime and refuse those that are not worth it")
    multiple: int | None = option(
        None, "round ranks up to multiples of this [the target's with macs and bytes, else 1]"
    )
    only: tuple[str, ...] = option((), "factorize only layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns")

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        fractions = {"ratio": self.ratio, "energy": self.energy, "macs": self.macs, "bytes": self.bytes}
        goals = {**fractions, "rank": self.rank, "estimate": self.estimate}
        given = [name for name, value in goals.items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise SpecError(f"{self.name} takes one of {', '.join(goals)}, and got {found}: give exactly one")
        for name, value in fractions.items():
            if value is not None and not 0 <= value <= 1:
                raise SpecError(f"option {name!r} of {self.name} is {value:g}: give a fraction between 0 and 1")
        for name, count in (("rank", self.rank), ("multiple", self.multiple), ("samples", self.samples)):
            if count is not None and count < 1:
                raise SpecError(f"option {name!r} of {self.name} is {count}: give 1 or more")

    def plan(self, model: Model, context: PassContext) -> LowRankPlan:
        """Look at every layer that can be factorized, and choose forms and ranks.

        Raises:
            PassError: ``macs`` or ``bytes`` is out of reach, MACs cannot be counted, or activations are not finite.
        """
        infer_shapes(model)
        shared, refused = eligible(model, self.only, self.exclude, spare_others=self.bytes is not None)
        study = Study(self, model, context)
        layers: list[LayerRank] = []
        decisions, whole = choose(study, shared)
        for decision in decisions:
            if decision.form is None:
                refused += [(anchor_of(node), decision.reason) for node in decision.nodes]
            else:
                layers += [_layer_rank(node, decision) for node in decision.nodes]
        again = REFINEMENTS if self.refine is Refine.RELU else 0
        fit = FitPlan(samples=len(study.samples), refinements=again) if study.samples is not None and layers else None
        return LowRankPlan(layers=tuple(layers), fit=fit, refused=tuple(refused), whole=whole)

    def apply(self, rewriter: Rewriter, plan: LowRankPlan, context: PassContext) -> None:
        """Replace each layer of ``plan`` by its stages.

        Raises:
            PassError: the plan does not fit the model.
        """
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        forms = _forms_of(rewriter.model, plan)
        by_weight: dict[int, list[Node]] = {}
        for node in rewriter.model.graph.nodes:
            if anchor_of(node) in forms:
                by_weight.setdefault(id(node.inputs[1]), []).append(node)
        shared = list(by_weight.values())
        together = [nodes for nodes in shared if plan.fit is None or not fitted_alone(nodes)]
        plain = {anchor_of(node) for nodes in together for node in nodes}
        reference = rewriter.model.copy() if plan.fit is not None else None
        held = [node.inputs[1] for nodes in together for node in nodes]  # so that ids stay theirs
        for nodes in together:
            for form, same in _by_form(nodes, forms):
                write_factors(rewriter, same, problem_of(linear_part(same[0]), None), None, form)
        del held
        rewriter.finish()
        if reference is not None and plan.fit is not None:
            samples = context.require_samples(self.name).take(plan.fit.samples)
            fit = Fit(samples, plan.fit.positions, plan.fit.ridge, plan.fit.refinements)
            fitted = {anchor: form for anchor, form in forms.items() if anchor not in plain}
            factor_fitted(rewriter, reference, fitted, fit, context)


def _layer_rank(node: Node, decision: Decision) -> LayerRank:
    form = decision.form
    assert form is not None  # noqa: S101  (the caller looked)
    return LayerRank(
        anchor=anchor_of(node),
        scheme=form.scheme.value,
        rank=form.rank,
        full_rank=decision.full_rank,
        inner=form.inner,
        error=round(decision.error, 6),
        macs=None if decision.macs is None else round(decision.macs, 4),
        time=decision.time,
    )


def _by_form(nodes: Sequence[Node], forms: Mapping[str, Form]) -> list[tuple[Form, list[Node]]]:
    """Return nodes that share a weight, those of one form and one scale together."""
    found: dict[tuple[Form, float], list[Node]] = {}
    for node in nodes:
        alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
        found.setdefault((forms[anchor_of(node)], alpha), []).append(node)
    return [(form, same) for (form, _), same in found.items()]


def _forms_of(model: Model, plan: LowRankPlan) -> dict[str, Form]:
    """Return the form of each layer of a plan, by anchor, after checking that the decisions fit the model."""
    nodes = {anchor_of(node): node for node in model.graph.nodes}
    forms = {}
    for layer in plan.layers:
        problem = _misfit(nodes.get(layer.anchor), layer, model)
        if problem is not None:
            raise PassError(f"the plan does not fit the model: layer {layer.anchor!r}: {problem}")
        forms[layer.anchor] = Form(Scheme(layer.scheme), layer.rank, layer.inner)
    return forms


def _misfit(node: Node | None, decided: LayerRank, model: Model) -> str | None:
    """Return why a decision cannot be carried out, None where it can."""
    if decided.scheme not in {scheme.value for scheme in Scheme}:
        return f"unknown scheme {decided.scheme!r}"
    if node is None or not is_standard(node, *OPS):
        return "no such layer"
    reason = why_not(node, model.graph, model)
    if reason is not None:
        return reason
    layer, scheme = linear_part(node), Scheme(decided.scheme)
    reason = misfit(layer, scheme)
    if reason is not None:
        return reason
    most = full(layer, scheme)
    if not 1 <= decided.rank <= most.rank == decided.full_rank:
        return f"rank {decided.rank} of {decided.full_rank}, where its full rank is {most.rank}"
    if (most.inner is None) != (decided.inner is None) or not 1 <= (decided.inner or 1) <= (most.inner or 1):
        return f"inner rank {decided.inner}, where its full one is {most.inner}"
    return None
