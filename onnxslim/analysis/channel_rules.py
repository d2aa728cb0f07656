"""How each operator relates channels: one small rule for each, in a table.

A rule gets the node and the relations found so far, in topological order. It says along which axis its outputs'
channels lie and which indices belong together, or freezes what it does not understand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxslim.analysis import channel_moves as moves
from onnxslim.analysis.relations import Dimension, Layer, Relations
from onnxslim.ir import Constant, Model, Node, Tensor, dims_of, is_standard, subgraphs_of

Rule = Callable[[Node, Relations], None]


def apply_rules(model: Model, relations: Relations) -> None:
    """Walk the main graph in order and apply each node's rule."""
    graph = model.graph
    for tensor in graph.inputs:
        dims = dims_of(tensor)
        if dims is not None and len(dims) >= 2:
            relations.freeze(relations.follow(tensor, 1), "it is an input of the model")
    for node in graph.nodes:
        rule = _RULES.get(node.op) if is_standard(node) else None
        if rule is None or subgraphs_of(node):
            relations.freeze_node(node, f"operator {node.op} is not understood")
            continue
        rule(node, relations)
    for tensor in graph.outputs:
        relations.freeze(relations.channel(tensor), "it is an output of the model")
        relations.held[id(tensor)] = "it is an output of the model"
    for inner in graph.subgraphs(recursive=True) if model.nested else ():
        for node in inner.nodes:
            for tensor in node.inputs:
                relations.freeze(relations.channel(tensor), "a subgraph reads it")
                relations.held[id(tensor)] = "a subgraph reads it"


# ---- layers with filters -------------------------------------------------------------------------------------------


def _conv(node: Node, relations: Relations) -> None:
    weight = node.inputs[1]
    source = relations.channel(node.inputs[0])
    if not isinstance(weight, Constant):
        relations.freeze_node(node, "its weights are computed")
        return
    group = int(node.attrs.get("group", 1))
    filters = relations.weight(weight, 0)
    out = relations.follow(node.outputs[0], 1)
    if group == 1:
        relations.relate(source, relations.weight(weight, 1))
        relations.producers.append(Layer(node, filters, 1))
    elif source is not None and group == source.size and weight.shape[1] == 1:
        index = np.arange(filters.size)
        relations.relate(source, filters, index // (filters.size // group), index)
        relations.grouped.append((node, source))
        relations.producers.append(Layer(node, filters, None))
    else:
        relations.freeze(source, "a grouped convolution reads it")
        relations.freeze(filters, "it is a grouped convolution")
        relations.producers.append(Layer(node, filters, 1))
    relations.relate(filters, out)
    _bias(node, out, relations)


def _conv_transpose(node: Node, relations: Relations) -> None:
    weight = node.inputs[1]
    source = relations.channel(node.inputs[0])
    if not isinstance(weight, Constant) or int(node.attrs.get("group", 1)) != 1:
        relations.freeze_node(node, "it is a grouped transposed convolution, or its weights are computed")
        return
    out = relations.follow(node.outputs[0], 1)
    relations.relate(source, relations.weight(weight, 0))
    relations.relate(relations.weight(weight, 1), out)
    relations.producers.append(Layer(node, relations.weight(weight, 1), 0))
    _bias(node, out, relations)


def _gemm(node: Node, relations: Relations) -> None:
    weight = node.inputs[1]
    if not isinstance(weight, Constant) or node.attrs.get("transA"):
        relations.freeze_node(node, "its weights are computed, or its input is transposed")
        return
    filters, fan = (0, 1) if node.attrs.get("transB") else (1, 0)
    _matrix(node, weight, filters, fan, relations)


def _matmul(node: Node, relations: Relations) -> None:
    weight, dims = node.inputs[1], dims_of(node.inputs[0])
    if not isinstance(weight, Constant) or len(weight.shape) != 2 or dims is None:
        relations.freeze_node(node, "it multiplies two activations")
        return
    if relations.axes.get(id(node.inputs[0])) != len(dims) - 1:
        relations.freeze_node(node, "it multiplies along another axis than the channels'")
        return
    _matrix(node, weight, 1, 0, relations)


def _matrix(node: Node, weight: Constant, filters: int, fan: int, relations: Relations) -> None:
    source = relations.channel(node.inputs[0])
    rank = len(dims_of(node.outputs[0]) or dims_of(node.inputs[0]) or (0, 0))
    out = relations.follow(node.outputs[0], rank - 1)
    relations.relate(source, relations.weight(weight, fan))
    relations.relate(relations.weight(weight, filters), out)
    relations.producers.append(Layer(node, relations.weight(weight, filters), fan))
    _bias(node, out, relations)


def _bias(node: Node, out: Dimension | None, relations: Relations) -> None:
    """A bias has one value for each channel along its last axis, or one for all."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return
    bias = node.inputs[2]
    if not isinstance(bias, Constant):
        relations.freeze(out, "its bias is computed")
    elif bias.shape and bias.shape[-1] != 1:
        relations.relate(relations.weight(bias, len(bias.shape) - 1), out)


# ---- operators that keep channels where they are ---------------------------------------------------------------------


def _pool(node: Node, relations: Relations) -> None:
    if relations.axes.get(id(node.inputs[0])) == 1:
        moves.keep_rule(node, relations)
    else:
        relations.freeze_node(node, "it pools over channels")


def _per_channel(node: Node, relations: Relations) -> None:
    """Normalizations whose parameters have one value for each channel."""
    channels = relations.channel(node.inputs[0])
    for parameter in node.inputs[1:]:
        if isinstance(parameter, Constant) and len(parameter.shape) == 1:
            relations.relate(relations.weight(parameter, 0), channels)
        else:
            relations.freeze(channels, f"parameters of {node.op} are computed")
    moves.keep_rule(node, relations)


def _broadcast(node: Node, relations: Relations) -> None:
    """Operands are aligned at the last axis; those of size 1 along the channels serve all of them."""
    ranks = [len(dims_of(tensor) or ()) for tensor in node.inputs]
    rank = max(ranks)
    axes = {
        relations.axes[id(t)] + rank - r for t, r in zip(node.inputs, ranks, strict=True) if id(t) in relations.axes
    }
    if not axes:
        return
    if len(axes) > 1 or any(dims_of(tensor) is None for tensor in node.inputs):
        relations.freeze_node(node, f"operands of {node.op} do not line up")
        return
    axis = axes.pop()
    out = relations.follow(node.outputs[0], axis)
    for tensor, own in zip(node.inputs, ranks, strict=True):
        _operand(tensor, axis - (rank - own), out, relations, node)


def _operand(tensor: Tensor, axis: int, out: Dimension | None, relations: Relations, node: Node) -> None:
    dims = dims_of(tensor) or ()
    if axis < 0 or (dims[axis] == 1 and (out is None or out.size != 1)):
        relations.freeze(relations.channel(tensor), f"{node.op} repeats its one channel for all")
    elif isinstance(tensor, Constant):
        relations.relate(relations.weight(tensor, axis), out)
    elif id(tensor) in relations.axes:
        relations.relate(relations.channel(tensor), out)
    else:
        relations.freeze(out, f"an operand of {node.op} is not understood")


_ELEMENTWISE = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
    "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, moves.keep_rule),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Sum", "Mean"), _broadcast),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _pool),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), moves.reduce_rule),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), moves.squeeze_rule),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Concat": moves.concat_rule,
    "Transpose": moves.transpose_rule,
    "Flatten": moves.flatten_rule,
    "Reshape": moves.reshape_rule,
    "Pad": moves.pad_rule,
    "Slice": moves.slice_rule,
    "Resize": moves.resize_rule,
    "Upsample": moves.resize_rule,
}
