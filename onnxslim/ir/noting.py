"""What GraphSurgeon does not carry, noted at import; :mod:`onnxslim.ir.fidelity` puts it back at export.

GraphSurgeon keeps nodes, tensors and weights. It loses: doc strings and metadata of nodes and values, types of
optionals and maps, quantization annotations, inputs that are also initializers, and it copies outer weights into every
subgraph that captures them. :class:`Notes` holds those things by tensor name, the anchor of everything in this project,
so they survive copies and follow nodes that passes leave alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

_CARRIED_NODE_FIELDS = ("input", "output", "name", "op_type", "domain", "overload", "attribute")
_NODE_FIELDS = tuple(f.name for f in onnx.NodeProto.DESCRIPTOR.fields if f.name not in _CARRIED_NODE_FIELDS)
"""Fields of a node that are not carried: doc string, metadata, and whatever onnx adds."""

_CARRIED_GRAPH_FIELDS = ("node", "name", "initializer", "sparse_initializer", "doc_string", "input", "output")
_GRAPH_FIELDS = frozenset(f.name for f in onnx.GraphProto.DESCRIPTOR.fields) - {*_CARRIED_GRAPH_FIELDS, "value_info"}

_GRAPH = onnx.AttributeProto.GRAPH

NodeKey = tuple[str, str]
"""Operator and first output."""
Place = tuple[tuple[str, str, str], ...]
"""Where a graph is: nothing for the main one, then operator, first output and attribute of every node around it."""


@dataclass(frozen=True)
class GraphNotes:
    """What is noted of one graph."""

    nodes: dict[NodeKey, onnx.NodeProto] = field(default_factory=dict)
    """Doc strings, metadata, devices, doc strings of attributes."""
    values: dict[str, onnx.ValueInfoProto | None] = field(default_factory=dict)
    """By name every declared input, output and intermediate value; None where GraphSurgeon carries all of it."""
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    """By name: doc strings and metadata of initializers, which are lost when their values are looked at."""
    shell: onnx.GraphProto = field(default_factory=onnx.GraphProto)
    """The graph's own metadata and quantization annotations, without nodes or weights."""


@dataclass(frozen=True)
class Notes:
    """Everything of one model that its GraphSurgeon graph does not hold."""

    graphs: dict[Place, GraphNotes] = field(default_factory=lambda: {(): GraphNotes()})
    """The main graph's notes hold those of subgraphs too, which serve what moves out of them."""
    input_order: tuple[str, ...] = ()
    defaults: dict[str, onnx.TensorProto] = field(default_factory=dict)
    """Initializers that the caller may override (inputs since IR version 4): plain inputs to every pass."""
    referred: dict[str, onnx.TensorProto] = field(default_factory=dict)
    """Initializers that annotations or training name: they stay though no node reads them."""
    weights_are_inputs: bool = False
    """IR version 3 demands that every initializer is an input too."""
    outer_weights: frozenset[str] = frozenset()
    sparse: frozenset[str] = frozenset()
    """Names of sparse initializers: to passes they are Constant nodes, whose sparse values none of them reads."""

    @property
    def values(self) -> dict[str, onnx.ValueInfoProto | None]:
        """Names that are declared somewhere, each with its first declaration."""
        return self.graphs[()].values


def take_notes(model: onnx.ModelProto) -> Notes:
    """Note what GraphSurgeon will lose of ``model``, and turn overridable initializers into plain inputs.

    Changes ``model.graph`` (it drops those initializers); call it on a copy.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value.name for value in graph.input]
    both = [name for name in inputs if name in initializers]
    placed = list(placed_graphs(graph))
    notes = Notes(
        graphs={place: _note_graph(current) for place, current in placed},
        input_order=tuple(inputs),
        referred={name: _copy(initializers[name]) for name in _referred(model) if name in initializers},
        weights_are_inputs=model.ir_version < 4,
        outer_weights=frozenset(initializers),
        sparse=frozenset(name for _, current in reversed(placed) for name in _as_nodes(current)),
    )
    if model.ir_version >= 4 and both:
        notes.defaults.update((name, _copy(initializers[name])) for name in both)
        remaining = [tensor for tensor in graph.initializer if tensor.name not in notes.defaults]
        del graph.initializer[:]
        graph.initializer.extend(remaining)
    main = notes.graphs[()]
    for inner in notes.graphs.values():
        for key, node in inner.nodes.items():
            main.nodes.setdefault(key, node)
        for name, value in inner.values.items():
            main.values.setdefault(name, value)
    return notes


def _as_nodes(graph: onnx.GraphProto) -> Iterator[str]:
    """Turn sparse initializers into Constant nodes of the same value, declare their type, and yield their names.

    Nodes are copied, so graphs inside come first.
    """
    if not graph.sparse_initializer:
        return
    nodes = list(graph.node)
    del graph.node[:]
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        graph.node.append(onnx.helper.make_node("Constant", [], [name], sparse_value=sparse))
        graph.value_info.append(onnx.helper.make_tensor_value_info(name, sparse.values.data_type, sparse.dims))
        yield name
    graph.node.extend(nodes)
    del graph.sparse_initializer[:]


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    kept = onnx.TensorProto()
    kept.CopyFrom(tensor)
    return kept


def _referred(model: onnx.ModelProto) -> Iterator[str]:
    """Yield, once, the names by which annotations and training refer to tensors."""
    names = {e.value for note in model.graph.quantization_annotation for e in note.quant_parameter_tensor_names}
    for training in model.training_info:
        names.update(e.key for e in (*training.initialization_binding, *training.update_binding))
        for graph in (training.initialization, training.algorithm):
            names.update(name for node in graph.node for name in node.input)
    yield from sorted(names)


def placed_graphs(graph: onnx.GraphProto) -> Iterator[tuple[Place, onnx.GraphProto]]:
    """Yield ``graph`` and every graph inside it, each with where it is, outer first."""
    stack: list[tuple[Place, onnx.GraphProto]] = [((), graph)]
    while stack:
        place, current = stack.pop()
        yield place, current
        for node in current.node:
            if any(attribute.type == _GRAPH for attribute in node.attribute):
                inner = [a for a in node.attribute if a.type == _GRAPH]
                stack.extend(((*place, (*(key_of(node) or ("", "")), a.name)), a.g) for a in inner)


def key_of(node: onnx.NodeProto) -> NodeKey | None:
    """Return what a node is known by, None where it has no outputs."""
    name = next((output for output in node.output if output), None)
    return None if name is None else (node.op_type, name)


def _note_graph(graph: onnx.GraphProto) -> GraphNotes:
    notes = GraphNotes()
    for descriptor, entries in graph.ListFields():
        if descriptor.name in _GRAPH_FIELDS:
            getattr(notes.shell, descriptor.name).MergeFrom(entries)
    for tensor in graph.initializer:
        if tensor.doc_string or tensor.metadata_props:
            note = notes.tensors[tensor.name] = onnx.TensorProto(metadata_props=tensor.metadata_props)
            if tensor.doc_string:  # an empty one that is set differs from none
                note.doc_string = tensor.doc_string
    for value in (*graph.input, *graph.output, *graph.value_info):
        notes.values.setdefault(value.name, None if _is_plain(value) else value)
    for node in graph.node:
        _note_node(node, notes.nodes)
    return notes


def _is_plain(value: onnx.ValueInfoProto) -> bool:
    """Whether a value is declared with nothing but a name, an element type and sizes."""
    kind = value.type
    if len(value.ListFields()) > 2 or kind.denotation or not kind.HasField("tensor_type"):
        return False
    return not any(dim.denotation for dim in kind.tensor_type.shape.dim)


def _note_node(node: onnx.NodeProto, into: dict[NodeKey, onnx.NodeProto]) -> None:
    said = [a for a in node.attribute if a.doc_string] if node.attribute else ()
    if not said and not any(getattr(node, name) for name in _NODE_FIELDS):
        return
    key = key_of(node)
    if key is None:
        return
    note = onnx.NodeProto()
    note.CopyFrom(node)
    for name in _CARRIED_NODE_FIELDS:
        note.ClearField(name)
    note.attribute.extend(onnx.AttributeProto(name=a.name, doc_string=a.doc_string) for a in said)
    into[key] = note
