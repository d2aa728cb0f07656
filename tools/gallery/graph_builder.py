"""Graphs that grow node by node, with names by module as exporters write them, and shapes known at once."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

Dim = int | str | None


class Literals(enum.Enum):
    """Where small constants live: shapes, axes, bounds."""

    NODES = "nodes"
    """In Constant nodes beside their reader (torch, Paddle)."""
    INITIALIZERS = "initializers"
    """Among the weights (TensorFlow)."""


class GraphBuilder:
    """A graph that grows node by node."""

    def __init__(
        self,
        *shape: Dim,
        batch: Dim = "batch",
        opset: int = 17,
        literals: Literals = Literals.NODES,
        seed: int = 0,
        name: str = "input",
    ) -> None:
        """Start with one input of ``shape``, the batch left out."""
        self.opset = opset
        self.input = name
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._literals = literals
        self._types = {name: oh.make_tensor_type_proto(TensorProto.FLOAT, [batch, *shape])}
        self._values: dict[str, onnx.TensorProto] = {}
        self._modules: list[str] = []
        self._used: Counter[str] = Counter()
        self._schemas: dict[str, Any] = {}
        self._imports = [oh.make_opsetid("", opset)]

    # ---- names and shapes --------------------------------------------------------------------------------

    @contextmanager
    def module(self, name: str) -> Iterator[None]:
        """Name what is added inside after a module: /layer1/conv1/Conv, layer1.conv1.weight."""
        self._modules.append(name)
        yield
        self._modules.pop()

    def shape(self, x: str) -> tuple[Dim, ...]:
        """Return the shape of a tensor; the batch may be a name or None."""
        dims = self._types[x].tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)

    def width(self, x: str, axis: int = 1) -> int:
        """Return the size of an axis, by default the channels, which must be known."""
        size = self.shape(x)[axis]
        assert isinstance(size, int), f"axis {axis} of {x} has no known size"  # noqa: S101  (the gallery's own mistake)
        return size

    def space(self, x: str) -> tuple[int, ...]:
        """Return the sizes behind batch and channels."""
        return tuple(self.width(x, axis) for axis in range(2, len(self.shape(x))))

    def _unused(self, name: str) -> str:
        """Return ``name``, with a number from its second use on."""
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}_{self._used[name] - 1}"

    def _leaf(self, kind: str) -> str:
        """Return a name for the next layer of its kind in the current module: conv1, conv2, …"""
        path = ".".join((*self._modules, kind))
        self._used[path] += 1
        return f"{kind}{self._used[path]}"

    # ---- constants ---------------------------------------------------------------------------------------

    def weight(self, values: npt.ArrayLike, name: str = "weight", dtype: npt.DTypeLike = np.float32) -> str:
        """Add an initializer, named after the current module."""
        tensor = numpy_helper.from_array(np.asarray(values, dtype), self._unused(".".join((*self._modules, name))))
        self.weights.append(tensor)
        self._know(tensor)
        return tensor.name

    def normal(self, *shape: int, fan: int | None = None, name: str = "weight", mean: float = 0.0) -> str:
        """Add a random weight of variance 2 / ``fan``, by default the product of all axes but the first."""
        spread = (2 / (fan or max(1, int(np.prod(shape[1:]))))) ** 0.5
        return self.weight(mean + spread * self.random.standard_normal(shape), name)

    def vector(self, size: int, name: str = "bias", low: float = -0.1, high: float = 0.3) -> str:
        """Add a vector of random numbers between two bounds."""
        return self.weight(self.random.uniform(low, high, size), name)

    def literal(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a small constant that the graph is written with: a shape, axes, a bound."""
        if self._literals is Literals.INITIALIZERS:
            return self.weight(values, "const", dtype)
        name = self._unused("/".join(("", *self._modules, "Constant")))
        tensor = numpy_helper.from_array(np.asarray(values, dtype), "")
        node = oh.make_node("Constant", [], [f"{name}_output_0"], name=name, value=tensor)
        self.nodes.append(node)
        tensor.name = node.output[0]
        self._know(tensor)
        return tensor.name

    def _know(self, tensor: onnx.TensorProto) -> None:
        self._types[tensor.name] = oh.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        self._values[tensor.name] = tensor

    # ---- nodes -------------------------------------------------------------------------------------------

    def op(self, op: str, *inputs: str, shape: Sequence[Dim] | None = None, **attributes: Any) -> str:
        """Add a node with one output; ``shape`` says what onnx cannot infer from this node alone."""
        (name,) = self.ops(op, *inputs, **attributes)
        if shape is not None:
            self._types[name] = oh.make_tensor_type_proto(TensorProto.FLOAT, shape)
        return name

    def ops(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        name = self._unused("/".join(("", *self._modules, op)))
        node = oh.make_node(op, list(inputs), [f"{name}_output_{i}" for i in range(outputs)], name=name, **attributes)
        self.nodes.append(node)
        if not any(attribute.HasField("g") for attribute in node.attribute):
            self._infer(node)
        return list(node.output)

    def _infer(self, node: onnx.NodeProto) -> None:
        schema = self._schemas.setdefault(node.op_type, onnx.defs.get_schema(node.op_type, self.opset, ""))
        given = {name: self._types[name] for name in node.input if name}
        small = {name: self._values[name] for name in given if name in self._values and len(given) > 1}
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, given, input_data=small, opset_imports=self._imports, ir_version=8
        )
        self._types.update(found)

    # ---- the end -----------------------------------------------------------------------------------------

    def build(self, *outputs: str, weights_as_inputs: bool = False, all_shapes: bool = False) -> onnx.ModelProto:
        """Return the model, with the shapes of its outputs declared.

        Args:
            weights_as_inputs: as before IR 4.
            all_shapes: declare inner tensors too, as torch's later exporter does.
        """
        given = [self.input, *(tensor.name for tensor in self.weights if weights_as_inputs)]
        inputs, results = (
            [oh.make_value_info(name, self._types[name]) for name in names] for names in (given, outputs)
        )
        inner = [name for node in self.nodes for name in node.output if all_shapes and name in self._types]
        infos = [oh.make_value_info(name, self._types[name]) for name in inner if name not in outputs]
        graph = oh.make_graph(self.nodes, "main_graph", inputs, results, self.weights, value_info=infos)
        version = 3 if weights_as_inputs else oh.find_min_ir_version_for(self._imports)
        return oh.make_model(graph, opset_imports=self._imports, ir_version=version)
