"""Rules of operators with weights: which axes make channels, and which read them.

See ``channel_rules`` for what a rule is and for the table of them all.
"""

from __future__ import annotations

import numpy as np

from onnxslim.analysis.relations import Counted, Dimension, Relations
from onnxslim.ir import Constant, Node, dims_of


def _given(node: Node, slot: int) -> bool:
    return len(node.inputs) > slot and bool(node.inputs[slot].name)


def _bias(node: Node, slot: int, out: Dimension | None, relations: Relations) -> None:
    """A vector with one value for each channel."""
    if _given(node, slot):
        relations.relate(relations.parameter(node, slot, 0), out)


# ---- convolutions ------------------------------------------------------------------------------------------------


def conv_rule(node: Node, relations: Relations) -> None:
    """x: N x C x …, W: O x C/g x …; the bias has O values."""
    _convolution(node, relations, filters=0)


def conv_transpose_rule(node: Node, relations: Relations) -> None:
    """x: N x C x …, W: C x O/g x …; the bias has O values."""
    _convolution(node, relations, filters=1)


def _convolution(node: Node, relations: Relations, filters: int) -> None:
    source, out = relations.axis(node.inputs[0], 1), relations.axis(node.outputs[0], 1)
    relations.relate(relations.axis(node.inputs[0], 0), relations.axis(node.outputs[0], 0))
    if not isinstance(node.inputs[1], Constant):
        relations.freeze_node(node, "its weights are computed")
        return
    if source is None or out is None:
        relations.freeze_node(node, "its channels are unknown")
        return
    group = int(node.attrs.get("group", 1))
    made, read = relations.axis(node.inputs[1], filters), relations.axis(node.inputs[1], 1 - filters)
    if group == 1:
        relations.relate(source, read)
        relations.relate(made, out)
        relations.read(node, read)
        relations.produce(node, made)
    elif group >= source.size // group:
        _whole_groups(node, (source, out), (made, read), group, relations)
    else:
        _alike_in_groups(node, (source, out), (made, read), group, relations)
    _bias(node, 2, out, relations)


def _whole_groups(
    node: Node,
    channels: tuple[Dimension, Dimension],
    weight: tuple[Dimension | None, Dimension | None],
    group: int,
    relations: Relations,
) -> None:
    """Groups go as a whole, depthwise filters among them: one index couples a group's inputs with its outputs.

    The weight's first axis counts outputs of a convolution, inputs of a transposed one.
    """
    source, out = channels
    per_in, per_out = source.size // group, out.size // group
    inputs, outputs = np.arange(source.size), np.arange(out.size)
    relations.couple(source, inputs // per_in)
    relations.relate(source, out, outputs // per_out * per_in, outputs)
    first = next(axis for axis in weight if axis is not None and axis.axis == 0)
    relations.relate(first, out if first is weight[0] else source)
    relations.produce(node, first)
    relations.adjustments.append(Counted(node, "group", source, per_in))


def _alike_in_groups(
    node: Node,
    channels: tuple[Dimension, Dimension],
    weight: tuple[Dimension | None, Dimension | None],
    group: int,
    relations: Relations,
) -> None:
    """Few wide groups: each loses the same places, so that all stay equally wide.

    One axis of the weight spans all groups, the other one group, whose places stand for those of every group.
    """
    source, out = channels
    for whole, part in ((source, weight[1]), (out, weight[0])):
        index = np.arange(whole.size)
        place = index % (whole.size // group)
        relations.couple(whole, place)
        if part is not None and part.size == whole.size:
            relations.relate(whole, part)
        else:
            relations.relate(whole, part, index, place)
    relations.read(node, weight[1])
    relations.produce(node, weight[0])


# ---- matrices ----------------------------------------------------------------------------------------------------


def gemm_rule(node: Node, relations: Relations) -> None:
    """A: M x K, B: K x N, either transposed; C is broadcast."""
    rows, inner = (1, 0) if node.attrs.get("transA") else (0, 1)
    made, read = (0, 1) if node.attrs.get("transB") else (1, 0)
    out = node.outputs[0]
    relations.relate(relations.axis(node.inputs[0], rows), relations.axis(out, 0))
    relations.relate(relations.axis(node.inputs[0], inner), relations.axis(node.inputs[1], read))
    relations.relate(relations.axis(node.inputs[1], made), relations.axis(out, 1))
    if isinstance(node.inputs[1], Constant):
        relations.read(node, relations.axis(node.inputs[1], read))
        relations.produce(node, relations.axis(node.inputs[1], made))
    else:
        relations.freeze(relations.axis(node.inputs[1], read), "it multiplies two activations along it")
    if _given(node, 2):
        for axis in (-1, -2):
            extra = relations.parameter(node, 2, axis)
            if extra is not None and extra.size != 1:
                relations.relate(extra, relations.axis(out, axis))


def matmul_rule(node: Node, relations: Relations) -> None:
    """A: … x M x K, B: … x K x N; leading axes are broadcast."""
    left, right, out = node.inputs[0], node.inputs[1], node.outputs[0]
    ranks = [len(dims_of(tensor) or ()) for tensor in (left, right, out)]
    if min(ranks) < 2 or ranks[2] != max(ranks[:2]):
        relations.freeze_node(node, "it multiplies vectors, or tensors of unknown rank")
        return
    relations.relate(relations.axis(left, -1), relations.axis(right, -2))
    relations.relate(relations.axis(left, -2), relations.axis(out, -2))
    relations.relate(relations.axis(right, -1), relations.axis(out, -1))
    for axis in range(3, ranks[2] + 1):
        for slot in (0, 1):
            batch = relations.axis(node.inputs[slot], -axis)
            if batch is not None and batch.size != 1:
                relations.relate(batch, relations.axis(out, -axis))
    if isinstance(right, Constant):
        relations.read(node, relations.axis(node.inputs[1], -2))
        relations.produce(node, relations.axis(node.inputs[1], -1))
    elif isinstance(left, Constant):
        relations.read(node, relations.axis(node.inputs[0], -1))
        relations.produce(node, relations.axis(node.inputs[0], -2))
    else:
        relations.freeze(relations.axis(left, -1), "it multiplies two activations along it")


# ---- recurrent layers --------------------------------------------------------------------------------------------

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent_rule(node: Node, relations: Relations) -> None:
    """X: T x N x I; W: D x gH x I, R: D x gH x H, B: D x 2gH, P: D x 3H; states end in H, in either layout.

    A hidden unit is one index in every gate, direction, state and output.
    """
    gates = _GATES[node.op]
    if not all(isinstance(node.inputs[slot], Constant) for slot in (1, 2)):
        relations.freeze_node(node, "its weights are computed")
        return
    hidden = relations.axis(node.inputs[2], 2)
    if hidden is None:
        relations.freeze_node(node, "its hidden size is unknown")
        return
    read = relations.axis(node.inputs[1], 2)
    relations.relate(relations.axis(node.inputs[0], 2), read)
    relations.read(node, read)
    relations.read(node, hidden)
    for slot in (1, 2):
        _by_gate(relations.axis(node.inputs[slot], 1), hidden, gates, relations)
    for slot, count in ((3, 2 * gates), (7, 3)):
        if _given(node, slot):
            _by_gate(relations.parameter(node, slot, 1), hidden, count, relations)
    relations.produce(node, relations.axis(node.inputs[1], 1))
    for slot in (5, 6):
        if _given(node, slot):
            relations.relate(relations.parameter(node, slot, 2), hidden)
    for tensor in node.outputs:
        if tensor.name:
            relations.relate(relations.axis(tensor, -1), hidden)
    relations.adjustments.append(Counted(node, "hidden_size", hidden))


def _by_gate(stacked: Dimension | None, hidden: Dimension, gates: int, relations: Relations) -> None:
    """Relate ``gates`` blocks of H values with the hidden units."""
    if stacked is None or stacked.size != gates * hidden.size:
        relations.freeze(hidden, "its gates are computed or of unknown size")
        return
    index = np.arange(stacked.size)
    relations.relate(stacked, hidden, index, index % hidden.size)


# ---- normalizations ----------------------------------------------------------------------------------------------


def batchnorm_rule(node: Node, relations: Relations) -> None:
    """Scale, bias, mean and variance have one value for each channel; so have second outputs."""
    relations.keep(node.inputs[0], node.outputs[0])
    channels = relations.axis(node.inputs[0], 1)
    for slot in range(1, len(node.inputs)):
        _bias(node, slot, channels, relations)
    for tensor in node.outputs[1:]:
        if tensor.name:
            relations.relate(relations.axis(tensor, 0), channels)


def instancenorm_rule(node: Node, relations: Relations) -> None:
    """Each channel is normalized over its own space."""
    relations.keep(node.inputs[0], node.outputs[0], (0, 1))
    for slot in (1, 2):
        _bias(node, slot, relations.axis(node.inputs[0], 1), relations)


def groupnorm_rule(node: Node, relations: Relations) -> None:
    """Statistics are shared in a group of channels, which stays or goes whole; parameters are per channel or group."""
    relations.keep(node.inputs[0], node.outputs[0], (0, 1))
    channels, groups = relations.axis(node.inputs[0], 1), int(node.attrs.get("num_groups", 1))
    if channels is None or channels.size % groups:
        relations.freeze_node(node, "its channels are unknown")
        return
    width = channels.size // groups
    index = np.arange(channels.size)
    relations.couple(channels, index // width)
    for slot in (1, 2):
        values = relations.parameter(node, slot, 0)
        if values is not None and values.size == groups:
            relations.relate(channels, values, index, index // width)
        else:
            relations.relate(channels, values)
    relations.adjustments.append(Counted(node, "num_groups", channels, width))


def layernorm_rule(node: Node, relations: Relations) -> None:
    """Statistics mix what lies along the normalized axes."""
    rank = len(dims_of(node.inputs[0]) or ())
    first = int(node.attrs.get("axis", -1)) % max(rank, 1)
    relations.keep(node.inputs[0], node.outputs[0], range(first))
    for axis in range(first, rank):
        for tensor in (node.inputs[0], node.outputs[0]):
            relations.freeze(relations.axis(tensor, axis), f"{node.op} takes statistics over it")
