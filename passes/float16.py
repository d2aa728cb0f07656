"""float16: numbers of half the bytes, in every operator that takes them.

Given   y = Conv(x, W, b)  in float32
Result  y = Cast(Conv(Cast(x), W₁₆, b₁₆)),  the Casts only where float16 begins and ends;  W₁₆ = round(W) to 11 bits

Inputs and outputs stay float32. What it is good for depends on where the model runs:

- half the bytes, everywhere;
- time where there is arithmetic for it: GPUs and NPUs (Core ML, NNAPI, QNN), and ARM cores from ARMv8.2 on;
- x86 and older ARM have none: onnxruntime casts to float32 and back there, and is slower than without.

Such a CPU rounds the weights only: onnxruntime drops Casts that follow each other, so between them numbers are float32,
and an overflow that a GPU would meet shows in no output there. Samples show it, below.

Which operators take float16 is asked of ONNX's own schemas at the model's opset, input by input: the scales of Resize
and the boxes of NonMaxSuppression are always float32, and get a Cast. Constants beyond ±65504 (bounds, masks) become
that, the nearest that float16 holds, and none but 0 becomes 0. With samples, tensors that exceed it there are found,
and whatever computes or reads one stays.

Left in float32, with the reason:

1. operators that do not take float16 at the model's opset (Range, NonMaxSuppression), or that other domains define;
2. CumSum, RoiAlign and TopK, whose results rounding spoils;
3. weights or activations beyond ±65504 in anything but a bound or a mask;
4. subgraphs and the nodes that hold them;
5. layers between DequantizeLinear and QuantizeLinear: the runtime turns them into integer kernels;
6. operators that only move values, or compare them, where all around them is float32: a Cast would be all they gain.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.ranges import observe_ranges
from onnxslim.ir import Model, Rewriter, anchor_of, attribute, is_standard
from onnxslim.passes._float16_casts import Caster
from onnxslim.passes._float16_choice import Ranges, choose, floats_of
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option


class Float16Plan(Plan):
    """Which nodes compute in float16."""

    nodes: tuple[str, ...]
    """Anchors."""
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class Float16(PlannedPass[Float16Plan]):
    """Compute in float16 wherever operators can: half the bytes, and half the time where there is arithmetic for it."""

    name = "float16"
    effect = Effect.APPROXIMATE
    plan_type = Float16Plan

    samples: int = option(32, "how many samples are searched for numbers that float16 does not hold, if there are any")
    only: tuple[str, ...] = option((), "convert only layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns in float32")

    def plan(self, model: Model, context: PassContext) -> Float16Plan:
        """Choose nodes by their operators, their constants, and what they compute on the samples."""
        infer_shapes(model)
        halves = choose(model, self.only, self.exclude, self._ranges(model, context))
        nodes = [anchor_of(node) for node in model.graph.nodes if halves.has(node)]
        return Float16Plan(nodes=tuple(nodes), refused=tuple(halves.refused.items()))

    def _ranges(self, model: Model, context: PassContext) -> Ranges:
        if context.samples is None:
            return {}
        samples = context.samples.take(self.samples)
        return observe_ranges(model, floats_of(model), samples, context.threads, context.progress)

    def apply(self, rewriter: Rewriter, plan: Float16Plan, context: PassContext) -> None:
        """Convert the nodes that ``plan`` names."""
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        if not plan.nodes:
            return
        infer_shapes(rewriter.model)
        _store_constants(rewriter)
        chosen = set(plan.nodes)
        Caster(rewriter, [node for node in rewriter.model.graph.nodes if anchor_of(node) in chosen]).run()


def _store_constants(rewriter: Rewriter) -> None:
    """Make initializers of Constant nodes, which are rounded like all others then."""
    for node in list(rewriter.model.graph.nodes):
        value = attribute(node, "value") if is_standard(node, "Constant") else None
        if value is not None and rewriter.fold(node.outputs[0], value):
            rewriter.remove(node)
    rewriter.finish()
