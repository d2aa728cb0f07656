"""fold-constants: compute now what does not depend on the input.

Given nodes whose inputs are all constant → Result: constants with the values that onnxruntime computes for them; a
Constant node becomes an initializer. What a graph returns becomes a Constant node, which can bear the output's name.

The file never grows by more than :data:`FREE_BYTES` a result: a larger one must not exceed what it replaces. A
constant that several nodes read is only partly replaced by folding one of them, so each reader may count on its share
of the bytes; transposing an embedding that a Gather reads too would store it twice, and is left to the runtime.

Left alone:

1. random operators, a Dropout that trains, operators outside the standard, nodes with subgraphs;
2. QuantizeLinear and DequantizeLinear of constants: they are the integer form of a weight, not a calculation to save;
3. results larger than their share of what they replace;
4. results of unknown shape that might have more than :data:`MOST_ELEMENTS` elements: nothing is evaluated before its
   size has a bound, and bounds add up along a chain;
5. results that onnxruntime does not compute, that numpy has no type for, and strings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import (
    Constant,
    Graph,
    Model,
    Node,
    Rewriter,
    Tensor,
    constant_bytes,
    dims_of,
    is_standard,
    numpy_dtype,
)
from onnxslim.passes._determinism import is_deterministic
from onnxslim.pipeline import Effect, Pass, PassContext
from onnxslim.runtime import RuntimeRefusal
from onnxslim.runtime.folding import evaluate

FREE_BYTES = 1024
"""Up to this size a result may be larger than the constants it replaces."""

_INTEGER_FORM = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
MOST_ELEMENTS = 2**20
"""Where a result's shape is unknown: the elements it may have at most, by the bound of its operator."""

_KEEPING = {
    "Abs", "Acos", "ArgMax", "ArgMin", "Asin", "Atan", "BitwiseNot", "Cast", "CastLike", "Ceil", "Clip", "Compress",
    "Cos", "CumSum", "Erf", "Exp", "Flatten", "Floor", "GatherElements", "Hardmax", "HardSigmoid", "Identity", "IsInf",
    "IsNaN", "LeakyRelu", "Log", "LogSoftmax", "Neg", "Not", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "ReverseSequence",
    "Round", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax", "Split",
    "Sqrt", "Squeeze", "Tan", "Tanh", "Transpose", "Trilu", "Unique", "Unsqueeze",
}  # fmt: skip
"""Operators whose results have no more elements than their largest input; Shape and Size have a few."""

_MULTIPLYING = {
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Gather", "GatherND", "Gemm",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu",
    "Pow", "Sub", "Sum", "Where", "Xor",
}  # fmt: skip
"""Operators whose results have no more elements than the product of their inputs': broadcasting does that."""

_MOST_DIMS = 64

Shares = dict[int, float]
"""By a tensor that can be folded: the bytes of constants that go when one of its readers is folded too."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what does not depend on the input, without growing the file."""

    name = "fold-constants"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Fold each graph: Constant nodes first, then everything that hangs on constants alone."""
        for graph in list(rewriter.model.graphs()):
            for node in list(graph.nodes):
                if is_standard(node, "Constant"):
                    _fold_constant_node(node, rewriter)
            _fold_graph(graph, rewriter)


def _fold_constant_node(node: Node, rewriter: Rewriter) -> None:
    value = _constant_value(node)
    if "sparse_value" in node.attrs:
        rewriter.refuse("fold-constants", node.outputs[0].name, "its value is sparse and stays so")
    if value is not None and rewriter.fold(node.outputs[0], value):
        rewriter.remove(node)


def _constant_value(node: Node) -> npt.NDArray[Any] | Constant | None:
    """Return the value of a Constant node, None where it is sparse or given as strings."""
    if "value" in node.attrs:
        value: Constant = node.attrs["value"]
        return value
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for form in (name, f"{name}s"):
            if form in node.attrs:
                return np.array(node.attrs[form], dtype)
    return None


def _fold_graph(graph: Graph, rewriter: Rewriter) -> None:
    shares: Shares = {}
    budgets: dict[int, float] = {}
    elements: dict[int, int] = {}
    for node in graph.nodes:
        if not rewriter.alive(node) or not _is_foldable(node, shares):
            continue
        budget = sum(_share(tensor, shares) for tensor in node.inputs)
        if _fits(node, budget, elements):
            budgets.update((id(tensor), max(FREE_BYTES, budget)) for tensor in node.outputs)
            part = budget / len(node.outputs)
            shares.update((id(tensor), part / max(1, len(tensor.outputs))) for tensor in node.outputs)
    wanted = [
        tensor
        for node in graph.nodes
        for tensor in node.outputs
        if id(tensor) in shares and (rewriter.is_output(tensor) or _is_read_outside(tensor, shares))
    ]
    for tensor, value in _compute(rewriter.model, wanted):
        if value.nbytes <= budgets[id(tensor)]:
            _put(tensor, value, rewriter)


def _share(tensor: Tensor, shares: Shares) -> float:
    """Return the bytes of constants that one reading of ``tensor`` stands for."""
    if isinstance(tensor, Constant):
        return constant_bytes(tensor) / max(1, len(tensor.outputs))
    return shares.get(id(tensor), 0.0)


def _fits(node: Node, budget: float, elements: dict[int, int]) -> bool:
    """Whether folding ``node`` in place of ``budget`` bytes of constants cannot make the file grow.

    Where a shape is unknown, :func:`_compute` finds out; ``elements`` then bounds what may be computed.
    """
    outputs = [tensor for tensor in node.outputs if tensor.name]
    sizes = [_size(tensor) for tensor in outputs]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return sum(known) <= max(FREE_BYTES, budget)
    counts = [_elements(tensor, elements) for tensor in node.inputs if tensor.name]
    bound = _bound(node, counts)
    if bound is None or bound > max(MOST_ELEMENTS, *counts):
        return False
    elements.update((id(tensor), bound) for tensor in outputs)
    return True


def _bound(node: Node, counts: Sequence[int]) -> int | None:
    """Return how many elements each result has at most, None where that can be anything."""
    if node.op in _KEEPING:
        return max(_MOST_DIMS, *counts)
    if node.op == "Concat":
        return sum(counts)
    if node.op in _MULTIPLYING:
        return math.prod(counts)
    return max(counts) * _MOST_DIMS if node.op == "NonZero" else None


def _elements(tensor: Tensor, elements: dict[int, int]) -> int:
    """Return how many elements ``tensor``, which is constant or will be folded, has at most."""
    if id(tensor) in elements:
        return elements[id(tensor)]
    return math.prod(dim if isinstance(dim, int) else MOST_ELEMENTS for dim in dims_of(tensor) or (MOST_ELEMENTS,))


def _is_foldable(node: Node, shares: Shares) -> bool:
    if not is_deterministic(node) or node.op in _INTEGER_FORM or node.op == "Constant":
        return False
    return bool(node.inputs) and all(
        isinstance(tensor, Constant) or not tensor.name or id(tensor) in shares for tensor in node.inputs
    )


def _size(tensor: Tensor) -> int | None:
    dims, dtype = dims_of(tensor), numpy_dtype(tensor.dtype)
    if dims is None or dtype is None:
        return None
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(sizes) * dtype.itemsize if len(sizes) == len(dims) else None


def _is_read_outside(tensor: Tensor, shares: Shares) -> bool:
    return any(not any(id(out) in shares for out in reader.outputs) for reader in tensor.outputs)


def _compute(model: Model, wanted: Sequence[Tensor]) -> list[tuple[Tensor, npt.NDArray[Any]]]:
    """Evaluate all results in one session; where onnxruntime refuses, each half on its own."""
    if not wanted:
        return []
    try:
        values = evaluate(model.extract(_nodes_behind(wanted), [tensor.name for tensor in wanted]))
    except RuntimeRefusal:
        if len(wanted) == 1:
            return []
        middle = len(wanted) // 2
        return _compute(model, wanted[:middle]) + _compute(model, wanted[middle:])
    found = [(tensor, values[tensor.name]) for tensor in wanted if tensor.name in values]
    numeric = [(tensor, value) for tensor, value in found if value.dtype != object]
    return [(tensor, value) for tensor, value in numeric if numpy_dtype(tensor.dtype) in (None, value.dtype)]


def _nodes_behind(wanted: Sequence[Tensor]) -> list[Node]:
    """Return the nodes that compute ``wanted``, each after those it needs."""
    ordered: dict[int, Node] = {}
    stack = [(node, False) for tensor in reversed(wanted) for node in tensor.inputs]
    while stack:
        node, ready = stack.pop()
        if id(node) in ordered:
            continue
        if ready:
            ordered[id(node)] = node
        else:
            stack.append((node, True))
            stack.extend((maker, False) for tensor in node.inputs for maker in tensor.inputs)
    return list(ordered.values())


def _put(tensor: Tensor, value: npt.NDArray[Any], rewriter: Rewriter) -> None:
    """Let readers of ``tensor`` read ``value``; what fed its node is dead code then."""
    (node,) = tensor.inputs
    if rewriter.is_output(tensor):
        if len(node.outputs) == 1:
            rewriter.set_inputs(node, [])
            rewriter.set_op(node, "Constant", {"value": rewriter.constant(tensor.name, value)})
        return
    rewriter.fold(tensor, value)
    if any(out.outputs or rewriter.is_output(out) for out in node.outputs):
        tensor.name = rewriter.fresh(tensor.name)  # the constant has its name now, and the node stays
    else:
        rewriter.remove(node)
