"""Why a layer of a quantized model stays in float, read off the graph that onnxruntime made."""

from __future__ import annotations

import enum
from collections.abc import Iterator

import numpy as np
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

from onnxslim.runtime.placed_graph import DEQUANTIZE, FLOATS, PAIR, QUANTIZE, Graph, Home, Place, optimized, place_of
from onnxslim.runtime.sessions import RuntimeRefusal

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators with integer kernels that want more than pairs: of weights and biases too."""
_VANISHING = frozenset({"Relu", "Clip"})
"""Activations that onnxruntime lets disappear in the range of a pair, where an integer kernel is before them."""


class Why(enum.Enum):
    """Kinds of reasons, to be counted."""

    REFUSED = "refused"
    """A pass left it alone; its own words say why."""
    NO_KERNEL = "no_kernel"
    """There is no integer kernel for the operator."""
    WEIGHTS = "weights"
    """Its weights are integers and its activations are not, or the other way round."""
    INPUT = "input"
    """An input comes without DequantizeLinear."""
    OUTPUT = "output"
    """An output goes on without QuantizeLinear."""
    BETWEEN = "between"
    """A float operator lies between it and its QuantizeLinear."""
    SURROUNDINGS = "surroundings"
    """Nothing around it is quantized."""
    ROUNDED_AT_LOAD = "rounded_at_load"
    """Of an integer layer: its weights are float in the file, and onnxruntime made int8 of them by itself."""
    UNFUSED = "unfused"
    """Pairs are all around it, and onnxruntime still makes no integer kernel of it."""


ROUNDED = "its weights are float in the file: onnxruntime rounds them to int8 at load, in one scale"


def rounded_at_load(given: Graph, layer: onnx.NodeProto) -> bool:
    """Whether an integer layer has weights that are float in the file.

    onnxruntime makes integers of them where pairs surround it, whether somebody meant to leave it in float or not.
    """
    weights = layer.input[1] if layer.op_type in _WEIGHTED and len(layer.input) > 1 else ""
    return weights in given.constants and given.kind(weights) in FLOATS


class Reasons:
    """Finds reasons; asks onnxruntime once for each kind of operator whether it has an integer kernel."""

    def __init__(self, given: Graph, made: Graph) -> None:
        self._given = given
        self._made = made
        self._known: dict[str, Place] = {}

    def of(self, layer: onnx.NodeProto, home: Home) -> tuple[Why, str]:
        """Return why the node of onnxruntime's graph that runs ``layer`` computes in float."""
        made, node = self._made, home.node
        floats = [name for name in made.data(node) if made.kind(name) in FLOATS and not made.is_stored(name)]
        bare = [name for name in floats if not _made_by(made, name, DEQUANTIZE)]
        loose = [name for name in node.output if name and not _only_quantized(made, name)]
        if not floats:
            return Why.SURROUNDINGS, "it reads no activations, only constants in float"
        if layer.op_type in _VANISHING:
            return Why.SURROUNDINGS, "there is no integer kernel before it in whose range it could vanish"
        if self._at_best(layer) is Place.FLOAT:
            return Why.NO_KERNEL, f"onnxruntime has no integer kernel for {_spelt(layer)}"
        if len(bare) == len(floats) and len(loose) == len(node.output):
            if any(made.is_stored(name) for name in node.input):
                return Why.WEIGHTS, "its weights are integers but its activations are not"
            return Why.SURROUNDINGS, "neither its inputs nor its outputs are quantized"
        if bare:
            return Why.INPUT, f"its input {bare[0]!r} has no DequantizeLinear: {self._source(bare[0])}"
        if loose:
            return self._loose(loose[0])
        return self._unfused(layer, home)

    def _unfused(self, layer: onnx.NodeProto, home: Home) -> tuple[Why, str]:
        """Pairs are all around it."""
        made = self._made
        last = home.layers[-1]
        if last is not layer and last.op_type in _VANISHING:
            return Why.BETWEEN, f"{last.op_type} lies between it and QuantizeLinear, whose range is wider"
        if any(name in made.constants and made.kind(name) in FLOATS for name in home.node.input):
            return Why.WEIGHTS, "its activations are integers but a constant of it is not"
        if self._at_best(layer) is Place.MOVED:
            return Why.UNFUSED, "the pairs before and after it differ, so that integers cannot pass it as they are"
        return Why.UNFUSED, f"pairs are all around it, but onnxruntime makes no integer kernel of this {layer.op_type}"

    def _source(self, tensor: str) -> str:
        maker = self._made.makers.get(tensor)
        return "it is the model's own" if maker is None else f"{maker.op_type} makes it in float"

    def _loose(self, tensor: str) -> tuple[Why, str]:
        made = self._made
        if tensor in made.outputs:
            return Why.OUTPUT, f"its output {tensor!r} is the model's own, in float"
        readers = [reader for reader in made.readers.get(tensor, []) if reader.op_type != QUANTIZE]
        if not readers:
            return Why.OUTPUT, f"nothing reads its output {tensor!r}"
        if any(_only_quantized(made, name) for name in readers[0].output):
            return Why.BETWEEN, f"{readers[0].op_type}, in float, lies between it and QuantizeLinear"
        return Why.OUTPUT, f"its output {tensor!r} has no QuantizeLinear: {readers[0].op_type} reads it in float"

    def _at_best(self, layer: onnx.NodeProto) -> Place:
        """Return how the layer would run with pairs all around it."""
        if layer.op_type in _WEIGHTED:
            return Place.INTEGER
        key = _kind(self._given, layer)
        if key not in self._known:
            places = (_place_alone(probe) for probe in _probes(self._given, layer))
            self._known[key] = next((place for place in places if place is not Place.FLOAT), Place.FLOAT)
        return self._known[key]


def _spelt(layer: onnx.NodeProto) -> str:
    """Return the operator, with its mode where it has one."""
    mode = next((a.s.decode(errors="replace") for a in layer.attribute if a.name == "mode" and a.s), None)
    return layer.op_type if mode is None else f"{layer.op_type} (mode {mode})"


def _made_by(made: Graph, tensor: str, op: str) -> bool:
    maker = made.makers.get(tensor)
    return maker is not None and maker.op_type == op


def _only_quantized(made: Graph, tensor: str) -> bool:
    readers = made.readers.get(tensor, [])
    return bool(readers) and tensor not in made.outputs and all(reader.op_type == QUANTIZE for reader in readers)


# ---- asking onnxruntime ----------------------------------------------------------------------------------------------


def _kind(given: Graph, layer: onnx.NodeProto) -> str:
    inputs = [name in given.constants for name in layer.input]
    attributes = sorted(a.SerializeToString(deterministic=True).hex() for a in layer.attribute)
    return f"{layer.domain}:{layer.op_type} {inputs} {attributes}"


def _place_alone(probe: onnx.ModelProto) -> Place:
    """Return how onnxruntime runs the one layer of ``probe``: in float, if any node does."""
    try:
        made = Graph(optimized(probe), Graph(probe).values)
    except RuntimeRefusal:
        return Place.FLOAT
    places = {place_of(made, node) for node in made.nodes if node.op_type not in PAIR}
    return next((place for place in (Place.FLOAT, Place.INTEGER) if place in places), Place.MOVED)


def _probes(given: Graph, layer: onnx.NodeProto) -> Iterator[onnx.ModelProto]:
    """Yield models of ``layer`` alone with pairs around it: its constants as they are, then in pairs themselves."""
    if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in layer.attribute):
        return
    for quantized in (False, True):
        yield _Probe(given, layer, quantized=quantized).model()


class _Probe:
    """A model of one layer, with pairs around it."""

    def __init__(self, given: Graph, layer: onnx.NodeProto, *, quantized: bool) -> None:
        self._given = given
        self._quantized = quantized
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._stored = [
            numpy_helper.from_array(np.array(0.05, np.float32), "pair_scale"),
            numpy_helper.from_array(np.array(128, np.uint8), "pair_zero"),
        ]
        self._layer = onnx.NodeProto()
        self._layer.CopyFrom(layer)

    def model(self) -> onnx.ModelProto:
        given, layer = self._given, self._layer
        taken = {name: self._take(name) for name in dict.fromkeys(filter(None, layer.input))}
        for index, name in enumerate(layer.input):
            layer.input[index] = taken.get(name, "")
        self._nodes.append(layer)
        ends = [self._pair(name) if given.kind(name) in FLOATS else name for name in layer.output if name]
        outputs = [onnx.ValueInfoProto(name=name) for name in ends]
        graph = oh.make_graph(self._nodes, "probe", self._inputs, outputs, self._stored)
        return oh.make_model(graph, opset_imports=given.opsets, ir_version=10)

    def _take(self, name: str) -> str:
        """Add what stands for an input of the layer; return its name."""
        given = self._given
        constant = given.constants.get(name)
        if constant is None:
            value = given.values.get(name) or oh.make_tensor_type_proto(TensorProto.FLOAT, None)
            self._inputs.append(onnx.ValueInfoProto(name=name, type=value))
            return self._pair(name) if given.kind(name) in FLOATS else name
        if isinstance(constant, onnx.NodeProto):
            self._nodes.append(constant)
            return name
        if constant.data_type not in FLOATS or not self._quantized:
            self._stored.append(constant)
            return name
        self._stored.append(numpy_helper.from_array(np.full(list(constant.dims), 130, np.uint8), name))
        self._nodes.append(
            oh.make_node(DEQUANTIZE, [name, "pair_scale", "pair_zero"], [f"{name}_pair"], f"{name}_pair")
        )
        return f"{name}_pair"

    def _pair(self, name: str) -> str:
        small, out = f"{name}_small", f"{name}_pair"
        self._nodes.append(oh.make_node(QUANTIZE, [name, "pair_scale", "pair_zero"], [small], small))
        self._nodes.append(oh.make_node(DEQUANTIZE, [small, "pair_scale", "pair_zero"], [out], out))
        return out
