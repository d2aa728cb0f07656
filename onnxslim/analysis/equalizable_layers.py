"""Rules of what makes channels: layers with weights, normalizations, products with a constant for each channel.

See ``equalizable_rules`` for what a rule is and for the table of them all.
"""

from __future__ import annotations

import numpy as np

from onnxslim.analysis.equalizable import Array, Flow, Labels, Parameter
from onnxslim.ir import Constant, Node, anchor_of, array_of, dims_of

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_NONE = np.zeros((), np.int64)


# ---- layers with weights ---------------------------------------------------------------------------------------------


def _weight(node: Node, slot: int, flow: Flow) -> Array | None:
    """Return the node's weight, None where it cannot be scaled; what the node reads is held then."""
    tensor = node.inputs[slot]
    values = array_of(tensor)
    reason = None
    if values is None:
        reason = "computed"
    elif not scalable(values):
        reason = "not finite float32 or float64"
    elif len(tensor.outputs) > 1:
        reason = "shared with another node"
    if reason is None:
        return values
    flow.hold_inputs(node, f"the weights of {node.op} beside it are {reason}")
    flow.left.append((anchor_of(node), f"its weights are {reason}"))
    return None


def scalable(values: Array | None) -> bool:
    """Whether a constant is one that scales can meet."""
    return values is not None and values.dtype in _FLOATS and bool(np.isfinite(values).all())


def along(labels: Labels, axis: int, size: int) -> Labels | None:
    """Return the labels of a tensor's channels as a vector, None where scales vary along another axis as well."""
    if labels.size > 1 and (labels.size != size or labels.shape[axis:][:1] != (size,)):
        return None
    return np.broadcast_to(labels.reshape(-1), (size,))


def _add_bias(node: Node, slot: int, labels: Labels, flow: Flow) -> Labels:
    """Let a bias follow the scales of ``labels`` (of the output's rank); return the output's labels."""
    if len(node.inputs) <= slot or not node.inputs[slot].name:
        return labels
    values = array_of(node.inputs[slot])
    if values is None:
        return flow.same(labels, padded(flow.of(node.inputs[slot]), labels.ndim))
    if scalable(values):
        rank = max(values.ndim, 1)
        trailing = labels.reshape(labels.shape[-rank:]) if labels.ndim > rank else labels
        flow.shifts.append(Parameter(node, slot, values, _NONE, trailing))
        return labels
    flow.hold(labels, f"the bias of {node.op} is not finite float32 or float64")
    return labels


def padded(labels: Labels, rank: int) -> Labels:
    """Return labels of a tensor that is broadcast to ``rank`` axes."""
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _conv(node: Node, flow: Flow) -> None:
    """W: O x C/g x …; of each group's outputs and inputs."""
    values = _weight(node, 1, flow)
    if values is None:
        return
    group = int(node.attrs.get("group", 1))
    channels = values.shape[1] * group
    source = along(flow.of(node.inputs[0]), 1, channels)
    if source is None:
        flow.hold_inputs(node, "scales would vary along an axis that Conv sums over")
        source = np.zeros(channels, np.int64)
    ones = (1,) * (values.ndim - 2)
    out = flow.fresh(values.shape[0])
    into = _each(source, group, values.shape[0])
    flow.weights.append(Parameter(node, 1, values, into.reshape(*into.shape, *ones), out.reshape(-1, 1, *ones)))
    _vector_bias(node, out, flow)
    flow.give(node.outputs[0], out.reshape(1, -1, *ones))


def _conv_transpose(node: Node, flow: Flow) -> None:
    """W: C x O/g x …."""
    values = _weight(node, 1, flow)
    if values is None:
        return
    group = int(node.attrs.get("group", 1))
    source = along(flow.of(node.inputs[0]), 1, values.shape[0])
    if source is None:
        flow.hold_inputs(node, "scales would vary along an axis that ConvTranspose sums over")
        source = np.zeros(values.shape[0], np.int64)
    ones = (1,) * (values.ndim - 2)
    out = flow.fresh(values.shape[1] * group)
    made = _each(out, group, values.shape[0])
    flow.weights.append(Parameter(node, 1, values, source.reshape(-1, 1, *ones), made.reshape(*made.shape, *ones)))
    _vector_bias(node, out, flow)
    flow.give(node.outputs[0], out.reshape(1, -1, *ones))


def _each(labels: Labels, group: int, rows: int) -> Labels:
    """Return the labels of each group for each of its rows, one row for all where there are no groups."""
    return labels.reshape(1, -1) if group == 1 else np.repeat(labels.reshape(group, -1), rows // group, axis=0)


def _vector_bias(node: Node, out: Labels, flow: Flow) -> None:
    """Conv's bias: a constant vector, or one that is computed and keeps its scales at 1."""
    if len(node.inputs) > 2 and node.inputs[2].name and array_of(node.inputs[2]) is None:
        flow.hold(out, f"the bias of {node.op} is computed")
        flow.hold(flow.of(node.inputs[2]), f"{node.op} reads it as a bias")
        return
    _add_bias(node, 2, out, flow)


def _gemm(node: Node, flow: Flow) -> None:
    if node.attrs.get("transA"):
        flow.hold_inputs(node, "Gemm transposes its input")
        return
    values = _weight(node, 1, flow)
    if values is not None:
        _matrix(node, values, flow, reads=1 if node.attrs.get("transB") else 0, rank=2)


def _matmul(node: Node, flow: Flow) -> None:
    dims = dims_of(node.inputs[0])
    if not isinstance(node.inputs[1], Constant) or len(node.inputs[1].shape) != 2 or not dims:
        _mixture(node, flow)
        return
    values = _weight(node, 1, flow)
    if values is not None:
        _matrix(node, values, flow, reads=0, rank=len(dims))


def _mixture(node: Node, flow: Flow) -> None:
    """A product of two activations hands on what the right one's columns have: attention mixes values so."""
    left, right, result = (flow.of(tensor) for tensor in (*node.inputs, node.outputs[0]))
    flow.hold(left, "MatMul sums over products with it")
    if right.ndim > 1 and right.shape[-2] == 1:
        flow.give(node.outputs[0], padded(right, max(right.ndim, result.ndim)))
    else:
        flow.hold(right, "MatMul sums over its channels, with other activations")


def _matrix(node: Node, values: Array, flow: Flow, reads: int, rank: int) -> None:
    """One axis of ``values`` is summed over, the other one makes outputs."""
    source = along(flow.of(node.inputs[0]), -1, values.shape[reads])
    if source is None:
        flow.hold_inputs(node, f"scales would vary along an axis that {node.op} does not sum over")
        source = np.zeros(values.shape[reads], np.int64)
    out = flow.fresh(values.shape[1 - reads])
    into, made = (source[:, None], out[None, :]) if reads == 0 else (source[None, :], out[:, None])
    flow.weights.append(Parameter(node, 1, values, into, made))
    result = out.reshape((1,) * (rank - 1) + (-1,))
    flow.give(node.outputs[0], _add_bias(node, 2, result, flow))


# ---- normalizations --------------------------------------------------------------------------------------------------


def _batchnorm(node: Node, flow: Flow) -> None:
    """γ·(x − μ)/σ + β: γ meets both sides, the mean the input's, β the output's."""
    dims, found = dims_of(node.inputs[0]), [_vector(node, slot) for slot in range(1, 5)]
    gamma, beta, mean, variance = found
    if gamma is None or beta is None or mean is None or variance is None or not dims:
        flow.hold_inputs(node, "BatchNormalization has parameters that are computed, or not one for each channel")
        return
    if node.attrs.get("training_mode") or any(tensor.name for tensor in node.outputs[1:]):
        flow.hold_inputs(node, "BatchNormalization is in training mode")
        return
    source = along(flow.of(node.inputs[0]), 1, gamma.size)
    if source is None:
        flow.hold_inputs(node, "scales would vary along another axis than BatchNormalization's")
        source = np.zeros(gamma.size, np.int64)
    out = flow.fresh(gamma.size)
    flow.makers.append(Parameter(node, 1, gamma, source, out))
    flow.shifts += [Parameter(node, 2, beta, _NONE, out), Parameter(node, 3, mean, _NONE, source)]
    flow.give(node.outputs[0], _placed(out, 1, len(dims)))


def _layer_norm(node: Node, flow: Flow) -> None:
    """LayerNormalization and RMSNormalization over the last axis, with a scale for each of its indices."""
    dims = dims_of(node.inputs[0])
    if dims and int(node.attrs.get("axis", -1)) % len(dims) == len(dims) - 1:
        _normalize(node, flow, len(dims) - 1)
    else:
        flow.hold_inputs(node, f"{node.op} does not scale with its input")


def _channel_norm(node: Node, flow: Flow) -> None:
    """InstanceNormalization and GroupNormalization, with a scale for each channel."""
    _normalize(node, flow, 1)


def _normalize(node: Node, flow: Flow, axis: int) -> None:
    """γ·x̂ + β, whatever the scale of x: only γ and β follow."""
    flow.hold_inputs(node, f"{node.op} does not scale with its input")
    dims, gamma, beta = dims_of(node.inputs[0]), _vector(node, 1), _vector(node, 2)
    if dims is None or gamma is None or (beta is None and len(node.inputs) > 2 and node.inputs[2].name):
        return
    if dims[axis : axis + 1] != (gamma.size,):
        return
    out = flow.fresh(gamma.size)
    flow.makers.append(Parameter(node, 1, gamma, _NONE, out))
    if beta is not None:
        flow.shifts.append(Parameter(node, 2, beta, _NONE, out))
    flow.give(node.outputs[0], _placed(out, axis, len(dims)))


def _vector(node: Node, slot: int) -> Array | None:
    """Return a constant vector that ``node`` reads, None where it is absent, computed, or of another kind."""
    values = array_of(node.inputs[slot]) if len(node.inputs) > slot else None
    return values if values is not None and values.ndim == 1 and scalable(values) else None


def _placed(labels: Labels, axis: int, rank: int) -> Labels:
    """Return labels that lie along one axis of so many."""
    return labels.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))


# ---- products with a constant ----------------------------------------------------------------------------------------


def multiplied(node: Node, slot: int, flow: Flow) -> bool:
    """Let a product with a constant for each channel, at ``slot``, be a layer that makes them; return whether it is.

    It reads each channel of the other operand and makes one: c·x / s_y = (c·s_x / s_y)·(x / s_x).
    """
    values, other, dims = array_of(node.inputs[slot]), node.inputs[1 - slot], dims_of(node.outputs[0])
    if values is None or not scalable(values) or len(node.inputs[slot].outputs) > 1:
        return False
    if dims is None or len(dims) < max(values.ndim, flow.of(other).ndim):
        return False
    shape = (1,) * (len(dims) - values.ndim) + values.shape
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    labels = padded(flow.of(other), len(dims))
    if len(axes) != 1 or dims[axes[0]] != values.size or labels.size not in (1, labels.shape[axes[0]]):
        return False
    out = _placed(flow.fresh(values.size), axes[0], len(dims))
    first = len(dims) - values.ndim
    into, made = (part.reshape(part.shape[first:]) for part in (labels, out))
    flow.weights.append(Parameter(node, slot, values, into, made))
    flow.give(node.outputs[0], out)
    return True


RULES = {
    "BatchNormalization": _batchnorm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GroupNormalization": _channel_norm,
    "InstanceNormalization": _channel_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "RMSNormalization": _layer_norm,
}
"""Rules by operator of the standard domain."""
