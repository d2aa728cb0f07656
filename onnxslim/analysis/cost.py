"""What a model costs: bytes and parameters of its constants, multiply-accumulates, activation memory.

MACs count Conv, ConvTranspose, Gemm, MatMul, RNN, LSTM, GRU, Attention and their integer forms; everything else is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Constant, Graph, Model, Node, Tensor, constant_bytes, graph_nodes, numpy_dtype

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayerCost:
    """Costs of one node. ``anchor`` is its first output; a shared weight counts with its first reader."""

    anchor: str
    op: str
    name: str
    bytes: int
    params: int
    macs: int
    activation_bytes: int
    """Bytes of activations alive while it runs, its inputs and outputs included; unknown shapes count as 0."""


@dataclass(frozen=True)
class ModelCost:
    """Costs of a model and of each of its nodes, in order."""

    layers: tuple[LayerCost, ...]
    nodes: int
    bytes: int
    params: int
    macs: int
    peak_activation_bytes: int
    """Largest sum of live tensors at any point of the given order: a bound, without any allocator's tricks."""


def model_cost(model: Model, shapes: Shapes) -> ModelCost:
    """Return the costs of ``model`` at fixed ``shapes`` (see ``concrete_shapes``)."""
    counted: set[int] = set()
    live = _live_bytes(model.graph, shapes)
    layers = []
    for _, node in graph_nodes(model.graph):
        anchor = next((tensor.name for tensor in node.outputs if tensor.name), node.name)
        size, params = _constants(node, counted)
        macs = node_macs(node, shapes)
        layers.append(LayerCost(anchor, _op_name(node), node.name, size, params, macs, live.get(id(node), 0)))
    return ModelCost(
        layers=tuple(layers),
        nodes=len(layers),
        bytes=sum(layer.bytes for layer in layers),
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        peak_activation_bytes=max(live.values(), default=0),
    )


def node_macs(node: Node, shapes: Shapes) -> int:
    """Return a node's multiply-accumulates; 0 for operators that have none or whose shapes are unknown."""
    count = _MACS.get(node.op)
    return 0 if count is None else count(node, shapes)


def _op_name(node: Node) -> str:
    return node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}:{node.op}"


def _constants(node: Node, counted: set[int]) -> tuple[int, int]:
    size = params = 0
    held = [*node.inputs, *(value for value in node.attrs.values() if isinstance(value, Constant))]
    for tensor in held:
        if isinstance(tensor, Constant) and id(tensor) not in counted:
            counted.add(id(tensor))
            size += constant_bytes(tensor)
            params += math.prod(tensor.shape)
    return size, params


def _shape(tensor: Tensor, shapes: Shapes) -> tuple[int, ...] | None:
    if isinstance(tensor, Constant):
        return tuple(tensor.shape)
    return shapes.get(tensor.name)


def _tensor_bytes(tensor: Tensor, shapes: Shapes) -> int:
    shape = _shape(tensor, shapes)
    dtype = numpy_dtype(tensor.dtype) or np.dtype(np.float32)
    return 0 if shape is None or isinstance(tensor, Constant) else math.prod(shape) * max(dtype.itemsize, 1)


def _live_bytes(graph: Graph, shapes: Shapes) -> dict[int, int]:
    """Return, by id of each node of the main graph, the bytes of all tensors alive while it runs.

    Walks the nodes in order, adding outputs and dropping each tensor after its last reader.
    """
    last: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for tensor in (*node.inputs, *(t for g in node.subgraphs(recursive=True) for n in g.nodes for t in n.inputs)):
            last[id(tensor)] = index
    for tensor in graph.outputs:
        last[id(tensor)] = len(graph.nodes)
    sizes = {id(tensor): _tensor_bytes(tensor, shapes) for tensor in graph.inputs}
    total = sum(sizes.values())
    live: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for tensor in node.outputs:
            sizes[id(tensor)] = _tensor_bytes(tensor, shapes)
            total += sizes[id(tensor)]
        live[id(node)] = total
        for key in {id(tensor) for tensor in (*node.inputs, *node.outputs)}:
            if last.get(key, index) <= index:
                total -= sizes.pop(key, 0)
    return live


# ---- multiply-accumulates, one function per family of operators ----------------------------------------------


def _conv(weight_index: int) -> Callable[[Node, Shapes], int]:
    """Each output element sums over Cin/group · k1 · k2 …: the weight's dimensions after the first."""

    def count(node: Node, shapes: Shapes) -> int:
        weight, out = _shape(node.inputs[weight_index], shapes), _shape(node.outputs[0], shapes)
        return 0 if weight is None or out is None else math.prod(out) * math.prod(weight[1:])

    return count


def _conv_transpose(node: Node, shapes: Shapes) -> int:
    """Each input element is scattered over Cout/group · k1 · k2 …."""
    data, weight = _shape(node.inputs[0], shapes), _shape(node.inputs[1], shapes)
    return 0 if weight is None or data is None else math.prod(data) * math.prod(weight[1:])


def _matmul(left: int, right: int) -> Callable[[Node, Shapes], int]:
    """The output's elements times the inner dimension; the left operand's last axis, or first when transposed."""

    def count(node: Node, shapes: Shapes) -> int:
        a, out = _shape(node.inputs[left], shapes), _shape(node.outputs[0], shapes)
        b = _shape(node.inputs[right], shapes)
        if not a or not b or out is None:
            return 0
        inner = a[0] if node.attrs.get("transA") else a[-1]
        return math.prod(out) * inner

    return count


def _nbits(node: Node, shapes: Shapes) -> int:
    out = _shape(node.outputs[0], shapes)
    return 0 if out is None else math.prod(out) * int(node.attrs.get("K", 0))


def _recurrent(node: Node, shapes: Shapes) -> int:
    """Every step applies the input and the recurrent weights, whose first axes hold directions and gates."""
    data, weight = _shape(node.inputs[0], shapes), _shape(node.inputs[1], shapes)
    recurrent = _shape(node.inputs[2], shapes)
    if data is None or weight is None or recurrent is None:
        return 0
    return data[0] * data[1] * (math.prod(weight) + math.prod(recurrent))


def _attention(node: Node, shapes: Shapes) -> int:
    """Scores Q·Kᵀ and their product with V, for the standard operator (opset 23), 3-D or 4-D inputs."""
    q, k, v = (_shape(tensor, shapes) for tensor in node.inputs[:3])
    if q is None or k is None or v is None:
        return 0
    if len(q) == 4:
        batch, heads, queries, width = q
        return batch * heads * queries * k[2] * (width + v[3])
    batch, queries, hidden = q
    return batch * queries * k[1] * (hidden + hidden * v[2] // max(k[2], 1))


_MACS: dict[str, Callable[[Node, Shapes], int]] = {
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "FusedConv": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _matmul(0, 1),
    "MatMul": _matmul(0, 1),
    "MatMulInteger": _matmul(0, 1),
    "FusedMatMul": _matmul(0, 1),
    "QLinearMatMul": _matmul(0, 3),
    "QGemm": _matmul(0, 3),
    "MatMulNBits": _nbits,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "Attention": _attention,
}
