"""equalize: channels are scaled between layers so that one quantization step fits all of them; nothing else changes.

Given   y = W₂·f(W₁·x + b₁) + b₂    with f(s·z) = s·f(z) for each channel and s > 0: Relu, pooling, a sum, …
Result  the same y, with  W₁[c] / s_c,  b₁[c] / s_c  and  W₂[:, c]·s_c

Given   y = W·(γ·x̂ + β) + b         with x̂ what a normalization makes, whatever the scale of its input
Result  the same y, with  γ_c / s_c,  β_c / s_c  and  W[:, c]·s_c

Scales are chosen so that the largest weights that make a channel and those that read it are the same fraction of their
layers' largest weights; with samples, the channel's own values count like the weights that make it (``_equalize``).
That is for quantization with one scale for each weight (``insert-qdq{per-channel=false}``), where a layer's largest
channel sets the step of all others (cross-layer equalization: Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", §4.1), and for activations with outliers, whose largest channel does so however
weights are quantized (Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", §4; its α is ``strength``). With samples, it is tried out whether int8 keeps more of the outputs then
(``_equalize_trial``); if not, nothing is scaled. ``absorb=on`` moves constants as well (``_equalize_absorb``).

Channels are followed (``analysis.equalizable``) through Conv, ConvTranspose, Gemm and MatMul, depthwise or grouped,
BatchNormalization and products with a constant for each channel; Relu, LeakyRelu, PRelu, Abs, Neg; pooling, reductions
over space, Resize; Add, Sub, Sum, Mean, Max and Min of tensors or constants; products with gates; the values of
attention; whatever moves values: Concat, Split, Slice, Gather, Pad with zeros, Transpose, Reshape, DepthToSpace. They
begin at LayerNormalization and RMSNormalization (over the last axis), InstanceNormalization and GroupNormalization too.
With ``scales=power-of-two`` outputs stay the same to the bit, short of overflow and denormal numbers; ``exact`` ones
are rounded once.

Left alone, with the reason: inputs and outputs of the model; what a subgraph reads; operators that do not scale with
their input (Sigmoid, Tanh, Gelu, Softmax, LRN, …, and what normalizations read); a Clip that cuts
(``_equalize_clips``); sums with something that is not scaled; weights that are computed, shared, or of other types than
float32 and float64; integer models; a channel that no layer with weights reads; layers that read what nothing scales.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.equalizable import analyze_scales
from onnxslim.errors import SpecError
from onnxslim.ir import Model, Rewriter, graph_nodes
from onnxslim.passes._equalize import rescaled
from onnxslim.passes._equalize_absorb import Absorb, absorb
from onnxslim.passes._equalize_clips import Relu6, change
from onnxslim.passes._equalize_plan import EqualizePlan, GroupScales, Scales, Study, Wishes, logs_of
from onnxslim.passes._equalize_trial import OPSET, Trial
from onnxslim.pipeline import Effect, PassContext, PlannedPass, option

__all__ = ["Equalize", "EqualizePlan", "GroupScales", "Scales"]

CHOICES = (Relu6.REFUSE, Relu6.KEEP, Relu6.RELU)
"""What ``relu6=auto`` tries; of two that are as good, the first."""
NOTHING = "nothing"
"""What scaling is compared with."""


class Trials(enum.Enum):
    """Whether samples decide if anything is scaled."""

    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class Equalize(PlannedPass[EqualizePlan]):
    """Scale channels between layers so that one quantization step fits all of a weight; outputs stay."""

    name = "equalize"
    effect = Effect.APPROXIMATE
    plan_type = EqualizePlan

    scales: Scales = option(Scales.EXACT, "any number, or powers of two, which change no bit of the outputs")
    strength: float = option(0.5, "how much of what differs between channels moves into weights that read them, 0 to 1")
    relu6: Relu6 = option(
        Relu6.AUTO, "Clip between layers: auto (what samples show is best), refuse, keep, caps (one each), relu"
    )
    absorb: Absorb = option(Absorb.OFF, "on: constant parts of channels move into the biases behind them")
    trial: Trials = option(Trials.ON, "on: with samples, scale only where int8 keeps more of the outputs then")
    samples: int = option(256, "how many calibration samples to look at, where there are any")
    only: tuple[str, ...] = option((), "scale only channels of layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave channels of layers that match these patterns")

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if not 0 <= self.strength <= 1:
            raise SpecError(f"option 'strength' of {self.name} is {self.strength}: give 0 to 1")
        if self.samples < 1:
            raise SpecError(f"option 'samples' of {self.name} is {self.samples}: give 1 or more")

    def plan(self, model: Model, context: PassContext) -> EqualizePlan:
        """Choose a scale for every channel that can have one.

        Raises:
            SpecError: constants are to move, and there are no samples.
            RuntimeRefusal: onnxruntime does not run the model on a sample.
        """
        if any("QuantizeLinear" in node.op or node.op.startswith("QLinear") for _, node in graph_nodes(model.graph)):
            reason = "the model has integer operators already"
            return EqualizePlan(groups=(), refused=((model.graph.name or "graph", reason),))
        if self.absorb is Absorb.ON:
            context.require_samples(self.name)
        infer_shapes(model)
        wishes = Wishes(self.scales, self.strength, self.absorb, self.samples, self.only, self.exclude)
        study = Study(model, wishes, context)
        alone = Relu6.KEEP if self.relu6 is Relu6.AUTO else self.relu6
        if not study.size or self.trial is Trials.OFF or context.samples is None or model.opset < OPSET:
            return study.planned(alone)
        choices = CHOICES if self.relu6 is Relu6.AUTO and study.cuts else (alone,)
        return self._best({choice.value: study.planned(choice) for choice in choices}, model, context)

    def _best(self, plans: Mapping[str, EqualizePlan], model: Model, context: PassContext) -> EqualizePlan:
        """Return the plan that leaves most of the outputs when all is int8: to do nothing, where none leaves more."""
        trial = Trial(model, context.require_samples(self.name), context)
        tried = {NOTHING: trial.sqnr(lambda _: None)}
        for index, (name, plan) in enumerate(plans.items()):
            context.progress("equalize: try", index + 1, len(plans))
            tried[name] = trial.sqnr(self._change(plan, context))
        best = max(plans, key=lambda name: tried[name])
        evidence = tuple(tried.items())
        if tried[best] >= tried[NOTHING]:
            return plans[best].model_copy(update={"tried": evidence})
        kept, lost = tried[NOTHING], tried[best]
        reason = f"with one scale for each weight, int8 keeps {kept:.1f} dB of the outputs, and {lost:.1f} dB if scaled"
        refused = ((model.graph.name or "graph", reason), *plans[best].refused)
        return EqualizePlan(groups=(), refused=refused, tried=evidence)

    def _change(self, plan: EqualizePlan, context: PassContext) -> Callable[[Rewriter], None]:
        return lambda rewriter: self.apply(rewriter, plan, context)

    def apply(self, rewriter: Rewriter, plan: EqualizePlan, context: PassContext) -> None:
        """Move constants, multiply and divide weights as ``plan`` says.

        Raises:
            PassError: the model has no such channels, or a changed weight does not fit its type.
        """
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        absorb(rewriter, plan.absorbed)
        if not plan.groups:
            return
        infer_shapes(rewriter.model)
        scales = analyze_scales(rewriter.model)
        logs = logs_of(scales, plan.groups)
        for part in scales.parameters:
            values = rescaled(part, logs)
            if values is not None:
                rewriter.set_input(part.node, part.slot, rewriter.constant(part.node.inputs[part.slot].name, values))
        kinds = {clip.anchor: clip.kind for clip in plan.clips}
        for cap in scales.caps:
            if cap.anchor in kinds:
                change(rewriter, cap, kinds[cap.anchor], logs)
