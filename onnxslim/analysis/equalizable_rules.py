"""How each operator treats scales of channels: one small rule for each, in a table.

A rule gets the node and the flow so far, in topological order, and gives its outputs their variables. See
``equalizable`` for what they mean. An operator without a rule holds all it reads at scale 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import numpy as np

from onnxslim.analysis import equalizable_layers as layers
from onnxslim.analysis import equalizable_moves as moves
from onnxslim.analysis.equalizable import Cap, Flow, Labels, Parameter
from onnxslim.analysis.equalizable_layers import along, padded, scalable
from onnxslim.analysis.relations import integers
from onnxslim.ir import Constant, Model, Node, Tensor, array_of, dims_of, is_standard, subgraphs_of

Rule = Callable[[Node, Flow], None]
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
            for tensor in node.inputs[1:] if node.op in _ONE_OPERAND else ():
                flow.hold(flow.of(tensor), f"{node.op} takes it for a parameter")
            rule(node, flow)
    for tensor in model.graph.outputs:
        flow.hold(flow.of(tensor), "it is an output of the model")
    for inner in model.graph.subgraphs(recursive=True) if model.nested else ():
        for tensor in (*inner.outputs, *(tensor for node in inner.nodes for tensor in node.inputs)):
            flow.hold(flow.of(tensor), "a subgraph reads it")


# ---- operators that scale with their input ---------------------------------------------------------------------------


def _keep(node: Node, flow: Flow) -> None:
    flow.give(node.outputs[0], flow.of(node.inputs[0]))


def _clip(node: Node, flow: Flow) -> None:
    """Relu where only negative values are cut; otherwise whoever scales must see to what lies above."""
    bounds = _bounds(node)
    if bounds is None or not bounds[0] <= 0 <= bounds[1]:
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
    if any(map(math.isnan, ends)):
        return None
    low, high = (end if abs(end) < _NO_LIMIT else math.copysign(math.inf, end) for end in ends)
    return low, high


def _pool(node: Node, flow: Flow) -> None:
    """Each channel on its own, over axes along which nothing is scaled differently."""
    labels = flow.of(node.inputs[0])
    if along(labels, 1, labels.shape[1] if labels.ndim > 1 else 1) is None:
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
    changed = [axis for axis, size in enumerate(labels.shape) if size != 1 and before[axis] != after[axis]]
    if changed:
        known = all(isinstance(after[axis], int) for axis in changed)
        flow.hold(labels, f"{node.op} {'mixes its channels' if known else 'makes a size that is not known'}")
        return
    flow.give(node.outputs[0], labels)


# ---- several operands ------------------------------------------------------------------------------------------------


def _sum(node: Node, flow: Flow) -> None:
    """Operands share their scales; a constant one follows."""
    if any(dims_of(tensor) is None for tensor in node.inputs):
        flow.hold_inputs(node, f"an operand of {node.op} has an unknown rank")
        return
    rank = max(len(dims_of(tensor) or ()) for tensor in node.inputs)
    computed = [padded(flow.of(tensor), rank) for tensor in node.inputs if not isinstance(tensor, Constant)]
    if not any(labels.any() for labels in computed):
        return
    labels = functools.reduce(flow.same, computed)
    for slot, tensor in enumerate(node.inputs):
        if isinstance(tensor, Constant):
            _add_constant(node, slot, labels, flow)
    flow.give(node.outputs[0], labels)


def _add_constant(node: Node, slot: int, labels: Labels, flow: Flow) -> None:
    values = array_of(node.inputs[slot])
    if values is None or not scalable(values):
        flow.hold(labels, f"{node.op} has a constant that is not finite float32 or float64")
    else:
        flow.shifts.append(Parameter(node, slot, values, np.zeros((), np.int64), labels))


def _product(node: Node, flow: Flow) -> None:
    """A constant for each channel makes channels, another changes no scale; a factor that is computed is a gate."""
    left, right = node.inputs[0], node.inputs[1]
    slot = next((slot for slot in (0, 1) if isinstance(node.inputs[slot], Constant)), None)
    if node.op == "Mul" and slot is not None and layers.multiplied(node, slot, flow):
        return
    if any(not isinstance(tensor, Constant) and dims_of(tensor) is None for tensor in (left, right)):
        flow.hold_inputs(node, f"an operand of {node.op} has an unknown rank")
        return
    scaled, other = (right, left) if _is_gate(left, right, node.op) else (left, right)
    flow.hold(flow.of(other), f"{node.op} takes it for a factor")
    rank = max(len(dims_of(left) or ()), len(dims_of(right) or ()))
    flow.give(node.outputs[0], padded(flow.of(scaled), rank))


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
    labels = flow.same(flow.of(node.inputs[1]), flow.of(node.inputs[2]))
    flow.give(node.outputs[0], padded(labels, max(labels.ndim, len(dims_of(node.outputs[0]) or ()))))


def _nothing(node: Node, flow: Flow) -> None:
    """It looks at shapes alone."""


def _table(rule: Rule, names: Iterable[str]) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


RULES: dict[str, Rule] = {
    **_table(_keep, ("Abs", "Dropout", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu")),
    **_table(_pool, ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")),
    **_table(_reduce, ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")),
    **_table(_resize, ("Resize", "Upsample")),
    **_table(_sum, ("Add", "Sub", "Sum", "Mean", "Max", "Min")),
    **_table(_product, ("Mul", "Div")),
    **_table(_nothing, ("Shape", "Size")),
    "Clip": _clip,
    "Where": _where,
    **layers.RULES,
    **moves.RULES,
}
"""Rules by operator of the standard domain."""

_ONE_OPERAND = frozenset(RULES) - {
    *layers.RULES, "Add", "Sub", "Sum", "Mean", "Max", "Min", "Mul", "Div", "Where", "Concat",
}  # fmt: skip
"""Operators whose first input alone has channels that the output has."""
