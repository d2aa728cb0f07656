"""How each operator relates channels: one small rule for each, in a table.

A rule gets the node and the relations found so far, in topological order. It says along which axis its outputs'
channels lie and which indices belong together, or freezes what it does not understand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxslim.analysis.channels import Dimension, Layer, Relations
from onnxslim.ir import Constant, Model, Node, Tensor, array_of, dims_of, is_standard

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
        if rule is None or any(True for _ in node.subgraphs()):
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


def _same(node: Node, relations: Relations) -> None:
    """The output's channels are the input's."""
    axis = relations.axes.get(id(node.inputs[0]))
    if axis is None:
        relations.freeze_node(node, f"the input of {node.op} is not understood")
        return
    relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], axis))
    for extra in node.outputs[1:]:
        if extra.outputs:
            relations.freeze(relations.channel(node.inputs[0]), f"a second output of {node.op} is read")


def _pool(node: Node, relations: Relations) -> None:
    if relations.axes.get(id(node.inputs[0])) == 1:
        _same(node, relations)
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
    _same(node, relations)


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


# ---- operators that move channels ------------------------------------------------------------------------------------


def _concat(node: Node, relations: Relations) -> None:
    dims = dims_of(node.outputs[0]) or dims_of(node.inputs[0])
    axes = {relations.axes.get(id(tensor)) for tensor in node.inputs}
    if dims is None or len(axes) != 1 or None in axes:
        relations.freeze_node(node, "pieces of a Concat do not line up, or are not understood")
        return
    axis = axes.pop()
    out = relations.follow(node.outputs[0], axis or 0)
    if int(node.attrs["axis"]) % len(dims) != axis:
        for tensor in node.inputs:
            relations.relate(relations.channel(tensor), out)
        return
    offset = 0
    for tensor in node.inputs:
        piece = relations.channel(tensor)
        if piece is None or out is None:
            relations.freeze_node(node, "the size of a piece of a Concat is unknown")
            return
        index = np.arange(piece.size)
        relations.relate(piece, out, index, index + offset)
        offset += piece.size


def _transpose(node: Node, relations: Relations) -> None:
    axis, perm = relations.axes.get(id(node.inputs[0])), node.attrs.get("perm")
    if axis is None or perm is None:
        relations.freeze_node(node, "it reverses all axes")
        return
    relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], list(perm).index(axis)))


def _flatten(node: Node, relations: Relations) -> None:
    if int(node.attrs.get("axis", 1)) != 1:
        relations.freeze_node(node, "it flattens the batch axis too")
        return
    _merge_tail(node, relations)


def _reshape(node: Node, relations: Relations) -> None:
    """N x C x … to N x (C·…), or the other way round when the rest is 1."""
    target, before, after = array_of(node.inputs[1]), dims_of(node.inputs[0]), dims_of(node.outputs[0])
    if target is None or before is None or after is None or relations.axes.get(id(node.inputs[0])) != 1:
        relations.freeze_node(node, "a Reshape whose effect on channels is not understood")
    elif len(after) == 2:
        if _merge_tail(node, relations) and int(target[1]) > 0:
            _note_target(node, relations)
    elif len(after) > 2 and all(d == 1 for d in (*before[2:], *after[2:])) and before[1] == after[1]:
        relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], 1))
        if int(target[1]) > 0:
            _note_target(node, relations)
    else:
        relations.freeze_node(node, "a Reshape whose effect on channels is not understood")


def _note_target(node: Node, relations: Relations) -> None:
    out = relations.channel(node.outputs[0])
    if out is not None:
        relations.targets.append((node, 1, out))


def _merge_tail(node: Node, relations: Relations) -> bool:
    """Couple entry i of the flattened tensor with channel i // (product of the axes after it)."""
    source, before = relations.channel(node.inputs[0]), dims_of(node.inputs[0])
    sizes = [dim for dim in (before or ())[2:] if isinstance(dim, int)]
    if before is None or source is None or source.axis != 1 or len(sizes) != len(before) - 2:
        relations.freeze_node(node, "it flattens a tensor of unknown size")
        return False
    inner = math.prod(sizes)
    dims = dims_of(node.outputs[0])
    out = relations.follow(node.outputs[0], 1)
    if dims is None or len(dims) != 2 or out is None or out.size != source.size * inner:
        relations.freeze_node(node, "it flattens a tensor of unknown size")
        return False
    index = np.arange(out.size)
    relations.relate(source, out, index // max(inner, 1), index)
    return True


def _squeeze(node: Node, relations: Relations) -> None:
    """Axes of size 1 come or go; the channel axis keeps its place among the others."""
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    axis, axes = relations.axes.get(id(node.inputs[0])), _axes(node)
    if before is None or after is None or axis is None or axes is None:
        relations.freeze_node(node, f"axes of a {node.op} are unknown")
        return
    longer = max(len(before), len(after))
    touched = {a % longer for a in axes}
    if node.op == "Squeeze" and axis in touched:
        relations.freeze_node(node, "it removes the channel axis")
        return
    kept = [a for a in range(longer) if a not in touched]
    new = kept[axis] if node.op == "Unsqueeze" else kept.index(axis)
    relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], new))


def _reduce(node: Node, relations: Relations) -> None:
    before, axis, axes = dims_of(node.inputs[0]), relations.axes.get(id(node.inputs[0])), _axes(node)
    if before is None or axis is None or axes is None or axis in {a % len(before) for a in axes}:
        relations.freeze_node(node, f"{node.op} mixes channels")
        return
    dropped = 0 if node.attrs.get("keepdims", 1) else sum(a % len(before) < axis for a in axes)
    relations.relate(relations.channel(node.inputs[0]), relations.follow(node.outputs[0], axis - dropped))


def _axes(node: Node) -> Sequence[int] | None:
    """Return the axes of a Squeeze, Unsqueeze or reduction, as attribute or constant input."""
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    values = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if values is None else [int(axis) for axis in values.reshape(-1)]


def _pad(node: Node, relations: Relations) -> None:
    axis, dims = relations.axes.get(id(node.inputs[0])), dims_of(node.inputs[0])
    pads = node.attrs.get("pads")
    if pads is None and len(node.inputs) < 4:
        array = array_of(node.inputs[1])
        pads = None if array is None else array.tolist()
    if (
        axis is None
        or dims is None
        or pads is None
        or len(pads) != 2 * len(dims)
        or pads[axis]
        or pads[axis + len(dims)]
    ):
        relations.freeze_node(node, "it pads channels, or by computed amounts")
        return
    _same(node, relations)


def _slice(node: Node, relations: Relations) -> None:
    """A Slice of other axes keeps channels; the output's channels are then as many as the input's."""
    source, after = relations.channel(node.inputs[0]), dims_of(node.outputs[0])
    axes = node.attrs.get("axes") if "starts" in node.attrs else None
    if axes is None and len(node.inputs) > 3:
        values = array_of(node.inputs[3])
        axes = None if values is None else values.tolist()
    if source is None or after is None or axes is None or source.axis in {int(a) % len(after) for a in axes}:
        relations.freeze_node(node, "it slices channels, or along computed axes")
        return
    _same(node, relations)


def _resize(node: Node, relations: Relations) -> None:
    """Scales leave the channel axis alone when its scale is 1; sizes would name the number of channels."""
    axis = relations.axes.get(id(node.inputs[0]))
    scales = array_of(node.inputs[2 if len(node.inputs) > 2 else 1]) if len(node.inputs) < 4 else None
    if axis is None or scales is None or axis >= scales.size or scales.reshape(-1)[axis] != 1:
        relations.freeze_node(node, "it resizes channels, or to fixed sizes")
        return
    _same(node, relations)


_ELEMENTWISE = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
    "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Sum", "Mean"), _broadcast),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _pool),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduce),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _squeeze),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Concat": _concat,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Pad": _pad,
    "Slice": _slice,
    "Resize": _resize,
    "Upsample": _resize,
}
