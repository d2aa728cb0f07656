"""Two graphs of one model, as given and as onnxruntime made it, and which node of the second runs a layer of the first.

What a node of onnxruntime's graph computes is what lies, in the model as given, between its outputs and its inputs. So
a layer is found again whatever it was fused into, as long as tensors keep their names: up to ``Level.EXTENDED``.
"""

from __future__ import annotations

import enum
import tempfile
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxslim.runtime.sessions import Level, Session, SessionConfig

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PAIR = frozenset({QUANTIZE, DEQUANTIZE})
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
SMALL = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16})
"""Types of quantized activations."""


class Place(enum.Enum):
    """How a layer runs."""

    INTEGER = "integer"
    """By an integer kernel."""
    MOVED = "moved"
    """Its values are moved or compared as the integers they are."""
    FLOAT = "float"


class Graph:
    """The main graph of a model, by tensor."""

    def __init__(self, proto: onnx.ModelProto, values: dict[str, onnx.TypeProto] | None = None) -> None:
        graph = proto.graph
        self.nodes = [node for node in graph.node if node.op_type != "Constant"]
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.input)):
                self.readers[name].append(node)
        self.outputs = {value.name for value in graph.output}
        stored = [node for node in graph.node if node.op_type == "Constant"]
        self.constants: dict[str, onnx.TensorProto | onnx.NodeProto] = {t.name: t for t in graph.initializer}
        self.constants |= {node.output[0]: node for node in stored}
        self.values = values if values is not None else _values(proto)
        self.opsets = list(proto.opset_import)

    def data(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of ``node`` that are no constants."""
        return [name for name in node.input if name and name not in self.constants]

    def after(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return who reads any output of ``node``."""
        return [reader for name in node.output for reader in self.readers.get(name, ())]

    def kind(self, tensor: str) -> int:
        """Return the element type; float where it is not known, as for operators of other domains."""
        stored = self.constants.get(tensor)
        if isinstance(stored, TensorProto):
            return stored.data_type
        value = self.values.get(tensor)
        return TensorProto.FLOAT if value is None else value.tensor_type.elem_type

    def is_small(self, tensor: str) -> bool:
        """Whether ``tensor`` holds quantized activations; one that onnxruntime made is what it was made from."""
        while tensor not in self.values:
            maker = self.makers.get(tensor)
            before = [] if maker is None else self.data(maker)
            if maker is None or maker.op_type in PAIR or not before:
                return maker is not None and maker.op_type == QUANTIZE
            tensor = before[0]
        return self.kind(tensor) in SMALL

    def is_stored(self, tensor: str) -> bool:
        """Whether ``tensor`` is a constant behind DequantizeLinear."""
        maker = self.makers.get(tensor)
        return maker is not None and maker.op_type == DEQUANTIZE and not self.data(maker)

    def between(self, ends: Collection[str], starts: Collection[str]) -> list[onnx.NodeProto]:
        """Return the nodes that compute ``ends`` from ``starts``."""
        found: dict[str, onnx.NodeProto] = {}
        stack = list(ends)
        while stack:
            node = self.makers.get(stack.pop())
            if node is not None and node.output[0] not in found:
                found[node.output[0]] = node
                stack.extend(name for name in node.input if name and name not in starts)
        return list(found.values())


def _values(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Return types and shapes of tensors, as far as onnx infers them."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    known = {value.name: value.type for value in values if value.type.tensor_type.elem_type}
    for node in graph.node:
        if node.op_type == QUANTIZE and node.output[0] not in known:
            known[node.output[0]] = onnx.helper.make_tensor_type_proto(TensorProto.UINT8, None)
    return known


def optimized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that onnxruntime makes of ``proto``, with layouts left as they are.

    Raises:
        RuntimeRefusal: onnxruntime does not load it.
    """
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        path = Path(folder) / "optimized.onnx"
        Session(proto, SessionConfig(level=Level.EXTENDED, optimized_path=str(path)))
        return onnx.load_model(str(path))


def is_integer_kernel(op: str) -> bool:
    """Whether an operator, of the standard or of onnxruntime's own, computes with quantized integers."""
    return op.startswith(("QLinear", "QGemm", "QAttention", "QOrdered", "DynamicQuantize")) or "Integer" in op


def is_layer(given: Graph, node: onnx.NodeProto) -> bool:
    """Whether ``node`` computes or moves activations: no pair, and no arithmetic of shapes."""
    if node.op_type in PAIR:
        return False
    kinds = {given.kind(name) for name in node.output if name}
    return bool(kinds & (FLOATS | SMALL)) or is_integer_kernel(node.op_type)


def place_of(made: Graph, node: onnx.NodeProto) -> Place:
    """Return how a node of onnxruntime's graph runs; an activation can vanish in the range of a pair."""
    if is_integer_kernel(node.op_type) or node.op_type in PAIR:
        return Place.INTEGER
    data = made.data(node)
    moves = bool(data) and made.is_small(data[0]) and made.is_small(node.output[0])
    return Place.MOVED if moves else Place.FLOAT


@dataclass(frozen=True)
class Home:
    """A node of onnxruntime's graph, and the layers that it runs, in order."""

    node: onnx.NodeProto
    layers: tuple[onnx.NodeProto, ...]

    @property
    def head(self) -> onnx.NodeProto | None:
        """The layer that stands for them: the one whose name the node has, otherwise the one that makes its output."""
        named = {layer.name: layer for layer in self.layers}
        return named.get(self.node.name) or named.get(self.node.output[0]) or next(iter(self.layers), None)


def homes(given: Graph, made: Graph) -> list[Home]:
    """Return every node of onnxruntime's graph with its layers; layers folded into constants have no home.

    Nodes of ``given`` are named after their first output.
    """
    found: dict[str, str] = {}
    for node in made.nodes:
        starts = {*node.input, *made.makers}
        for layer in given.between(node.output, starts):
            found.setdefault(layer.name, node.output[0])
    found |= {node.name: node.output[0] for node in made.nodes if node.name in given.makers}
    members: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for layer in given.nodes:
        if layer.name in found and is_layer(given, layer):
            members[found[layer.name]].append(layer)
    return [Home(node, tuple(members[node.output[0]])) for node in made.nodes]
