"""Builds random valid graphs one node at a time: onnx's own inference gives each node's shape as it is added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

Array = npt.NDArray[Any]
FLOAT_NAMES = {"float32": np.float32, "float64": np.float64, "float16": np.float16}


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its shape at the feed, and which of its dimensions the file leaves open."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    free: frozenset[int] = frozenset()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[1]


class Refused(Exception):
    """onnx knows no shape for a node: the motif that wanted it leaves the graph as it is."""


@dataclass
class Style:
    """How the file spells things, where exporters differ."""

    opset: int
    ir_version: int
    dtype: np.dtype[Any]
    constant_nodes: float
    """The share of constants that are Constant nodes."""
    declared: bool
    """Whether intermediate shapes are in the file."""
    named: bool
    """Whether nodes have names."""


class Graph:
    """What has been built so far; ``random`` is reseeded for each motif, so that motifs can be left out one by one."""

    def __init__(self, style: Style, seed: int) -> None:
        self.style = style
        self.opset = style.opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.feeds: dict[str, Array] = {}
        self.values: list[Value] = []
        self.outputs: list[str] = []
        self.domains: set[str] = set()
        self.defaults: set[str] = set()
        self._serial = 0

    # ---- names, inputs, constants ------------------------------------------------------------------------

    def fresh(self, hint: str = "t") -> str:
        self._serial += 1
        return f"{hint}{self._serial}"

    def input(self, name: str, shape: tuple[int, ...], free: Sequence[int] = ()) -> Value:
        dims: list[int | str] = [f"{name}_d{i}" if i in free else size for i, size in enumerate(shape)]
        self.inputs.append(oh.make_tensor_value_info(name, _kind(self.style.dtype), dims))
        self.feeds[name] = self.random.standard_normal(shape).astype(self.style.dtype)
        value = Value(name, shape, self.style.dtype, frozenset(free))
        self.values.append(value)
        return value

    def constant(self, values: Any, dtype: Any = None) -> Value:
        array = np.asarray(values, self.style.dtype if dtype is None else dtype)
        name = self.fresh("c")
        known = array.dtype.kind == "f" or self.opset >= 9
        if known and self.random.random() < self.style.constant_nodes:
            tensor = numpy_helper.from_array(array, name)
            self.nodes.append(oh.make_node("Constant", [], [name], value=tensor))
        self.weights[name] = array
        return Value(name, array.shape, array.dtype)

    def integers(self, values: Sequence[int]) -> Value:
        return self.constant(list(values), np.int64)

    def normal(self, *shape: int, fan: int = 1) -> Value:
        return self.constant(self.random.standard_normal(shape) / np.sqrt(fan))

    def positive(self, *shape: int) -> Value:
        return self.constant(self.random.uniform(0.5, 2, shape))

    # ---- nodes -------------------------------------------------------------------------------------------

    def op(self, op: str, *inputs: Value | None, **attributes: Any) -> Value:
        return self.many(op, inputs, 1, **attributes)[0]

    def many(self, op: str, inputs: Sequence[Value | None], count: int, **attributes: Any) -> list[Value]:
        """Add a node with ``count`` outputs.

        Raises:
            Refused: onnx's inference does not take it.
        """
        names = [self.fresh() for _ in range(count)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        title = f"{op.lower()}_{self._serial}" if self.style.named else ""
        node = oh.make_node(op, [value.name if value else "" for value in inputs], names, name=title, **attributes)
        given = [value for value in inputs if value is not None]
        fixed = self._inferred(node, given, free=False)
        loose = self._inferred(node, given, free=True)
        made = []
        for name in names:
            dtype, dims = fixed[name]
            if any(dim is None or dim < 1 for dim in dims):
                raise Refused(f"{op}: {dims}")
            shape = tuple(int(dim or 0) for dim in dims)
            known = loose.get(name, (dtype, (None,) * len(shape)))[1]
            free = frozenset(i for i, dim in enumerate(known) if dim is None)
            made.append(Value(name, shape, dtype, free))
        if any(value.shape and np.prod(value.shape) > 20_000 for value in made):
            raise Refused(f"{op}: too large")
        return self.add(node, made)

    def add(self, node: onnx.NodeProto, made: list[Value]) -> list[Value]:
        """Append a node whose outputs are known."""
        self.nodes.append(node)
        if node.domain:
            self.domains.add(node.domain)
        self.values.extend(value for value in made if value.dtype == self.style.dtype and 0 not in value.shape)
        return made

    def _inferred(
        self, node: onnx.NodeProto, inputs: Sequence[Value], *, free: bool
    ) -> dict[str, tuple[np.dtype[Any], tuple[int | None, ...]]]:
        types = {v.name: _type(v, free=free) for v in inputs}
        data = {v.name: numpy_helper.from_array(self.weights[v.name], v.name) for v in inputs if v.name in self.weights}
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        imports = [oh.make_opsetid("", self.opset)]
        try:
            found = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
            raise Refused(f"{node.op_type}: {error}") from error
        return {name: _described(found[name]) for name in node.output if name in found}

    # ---- choosing ----------------------------------------------------------------------------------------

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        """Return one of the tensors that fit, the recent ones more often.

        Raises:
            Refused: none fits.
        """
        found = [value for value in self.values if fits(value)]
        if not found:
            raise Refused("no such tensor")
        back = min(int(self.random.geometric(0.55)), len(found))
        return found[-back]

    def image(self, least: int = 1) -> Value:
        """Return N x C x D1 x … with every Di at least ``least``."""
        return self.pick(lambda v: 3 <= v.rank <= 5 and min(v.shape[2:]) >= least)

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def choose(self, *options: Any) -> Any:
        return options[int(self.random.integers(len(options)))]

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return int(self.random.integers(low, high + 1))

    # ---- the whole ---------------------------------------------------------------------------------------

    def proto(self) -> onnx.ModelProto:
        known = {value.name: value for value in self.values}
        outputs = [_declared(known[name], name) for name in self.outputs]
        computed = {name for node in self.nodes for name in node.output}
        stored = {name: array for name, array in self.weights.items() if name not in computed}
        inputs = list(self.inputs)
        listed = stored if self.style.ir_version < 4 else {n: a for n, a in stored.items() if n in self.defaults}
        inputs += [oh.make_tensor_value_info(n, _kind(a.dtype), a.shape) for n, a in listed.items()]
        tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
        graph = oh.make_graph(self.nodes, "random", inputs, outputs, tensors)
        imports = [oh.make_opsetid("", self.opset), *(oh.make_opsetid(domain, 1) for domain in sorted(self.domains))]
        proto = oh.make_model(graph, opset_imports=imports, ir_version=self.style.ir_version)
        return onnx.shape_inference.infer_shapes(proto) if self.style.declared else proto


def _declared(value: Value, name: str) -> onnx.ValueInfoProto:
    dims: list[int | str] = [f"{name}_{i}" if i in value.free else size for i, size in enumerate(value.shape)]
    return oh.make_tensor_value_info(name, _kind(value.dtype), dims)


def _kind(dtype: np.dtype[Any]) -> int:
    return int(oh.np_dtype_to_tensor_dtype(dtype))


def _type(value: Value, *, free: bool) -> onnx.TypeProto:
    dims: list[int | str] = [f"{value.name}_{i}" if free and i in value.free else s for i, s in enumerate(value.shape)]
    return oh.make_tensor_type_proto(_kind(value.dtype), dims)


def _described(kind: onnx.TypeProto) -> tuple[np.dtype[Any], tuple[int | None, ...]]:
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not tensor.elem_type or tensor.elem_type == TensorProto.UNDEFINED:
        raise Refused("no shape")
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return np.dtype(oh.tensor_dtype_to_np_dtype(tensor.elem_type)), dims
