"""Pairs of QuantizeLinear and DequantizeLinear in a graph, and weights as integers behind DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Constant, Node, Rewriter, Tensor, anchor_of, array_of, producer
from onnxslim.passes._qdq_choice import (
    FLOAT32,
    MOVING,
    WEIGHTED,
    activation_inputs,
    final_outputs,
    is_weight,
)
from onnxslim.passes._quantize import (
    Array,
    FittedWeight,
    Grid,
    IntegerWeight,
    Style,
    grid_of,
    quantize_bias,
    quantize_weight,
)


@dataclass(frozen=True)
class _Work:
    """A node that becomes integer, and its tensors that get a grid."""

    node: Node
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]


def shared_grids(nodes: Sequence[Node], ranges: Mapping[str, tuple[float, float]], style: Style) -> dict[str, Grid]:
    """Return the grid of each tensor with a range; nodes that only move values share that of what they move."""
    grids = {name: grid_of(*range_, style.kind_of(name)) for name, range_ in ranges.items()}
    for node in nodes:
        if node.op in MOVING:
            grids.update({tensor.name: grids[node.inputs[0].name] for tensor in final_outputs(node)})
    return grids


class Quantizer:
    """Inserts pairs; grids and constants that are equal are made once."""

    def __init__(
        self,
        rewriter: Rewriter,
        nodes: list[Node],
        ranges: Mapping[str, tuple[float, float]],
        style: Style,
        fitted: Mapping[str, FittedWeight] | None = None,
    ) -> None:
        self.rewriter = rewriter
        self.fitted = fitted or {}
        self.nodes = nodes
        self.style = style
        self.grids = shared_grids(nodes, ranges, style)
        self.constants: dict[tuple[str, str, bytes], Constant] = {}
        self.dequantized: dict[str, Tensor] = {}
        self.weights: dict[tuple[int, int, bytes], Tensor] = {}

    def run(self) -> None:
        """Put pairs on inputs, weights and outputs, in order."""
        work = self._work()
        for one in work:
            if one.node.op in WEIGHTED:
                self._quantize_weights(one.node, self.grids.get(one.inputs[0].name))
        self._insert_pairs(work)

    def _work(self) -> list[_Work]:
        """Note what each node reads and makes before anything is inserted."""
        return [_Work(node, activation_inputs(node), self._results(node)) for node in self.nodes]

    def _results(self, node: Node) -> list[Tensor]:
        return [tensor for tensor in final_outputs(node) if tensor.name in self.grids]

    def _insert_pairs(self, work: Sequence[_Work]) -> None:
        for one in work:
            for tensor in {id(t): t for t in one.inputs}.values():
                self._quantize_input(one.node, tensor)
        for one in work:
            for tensor in one.outputs:
                self._quantize_output(tensor)

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
        middle = self.rewriter.variable(f"{source.name}_q", grid.zero_point.dtype, source.shape)
        self.rewriter.insert("QuantizeLinear", [source, scale, zero], [middle])
        self.rewriter.insert("DequantizeLinear", [middle, scale, zero], [out])

    def _constant_pair(self, tensor: Constant) -> Tensor:
        """Return a constant operand on a grid of its own: its bytes, then DequantizeLinear."""
        key = (id(tensor), -1, b"")
        if key not in self.weights:
            values = tensor.values.astype(np.float64)
            kind = self.style.activations
            grid = grid_of(float(values.min(initial=0)), float(values.max(initial=0)), kind)  # zero is on every grid
            stored = np.clip(np.round(values / float(grid.scale)) + float(grid.zero_point), *kind.integer.limits)
            stored = stored.astype(grid.zero_point.dtype)
            scale, zero = (
                self._constant("scale", np.array(grid.scale)),
                self._constant("zero", np.array(grid.zero_point)),
            )
            self.weights[key] = self._dequantize(
                tensor.name, [self.rewriter.constant(f"{tensor.name}_q", stored), scale, zero]
            )
        return self.weights[key]

    def _quantize_weights(self, node: Node, grid: Grid | None) -> None:
        made = None if grid is None else integer_weight(node, grid, self.style, self.fitted.get(anchor_of(node)))
        if made is None or grid is None:
            return
        integer, bias = made
        key = (id(node.inputs[1]), integer.axis, integer.scale.tobytes())
        if key not in self.weights:
            name = node.inputs[1].name
            # Without a zero point Gemm stays in float; with a shared one onnxruntime's ARM reading does not load.
            zero = self.rewriter.constant("zero", np.zeros(integer.scale.shape, np.int8))
            scale = self._constant("scale", integer.scale)
            inputs = [self.rewriter.constant(f"{name}_q", integer.values), scale, zero]
            self.weights[key] = self._dequantize(name, inputs, integer.axis)
        self.rewriter.set_input(node, 1, self.weights[key])
        if bias is not None:
            values, bias_scale = quantize_bias(bias, grid.scale, integer.scale)
            name = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2].name else f"{anchor_of(node)}_bias"
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


def integer_weight(
    node: Node, grid: Grid, style: Style, fitted: FittedWeight | None
) -> tuple[IntegerWeight, Array | None] | None:
    """Return the integers of the node's weight and its bias, still in float; None where no weight is constant.

    Args:
        grid: of the node's input.
    """
    if node.op == "MatMul" and not is_weight(node.inputs[1]):
        return None
    weight, bias = array_of(node.inputs[1]), None
    if weight is None:
        return None
    if len(node.inputs) > 2 and node.inputs[2].name:
        bias = array_of(node.inputs[2])
    axis = _channel_axis(node)
    if fitted is not None:
        return IntegerWeight(fitted.values, fitted.scale, axis), fitted.bias
    return quantize_weight(weight, axis, bias, float(grid.scale), style), bias


def changes_of(node: Node, grid: Grid, style: Style, fitted: FittedWeight | None) -> dict[int, Array]:
    """Return what integers change in the node's weight and bias, by index of the input: Ŵ − W and b̂ − b."""
    made = integer_weight(node, grid, style, fitted)
    weight = array_of(node.inputs[1])
    if made is None or weight is None:
        return {}
    integer, bias = made
    shape = [1] * weight.ndim
    shape[integer.axis] = -1
    found = {1: (integer.values * integer.scale.reshape(shape) - weight).astype(np.float32)}
    if bias is not None:
        values, scale = quantize_bias(bias, grid.scale, integer.scale)
        given = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
        before = np.zeros_like(scale) if given is None else given
        found[2] = (values.astype(np.float64) * scale - before).astype(np.float32)
    return found


def _channel_axis(node: Node) -> int:
    """Return the axis of output channels in the node's weight."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1
    return 0 if node.op == "Gemm" and node.attrs.get("transB") else 1
