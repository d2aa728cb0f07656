"""Which nodes become integer, and which tensors of theirs get a grid."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxslim.ir import (
    Constant,
    Model,
    Node,
    Tensor,
    anchor_of,
    array_of,
    graph_nodes,
    is_standard,
    numpy_dtype,
    selects,
)
from onnxslim.targets import DEFAULT_TARGET, Target

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_COMPUTING = frozenset({"Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat", "Sigmoid"})
_FOLLOWING = frozenset({"LeakyRelu", "Softmax"})
"""Those that are integer between integers, and not worth a conversion."""
MOVING = frozenset({
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Resize", "Split",
    "DepthToSpace", "Expand", "Tile", "ReduceMax",
})  # fmt: skip
"""Those that onnxruntime runs on integers as they are."""
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_WITHOUT_KERNEL = frozenset({"LSTM", "GRU", "RNN"})
FLOAT32 = np.dtype(np.float32)


@dataclass
class Selection:
    """Nodes to quantize, in order, and those refused."""

    nodes: list[Node] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ends: bool = False
    """Whether products that end the model get a grid for their result."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that needs a range."""
        for node in self.nodes:
            yield from variable_inputs(node)
            yield from grid_outputs(node, ends=self.ends)

    def without(self, floats: Collection[str], reason: str) -> Selection:
        """Return what is left where nodes with anchors in ``floats`` stay in float, for ``reason``."""
        refused = [*self.refused, *((anchor, reason) for anchor in sorted(floats))]
        left = Selection(refused=refused, ends=self.ends)
        integer: set[int] = set()
        for node in self.nodes:
            follows = node.op in MOVING | _FOLLOWING
            if (follows and id(node.inputs[0]) not in integer) or (node.op not in MOVING and anchor_of(node) in floats):
                continue
            left.nodes.append(node)
            integer.update(id(t) for t in (*activation_inputs(node), *final_outputs(node)))
        return left

    def drop_unknown(self, ranges: dict[str, tuple[float, float]]) -> None:
        """Refuse nodes one of whose tensors has no range."""
        for node in list(self.nodes):
            missing = [t.name for t in Selection([node], ends=self.ends).tensors() if t.name not in ranges]
            if missing:
                self.nodes.remove(node)
                self.refused.append((anchor_of(node), f"tensor {missing[0]!r} is empty, NaN or Inf on the samples"))


def select(model: Model, only: tuple[str, ...], exclude: tuple[str, ...], target: Target = DEFAULT_TARGET) -> Selection:
    """Return the nodes of ``model`` that become integer."""
    selection = Selection(ends=target.integer_ends)
    if any("QuantizeLinear" in node.op or node.op.startswith("QLinear") for _, node in graph_nodes(model.graph)):
        selection.refused.append((model.graph.name or "graph", "the model has integer operators already"))
        return selection
    integer: set[int] = set()  # tensors that will be on a grid
    for graph, node in graph_nodes(model.graph):
        if node.op not in WEIGHTED | _COMPUTING | _FOLLOWING | MOVING | _WITHOUT_KERNEL or not is_standard(node):
            continue
        reason = None if graph is model.graph else "it lies in a subgraph"
        if reason is None and not selects(node, only, exclude):
            reason = "excluded by the options"
        if reason is None and node.op in MOVING:
            reason = _why_not_moving(node, integer)
        elif reason is None and node.op in _FOLLOWING:
            reason = _why_not_following(node, integer)
        elif reason is None:
            reason = _why_not(node, target)
        if reason is None:
            selection.nodes.append(node)
            integer.update(id(t) for t in (*activation_inputs(node), *final_outputs(node)))
        elif reason and node.op not in MOVING:
            selection.refused.append((anchor_of(node), reason))
    return selection


def _why_not(node: Node, target: Target) -> str | None:
    """Return why a computing node stays in float, None when it can be integer."""
    if node.op in _WITHOUT_KERNEL or (node.op == "ConvTranspose" and not target.transposed_convolutions):
        return f"{target.name} has no integer kernel for {node.op}"
    if any(numpy_dtype(tensor.dtype) != FLOAT32 for tensor in activation_inputs(node)):
        return "it does not compute in float32"
    if node.op in ("Conv", "ConvTranspose", "Gemm"):
        return _why_not_weighted(node)
    if node.op == "MatMul" and isinstance(node.inputs[0], Constant):
        return "its left operand is constant"
    return None


def _why_not_weighted(node: Node) -> str | None:
    arrays = [array_of(tensor) for tensor in node.inputs[1:] if tensor.name]
    if any(array is None for array in arrays):
        return "its weights are computed, not constant"
    if any(array is not None and (array.dtype != FLOAT32 or not np.isfinite(array).all()) for array in arrays):
        return "its weights are not finite float32"
    if node.op == "Gemm":
        if node.attrs.get("transA") or node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0:
            return "it transposes its input or scales its product"
        if len(arrays) > 1 and arrays[1] is not None and arrays[1].ndim != 1:
            return "its bias is not a vector"
    return None


def _why_not_moving(node: Node, integer: set[int]) -> str | None:
    """Return why a moving node is not on a grid (an empty reason where nobody would ask), None when it is."""
    if id(node.inputs[0]) not in integer or isinstance(node.inputs[0], Constant):
        return ""
    if node.op == "Split" and not all(tensor.outputs for tensor in node.outputs):
        return "one of its outputs is read by nobody"
    if node.op != "Split" and any(tensor.outputs for tensor in node.outputs[1:]):
        return "it has more than one output"
    if node.op == "Gather" and not isinstance(node.inputs[1], Constant):
        return "its indices are computed"
    if node.op == "Resize" and node.attrs.get("mode", "nearest") != "nearest":
        return "it interpolates"
    return None


def _why_not_following(node: Node, integer: set[int]) -> str | None:
    """Return why a node stays in float, as for one that moves: a Softmax only makes what a MatMul takes up again."""
    if id(node.inputs[0]) not in integer:
        return ""
    if node.op == "Softmax" and not (
        node.outputs[0].outputs and all(is_standard(reader, "MatMul") for reader in node.outputs[0].outputs)
    ):
        return "no MatMul reads it: floats lose nothing"
    return None


def activation_inputs(node: Node) -> list[Tensor]:
    """Return the inputs of ``node`` that get a grid: everything but weights, shapes and axes."""
    if node.op in ("Add", "Mul", "Concat"):
        return list(node.inputs)
    if node.op == "MatMul" and not is_weight(node.inputs[1]):
        return list(node.inputs)
    return [node.inputs[0]]


def variable_inputs(node: Node) -> list[Tensor]:
    """Return the inputs of ``node`` whose grid is that of values that samples show: all but constant operands."""
    return [tensor for tensor in activation_inputs(node) if not isinstance(tensor, Constant)]


def tensors_of(nodes: Sequence[Node], anchors: Collection[str]) -> frozenset[str]:
    """Return the names of the tensors that some of ``nodes`` read from a grid or put on one."""
    chosen = Selection([node for node in nodes if anchor_of(node) in anchors], ends=True)
    return frozenset(tensor.name for tensor in chosen.tensors())


def is_weight(tensor: Tensor) -> bool:
    array = array_of(tensor)
    return array is not None and array.ndim == 2 and array.dtype == FLOAT32


def final_output(node: Node) -> Tensor:
    """Return the tensor that holds the node's result: that of a Relu or Clip where it alone reads the node's output."""
    out = node.outputs[0]
    if node.op in MOVING or len(out.outputs) != 1 or not is_standard(out.outputs[0], *_ACTIVATIONS):
        return out
    activation = out.outputs[0]
    bounds = activation.inputs[1:]
    return activation.outputs[0] if all(isinstance(t, Constant) or not t.name for t in bounds) else out


def final_outputs(node: Node) -> list[Tensor]:
    """Return the tensors that hold the node's results: :func:`final_output`, or all parts of a Split."""
    return list(node.outputs) if node.op == "Split" else [final_output(node)]


def grid_outputs(node: Node, *, ends: bool) -> list[Tensor]:
    """Return the results that get a grid.

    Args:
        ends: also where nobody reads on, and integer kernels could return float.
    """
    keeps_float = not ends and node.op in ("Gemm", "MatMul") and not node.outputs[0].outputs
    return [] if keeps_float else final_outputs(node)
