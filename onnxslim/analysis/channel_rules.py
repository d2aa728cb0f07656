"""How each operator relates channels: one small rule for each, in a table.

A rule gets the node and the relations found so far, in topological order. It says which axes of inputs, weights and
outputs belong together, and where filters lie. Axes that it does not mention are frozen when it ends; an operator
without a rule freezes all it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onnxslim.analysis import channel_layers as layers
from onnxslim.analysis import channel_moves as moves
from onnxslim.analysis.channel_regroup import regroup_rule
from onnxslim.analysis.relations import Relations
from onnxslim.ir import Model, Node, dims_of, is_standard, subgraphs_of

Rule = Callable[[Node, Relations], None]


def apply_rules(model: Model, relations: Relations) -> None:
    """Walk the main graph in order and apply each node's rule."""
    graph = model.graph
    relations.outputs.update(id(tensor) for tensor in graph.outputs)
    for tensor in graph.inputs:
        relations.freeze_tensor(tensor, "it is an input of the model")
    for node in graph.nodes:
        relations.begin()
        rule = RULES.get(node.op) if is_standard(node) else None
        if rule is None or subgraphs_of(node):
            name = node.op if is_standard(node) else f"{node.domain}:{node.op}"
            relations.freeze_node(node, f"operator {name} is not understood")
        elif node.inputs:
            rule(node, relations)
        relations.end(node)
    for tensor in graph.outputs:
        relations.freeze_tensor(tensor, "it is an output of the model")
    for inner in graph.subgraphs(recursive=True) if model.nested else ():
        for node in inner.nodes:
            for tensor in node.inputs:
                relations.freeze_tensor(tensor, "a subgraph reads it")


# ---- operators that keep indices where they are ----------------------------------------------------------------------


def _keep(node: Node, relations: Relations) -> None:
    """Every output has the input's indices."""
    for tensor in node.outputs:
        if tensor.name:
            relations.keep(node.inputs[0], tensor)


def _pool(node: Node, relations: Relations) -> None:
    """Batch and channels stay. A MaxPool's second output counts positions in the whole tensor."""
    relations.keep(node.inputs[0], node.outputs[0], (0, 1))
    if any(tensor.outputs for tensor in node.outputs[1:]):
        relations.freeze(relations.axis(node.inputs[0], 1), f"a second output of {node.op} is read")


def _broadcast(node: Node, relations: Relations) -> None:
    """Operands are aligned at the last axis; those of size 1 serve all indices."""
    ranks = [len(dims_of(tensor) or ()) for tensor in node.inputs]
    out = node.outputs[0]
    if any(dims_of(tensor) is None for tensor in (*node.inputs, out)):
        relations.freeze_node(node, f"an operand of {node.op} has an unknown rank")
        return
    for axis in range(1, max(ranks) + 1):
        for slot, rank in enumerate(ranks):
            if axis <= rank and node.inputs[slot].name:
                _operand(node, slot, -axis, relations)


def _operand(node: Node, slot: int, axis: int, relations: Relations) -> None:
    result = relations.axis(node.outputs[0], axis)
    own = relations.parameter(node, slot, axis)
    if own is None or own.size != 1 or (result is not None and result.size == 1):
        relations.relate(own, result)
    else:
        relations.leave(own)


def _softmax(node: Node, relations: Relations) -> None:
    """Each output along the axis depends on all inputs; before opset 13, along all axes from there on."""
    rank = len(dims_of(node.inputs[0]) or ())
    first = int(node.attrs.get("axis", 1)) % max(rank, 1)  # of the older; the newer's default is the last
    _mix(node, range(first, rank), relations)


def _local_response(node: Node, relations: Relations) -> None:
    """Neighbouring channels are mixed."""
    _mix(node, (1,), relations)


def _lp_norm(node: Node, relations: Relations) -> None:
    """What lies along the axis is mixed."""
    _mix(node, (int(node.attrs.get("axis", -1)) % max(len(dims_of(node.inputs[0]) or ()), 1),), relations)


def _mix(node: Node, axes: Iterable[int], relations: Relations) -> None:
    rank, mixed = len(dims_of(node.inputs[0]) or ()), set(axes)
    relations.keep(node.inputs[0], node.outputs[0], [axis for axis in range(rank) if axis not in mixed])
    for axis in mixed:
        for tensor in (node.inputs[0], node.outputs[0]):
            relations.freeze(relations.axis(tensor, axis), f"{node.op} mixes it")


_ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod",
    "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _keep),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCTIONS, moves.reduce_rule),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layers.layernorm_rule),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), moves.squeeze_rule),
    **dict.fromkeys(("Reshape", "Flatten"), regroup_rule),
    **dict.fromkeys(("Resize", "Upsample"), moves.resize_rule),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), moves.depth_to_space_rule),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), layers.recurrent_rule),
    "BatchNormalization": layers.batchnorm_rule,
    "Concat": moves.concat_rule,
    "Conv": layers.conv_rule,
    "ConvTranspose": layers.conv_transpose_rule,
    "Expand": moves.expand_rule,
    "Gather": moves.gather_rule,
    "Gemm": layers.gemm_rule,
    "GroupNormalization": layers.groupnorm_rule,
    "InstanceNormalization": layers.instancenorm_rule,
    "LRN": _local_response,
    "LpNormalization": _lp_norm,
    "MatMul": layers.matmul_rule,
    "Pad": moves.pad_rule,
    "Shape": moves.shape_rule,
    "Slice": moves.slice_rule,
    "Split": moves.split_rule,
    "Transpose": moves.transpose_rule,
}
"""Rules by operator of the standard domain."""
