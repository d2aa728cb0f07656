"""insert-qdq: static int8 as QuantizeLinear/DequantizeLinear pairs, placed so that onnxruntime runs integer kernels.

Given   y = Conv(x, W, b)  in float, and the ranges of x and y on samples
Result  y = Conv(DQ(Q(x)), DQ(W₈), DQ(b₃₂)), then Q and DQ      with, for each output channel c,
        W₈ = round(W_c / s_c),  s_c = max|W_c| / 127,  b₃₂ = round(b_c / (s_x·s_c)),  Q(x) = round(x / s_x) + z_x

An operator whose inputs and outputs are all such pairs is one that onnxruntime replaces by its integer kernel (its QDQ
selectors and actions); a Relu or Clip after it disappears into the range of the Q that follows. Ranges are minimum and
maximum over the samples, unless told (``analysis.range_choice``); some operators promise theirs. (Jacob et al. 2018,
§2–3; per-channel weights: Krishnamoorthi 2018, §3.) On request W₈ and b₃₂ are fitted to the samples (``_qdq_fit``).

What is quantized, numbered as in the code:

1. Conv, Gemm and MatMul with constant weights: weight per output channel, bias as int32;
2. MatMul of two activations, Add, Mul, GlobalAveragePool, AveragePool, Concat, Sigmoid, and between integers LeakyRelu
   and Softmax: activations only;
3. operators that only move values share their input's grid: MaxPool, ReduceMax, Reshape, Flatten, Transpose, Squeeze,
   Unsqueeze, Slice, Split, Expand, Tile, DepthToSpace, Gather with constant indices, Resize to the nearest; and Concat
   shares its inputs' where that costs little (``_qdq_sharing``).

Left alone, with the reason: weights that are computed or not float32; operators without an integer kernel; subgraphs;
models that are integer already; tensors with NaN or Inf on the samples. A Gemm or MatMul that computes a graph's output
keeps its output in float, unless the target computes it with integers only. Opsets before 13, which lack scales per
channel, are converted first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.known_ranges import BOUNDED, known_range, narrowed
from onnxslim.analysis.range_choice import Range, RangeMethod, chosen_range
from onnxslim.analysis.ranges import observe_histograms, observe_ranges
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Rewriter, anchor_of, consumers, is_standard, selects
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes._opset import upgrade
from onnxslim.passes._qdq_choice import Selection, final_outputs, select, tensors_of
from onnxslim.passes._qdq_clock import without_slower
from onnxslim.passes._qdq_fit import Wanted, fitted_weights, samples_for
from onnxslim.passes._qdq_integers import Fit
from onnxslim.passes._qdq_integers import Rounding as Rounding  # noqa: PLC0414  (its options are public)
from onnxslim.passes._qdq_judge import Draft, Goal
from onnxslim.passes._qdq_mix import Mixed, mixed
from onnxslim.passes._qdq_pairs import Quantizer
from onnxslim.passes._qdq_sharing import shared_ranges
from onnxslim.passes._quantize import FittedWeight, GridKind, Integer, Style
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option
from onnxslim.runtime.kernels import quantizes
from onnxslim.samples import Samples

OPSET = 13
"""The first in which DequantizeLinear takes one scale per channel."""

WIDE_OPSET = 21
"""The first in which QuantizeLinear makes 16 bits."""

DEFAULT_SQNR = 20.0
DEFAULT_DROP = 0.01
"""What outputs must keep where nobody says: so many dB, or where labels tell, no more than a point of the metric."""


class QdqPlan(Plan):
    """Which nodes become integer, and the range of every tensor that gets a grid."""

    nodes: tuple[str, ...]
    """Anchors."""
    ranges: dict[str, tuple[float, float]]
    wide: tuple[str, ...] = ()
    """Anchors of nodes whose activations get 16 bits."""
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class InsertQdq(PlannedPass[QdqPlan]):
    """Quantize to int8 (QDQ): weights per channel, activations by their range on samples."""

    name = "insert-qdq"
    effect = Effect.APPROXIMATE
    plan_type = QdqPlan
    needs_samples = True

    rounding: Rounding = option(
        Rounding.SECOND_ORDER, "of weights: second-order (least error of outputs), nearest, or adaround (slow)"
    )
    samples: int | None = option(
        None, "how many calibration samples second-order rounding looks at  [default: 48; to 5 bits 128]"
    )
    ranges: RangeMethod = option(
        RangeMethod.MINMAX, "of activations: minmax, average, percentile, mse, entropy, or auto (the least error)"
    )
    per_channel: bool = option(True, "one scale for each output channel of a weight, instead of one for all")
    weight_bits: int = option(8, "of weights, 2 to 8: 7 where kernels saturate, fewer for the download (see palettize)")
    activations: Integer | None = option(None, "of activations: uint8, int8, uint16, int16  [default: the target's]")
    wide: tuple[str, ...] = option((), "activations of layers that match these patterns get 16 bits")
    symmetric: bool = option(False, "activations have zero in the middle of their grid")
    power_of_two: bool = option(False, "scales are powers of two: shifts instead of multiplications")
    min_sqnr: float | None = option(
        None, "dB that outputs must keep: layers stay in float until they do; 0: none do  [default: see --min-sqnr]"
    )
    clock: Clock = option(Clock.OFF, "on: what integers make slower on this machine stays in float")
    only: tuple[str, ...] = option((), "quantize only layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns in float")

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if not 2 <= self.weight_bits <= 8:
            raise SpecError(f"option 'weight-bits' of {self.name} is {self.weight_bits}: give 2 to 8")
        if self.samples is not None and self.samples < 1:
            raise SpecError(f"option 'samples' of {self.name} is {self.samples}: give 1 or more")

    def plan(self, model: Model, context: PassContext) -> QdqPlan:
        """Choose nodes, and observe the ranges of their tensors on the samples.

        Raises:
            PassError: onnxruntime cannot run what would be inserted, or onnx's converter refuses to upgrade.
        """
        opset = self._opset(context)
        if not quantizes(max(model.opset, opset)):
            raise PassError(f"onnxruntime has no QuantizeLinear of opset {model.opset}: export with an older opset")
        if model.opset < opset:  # the converter renames tensors, so what it makes is what is decided about
            model = model.copy()
            upgrade(Rewriter(model), opset)
        infer_shapes(model)
        selection = select(model, self.only, self.exclude, context.target)
        names = list(dict.fromkeys(tensor.name for tensor in selection.tensors()))
        if not names:
            return QdqPlan(nodes=(), ranges={}, refused=tuple(selection.refused))
        samples = context.require_samples(self.name)
        ranges = self._ranges(model, names, samples, context)
        selection.drop_unknown(ranges)
        ranges = shared_ranges(selection.nodes, ranges, {tensor.name for tensor in model.graph.outputs})
        draft = self._draft(model, selection, ranges, context)
        goal = self._goal(context)
        found = Mixed() if goal is None or not selection.nodes else mixed(draft, goal, context)
        left = selection.without(found.floats, f"left in float: {found.reason}")
        if self.clock is Clock.ON and left.nodes and context.feed is not None:
            wanted = replace(draft.wanted, style=self._style(model, context, found.wide))
            left = without_slower(replace(draft, selection=left, wanted=wanted), context.feed)
        return QdqPlan(
            nodes=tuple(anchor_of(node) for node in left.nodes),
            ranges={name: ranges[name] for name in sorted(ranges)},
            wide=found.wide,
            refused=tuple(left.refused),
        )

    def _opset(self, context: PassContext) -> int:
        """Return the first opset that has what will be inserted."""
        wide = self.wide or self._integer(context).limits[1] > 255 or context.target.wide_activations
        return WIDE_OPSET if wide else OPSET

    def _integer(self, context: PassContext) -> Integer:
        return self.activations or Integer(context.target.activations)

    def _style(self, model: Model, context: PassContext, wide: Collection[str] = ()) -> Style:
        kind = GridKind(self._integer(context), self.symmetric, self.power_of_two)
        nodes = [node for node in model.graph.nodes if self.wide and selects(node, self.wide, ())]
        named = frozenset(tensor.name for node in nodes for tensor in (*node.outputs, *final_outputs(node)))
        return Style(kind, named | tensors_of(model.graph.nodes, wide), self.per_channel, self.weight_bits)

    def _draft(self, model: Model, selection: Selection, ranges: dict[str, Range], context: PassContext) -> Draft:
        wanted = Wanted([anchor_of(node) for node in selection.nodes], ranges, self._style(model, context))
        return Draft(model, selection, wanted, self._fitted(model, wanted, context))

    def _goal(self, context: PassContext) -> Goal | None:
        """Return what the outputs must keep: as the option says, or the run's budgets, or the defaults."""
        goals = context.goals
        if self.min_sqnr is not None:
            return Goal(self.min_sqnr) if self.min_sqnr > 0 else None
        if goals.min_sqnr is None and goals.max_drop is None:
            return Goal(DEFAULT_SQNR, DEFAULT_DROP, either=True, metric=goals.metric)
        labelled = goals.max_drop is not None and context.require_samples(self.name).labelled
        sqnr = goals.min_sqnr if labelled or goals.min_sqnr is not None else DEFAULT_SQNR
        return Goal(sqnr, goals.max_drop, metric=goals.metric)

    def _fitted(self, model: Model, wanted: Wanted, context: PassContext) -> Mapping[str, FittedWeight]:
        if self.rounding is Rounding.NEAREST:
            return {}
        key = (tuple(wanted.nodes), tuple(sorted(wanted.ranges.items())), wanted.style)
        if key not in context.scratch:
            samples = context.require_samples(self.name)
            fit = Fit(wanted.style, self.rounding)
            count = self.samples or samples_for(self.weight_bits)
            context.scratch[key] = fitted_weights(model, wanted, fit, samples.take(count), context)
        found: Mapping[str, FittedWeight] = context.scratch[key]
        return found

    def _ranges(self, model: Model, names: Sequence[str], samples: Samples, context: PassContext) -> dict[str, Range]:
        """Return what each tensor's integers cover; tensors that were NaN, Inf or always empty are absent."""
        found: dict[str, Range] = {}
        if self.ranges is RangeMethod.MINMAX:
            observed = observe_ranges(model, names, samples, context.threads, context.progress)
            found = {name: range_ for name, range_ in observed.items() if range_ is not None}
        else:
            histograms = observe_histograms(model, names, samples, context.threads, context.progress)
            found = {
                name: chosen_range(histogram, self.ranges)
                for name, histogram in histograms.items()
                if histogram.finite and histogram.count
            }
        return {**_let_through(model, found), **_promised(model, found)}

    def apply(self, rewriter: Rewriter, plan: QdqPlan, context: PassContext) -> None:
        """Insert the pairs that ``plan`` decided."""
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        if not plan.nodes:
            return
        if rewriter.model.opset < self._opset(context):
            upgrade(rewriter, self._opset(context))
        chosen = set(plan.nodes)
        nodes = [node for node in rewriter.model.graph.nodes if anchor_of(node) in chosen]
        infer_shapes(rewriter.model)
        wanted = Wanted(plan.nodes, plan.ranges, self._style(rewriter.model, context, plan.wide))
        Quantizer(rewriter, nodes, plan.ranges, wanted.style, self._fitted(rewriter.model, wanted, context)).run()


def _let_through(model: Model, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return ranges without what a Relu or Clip that alone reads a tensor cuts off anyway."""
    found = dict(ranges)
    returned = {tensor.name for tensor in model.graph.outputs}
    for node in model.graph.nodes:
        for tensor in node.outputs:
            if tensor.name in found and tensor.name not in returned:
                found[tensor.name] = narrowed(found[tensor.name], consumers(tensor))
    return found


def _promised(model: Model, names: Iterable[str]) -> dict[str, Range]:
    """Return the ranges that operators promise: all of it, whatever samples show, since others will show the rest."""
    wanted = set(names)
    found = {}
    for node in model.graph.nodes:
        known = known_range(node) if node.outputs and node.outputs[0].name in wanted else None
        if known is not None and is_standard(node, *BOUNDED):
            found[node.outputs[0].name] = known
    return found
