"""equalize: channels are scaled between layers so that one quantization step fits all of them; nothing else changes.

Given   y = W₂·f(W₁·x + b₁) + b₂    with f(s·z) = s·f(z) for each channel and s > 0: Relu, pooling, a sum, …
Result  the same y, with  W₁[c] / s_c,  b₁[c] / s_c  and  W₂[:, c]·s_c

Scales are chosen so that the largest weights that make a channel and those that read it are the same fraction of their
layers' largest weights; with samples, the channel's own values count like the weights that make it (``_equalize``).
That is for quantization with one scale for each weight (``insert-qdq{per-channel=false}``), where a layer's largest
channel sets the step of all others. (Cross-layer equalization: Nagel et al. 2019, "Data-Free Quantization Through
Weight Equalization and Bias Correction", §4.1.)

Channels are followed (``analysis.equalizable``) through Conv, ConvTranspose, Gemm and MatMul, depthwise or grouped, and
BatchNormalization; Relu, LeakyRelu, PRelu, Abs, Neg; pooling, reductions over space, Resize; Add, Sub, Sum, Mean, Max
and Min of tensors or constants; products with constants and gates; whatever moves values: Concat, Split, Slice, Gather,
Pad with zeros, Transpose, Reshape, DepthToSpace. With ``scales=power-of-two`` outputs stay the same to the bit, short
of overflow and denormal numbers; ``exact`` ones are rounded once.

Left alone, with the reason: inputs and outputs of the model; what a subgraph reads; operators that do not scale with
their input (Sigmoid, Tanh, Swish, Softmax, LRN, LayerNormalization, InstanceNormalization, …); a Clip that cuts
(``_equalize_clips``); sums with something that is not scaled; weights that are computed, shared, or of other types than
float32 and float64; integer models; a channel that no layer with weights reads.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.channel_peaks import Peaks, observe_peaks
from onnxslim.analysis.equalizable import Equalizable, Group, analyze_scales
from onnxslim.errors import PassError
from onnxslim.ir import Model, Rewriter, anchor_of, graph_nodes, selects
from onnxslim.passes._equalize import Bounds, Floats, balanced, free, rescaled
from onnxslim.passes._equalize_clips import ClipChange, Kind, Relu6, change, decided
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option

LEAST = 0.05
"""log2 of a scale below which a group counts as balanced already."""
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu"})


class Scales(enum.Enum):
    """Which numbers scales may be."""

    EXACT = "exact"
    POWER_OF_TWO = "power-of-two"


class GroupScales(BaseModel):
    """The scales of one group of channels, known by the first layer that makes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    layers: tuple[str, ...]
    log2: tuple[float, ...]
    """Of each unit, in the order of the layers' filters."""


class EqualizePlan(Plan):
    """The scales of all groups, the Clips that change for them, and what was left alone."""

    groups: tuple[GroupScales, ...]
    clips: tuple[ClipChange, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class Equalize(PlannedPass[EqualizePlan]):
    """Scale channels between layers so that one quantization step fits all of a weight; outputs stay."""

    name = "equalize"
    effect = Effect.APPROXIMATE
    plan_type = EqualizePlan

    scales: Scales = option(Scales.EXACT, "any number, or powers of two, which change no bit of the outputs")
    relu6: Relu6 = option(
        Relu6.AUTO, "Clip between layers: auto (open where samples never reach it), refuse, caps (one each), relu"
    )
    samples: int = option(256, "how many calibration samples to look at, where there are any")
    only: tuple[str, ...] = option((), "scale only channels of layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave channels of layers that match these patterns")

    def plan(self, model: Model, context: PassContext) -> EqualizePlan:
        """Choose a scale for every channel that can have one."""
        refused: list[tuple[str, str]] = []
        if any("QuantizeLinear" in node.op or node.op.startswith("QLinear") for _, node in graph_nodes(model.graph)):
            refused.append((model.graph.name or "graph", "the model has integer operators already"))
            return EqualizePlan(groups=(), refused=tuple(refused))
        infer_shapes(model)
        scales = analyze_scales(model)
        peaks = self._peaks(model, scales, context)
        bounds, clips = free(scales), []
        for cap in scales.caps:
            units = cap.labels[cap.labels >= 0]
            made = decided(cap, self.relu6, peaks, model.opset) if units.size else Kind.OPEN
            if isinstance(made, str):
                bounds.low[units] = bounds.high[units] = 0.0
                refused.append((cap.anchor, made))
            elif units.size:
                clips.append(ClipChange(anchor=cap.anchor, kind=made))
        refused += self._hold(model, scales, bounds)
        counted = _with_grid(model, scales)
        logs = balanced(scales, bounds, {name: found for name, found in peaks.items() if name in counted})
        groups = tuple(self._groups(scales, logs, bounds))
        return EqualizePlan(groups=groups, clips=tuple(clips) if groups else (), refused=tuple(refused))

    def apply(self, rewriter: Rewriter, plan: EqualizePlan, context: PassContext) -> None:
        """Multiply and divide weights as ``plan`` says.

        Raises:
            PassError: the model has no such channels, or a scaled weight does not fit its type.
        """
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        if not plan.groups:
            return
        infer_shapes(rewriter.model)
        scales = analyze_scales(rewriter.model)
        logs = _logs(scales, plan)
        for part in (*scales.weights, *scales.shifts):
            values = rescaled(part, logs)
            if values is not None:
                rewriter.set_input(part.node, part.slot, rewriter.constant(part.node.inputs[part.slot].name, values))
        kinds = {clip.anchor: clip.kind for clip in plan.clips}
        for cap in scales.caps:
            if cap.anchor in kinds:
                change(rewriter, cap, kinds[cap.anchor], logs)

    # ---- deciding ----------------------------------------------------------------------------------------

    def _peaks(self, model: Model, scales: Equalizable, context: PassContext) -> dict[str, Peaks]:
        """Return extremes of the tensors that get a grid and of those that Clips read; none without samples."""
        if context.samples is None or not scales.size:
            return {}
        wanted = _with_grid(model, scales) | {cap.node.inputs[0].name for cap in scales.caps}
        shapes = {name: labels.shape for name, labels in scales.tensors.items() if name in wanted}
        return observe_peaks(model, shapes, context.samples.take(self.samples), context.threads, context.progress)

    def _hold(self, model: Model, scales: Equalizable, bounds: Bounds) -> Iterator[tuple[str, str]]:
        """Yield groups that stay as a whole, and why; hold them."""
        nodes = {anchor_of(node): node for node in model.graph.nodes}
        read = np.zeros(scales.size + 1, np.bool_)
        for part in scales.weights:
            read[part.into] = True
        for group in scales.groups:
            own = [nodes[anchor] for anchor in group.layers]
            wanted = any(selects(node, self.only, ()) for node in own)
            reason = ""
            if not group.units.size:
                reason = "; ".join(group.reasons)
            elif not wanted or not all(selects(node, (), self.exclude) for node in own):
                reason = "excluded by the options"
            elif not read[group.units].any():
                reason = "no layer with weights reads its channels"
            if reason:
                bounds.low[group.units] = bounds.high[group.units] = 0.0
                yield group.anchor, reason

    def _groups(self, scales: Equalizable, logs: Floats, bounds: Bounds) -> Iterator[GroupScales]:
        if self.scales is Scales.POWER_OF_TWO:
            logs = np.clip(np.round(logs), np.ceil(bounds.low), np.floor(bounds.high))
        for group in scales.groups:
            own = np.round(logs[group.units], 6) + 0.0
            if np.abs(own).max(initial=0.0) >= LEAST:
                yield GroupScales(anchor=group.anchor, layers=group.layers, log2=tuple(own.tolist()))


def _with_grid(model: Model, scales: Equalizable) -> set[str]:
    """Return tensors that something other than an activation reads: quantization puts those on a grid."""
    return {
        tensor.name
        for node in model.graph.nodes
        if node.op not in _ACTIVATIONS
        for tensor in node.inputs
        if tensor.name in scales.tensors
    }


def _logs(scales: Equalizable, plan: EqualizePlan) -> Floats:
    """Return log2 of each unit's scale as planned, and a 0 at the end. Shape (units + 1,)."""
    known: Mapping[str, Group] = {group.anchor: group for group in scales.groups}
    logs = np.zeros(scales.size + 1)
    for planned in plan.groups:
        group = known.get(planned.anchor)
        if group is None or group.units.size != len(planned.log2):
            raise PassError(
                f"the plan scales {len(planned.log2)} channels of {planned.anchor!r}, which the model lacks"
            )
        logs[group.units] = planned.log2
    return logs
