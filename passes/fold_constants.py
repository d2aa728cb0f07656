"""fold-constants: compute now what does not depend on the input.

Given nodes whose inputs are all constant → Result: constants with the values that onnxruntime computes for them; a
Constant node becomes an initializer.

Left alone:

1. random operators, a Dropout that trains, operators outside the standard, nodes with subgraphs;
2. QuantizeLinear and DequantizeLinear of constants: they are the integer form of a weight, not a calculation to save;
3. results larger than the constants they replace (and than :data:`FREE_BYTES`): the file must not grow;
4. operators that can create large tensors from small ones, while their result's shape is unknown;
5. results that a graph returns, and those that onnxruntime does not compute.
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
from onnxslim.pipeline import Effect, Pass, PassContext
from onnxslim.runtime import RuntimeRefusal
from onnxslim.runtime.folding import evaluate

GROWTH = 1.0
"""A result may be this many times as large as the constants it replaces …"""
FREE_BYTES = 1024
"""… and up to this size it may be larger."""

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_INTEGER_FORM = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
_NEVER = _RANDOM | _INTEGER_FORM
_GROWING = {
    "CenterCropPad", "ConstantOfShape", "Expand", "EyeLike", "Gather", "GatherND", "Gemm", "MatMul", "OneHot", "Pad",
    "Range", "Resize", "Tile", "Upsample",
}  # fmt: skip


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
    if value is not None and rewriter.fold(node.outputs[0], value):
        rewriter.remove(node)


def _constant_value(node: Node) -> npt.NDArray[Any] | Constant | None:
    """Return the value of a Constant node in any of its attribute forms, None for a sparse one."""
    if "value" in node.attrs:
        value: Constant = node.attrs["value"]
        return value
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64), ("value_string", object)):
        for form in (name, f"{name}s"):
            if form in node.attrs:
                return np.array(node.attrs[form], dtype)
    return None


def _fold_graph(graph: Graph, rewriter: Rewriter) -> None:
    credit: dict[int, int] = {}  # by foldable tensor: bytes of the constants it hangs on
    for node in graph.nodes:
        if rewriter.alive(node) and _is_foldable(node, credit):
            total = sum(_credit(tensor, credit) for tensor in {id(t): t for t in node.inputs}.values())
            if _fits(node, total):
                credit.update((id(tensor), total) for tensor in node.outputs)
    wanted = [
        tensor
        for node in graph.nodes
        for tensor in node.outputs
        if id(tensor) in credit and _is_read_outside(tensor, credit) and not rewriter.is_output(tensor)
    ]
    for tensor, value in _compute(rewriter.model, wanted):
        if rewriter.fold(tensor, value):
            _remove_unread(tensor, rewriter)


def _credit(tensor: Tensor, credit: dict[int, int]) -> int:
    return constant_bytes(tensor) if isinstance(tensor, Constant) else credit.get(id(tensor), 0)


def _fits(node: Node, replaced: int) -> bool:
    """Whether folding ``node`` in place of ``replaced`` bytes of constants cannot make the file grow."""
    sizes = [_size(tensor) for tensor in node.outputs if tensor.name]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return node.op not in _GROWING
    return max(known, default=0) <= max(FREE_BYTES, GROWTH * replaced)


def _is_foldable(node: Node, credit: dict[int, int]) -> bool:
    if not is_standard(node) or node.op in _NEVER or node.op == "Constant" or any(True for _ in node.subgraphs()):
        return False
    if node.op == "Dropout" and len(node.inputs) > 2:
        return False
    return bool(node.inputs) and all(
        isinstance(tensor, Constant) or not tensor.name or id(tensor) in credit for tensor in node.inputs
    )


def _size(tensor: Tensor) -> int | None:
    dims, dtype = dims_of(tensor), numpy_dtype(tensor.dtype)
    if dims is None or dtype is None:
        return None
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(sizes) * dtype.itemsize if len(sizes) == len(dims) else None


def _is_read_outside(tensor: Tensor, credit: dict[int, int]) -> bool:
    return any(not any(id(out) in credit for out in reader.outputs) for reader in tensor.outputs)


def _compute(model: Model, wanted: Sequence[Tensor]) -> list[tuple[Tensor, npt.NDArray[Any]]]:
    """Evaluate all results in one session; where onnxruntime refuses, each on its own."""
    if not wanted:
        return []
    try:
        values = evaluate(model.extract(_nodes_behind(wanted), [tensor.name for tensor in wanted]))
    except RuntimeRefusal:
        if len(wanted) == 1:
            return []
        return [pair for tensor in wanted for pair in _compute(model, [tensor])]
    return [(tensor, values[tensor.name]) for tensor in wanted if tensor.name in values]


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


def _remove_unread(tensor: Tensor, rewriter: Rewriter) -> None:
    """Remove the node of a folded tensor once nobody reads any of its outputs; what feeds it is dead code."""
    for node in list(tensor.inputs):
        if not any(out.outputs or rewriter.is_output(out) for out in node.outputs):
            rewriter.remove(node)
