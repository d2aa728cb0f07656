"""insert-qdq: static int8 as QuantizeLinear/DequantizeLinear pairs, placed so that onnxruntime runs integer kernels.

Given   y = Conv(x, W, b)  in float, and the ranges of x and y on samples
Result  y = Conv(DQ(Q(x)), DQ(W₈), DQ(b₃₂)), then Q and DQ      with, for each output channel c,
        W₈ = round(W_c / s_c),  s_c = max|W_c| / 127,  b₃₂ = round(b_c / (s_x·s_c)),  Q(x) = round(x / s_x) + z_x

An operator whose inputs and outputs are all such pairs is one that onnxruntime replaces by its integer kernel (its QDQ
selectors and actions); a Relu or Clip after it disappears into the range of the Q that follows. Ranges are minimum and
maximum over the samples. (Jacob et al. 2018, §2–3; per-channel weights: Krishnamoorthi 2018, §3.)

What is quantized, numbered as in the code:

1. Conv, Gemm and MatMul with constant weights: weight per output channel, bias as int32;
2. MatMul of two activations, Add, Mul, GlobalAveragePool, AveragePool, Concat, Sigmoid: activations only;
3. operators that only move values share their input's grid: MaxPool, Reshape, Flatten, Transpose, Squeeze, Unsqueeze,
   Slice, Gather with constant indices, Resize to the nearest.

Left alone, with the reason: weights that are computed or not float32; operators without an integer kernel; subgraphs;
models that are integer already; tensors with NaN or Inf on the samples. A Gemm or MatMul that computes a graph's output
keeps its output in float. Opsets before 13, which lack scales per channel, are converted first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.ranges import observe_ranges
from onnxslim.errors import PassError
from onnxslim.ir import (
    Constant,
    Model,
    Node,
    Rewriter,
    Tensor,
    anchor_of,
    array_of,
    graph_nodes,
    is_standard,
    producer,
)
from onnxslim.passes._qdq_choice import (
    FLOAT32,
    MOVING,
    WEIGHTED,
    activation_inputs,
    final_output,
    is_weight,
    keeps_float_output,
    select,
)
from onnxslim.passes._quantize import Grid, grid_of, quantize_bias, quantize_weight
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option
from onnxslim.runtime.kernels import quantizes

OPSET = 13
"""The first in which DequantizeLinear takes one scale per channel."""

EXPLICIT_RESIZE = 11
"""The first in which Resize says how it maps coordinates; before, it was always "asymmetric" and "floor"."""


class QdqPlan(Plan):
    """Which nodes become integer, and the range of every tensor that gets a grid."""

    nodes: tuple[str, ...]
    """Anchors."""
    ranges: dict[str, tuple[float, float]]
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class InsertQdq(PlannedPass[QdqPlan]):
    """Quantize to int8 (QDQ): weights per channel, activations by their range on samples."""

    name = "insert-qdq"
    effect = Effect.APPROXIMATE
    plan_type = QdqPlan
    needs_samples = True

    per_channel: bool = option(True, "one scale for each output channel of a weight, instead of one for all")
    only: tuple[str, ...] = option((), "quantize only layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns in float")

    def plan(self, model: Model, context: PassContext) -> QdqPlan:
        """Choose nodes, and observe the ranges of their tensors on the samples.

        Raises:
            PassError: onnxruntime cannot run what would be inserted, or onnx's converter refuses to upgrade.
        """
        if not quantizes(max(model.opset, OPSET)):
            raise PassError(f"onnxruntime has no QuantizeLinear of opset {model.opset}: export with an older opset")
        if model.opset < OPSET:  # the converter renames tensors, so what it makes is what is decided about
            model = model.copy()
            _upgrade(Rewriter(model))
        infer_shapes(model)
        selection = select(model, self.only, self.exclude)
        names = list(dict.fromkeys(tensor.name for tensor in selection.tensors()))
        if not names:
            return QdqPlan(nodes=(), ranges={}, refused=tuple(selection.refused))
        samples = context.require_samples(self.name)
        observed = observe_ranges(model, names, samples, context.threads, context.progress)
        ranges = {name: range_ for name, range_ in observed.items() if range_ is not None}
        selection.drop_unknown(ranges)
        return QdqPlan(
            nodes=tuple(anchor_of(node) for node in selection.nodes),
            ranges={name: ranges[name] for name in sorted(ranges)},
            refused=tuple(selection.refused),
        )

    def apply(self, rewriter: Rewriter, plan: QdqPlan, context: PassContext) -> None:
        """Insert the pairs that ``plan`` decided."""
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        if not plan.nodes:
            return
        if rewriter.model.opset < OPSET:
            _upgrade(rewriter)
        chosen = set(plan.nodes)
        nodes = [node for node in rewriter.model.graph.nodes if anchor_of(node) in chosen]
        _Quantizer(rewriter, nodes, plan.ranges, per_channel=self.per_channel).run()


def _upgrade(rewriter: Rewriter) -> None:
    """Convert to ``OPSET``; onnx's converter forgets how Resize and Upsample placed samples before opset 11.

    Raises:
        PassError: the converter refuses.
    """
    old = rewriter.model.opset
    rewriter.upgrade(OPSET)
    if old >= EXPLICIT_RESIZE:
        return
    for _, node in graph_nodes(rewriter.model.graph):
        if is_standard(node, "Resize"):
            rewriter.set_attr(node, "coordinate_transformation_mode", "asymmetric")
            rewriter.set_attr(node, "nearest_mode", "floor")


# ---- doing -------------------------------------------------------------------------------------------------------


class _Quantizer:
    """Inserts pairs; grids and constants that are equal are made once."""

    def __init__(
        self, rewriter: Rewriter, nodes: list[Node], ranges: dict[str, tuple[float, float]], *, per_channel: bool
    ) -> None:
        self.rewriter = rewriter
        self.nodes = nodes
        self.per_channel = per_channel
        self.grids = {name: grid_of(*range_) for name, range_ in ranges.items()}
        self.constants: dict[tuple[str, str, bytes], Constant] = {}
        self.dequantized: dict[str, Tensor] = {}
        self.weights: dict[tuple[int, int, bytes], Tensor] = {}

    def run(self) -> None:
        """Share grids along moving nodes, then put pairs on inputs, weights and outputs, in order."""
        for node in self.nodes:
            if node.op in MOVING:
                self.grids[node.outputs[0].name] = self.grids[node.inputs[0].name]
        work = [(node, activation_inputs(node), final_output(node), keeps_float_output(node)) for node in self.nodes]
        for node, inputs, _, _ in work:
            if node.op in WEIGHTED:
                self._quantize_weights(node, self.grids.get(inputs[0].name))
        for node, inputs, _, _ in work:
            for tensor in {id(t): t for t in inputs}.values():
                self._quantize_input(node, tensor)
        for _, _, output, keeps_float in work:
            if not keeps_float:
                self._quantize_output(output)

    def _quantize_input(self, node: Node, tensor: Tensor) -> None:
        replacement = self._constant_pair(tensor) if isinstance(tensor, Constant) else self._pair(tensor)
        for index, current in enumerate(node.inputs):
            if current is tensor:
                self.rewriter.set_input(node, index, replacement)

    def _quantize_output(self, tensor: Tensor) -> None:
        """Let everybody who reads ``tensor`` read it from the grid; a graph output becomes the grid's own."""
        if self.rewriter.is_output(tensor):
            self._pair_before_output(tensor)
            return
        if not tensor.outputs:
            return
        pair = self._pair(tensor)
        for reader in list(tensor.outputs):
            if reader.op == "QuantizeLinear":
                continue
            for index, current in enumerate(reader.inputs):
                if current is tensor:
                    self.rewriter.set_input(reader, index, pair)

    def _pair(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` from its grid, inserting the pair on first use."""
        if tensor.name not in self.dequantized:
            out = self.rewriter.variable(f"{tensor.name}_dq", FLOAT32, tensor.shape)
            self._insert_pair(tensor, out, self.grids[tensor.name])
            self.dequantized[tensor.name] = out
        return self.dequantized[tensor.name]

    def _pair_before_output(self, tensor: Tensor) -> None:
        """Keep the graph output's name on the DequantizeLinear; its former producer gets a new one."""
        maker = producer(tensor)
        if maker is None or maker.op == "DequantizeLinear":
            return
        inner = self.rewriter.variable(f"{tensor.name}_f", FLOAT32, tensor.shape)
        already = self.dequantized.get(tensor.name)
        for reader in list(tensor.outputs):
            for index, current in enumerate(reader.inputs):
                if current is tensor:
                    self.rewriter.set_input(reader, index, inner if reader.op == "QuantizeLinear" else tensor)
        index = next(i for i, t in enumerate(maker.outputs) if t is tensor)
        tensor.inputs.clear()
        maker.outputs.insert(index, inner)
        if already is None:
            self._insert_pair(inner, tensor, self.grids[tensor.name])
        else:
            last = producer(already)
            assert last is not None  # noqa: S101  (_pair made it)
            self.rewriter.insert("DequantizeLinear", list(last.inputs), [tensor])

    def _insert_pair(self, source: Tensor, out: Tensor, grid: Grid) -> None:
        scale = self._constant("scale", np.array(grid.scale))
        zero = self._constant("zero", np.array(grid.zero_point))
        middle = self.rewriter.variable(f"{source.name}_q", np.dtype(np.uint8), source.shape)
        self.rewriter.insert("QuantizeLinear", [source, scale, zero], [middle])
        self.rewriter.insert("DequantizeLinear", [middle, scale, zero], [out])

    def _constant_pair(self, tensor: Constant) -> Tensor:
        """Return a constant operand on a grid of its own: its bytes, then DequantizeLinear."""
        key = (id(tensor), -1, b"")
        if key not in self.weights:
            values = tensor.values.astype(np.float64)
            grid = grid_of(float(values.min(initial=0)), float(values.max(initial=0)))  # zero is on every grid
            stored = np.clip(np.round(values / float(grid.scale)) + float(grid.zero_point), 0, 255).astype(np.uint8)
            scale, zero = (
                self._constant("scale", np.array(grid.scale)),
                self._constant("zero", np.array(grid.zero_point)),
            )
            self.weights[key] = self._dequantize(
                tensor.name, [self.rewriter.constant(f"{tensor.name}_q", stored), scale, zero]
            )
        return self.weights[key]

    def _quantize_weights(self, node: Node, grid: Grid | None) -> None:
        if not is_weight(node.inputs[1]) and node.op == "MatMul":
            return
        weight, bias = array_of(node.inputs[1]), None
        if weight is None or grid is None:
            return
        if len(node.inputs) > 2 and node.inputs[2].name:
            bias = array_of(node.inputs[2])
        axis = _channel_axis(node)
        integer = quantize_weight(weight, axis, bias, float(grid.scale), per_channel=self.per_channel)
        key = (id(node.inputs[1]), axis, integer.scale.tobytes())
        if key not in self.weights:
            name = node.inputs[1].name
            # Without a zero point Gemm stays in float; with a shared one onnxruntime's ARM reading does not load.
            zero = self.rewriter.constant("zero", np.zeros(integer.scale.shape, np.int8))
            scale = self._constant("scale", integer.scale)
            inputs = [self.rewriter.constant(f"{name}_q", integer.values), scale, zero]
            self.weights[key] = self._dequantize(name, inputs, axis)
        self.rewriter.set_input(node, 1, self.weights[key])
        if bias is not None:
            values, bias_scale = quantize_bias(bias, grid.scale, integer.scale)
            name = node.inputs[2].name
            inputs = [self.rewriter.constant(f"{name}_q", values), self._constant("scale", bias_scale)]
            self.rewriter.set_input(node, 2, self._dequantize(name, inputs, 0))

    def _dequantize(self, name: str, inputs: list[Constant], axis: int | None = None) -> Tensor:
        out = self.rewriter.variable(f"{name}_dq", FLOAT32, list(inputs[0].shape))
        self.rewriter.insert("DequantizeLinear", inputs, [out], {} if axis is None else {"axis": axis})
        return out

    def _constant(self, hint: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Constant:
        key = (hint, f"{values.dtype}{values.shape}", values.tobytes())
        if key not in self.constants:
            self.constants[key] = self.rewriter.constant(hint, values)
        return self.constants[key]


def _channel_axis(node: Node) -> int:
    """Return the axis of output channels in the node's weight."""
    if node.op == "Conv":
        return 0
    return 0 if node.op == "Gemm" and node.attrs.get("transB") else 1
