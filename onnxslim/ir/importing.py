"""From a GraphProto to a GraphSurgeon graph, several times as fast as GraphSurgeon's own import of nodes.

GraphSurgeon still reads tensors. Nodes are linked to their tensors directly: its lists, which keep both
ends of every edge, need no synchronizing while both ends are new. A subgraph looks names up in the graphs around it
instead of in a copy of all their tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx_graphsurgeon import Constant, Graph, Node, Tensor, Variable
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.util.misc import SynchronizedList

_A = onnx.AttributeProto
_GRAPH = _A.GRAPH

CARRIED_KINDS = ("tensor_type", "sequence_type", "sparse_tensor_type")
"""Kinds of values whose types GraphSurgeon carries."""


def import_graph(model: onnx.ModelProto) -> Graph:
    """Return the main graph of ``model`` without its local functions.

    Raises:
        OnnxGraphSurgeonException: a type that GraphSurgeon does not know.
        AttributeError, KeyError, TypeError, ValueError: GraphSurgeon stumbled.
    """
    return _Importer(model).graph(model.graph, None)


class Overload(str):
    """Which of several local functions of one name a node calls; kept with its attributes, which copies carry."""

    KEY = "\0overload"
    """No attribute can have this name."""


class Empty(list[Any]):
    """An empty list among attributes, which remembers what it is a list of."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind


def _text(data: bytes) -> str | bytes:
    """Return text, or bytes that are none as they are."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


_READERS: dict[int, Callable[[onnx.AttributeProto], Any]] = {
    _A.FLOAT: lambda attribute: attribute.f,
    _A.INT: lambda attribute: attribute.i,
    _A.STRING: lambda attribute: _text(attribute.s),
    _A.TENSOR: lambda attribute: OnnxImporter.import_tensor(attribute.t),
    _A.FLOATS: lambda attribute: list(attribute.floats) or Empty(_A.FLOATS),
    _A.INTS: lambda attribute: list(attribute.ints) or Empty(_A.INTS),
    _A.STRINGS: lambda attribute: [_text(data) for data in attribute.strings] or Empty(_A.STRINGS),
}
"""How attributes are read, by their type; graphs and rarer ones are not here."""


class _Scope:
    """The tensors of one graph by name, inside the scope of the graph around it."""

    def __init__(self, outer: _Scope | None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._outer = outer

    def find(self, name: str) -> Tensor | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.tensors:
                return scope.tensors[name]
            scope = scope._outer
        return None

    def own(self, name: str) -> Tensor:
        """Return this graph's tensor of that name, a new one if there is none yet."""
        if not name:
            return Variable.empty()  # an omitted input or output
        tensor = self.tensors.get(name)
        if tensor is None:
            tensor = self.tensors[name] = _variable(name)
        return tensor

    def read(self, name: str) -> Tensor:
        """Return the nearest tensor of that name, a new one of this graph if there is none yet."""
        return (self.find(name) if name else None) or self.own(name)


class _Importer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._opset = OnnxImporter.get_opset(model)
        self._domains = model.opset_import

    def graph(self, proto: onnx.GraphProto, outer: _Scope | None) -> Graph:
        scope = _Scope(outer)
        for stored in (proto.initializer, proto.sparse_initializer):
            for tensor in map(OnnxImporter.import_tensor, stored):
                scope.tensors[tensor.name] = tensor
        for value in proto.value_info if outer is None else _of_its_own(proto):
            self._declare(value, scope)
        graph = Graph(
            inputs=[self._end(value, scope) for value in proto.input if not self._is_constant(value.name, scope)],
            outputs=[self._end(value, scope) for value in proto.output],
            name=proto.name,
            doc_string=proto.doc_string,
            opset=self._opset,
            import_domains=self._domains,
        )
        graph.nodes = [self._node(node, scope) for node in proto.node]
        return graph

    @staticmethod
    def _is_constant(name: str, scope: _Scope) -> bool:
        return isinstance(scope.tensors.get(name), Constant)

    @staticmethod
    def _declare(value: onnx.ValueInfoProto, scope: _Scope) -> None:
        """Take a declaration; of several for one name, what each adds to the first."""
        declared = _imported(value)
        known = scope.tensors.setdefault(value.name, declared)
        if known is not declared and isinstance(known, Variable):
            known.dtype = known.dtype or declared.dtype
            known.shape = known.shape or declared.shape

    @staticmethod
    def _end(value: onnx.ValueInfoProto, scope: _Scope) -> Tensor:
        if value.name not in scope.tensors:
            scope.tensors[value.name] = _imported(value)
        return scope.tensors[value.name]

    def _node(self, proto: onnx.NodeProto, scope: _Scope) -> Node:
        node = Node.__new__(Node)
        node.__dict__.update(
            op=proto.op_type,
            name=proto.name,
            attrs=self._attributes(proto, scope) if proto.attribute or proto.overload else {},
            domain=proto.domain if proto.HasField("domain") else None,
            inputs=_linked(node, "outputs", [scope.read(name) for name in proto.input]),
            outputs=_linked(node, "inputs", [scope.own(name) for name in proto.output]),
        )
        return node

    def _attributes(self, proto: onnx.NodeProto, scope: _Scope) -> OrderedDict[str, Any]:
        attributes: OrderedDict[str, Any] = OrderedDict()
        if proto.overload:
            attributes[Overload.KEY] = Overload(proto.overload)
        for attribute in proto.attribute:
            kind = attribute.type
            read = None if attribute.ref_attr_name else _READERS.get(kind)
            if read is not None:
                attributes[attribute.name] = read(attribute)
            elif kind == _GRAPH and not attribute.ref_attr_name:
                attributes[attribute.name] = self.graph(attribute.g, scope)
            else:
                attributes[attribute.name] = attribute  # passes see that there is something, and leave it alone
        return attributes


def _of_its_own(subgraph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """Yield declarations but those of what a subgraph captures: it repeats them, and they are no tensors of its own."""
    own = {name for node in subgraph.node for name in node.output} | {value.name for value in subgraph.input}
    yield from (value for value in subgraph.value_info if value.name in own)


def _imported(value: onnx.ValueInfoProto) -> Tensor:
    """Return a declared value; of kinds that GraphSurgeon mistakes, its name and kind alone."""
    kind = value.type.WhichOneof("value")
    if kind is None or kind in CARRIED_KINDS:
        return OnnxImporter.import_tensor(value)
    tensor = _variable(value.name)
    tensor.type = kind
    return tensor


def _linked(node: Node, ends: str, tensors: list[Tensor]) -> SynchronizedList:
    """Return the list of a new node's ``tensors``, with the node entered at their other ends."""
    links = _links(node, ends)
    list.extend(links, tensors)
    for tensor in tensors:
        list.append(getattr(tensor, ends), node)
    return links


def _links(owner: Node | Tensor, ends: str) -> SynchronizedList:
    links = SynchronizedList.__new__(SynchronizedList)
    links.parent_obj, links.field_name = owner, ends
    return links


def _variable(name: str) -> Variable:
    """Return a tensor of which nothing but the name is known."""
    tensor = Variable.__new__(Variable)
    inputs, outputs = _links(tensor, "outputs"), _links(tensor, "inputs")
    tensor.__dict__.update(name=name, inputs=inputs, outputs=outputs, dtype=None, shape=None, type="tensor_type")
    return tensor
