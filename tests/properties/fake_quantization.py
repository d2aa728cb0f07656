"""What insert-qdq must compute, said without Q and DQ nodes: the float graph, node by node, on rounded numbers.

Every chosen node reads its activations from their grids and its weights and bias from theirs; its result goes to
everybody from the result's grid. All else is float: onnxruntime computes one node at a time, of a model without Q and
DQ. (onnx's reference implementation cannot pool, pad or squeeze everything that the random graphs do.)
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from properties.builder import Array

from onnxslim.passes.insert_qdq import QdqPlan
from onnxslim.runtime import Level, Session, SessionConfig

MOVING = {
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Resize", "Split",
    "DepthToSpace", "Expand", "Tile", "ReduceMax",
}  # fmt: skip
ALL_INPUTS = {"Add", "Mul", "Concat"}
Grid = tuple[float, float]
"""Scale and zero point."""


def grid_of(low: float, high: float) -> Grid:
    """Return the uint8 grid of a range (Jacob et al. 2018, §3): zero is on it, and it spans 255 steps."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-30:  # nothing was seen: [0, 1]
        return float(np.float32(1 / 255)), 0.0
    scale = float(np.float32((high - low) / 255))
    return scale, float(np.clip(np.rint(-low / scale), 0, 255))


def on_grid(values: Array, grid: Grid) -> Array:
    scale, zero = grid
    steps = np.rint((values.astype(np.float32) / np.float32(scale)).astype(np.float64))  # Q divides in float32
    return np.asarray((np.clip(steps + zero, 0, 255) - zero) * scale)


def on_channel_grid(weight: Array, axis: int, bias: Array | None, input_scale: float) -> tuple[Array, Array | None]:
    """Return the weight on one symmetric int8 grid per channel, and the bias on that grid times the input's."""
    flat = np.moveaxis(weight.astype(np.float64), axis, 0).reshape(weight.shape[axis], -1)
    scale = np.abs(flat).max(axis=1) / 127
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (input_scale * 2**30))
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1).astype(np.float32).astype(np.float64)
    shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
    rounded = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127) * scale.reshape(shape)
    if bias is None:
        return rounded, None
    step = (np.float32(input_scale) * scale).astype(np.float32).astype(np.float64)
    return rounded, np.rint(bias / step) * step


class Reference:
    """Evaluates a float model as the plan quantizes it; ``values`` holds every tensor as its readers see it."""

    def __init__(self, proto: onnx.ModelProto, plan: QdqPlan) -> None:
        self.proto = proto
        self.chosen = set(plan.nodes)
        self.grids = {name: grid_of(*range_) for name, range_ in plan.ranges.items()}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}

    def run(self, feed: dict[str, Array], seen: dict[str, Array] | None = None) -> dict[str, Array]:
        """Return all values; with ``seen``, each node reads from there instead, so that regions stand alone."""
        given = {**self.weights, **feed}
        values: dict[str, Array] = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in given.items()}
        finals = self.finals()
        for node in self.proto.graph.node:
            source = {**values, **(seen or {})}
            arrays = {name: source[name] for name in node.input if name}
            if node.output[0] in self.chosen:
                arrays = self._rounded(node, arrays)
            for name, array in self._compute(node, arrays).items():
                values[name] = on_grid(array, self.grids[name]) if name in finals else array
        return values

    def finals(self) -> set[str]:
        """Return the tensors that everybody reads from a grid: results of chosen nodes, behind a Relu or Clip."""
        finals = set()
        for node in self.proto.graph.node:
            out = node.output[0]
            if out not in self.chosen:
                continue
            readers = self.readers.get(out, [])
            if node.op_type in MOVING:
                for out in node.output:
                    self.grids[out] = self.grids[node.input[0]]
                    finals.add(out)
                continue
            if node.op_type in ("Gemm", "MatMul") and not readers:
                continue
            if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
                out = readers[0].output[0]
            finals.add(out)
        return finals

    def _rounded(self, node: onnx.NodeProto, arrays: dict[str, Array]) -> dict[str, Array]:
        """Return the node's inputs on their grids."""
        weighted = node.op_type in ("Conv", "Gemm") or (
            node.op_type == "MatMul" and node.input[1] in self.weights and self.weights[node.input[1]].ndim == 2
        )
        every = node.op_type in ALL_INPUTS or (node.op_type == "MatMul" and not weighted)
        rounded = dict(arrays)
        for name in node.input if every else node.input[:1]:
            grid = self.grids.get(name)
            if grid is None:  # a constant operand has a grid of its own
                grid = grid_of(float(self.weights[name].min()), float(self.weights[name].max()))
            rounded[name] = on_grid(arrays[name], grid)
        if weighted:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            axis = 0 if node.op_type == "Conv" or transposed else 1
            bias = arrays[node.input[2]] if len(node.input) > 2 and node.input[2] else None
            scale = self.grids[node.input[0]][0]
            weight, offset = on_channel_grid(arrays[node.input[1]], axis, bias, scale)
            rounded[node.input[1]] = weight
            if offset is not None:
                rounded[node.input[2]] = offset
        return rounded

    def _compute(self, node: onnx.NodeProto, arrays: dict[str, Array]) -> dict[str, Array]:
        floats = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}
        feed = {name: array for name, array in floats.items() if name not in self.weights}
        inputs = [onnx.helper.make_tensor_value_info(n, _kind(a), a.shape) for n, a in feed.items()]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        held = [numpy_helper.from_array(a.copy(), n) for n, a in floats.items() if n not in feed]
        graph = onnx.helper.make_graph([node], "one", inputs, outputs, held)
        proto = onnx.helper.make_model(graph, opset_imports=list(self.proto.opset_import), ir_version=8)
        found = Session(proto, SessionConfig(level=Level.NONE)).run(feed)
        return {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in found.items()}


def _kind(array: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
