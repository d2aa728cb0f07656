"""Which nodes can compute in float16, asked of ONNX's own schemas, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxslim.ir import (
    Constant,
    Graph,
    Model,
    Node,
    Tensor,
    Variable,
    anchor_of,
    array_of,
    attribute,
    consumers,
    is_standard,
    numpy_dtype,
    producer,
    selects,
    subgraphs_of,
)

FLOAT32 = np.dtype(np.float32)
LARGEST = 65504.0
"""Of float16."""

_HALF = "tensor(float16)"
_WIDE = frozenset({"CumSum", "RoiAlign", "TopK"})
"""Exact in float32 on purpose: sums that grow, coordinates, and ranks that rounding would tie."""

_SATURATING = frozenset({"Add", "Clip", "Max", "Min", "Pad", "Sub", "Where"})
"""Operators whose constants beyond float16 mean "as far as it goes": bounds and masks."""

_MOVING = frozenset({
    "Cast", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that gain nothing by float16, and are not worth a Cast."""
SIZE_ONLY = frozenset({"Shape", "Size"})
"""Operators that read any type, and of a tensor only its shape."""

Ranges = Mapping[str, tuple[float, float] | None]


@dataclass
class Halves:
    """Nodes that compute in float16, by id, and the reasons of others by anchor."""

    nodes: dict[int, Node] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def has(self, node: Node | None) -> bool:
        """Whether ``node`` is one of them."""
        return node is not None and id(node) in self.nodes


def is_float32(tensor: Tensor) -> bool:
    """Whether ``tensor`` is known to be float32, and not a sequence of such."""
    return bool(tensor.name) and _is_tensor(tensor) and numpy_dtype(tensor.dtype) == FLOAT32


def _is_tensor(tensor: Tensor) -> bool:
    return not isinstance(tensor, Variable) or tensor.type == "tensor_type"


def floats_of(model: Model) -> list[str]:
    """Return the names of float32 tensors of the main graph that are fed or computed, in order."""
    computed = (tensor for node in model.graph.nodes for tensor in node.outputs)
    return [tensor.name for tensor in (*model.graph.inputs, *computed) if is_float32(tensor)]


def choose(model: Model, only: tuple[str, ...], exclude: tuple[str, ...], ranges: Ranges) -> Halves:
    """Return which nodes of ``model``, whose types are inferred, compute in float16.

    Args:
        ranges: of tensors on samples, where there are any; None stands for NaN or Inf.
    """
    halves = Halves()
    for node in model.graph.nodes:
        if not any(is_float32(tensor) for tensor in (*node.inputs, *node.outputs)):
            continue
        reason = _why_not(node, model.opset, ranges)
        if reason is None and node.op not in _MOVING and not selects(node, only, exclude):
            reason = "excluded by the options"
        if reason is None:
            halves.nodes[id(node)] = node
        elif reason:
            halves.refused[anchor_of(node)] = reason
    for inner in (graph for graph in model.graphs() if graph is not model.graph):
        halves.refused.update(_in_subgraph(inner))
    _give_up_islands(halves)
    return halves


def _in_subgraph(graph: Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op not in _MOVING and any(is_float32(tensor) for tensor in node.outputs):
            yield anchor_of(node), "it lies in a subgraph"


def _why_not(node: Node, opset: int, ranges: Ranges) -> str | None:
    """Return why ``node`` stays in float32 (an empty reason where nobody would ask), None when it need not."""
    if subgraphs_of(node):
        return "it holds subgraphs, which stay in float32"
    if not is_standard(node):
        return f"whether {node.domain}:{node.op} takes float16 is unknown"
    if node.op in _WIDE:
        return f"{node.op} is left exact"
    if node.op in ("QuantizeLinear", "DequantizeLinear") or _is_beside_integers(node):
        return "it computes in integers" if node.op in ("Conv", "Gemm", "MatMul") else ""
    if _has_a_type_of_its_own(node):
        return ""
    if not half_inputs(node, opset) and not half_outputs(node, opset):
        return "" if node.op in SIZE_ONLY else f"{node.op} of opset {opset} does not take float16"
    return _why_too_large(node, opset, ranges)


def _has_a_type_of_its_own(node: Node) -> bool:
    """Whether something else than the tensors that ``node`` reads says what it computes."""
    if not all(_is_tensor(tensor) for tensor in (*node.inputs, *node.outputs) if tensor.name):
        return True
    if node.op == "Cast":
        return not is_float32(node.outputs[0])
    return "dtype" in node.attrs or not any(map(is_float32, node.inputs))


def _is_beside_integers(node: Node) -> bool:
    """Whether the runtime may run ``node`` on integers: pairs before and behind it must not be torn apart."""
    makers = [producer(tensor) for tensor in node.inputs if is_float32(tensor)]
    if makers and all(maker is not None and maker.op == "DequantizeLinear" for maker in makers):
        return True
    return any(reader.op == "QuantizeLinear" for tensor in node.outputs for reader in consumers(tensor))


def _why_too_large(node: Node, opset: int, ranges: Ranges) -> str | None:
    for tensor in (*node.inputs, *node.outputs):
        range_ = ranges.get(tensor.name, (0.0, 0.0))
        if range_ is None or max(-range_[0], range_[1]) > LARGEST:
            return f"{tensor.name!r} exceeds float16's {LARGEST:.0f} on the samples"
    if node.op in _SATURATING:
        return None
    for index in half_inputs(node, opset):
        values = _values_of(node.inputs[index])
        if values is not None and values.size and _exceeds(values):
            return f"its constant {node.inputs[index].name!r} exceeds float16's {LARGEST:.0f}"
    return None


def _values_of(tensor: Tensor) -> Any:
    """Return the values of a weight, or of a Constant node that nobody has folded yet."""
    maker = producer(tensor)
    if maker is not None and is_standard(maker, "Constant"):
        tensor = attribute(maker, "value")
    return array_of(tensor)


def _exceeds(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size) and float(np.abs(finite).max()) > LARGEST


def half_inputs(node: Node, opset: int) -> list[int]:
    """Return the float32 inputs of a standard ``node`` that may be float16."""
    return [i for i, tensor in enumerate(node.inputs) if is_float32(tensor) and _takes_half(node, opset, "inputs", i)]


def half_outputs(node: Node, opset: int) -> list[int]:
    """Return the float32 outputs of a standard ``node`` that are float16 when its inputs are."""
    return [i for i, tensor in enumerate(node.outputs) if is_float32(tensor) and _takes_half(node, opset, "outputs", i)]


def _takes_half(node: Node, opset: int, side: str, index: int) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
    except onnx.defs.SchemaError:
        return False
    formal = getattr(schema, side)
    if not formal:
        return False
    kind = formal[min(index, len(formal) - 1)].type_str
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    return _HALF in allowed.get(kind, [kind])


def _give_up_islands(halves: Halves) -> None:
    """Leave nodes that a Cast would be added for in float32, though they gain nothing by float16.

    1. Nodes that return no float (comparisons, ArgMax), unless float16 is what they are given.
    2. Nodes that only move values, where all around them is float32.
    """
    for node in [node for node in halves.nodes.values() if not any(map(is_float32, node.outputs))]:  # 1
        computed = (t for t in node.inputs if is_float32(t) and not isinstance(t, Constant))
        if not all(halves.has(producer(tensor)) for tensor in computed):
            halves.nodes.pop(id(node))
    work = [node for node in halves.nodes.values() if node.op not in _MOVING]  # 2
    reached = {id(node) for node in work}
    while work:
        new = {id(near): near for near in _neighbours(work.pop()) if halves.has(near) and id(near) not in reached}
        reached.update(new)
        work.extend(new.values())
    halves.nodes = {key: node for key, node in halves.nodes.items() if key in reached}


def _neighbours(node: Node) -> Iterator[Node]:
    yield from (maker for tensor in node.inputs if is_float32(tensor) and (maker := producer(tensor)) is not None)
    yield from (reader for tensor in node.outputs if is_float32(tensor) for reader in consumers(tensor))
