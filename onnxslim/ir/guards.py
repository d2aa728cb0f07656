"""What must hold of a model before any C++ sees it. Models are untrusted, and onnx and onnxruntime trust much.

onnx.checker and onnxruntime refuse most faults themselves. Here stand those that they miss, report unclearly, or answer
with a crash, an endless loop or terabytes; each found by trying. Every check reads the message once and no weights, so
the cost is linear in nodes.

1. Names and texts are UTF-8; every tensor has one producer, which comes before its readers.
2. Subgraphs have bounded depth, local functions bounded size when inlined (:mod:`onnxslim.ir.guards_functions`).
3. Tensors hold what they claim (:mod:`onnxslim.ir.guards_tensors`).
4. Operators whose work is known from constants do a bounded amount (:mod:`onnxslim.ir.guards_operators`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx

from onnxslim.errors import ModelError
from onnxslim.ir.guards_functions import check_inlined
from onnxslim.ir.guards_operators import CHECKS, MOST_TRIPS, Growth, loop_trips
from onnxslim.ir.guards_tensors import MOST_DIMS, Fault, check_sparse, check_tensor

DEEPEST = 16
"""Subgraphs within subgraphs; protobuf itself stops at a hundred messages, some thirty subgraphs."""

MOST_DECLARED = 2**36
"""Elements of a declared value; shape inference makes a list of a vector's elements, known or not."""

_A = onnx.AttributeProto
_PLAIN = frozenset((_A.FLOAT, _A.INT, _A.STRING, _A.FLOATS, _A.INTS, _A.STRINGS))
"""Types of attributes that hold nothing to look into."""


def check_structure(proto: onnx.ModelProto, where: str) -> None:
    """Refuse a model that onnx or onnxruntime cannot be trusted with.

    Args:
        proto: the model; data of tensors marked EXTERNAL is not read.
        where: its source, for the message.

    Raises:
        ModelError: one line that names the first fault.
    """
    try:
        _check_texts(proto)
        check_inlined(proto)
        for function in proto.functions:
            names = {*function.input, ""}
            _Scope((names,), f"function {function.name!r}: ").check_nodes(function.node)
        _check_graph(proto.graph, (), "", 1)
        if not proto.graph.output:
            raise Fault("the graph returns nothing")
    except Fault as fault:
        raise ModelError(f"{where} is not valid ONNX: {fault}: export it again") from None


# ---- texts -------------------------------------------------------------------------------------------------------


def _check_texts(proto: onnx.ModelProto) -> None:
    """Refuse text that is not UTF-8: Python sees bytes where it expects a string."""
    texts = [proto.producer_name, proto.producer_version, proto.domain, proto.doc_string]
    texts += [text for entry in proto.metadata_props for text in (entry.key, entry.value)]
    texts += [entry.domain for entry in proto.opset_import]
    for function in proto.functions:
        texts += [function.name, function.domain, function.doc_string, *function.input, *function.output]
    _require_text(texts)


def _require_text(texts: Iterable[object]) -> None:
    for text in texts:
        if type(text) is not str:
            raise Fault(f"a name or text is not UTF-8: {text!r}")


# ---- graphs ------------------------------------------------------------------------------------------------------


@dataclass
class _Scope:
    """Names that nodes can read, innermost last, and where we are, for messages."""

    names: tuple[set[str], ...]
    place: str
    depth: int = 1
    trips: int = 1
    growth: Growth = field(default_factory=Growth)

    def check_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Check nodes in order, and learn the names they define."""
        own = self.names[-1]
        for node in nodes:
            inputs, outputs = node.input, node.output
            for name in inputs:
                if name not in own and not any(name in names for names in self.names):
                    raise self._undefined(name, node, nodes)
            try:
                self._check_node(node)
            except Fault as fault:
                raise Fault(f"{self.place}{_label(node)}: {fault}") from None
            for name in outputs:
                if name in own and name:
                    raise Fault(f"{self.place}tensor {name!r} is produced twice, the second time by {_label(node)}")
                own.add(name)

    def _check_node(self, node: onnx.NodeProto) -> None:
        op_type = node.op_type
        _require_text((op_type, node.domain, node.name, *node.output))
        check = CHECKS.get(op_type)
        if check is not None and node.domain in ("", "ai.onnx"):
            check(node, self.growth)
        for attribute in node.attribute:
            kind = attribute.type
            if kind in _PLAIN:
                continue
            if kind == _A.GRAPH:
                if attribute.ref_attr_name and attribute.HasField("g"):
                    raise Fault(f"{attribute.name} holds a graph and refers to another, {attribute.ref_attr_name!r}")
                self._enter(attribute.name, attribute.g, node)
            elif kind == _A.TENSOR:
                check_tensor(attribute.t)
            elif kind == _A.SPARSE_TENSOR:
                self.growth.unpack(check_sparse(attribute.sparse_tensor))
            else:
                self._check_lists(attribute, node)

    def _check_lists(self, attribute: onnx.AttributeProto, node: onnx.NodeProto) -> None:
        for tensor in attribute.tensors:
            check_tensor(tensor)
        for sparse in attribute.sparse_tensors:
            self.growth.unpack(check_sparse(sparse))
        for graph in attribute.graphs:
            _check_graph(graph, (), f"in {attribute.name}, whose graphs see nothing outside: ", self.depth + 1)

    def _enter(self, name: str, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if self.depth >= DEEPEST:
            raise Fault(f"subgraphs are nested more than {DEEPEST} deep")
        trips = self.trips * loop_trips(node, self.growth)
        if trips > MOST_TRIPS:
            raise Fault(f"it runs its body {trips} times in all, more than {MOST_TRIPS}")
        _check_graph(graph, self.names, f"in {name}: ", self.depth + 1, trips, self.growth)

    def _undefined(self, name: str, node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> Fault:
        """Say what is wrong with reading ``name`` here: no such tensor, a cycle, or the wrong order."""
        if type(name) is not str:
            return Fault(f"{self.place}an input of {_label(node)} has a name that is not UTF-8: {name!r}")
        makers = {output: other for other in nodes for output in other.output if output}
        if name not in makers:
            return Fault(f"{self.place}{_label(node)} reads {name!r}, which nothing produces")
        if _reaches(makers, name, set(node.output)):
            return Fault(f"{self.place}{_label(node)} reads {name!r}, which is computed from it: the graph has a cycle")
        return Fault(f"{self.place}{_label(node)} reads {name!r} before it is computed: the nodes are out of order")


def _check_graph(
    graph: onnx.GraphProto,
    outer: tuple[set[str], ...],
    place: str,
    depth: int,
    trips: int = 1,
    growth: Growth | None = None,
) -> None:
    """Check one graph and everything in it; ``outer`` are the names it may read besides its own."""
    own = {""}
    for value in graph.input:
        if value.name in own:
            raise Fault(
                f"{place}two inputs are called {value.name!r}" if value.name else f"{place}an input has no name"
            )
        own.add(value.name)
    growth = growth or Growth()
    stored = _check_stored(graph, place, growth)
    own |= stored
    _require_text((*own, graph.name, graph.doc_string))
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_value(value, place)
    _Scope((*outer, own), place, depth, trips, growth).check_nodes(graph.node)
    for value in graph.output:
        if not any(value.name in names for names in (own, *outer)):
            raise Fault(f"{place}nothing produces the output {value.name!r}")


def _check_stored(graph: onnx.GraphProto, place: str, growth: Growth) -> set[str]:
    """Check the initializers and return their names."""
    stored: set[str] = set()
    for tensor in graph.initializer:
        name = tensor.name
        try:
            check_tensor(tensor)
        except Fault as fault:
            raise Fault(f"{place}initializer {name!r}: {fault}") from None
        if not name or name in stored:
            raise Fault(
                f"{place}two initializers are called {name!r}" if name else f"{place}an initializer has no name"
            )
        stored.add(name)
        growth.store(tensor, name)
    inputs = {value.name for value in graph.input}
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        try:
            growth.unpack(check_sparse(sparse))
        except Fault as fault:
            raise Fault(f"{place}sparse initializer {name!r}: {fault}") from None
        if not name or name in stored or name in inputs:
            raise Fault(f"{place}sparse initializer {name!r} has no name of its own")
        stored.add(name)
    return stored


def _check_value(value: onnx.ValueInfoProto, place: str) -> None:
    _require_text((value.name,))
    if not value.type.HasField("tensor_type"):
        return
    dims = value.type.tensor_type.shape.dim
    if len(dims) > MOST_DIMS:
        raise Fault(f"{place}{value.name!r} is declared with {len(dims)} dimensions, more than {MOST_DIMS}")
    count = 1
    for dim in dims:
        if dim.HasField("dim_value"):
            size = dim.dim_value
            count *= size or 1
            if size >= 0 and count <= MOST_DECLARED:
                continue
            if size >= 0:
                raise Fault(f"{place}{value.name!r} is declared with {count} elements or more, which no machine holds")
            raise Fault(f"{place}{value.name!r} is declared with the dimension {size}; a dynamic one has a name")
        if type(dim.dim_param) is not str:
            raise Fault(f"{place}a dimension of {value.name!r} has a name that is not UTF-8: {dim.dim_param!r}")


def _label(node: onnx.NodeProto) -> str:
    """Name a node as people find it: its operator and first output."""
    output = next((name for name in node.output if name), None)
    return f"{node.op_type} {output!r}" if output is not None else f"{node.op_type} without outputs"


def _reaches(makers: dict[str, onnx.NodeProto], start: str, goals: set[str]) -> bool:
    """Whether ``start`` is computed from one of ``goals``."""
    seen, stack = {start}, [start]
    while stack:
        name = stack.pop()
        if name in goals:
            return True
        fresh = [source for source in makers[name].input if source in makers and source not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False
