"""What a model costs: bytes and parameters of its constants, multiply-accumulates, activation memory.

MACs count Conv, ConvTranspose, Gemm, MatMul, RNN, LSTM, GRU, Attention and their integer forms; everything else is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxslim.analysis.liveness import Peak, liveness
from onnxslim.ir import Constant, Model, Node, Tensor, constant_bytes, graph_nodes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayerCost:
    """Costs of one node, known by its first output.

    A weight shared by several nodes counts with its first reader; an integer weight counts with the layer that uses it,
    not with the DequantizeLinear between them.
    """

    anchor: str
    op: str
    name: str
    bytes: int
    params: int
    macs: int | None
    """None where a shape is unknown."""
    activation_bytes: int | None
    """Bytes of activations held while it runs, its inputs and outputs included; None where a shape is unknown."""


@dataclass(frozen=True)
class ModelCost:
    """Costs of a model and of each of its nodes, in order."""

    layers: tuple[LayerCost, ...]
    nodes: int
    bytes: int
    params: int
    macs: int | None
    """None where any layer's is unknown."""
    peak: Peak | None
    """Where most activations are held at once; None where any is unknown."""

    @property
    def peak_activation_bytes(self) -> int | None:
        """Bytes held at the peak, by the rules of :mod:`onnxslim.analysis.liveness`."""
        return None if self.peak is None else self.peak.bytes


def model_cost(model: Model, shapes: Shapes) -> ModelCost:
    """Return the costs of ``model`` at fixed ``shapes`` (see ``concrete_shapes``)."""
    held = liveness(model.graph, shapes)
    charged = _charge_constants(model)
    layers = []
    for _, node in graph_nodes(model.graph):
        anchor = next((tensor.name for tensor in node.outputs if tensor.name), node.name)
        size, params = charged.get(id(node), (0, 0))
        macs = node_macs(node, shapes)
        layers.append(LayerCost(anchor, _op_name(node), node.name, size, params, macs, held.live.get(id(node))))
    macs_of = [layer.macs for layer in layers if layer.macs is not None]
    return ModelCost(
        layers=tuple(layers),
        nodes=len(layers),
        bytes=sum(layer.bytes for layer in layers),
        params=sum(layer.params for layer in layers),
        macs=sum(macs_of) if len(macs_of) == len(layers) else None,
        peak=held.peak,
    )


def node_macs(node: Node, shapes: Shapes) -> int | None:
    """Return a node's multiply-accumulates: 0 for operators that have none, None where a shape is unknown."""
    count = _MACS.get(node.op)
    if count is None:
        return 0
    try:
        return count(node, shapes)
    except (IndexError, TypeError, ValueError, ZeroDivisionError):
        return None  # the node's inputs or attributes are not what its operator takes; onnxruntime says so


def _op_name(node: Node) -> str:
    return node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}:{node.op}"


def _charge_constants(model: Model) -> dict[int, tuple[int, int]]:
    """Return (bytes, parameters) by id of the node they are charged to."""
    charged: dict[int, tuple[int, int]] = {}
    counted: set[int] = set()
    for _, node in graph_nodes(model.graph):
        owner = _owner(node)
        for tensor in (*node.inputs, *(value for value in node.attrs.values() if isinstance(value, Constant))):
            if isinstance(tensor, Constant) and id(tensor) not in counted:
                counted.add(id(tensor))
                size, params = charged.get(id(owner), (0, 0))
                charged[id(owner)] = (size + constant_bytes(tensor), params + math.prod(tensor.shape))
    return charged


def _owner(node: Node) -> Node:
    """Return the layer that constants of ``node`` belong to: a stored weight's DequantizeLinear has none of its own."""
    if node.op == "DequantizeLinear" and isinstance(node.inputs[0], Constant) and node.outputs[0].outputs:
        return node.outputs[0].outputs[0]
    return node


def _shape(tensor: Tensor, shapes: Shapes) -> tuple[int, ...] | None:
    if isinstance(tensor, Constant):
        return tuple(tensor.shape)
    return shapes.get(tensor.name)


# ---- multiply-accumulates, one function per family of operators ----------------------------------------------


def _conv(weight_index: int) -> Callable[[Node, Shapes], int | None]:
    """Each output element sums over Cin/group · k1 · k2 …: the weight's dimensions after the first."""

    def count(node: Node, shapes: Shapes) -> int | None:
        weight, out = _shape(node.inputs[weight_index], shapes), _shape(node.outputs[0], shapes)
        return None if weight is None or out is None else math.prod(out) * math.prod(weight[1:])

    return count


def _conv_transpose(node: Node, shapes: Shapes) -> int | None:
    """Each input element is scattered over Cout/group · k1 · k2 …."""
    data, weight = _shape(node.inputs[0], shapes), _shape(node.inputs[1], shapes)
    return None if weight is None or data is None else math.prod(data) * math.prod(weight[1:])


def _matmul(left: int, right: int) -> Callable[[Node, Shapes], int | None]:
    """The output's elements times the inner dimension; the left operand's last axis, or first when transposed."""

    def count(node: Node, shapes: Shapes) -> int | None:
        a, out = _shape(node.inputs[left], shapes), _shape(node.outputs[0], shapes)
        b = _shape(node.inputs[right], shapes)
        if not a or not b or out is None:
            return None
        inner = a[0] if node.attrs.get("transA") else a[-1]
        return math.prod(out) * inner

    return count


def _nbits(node: Node, shapes: Shapes) -> int | None:
    out = _shape(node.outputs[0], shapes)
    return None if out is None else math.prod(out) * int(node.attrs.get("K", 0))


def _recurrent(node: Node, shapes: Shapes) -> int | None:
    """Every step applies the input and the recurrent weights, whose first axes hold directions and gates."""
    data, weight = _shape(node.inputs[0], shapes), _shape(node.inputs[1], shapes)
    recurrent = _shape(node.inputs[2], shapes)
    if data is None or weight is None or recurrent is None:
        return None
    return data[0] * data[1] * (math.prod(weight) + math.prod(recurrent))


def _attention(node: Node, shapes: Shapes) -> int | None:
    """Scores Q·Kᵀ and their product with V, for the standard operator (opset 23), 3-D or 4-D inputs."""
    q, k, v = (_shape(tensor, shapes) for tensor in node.inputs[:3])
    if q is None or k is None or v is None:
        return None
    if len(q) == 4:
        batch, heads, queries, width = q
        return batch * heads * queries * k[2] * (width + v[3])
    batch, queries, hidden = q
    return batch * queries * k[1] * (hidden + hidden * v[2] // max(k[2], 1))


_MACS: dict[str, Callable[[Node, Shapes], int | None]] = {
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
