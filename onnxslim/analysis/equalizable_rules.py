"""How each operator treats scales of channels: one small rule for each, in a table.

A rule gets the node and the flow so far, in topological order, and gives its outputs their variables. See
``equalizable`` for what they mean. An operator without a rule holds all it reads at scale 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import numpy as np

from onnxslim.analysis import equalizable_moves as moves
from onnxslim.analysis.equalizable import Array, Cap, Flow, Labels, Parameter
from onnxslim.analysis.relations import integers
from onnxslim.ir import Constant, Model, Node, Tensor, array_of, dims_of, is_standard, subgraphs_of

Rule = Callable[[Node, Flow], None]
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_NO_LIMIT = float(np.finfo(np.float32).max)
"""What Clip's attributes default to before opset 11."""
_GATES = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Clip"})


def follow(model: Model, flow: Flow) -> None:
    """Walk the main graph in order and apply each node's rule."""
    for node in model.graph.nodes:
        rule = RULES.get(node.op) if is_standard(node) else None
        if rule is None or subgraphs_of(node):
            name = node.op if is_standard(node) else f"{node.domain}:{node.op}"
            flow.hold_inputs(node, f"{name} does not scale with its input")
        elif node.inputs:
            rule(node, flow)
    for tensor in model.graph.outputs:
        flow.hold(flow.of(tensor), "it is an output of the model")
    for inner in model.graph.subgraphs(recursive=True) if model.nested else ():
        for tensor in (*inner.outputs, *(tensor for node in inner.nodes for tensor in node.inputs)):
            flow.hold(flow.of(tensor), "a subgraph reads it")


# ---- layers with weights ---------------------------------------------------------------------------------------------


def _weight(node: Node, slot: int, flow: Flow) -> Array | None:
    """Return the node's weight, None where it cannot be scaled; what the node reads is held then."""
    tensor = node.inputs[slot]
    values = array_of(tensor)
    if values is None:
        flow.hold_inputs(node, f"the weights of {node.op} beside it are computed")
    elif values.dtype not in _FLOATS or not np.isfinite(values).all():
        flow.hold_inputs(node, f"the weights of {node.op} beside it are not finite float32 or float64")
    elif len(tensor.outputs) > 1:
        flow.hold_inputs(node, f"the weights of {node.op} beside it are shared with another node")
    else:
        return values
    return None


def _along(labels: Labels, axis: int, size: int) -> Labels | None:
    """Return the labels of a tensor's channels as a vector, None where scales vary along another axis as well."""
    if labels.size > 1 and labels.size != labels.shape[axis]:
        return None
    return np.broadcast_to(labels.reshape(-1), (size,))


def _add_bias(node: Node, slot: int, labels: Labels, flow: Flow) -> Labels:
    """Let a bias follow the scales of ``labels`` (of the output's rank); return the output's labels."""
    if len(node.inputs) <= slot or not node.inputs[slot].name:
        return labels
    values = array_of(node.inputs[slot])
    if values is None:
        return flow.same(labels, _padded(flow.of(node.inputs[slot]), labels.ndim))
    if values.dtype in _FLOATS:
        rank = max(values.ndim, 1)
        trailing = labels.reshape(labels.shape[-rank:]) if labels.ndim > rank else labels
        flow.shifts.append(Parameter(node, slot, values, np.zeros((), np.int64), trailing))
        return labels
    flow.hold(labels, f"the bias of {node.op} is not float32 or float64")
    return labels


def _padded(labels: Labels, rank: int) -> Labels:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _conv(node: Node, flow: Flow) -> None:
    """W: O x C/g x …; of each group's outputs and inputs."""
    values = _weight(node, 1, flow)
    if values is None:
        return
    group = int(node.attrs.get("group", 1))
    channels = values.shape[1] * group
    source = _along(flow.of(node.inputs[0]), 1, channels)
    if source is None or values.shape[0] % group:
        flow.hold_inputs(node, "scales would vary along an axis that Conv sums over")
        source = np.zeros(channels, np.int64)
    ones = (1,) * (values.ndim - 2)
    out = flow.fresh(values.shape[0])
    into = np.repeat(source.reshape(group, -1), values.shape[0] // group, axis=0)
    flow.weights.append(Parameter(node, 1, values, into.reshape(*into.shape, *ones), out.reshape(-1, 1, *ones)))
    _vector_bias(node, out, flow)
    flow.give(node.outputs[0], out.reshape(1, -1, *ones))


def _conv_transpose(node: Node, flow: Flow) -> None:
    """W: C x O/g x …."""
    values = _weight(node, 1, flow)
    if values is None:
        return
    group = int(node.attrs.get("group", 1))
    source = _along(flow.of(node.inputs[0]), 1, values.shape[0])
    if source is None:
        flow.hold_inputs(node, "scales would vary along an axis that ConvTranspose sums over")
        source = np.zeros(values.shape[0], np.int64)
    ones = (1,) * (values.ndim - 2)
    out = flow.fresh(values.shape[1] * group)
    made = np.repeat(out.reshape(group, -1), values.shape[0] // group, axis=0)
    flow.weights.append(Parameter(node, 1, values, source.reshape(-1, 1, *ones), made.reshape(*made.shape, *ones)))
    _vector_bias(node, out, flow)
    flow.give(node.outputs[0], out.reshape(1, -1, *ones))


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
        _matrix(node, values, flow, reads=1 if node.attrs.get("transB") else 0)


def _matmul(node: Node, flow: Flow) -> None:
    if array_of(node.inputs[1]) is None or len(node.inputs[1].shape) != 2 or not dims_of(node.inputs[0]):
        flow.hold_inputs(node, "MatMul multiplies two activations, or by something other than a matrix")
        return
    values = _weight(node, 1, flow)
    if values is not None:
        _matrix(node, values, flow, reads=0)


def _matrix(node: Node, values: Array, flow: Flow, reads: int) -> None:
    """One axis of ``values`` is summed over, the other one makes outputs."""
    labels = flow.of(node.inputs[0])
    source = _along(labels, -1, values.shape[reads])
    if source is None:
        flow.hold_inputs(node, f"scales would vary along an axis that {node.op} does not sum over")
        source = np.zeros(values.shape[reads], np.int64)
    out = flow.fresh(values.shape[1 - reads])
    into, made = (source[:, None], out[None, :]) if reads == 0 else (source[None, :], out[:, None])
    flow.weights.append(Parameter(node, 1, values, into, made))
    result = out.reshape((1,) * (max(labels.ndim, 1) - 1) + (-1,))
    flow.give(node.outputs[0], _add_bias(node, 2, result, flow))


def _batchnorm(node: Node, flow: Flow) -> None:
    """γ·(x − μ)/σ + β: γ meets both sides, the mean the input's, β the output's."""
    arrays = [array_of(tensor) for tensor in node.inputs[1:5]]
    if any(values is None or values.dtype not in _FLOATS for values in arrays) or any(t.name for t in node.outputs[1:]):
        flow.hold_inputs(node, "BatchNormalization is in training mode, or its parameters are computed")
        return
    gamma, beta, mean = (values for values in arrays[:3] if values is not None)
    labels = flow.of(node.inputs[0])
    source = _along(labels, 1, gamma.size)
    if source is None:
        flow.hold_inputs(node, "scales would vary along another axis than BatchNormalization's")
        source = np.zeros(gamma.size, np.int64)
    none, out = np.zeros((), np.int64), flow.fresh(gamma.size)
    flow.shifts += [
        Parameter(node, 1, gamma, source, out),
        Parameter(node, 2, beta, none, out),
        Parameter(node, 3, mean, none, source),
    ]
    flow.give(node.outputs[0], out.reshape((1, -1) + (1,) * (max(labels.ndim, 2) - 2)))


# ---- operators that scale with their input ---------------------------------------------------------------------------


def _keep(node: Node, flow: Flow) -> None:
    flow.give(node.outputs[0], flow.of(node.inputs[0]))


def _prelu(node: Node, flow: Flow) -> None:
    """A slope for each channel, which no scale changes."""
    if flow.is_scaled(node.inputs[1]):
        flow.hold_inputs(node, "PRelu's slope is computed")
        return
    _keep(node, flow)


def _clip(node: Node, flow: Flow) -> None:
    """Relu where only negative values are cut; otherwise whoever scales must see to what lies above."""
    bounds = _bounds(node)
    if bounds is None or bounds[0] > 0 or bounds[1] < 0:
        flow.hold_inputs(node, "Clip has computed bounds, or bounds that do not hold zero")
        return
    labels = flow.of(node.inputs[0])
    commutes = bounds[0] in (0.0, -np.inf) and bounds[1] in (0.0, np.inf)
    if labels.any() and not commutes:
        flow.caps.append(Cap(node, labels, *bounds))
    flow.give(node.outputs[0], labels)


def _bounds(node: Node) -> tuple[float, float] | None:
    """Return the ends of a Clip, infinite where open: attributes before opset 11, optional inputs since."""
    ends = [float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))]
    for slot, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            values = array_of(tensor)
            if values is None or values.size != 1:
                return None
            ends[slot] = float(values.reshape(-1)[0])
    low, high = (end if abs(end) < _NO_LIMIT else math.copysign(math.inf, end) for end in ends)
    return low, high


def _pool(node: Node, flow: Flow) -> None:
    """Each channel on its own, over axes along which nothing is scaled differently."""
    labels = flow.of(node.inputs[0])
    if _along(labels, 1, labels.shape[1] if labels.ndim > 1 else 1) is None:
        flow.hold(labels, f"scales would vary within the window of {node.op}")
        return
    flow.give(node.outputs[0], labels)


def _reduce(node: Node, flow: Flow) -> None:
    labels = flow.of(node.inputs[0])
    axes = integers(node, "axes", 1)
    if not labels.any():
        return
    if axes is None or (not axes and node.attrs.get("noop_with_empty_axes")):
        flow.hold(labels, f"{node.op} runs over computed axes")
        return
    places = tuple(axis % labels.ndim for axis in axes) or tuple(range(labels.ndim))
    if any(labels.shape[axis] != 1 for axis in places):
        flow.hold(labels, f"{node.op} runs over its channels")
        return
    flow.give(node.outputs[0], labels if node.attrs.get("keepdims", 1) else np.squeeze(labels, places))


def _resize(node: Node, flow: Flow) -> None:
    labels, before, after = flow.of(node.inputs[0]), dims_of(node.inputs[0]), dims_of(node.outputs[0])
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if before is None or after is None or len(before) != len(after) or crops:
        flow.hold(labels, f"{node.op} works in a way that is not understood")
        return
    if any(size != 1 and before[axis] != after[axis] for axis, size in enumerate(labels.shape)):
        flow.hold(labels, f"{node.op} mixes its channels")
        return
    flow.give(node.outputs[0], labels)


# ---- several operands ------------------------------------------------------------------------------------------------


def _sum(node: Node, flow: Flow) -> None:
    """Operands share their scales; a constant one follows."""
    if any(dims_of(tensor) is None for tensor in node.inputs):
        flow.hold_inputs(node, f"an operand of {node.op} has an unknown rank")
        return
    rank = max(len(dims_of(tensor) or ()) for tensor in node.inputs)
    computed = [_padded(flow.of(tensor), rank) for tensor in node.inputs if not isinstance(tensor, Constant)]
    if not any(labels.any() for labels in computed):
        return
    labels = functools.reduce(flow.same, computed)
    for slot, tensor in enumerate(node.inputs):
        if isinstance(tensor, Constant):
            _add_constant(node, slot, labels, flow)
    flow.give(node.outputs[0], labels)


def _add_constant(node: Node, slot: int, labels: Labels, flow: Flow) -> None:
    values = array_of(node.inputs[slot])
    if values is None or values.dtype not in _FLOATS:
        flow.hold(labels, f"{node.op} adds a constant that is not float32 or float64")
    else:
        flow.shifts.append(Parameter(node, slot, values, np.zeros((), np.int64), labels))


def _product(node: Node, flow: Flow) -> None:
    """A constant factor changes no scale; of two activations, one is a gate and keeps its own at 1."""
    left, right = node.inputs[0], node.inputs[1]
    if any(not isinstance(tensor, Constant) and dims_of(tensor) is None for tensor in (left, right)):
        flow.hold_inputs(node, f"an operand of {node.op} has an unknown rank")
        return
    scaled, other = (right, left) if _is_gate(left, right, node.op) else (left, right)
    flow.hold(flow.of(other), f"{node.op} takes it for a factor")
    rank = max(len(dims_of(left) or ()), len(dims_of(right) or ()))
    flow.give(node.outputs[0], _padded(flow.of(scaled), rank))


def _is_gate(left: Tensor, right: Tensor, op: str) -> bool:
    """Whether the left operand is the factor: constant, bounded, or smaller than the right one."""
    if op == "Div":
        return False
    if isinstance(left, Constant) or isinstance(right, Constant):
        return isinstance(left, Constant)
    makers = [tensor.inputs[0].op if tensor.inputs else "" for tensor in (left, right)]
    if (makers[0] in _GATES) != (makers[1] in _GATES):
        return makers[0] in _GATES
    sizes = [sum(dim == 1 for dim in dims_of(tensor) or ()) for tensor in (left, right)]
    return sizes[0] > sizes[1]


def _where(node: Node, flow: Flow) -> None:
    flow.hold(flow.of(node.inputs[0]), "Where takes it for a condition")
    if any(isinstance(tensor, Constant) for tensor in node.inputs[1:]):
        flow.hold_inputs(node, "Where puts constants between its channels")
        return
    flow.give(node.outputs[0], flow.same(flow.of(node.inputs[1]), flow.of(node.inputs[2])))


def _nothing(node: Node, flow: Flow) -> None:
    """It looks at shapes alone."""


def _table(rule: Rule, names: Iterable[str]) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


RULES: dict[str, Rule] = {
    **_table(_keep, ("Abs", "Dropout", "Identity", "LeakyRelu", "Neg", "Relu")),
    **_table(_pool, ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")),
    **_table(_reduce, ("ReduceL1", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")),
    **_table(_resize, ("Resize", "Upsample")),
    **_table(_sum, ("Add", "Sub", "Sum", "Mean", "Max", "Min")),
    **_table(_product, ("Mul", "Div")),
    **_table(_nothing, ("Shape", "Size")),
    "BatchNormalization": _batchnorm,
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "PRelu": _prelu,
    "Where": _where,
    **moves.RULES,
}
"""Rules by operator of the standard domain."""
