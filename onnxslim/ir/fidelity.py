"""What GraphSurgeon does not carry, noted at import and put back at export.

GraphSurgeon keeps nodes, tensors and weights. It loses: doc strings and metadata of nodes and values, types of
optionals and maps, quantization annotations, inputs that are also initializers, and it copies outer weights into every
subgraph that captures them. :class:`Notes` holds those things by tensor name, the anchor of everything in this project,
so they survive copies and follow nodes that passes leave alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

import onnx
from onnx_graphsurgeon import Constant, Graph, Variable

_CARRIED_NODE_FIELDS = ("input", "output", "name", "op_type", "domain", "overload", "attribute")
_NODE_FIELDS = tuple(f.name for f in onnx.NodeProto.DESCRIPTOR.fields if f.name not in _CARRIED_NODE_FIELDS)
"""Fields of a node that are not carried: doc string, metadata, and whatever onnx adds."""

_CARRIED_GRAPH_FIELDS = ("node", "name", "initializer", "sparse_initializer", "doc_string", "input", "output")
_GRAPH_FIELDS = frozenset(f.name for f in onnx.GraphProto.DESCRIPTOR.fields) - {*_CARRIED_GRAPH_FIELDS, "value_info"}

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
    notes = Notes(
        graphs={place: _note_graph(current) for place, current in _graphs(graph)},
        input_order=tuple(inputs),
        referred={name: _copy(initializers[name]) for name in _referred(model) if name in initializers},
        weights_are_inputs=model.ir_version < 4,
        outer_weights=frozenset(initializers),
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


def _graphs(graph: onnx.GraphProto) -> Iterator[tuple[Place, onnx.GraphProto]]:
    stack: list[tuple[Place, onnx.GraphProto]] = [((), graph)]
    while stack:
        place, current = stack.pop()
        yield place, current
        for node in current.node:
            inner = [a for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            stack.extend(((*place, (*(_key(node) or ("", "")), a.name)), a.g) for a in inner)


def _key(node: onnx.NodeProto) -> NodeKey | None:
    name = next((output for output in node.output if output), None)
    return None if name is None else (node.op_type, name)


def _note_graph(graph: onnx.GraphProto) -> GraphNotes:
    notes = GraphNotes()
    for descriptor, entries in graph.ListFields():
        if descriptor.name in _GRAPH_FIELDS:
            getattr(notes.shell, descriptor.name).MergeFrom(entries)
    for tensor in graph.initializer:
        if tensor.doc_string or tensor.metadata_props:
            notes.tensors[tensor.name] = onnx.TensorProto(
                doc_string=tensor.doc_string, metadata_props=tensor.metadata_props
            )
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
    said = [a for a in node.attribute if a.doc_string]
    if not said and not any(getattr(node, name) for name in _NODE_FIELDS):
        return
    key = _key(node)
    if key is None:
        return
    note = onnx.NodeProto()
    note.CopyFrom(node)
    for name in _CARRIED_NODE_FIELDS:
        note.ClearField(name)
    note.attribute.extend(onnx.AttributeProto(name=a.name, doc_string=a.doc_string) for a in said)
    into[key] = note


def shared_constants(graph: Graph) -> set[str]:
    """Return the names of constants of the main graph that subgraphs read too."""
    own = {id(t) for node in graph.nodes for t in node.inputs if isinstance(t, Constant)}
    inner = (t for sub in graph.subgraphs(recursive=True) for node in sub.nodes for t in node.inputs)
    return {tensor.name for tensor in inner if id(tensor) in own}


def put_back(graph: onnx.GraphProto, notes: Notes, shared: Set[str], *, nested: bool) -> None:
    """Put everything noted back into an exported ``graph``, where what it belonged to still exists.

    Args:
        shared: names of constants that the main graph and its subgraphs both read: they are stored once.
        nested: whether any node holds a subgraph; without one, most of the work falls away.
    """
    for place, current in _graphs(graph) if nested else (((), graph),):
        noted = notes.graphs.get(place, notes.graphs[()])
        _put_back_into(current, noted)
        if current is not graph:
            declared = [value for value in current.value_info if value.name in noted.values]
            del current.value_info[:]  # what inference found for us, it finds again: the file need not carry it
            current.value_info.extend(declared)
    if nested:
        _hoist_captured_weights(graph, notes.outer_weights | shared, all_of_them=notes.weights_are_inputs)
    if notes.referred:
        present = {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(tensor for name, tensor in notes.referred.items() if name not in present)
    _restore_inputs(graph, notes)
    for place, current in _graphs(graph) if len(notes.graphs) > 1 else (((), graph),):
        if place in notes.graphs:
            _restore_shell(current, notes.graphs[place].shell)


def _put_back_into(graph: onnx.GraphProto, notes: GraphNotes) -> None:
    for node in graph.node if notes.nodes else ():
        note = notes.nodes.get(_key(node) or ("", ""))
        if note is not None:
            _restore_node(node, note)
    for value in (*graph.input, *graph.output, *graph.value_info):
        noted = notes.values.get(value.name)
        if noted is not None:
            _restore_type(value, noted)
    for tensor in graph.initializer if notes.tensors else ():
        if tensor.name in notes.tensors:
            tensor.ClearField("metadata_props")
            tensor.MergeFrom(notes.tensors[tensor.name])


def _restore_node(node: onnx.NodeProto, note: onnx.NodeProto) -> None:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    for said in note.attribute:
        if said.name in attributes:
            attributes[said.name].doc_string = said.doc_string
    for name in _NODE_FIELDS:
        value = getattr(note, name)
        if isinstance(value, str):
            if note.HasField(name):
                setattr(node, name, value)
        elif value:
            getattr(node, name).MergeFrom(value)


def _restore_shell(graph: onnx.GraphProto, shell: onnx.GraphProto) -> None:
    graph.MergeFrom(shell)
    if not graph.quantization_annotation:
        return
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    names.update(value.name for value in graph.input)
    names.update(tensor.name for tensor in graph.initializer)
    kept = [note for note in graph.quantization_annotation if note.tensor_name in names]
    del graph.quantization_annotation[:]
    graph.quantization_annotation.extend(kept)


def _restore_type(value: onnx.ValueInfoProto, noted: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    if not noted.type.HasField("tensor_type"):
        if kind in (None, noted.type.WhichOneof("value")) or not noted.HasField("type"):
            value.CopyFrom(noted)
        return
    if noted.type.denotation:
        value.type.denotation = noted.type.denotation
    _merge(value, noted, ("name", "type"))
    ours, theirs = value.type.tensor_type, noted.type.tensor_type
    if len(ours.shape.dim) == len(theirs.shape.dim):
        for mine, original in zip(ours.shape.dim, theirs.shape.dim, strict=True):
            if original.denotation:
                mine.denotation = original.denotation


def _merge(value: onnx.ValueInfoProto, noted: onnx.ValueInfoProto, but: tuple[str, ...]) -> None:
    """Give ``value`` everything noted, whatever onnx adds, but the fields ``but``."""
    rest = onnx.ValueInfoProto()
    rest.CopyFrom(noted)
    for name in but:
        rest.ClearField(name)
    value.MergeFrom(rest)


def _hoist_captured_weights(graph: onnx.GraphProto, outer: Set[str], *, all_of_them: bool) -> None:
    """Store a weight of the main graph once, there, although it is exported with each subgraph that captures it.

    Args:
        outer: names of such weights.
        all_of_them: whether every initializer of a subgraph must go: IR version 3 would have it an input too.
    """
    present = {tensor.name: tensor for tensor in graph.initializer}
    for _, inner in _graphs(graph):
        if inner is graph or not inner.initializer:
            continue
        given = {value.name for value in inner.input}
        kept = []
        for tensor in inner.initializer:
            if tensor.name not in outer and (not all_of_them or tensor.name in given or tensor.name in present):
                kept.append(tensor)
            elif tensor.name not in present:
                graph.initializer.append(tensor)
                present[tensor.name] = graph.initializer[-1]
            elif present[tensor.name] != tensor:
                kept.append(tensor)  # its own, which hides the outer one
        del inner.initializer[:]
        inner.initializer.extend(kept)


def _restore_inputs(graph: onnx.GraphProto, notes: Notes) -> None:
    graph.initializer.extend(notes.defaults.values())
    if not notes.weights_are_inputs:
        return
    declared = {value.name: value for value in graph.input}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    names = [name for name in notes.input_order if name in declared or name in initializers]
    names += [name for name in initializers if name not in names]  # IR version 3: every initializer is an input
    values = [declared.get(name) or _declare(initializers[name]) for name in names]
    del graph.input[:]
    graph.input.extend(values)


def _declare(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def copy_graph(graph: Graph) -> Graph:
    """Copy a graph as GraphSurgeon does (weights shared), without its losing the types of non-tensor values."""
    copied = graph.copy()
    for original, copy in _graph_pairs(graph, copied):
        kinds = {n: t.type for n, t in original.tensors().items() if isinstance(t, Variable)}
        for name, tensor in copy.tensors().items():
            if isinstance(tensor, Variable):
                tensor.type = kinds.get(name, tensor.type)
            elif isinstance(tensor, Constant):
                tensor.data_location = None
    return copied


def _graph_pairs(left: Graph, right: Graph) -> Iterable[tuple[Graph, Graph]]:
    yield left, right
    yield from zip(left.subgraphs(recursive=True), right.subgraphs(recursive=True), strict=True)
