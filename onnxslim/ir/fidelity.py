"""What GraphSurgeon does not carry, noted at import and put back at export.

GraphSurgeon keeps nodes, tensors and weights. It loses: doc strings and metadata of nodes and values, attributes of
rare types, types of sequences and optionals, quantization annotations, inputs that are also initializers, and it
copies outer weights into every subgraph that captures them. :class:`Notes` holds those things by tensor name, the
anchor of everything in this project, so they survive copies and follow nodes that passes leave alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

import onnx
from onnx_graphsurgeon import Constant, Graph, Variable

_CARRIED = {
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.INT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.TENSOR,
    onnx.AttributeProto.GRAPH,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.STRINGS,
}

_CARRIED_NODE_FIELDS = ("input", "output", "name", "op_type", "domain", "attribute")
_NODE_FIELDS = tuple(f.name for f in onnx.NodeProto.DESCRIPTOR.fields if f.name not in _CARRIED_NODE_FIELDS)
"""Fields of a node that GraphSurgeon does not carry: doc string, metadata, and whatever onnx adds."""


@dataclass(frozen=True)
class Notes:
    """Everything of one model that its GraphSurgeon graph does not hold."""

    nodes: dict[tuple[str, str], onnx.NodeProto] = field(default_factory=dict)
    """By operator and first output: doc string, metadata, overload and attributes of rare types."""
    values: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    """By name: the declared type of every input, output and intermediate value."""
    shell: onnx.GraphProto = field(default_factory=onnx.GraphProto)
    """The graph's own metadata and quantization annotations, without nodes or weights."""
    input_order: tuple[str, ...] = ()
    defaults: dict[str, onnx.TensorProto] = field(default_factory=dict)
    """Initializers that the caller may override (inputs since IR version 4): plain inputs to every pass."""
    weights_are_inputs: bool = False
    """IR version 3 demands that every initializer is an input too."""
    outer_weights: frozenset[str] = frozenset()
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    """By name: doc strings and metadata of initializers, which are lost when their values are looked at."""


def take_notes(model: onnx.ModelProto) -> Notes:
    """Note what GraphSurgeon will lose of ``model``, and turn overridable initializers into plain inputs.

    Changes ``model.graph`` (it drops those initializers and the rare attributes); call it on a copy.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value.name for value in graph.input]
    both = [name for name in inputs if name in initializers]
    notes = Notes(
        shell=_shell(graph),
        input_order=tuple(inputs),
        weights_are_inputs=model.ir_version < 4,
        outer_weights=frozenset(initializers),
    )
    for tensor in graph.initializer:
        if tensor.doc_string or tensor.metadata_props:
            notes.tensors[tensor.name] = onnx.TensorProto(
                doc_string=tensor.doc_string, metadata_props=tensor.metadata_props
            )
    if model.ir_version >= 4 and both:
        for name in both:
            kept = onnx.TensorProto()
            kept.CopyFrom(initializers[name])
            notes.defaults[name] = kept
        remaining = [tensor for tensor in graph.initializer if tensor.name not in notes.defaults]
        del graph.initializer[:]
        graph.initializer.extend(remaining)
    for current in _graphs(graph):
        for value in (*current.input, *current.output, *current.value_info):
            notes.values.setdefault(value.name, value)
        for node in current.node:
            _note_node(node, notes.nodes)
    return notes


def _shell(graph: onnx.GraphProto) -> onnx.GraphProto:
    shell = onnx.GraphProto()
    shell.metadata_props.extend(graph.metadata_props)
    shell.quantization_annotation.extend(graph.quantization_annotation)
    return shell


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        for node in current.node:
            stack.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


def _key(node: onnx.NodeProto) -> tuple[str, str] | None:
    name = next((output for output in node.output if output), None)
    return None if name is None else (node.op_type, name)


def _note_node(node: onnx.NodeProto, into: dict[tuple[str, str], onnx.NodeProto]) -> None:
    rare = [a for a in node.attribute if _is_rare(a)]
    if not rare and not any(getattr(node, name) for name in _NODE_FIELDS):
        return
    key = _key(node)
    if key is None:
        return
    note = onnx.NodeProto()
    note.CopyFrom(node)
    for name in _CARRIED_NODE_FIELDS:
        note.ClearField(name)
    note.attribute.extend(rare)
    into[key] = note
    if rare:
        kept = [a for a in node.attribute if not _is_rare(a)]
        del node.attribute[:]
        node.attribute.extend(kept)


def _is_rare(attribute: onnx.AttributeProto) -> bool:
    """Whether GraphSurgeon does not carry an attribute: of another type, or bytes that are no text."""
    if attribute.ref_attr_name:
        return False
    if attribute.type in (onnx.AttributeProto.STRING, onnx.AttributeProto.STRINGS):
        return not all(map(_is_text, (attribute.s, *attribute.strings)))
    return attribute.type not in _CARRIED


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


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
    for current in _graphs(graph) if nested else (graph,):
        for node in current.node if notes.nodes else ():
            key = _key(node)
            if key in notes.nodes:
                node.MergeFrom(notes.nodes[key])
        for value in (*current.input, *current.output, *current.value_info):
            _restore_type(value, notes.values.get(value.name))
        if current is not graph:
            declared = [value for value in current.value_info if value.name in notes.values]
            del current.value_info[:]  # what inference found for us, it finds again: the file need not carry it
            current.value_info.extend(declared)
    if nested:
        _hoist_captured_weights(graph, notes.outer_weights | shared, all_of_them=notes.weights_are_inputs)
    for tensor in graph.initializer if notes.tensors else ():
        if tensor.name in notes.tensors:
            tensor.ClearField("metadata_props")
            tensor.MergeFrom(notes.tensors[tensor.name])
    _restore_inputs(graph, notes)
    graph.metadata_props.extend(notes.shell.metadata_props)
    if notes.shell.quantization_annotation:
        names = {name for node in graph.node for name in (*node.input, *node.output)}
        kept = (note for note in notes.shell.quantization_annotation if note.tensor_name in names)
        graph.quantization_annotation.extend(kept)


def _restore_type(value: onnx.ValueInfoProto, noted: onnx.ValueInfoProto | None) -> None:
    if noted is None:
        return
    if not noted.type.HasField("tensor_type"):
        value.CopyFrom(noted)
        return
    if noted.type.denotation:
        value.type.denotation = noted.type.denotation
    if noted.doc_string:
        value.doc_string = noted.doc_string
    value.metadata_props.extend(noted.metadata_props)
    ours, theirs = value.type.tensor_type, noted.type.tensor_type
    if len(ours.shape.dim) == len(theirs.shape.dim):
        for mine, original in zip(ours.shape.dim, theirs.shape.dim, strict=True):
            if original.denotation:
                mine.denotation = original.denotation


def _hoist_captured_weights(graph: onnx.GraphProto, outer: Set[str], *, all_of_them: bool) -> None:
    """Store a weight of the main graph once, there, although it is exported with each subgraph that captures it.

    Args:
        outer: names of such weights.
        all_of_them: whether every initializer of a subgraph must go: IR version 3 would have it an input too.
    """
    present = {tensor.name for tensor in graph.initializer}
    for inner in _graphs(graph):
        if inner is graph or not inner.initializer:
            continue
        given = {value.name for value in inner.input}
        kept = []
        for tensor in inner.initializer:
            if tensor.name not in outer and (not all_of_them or tensor.name in given or tensor.name in present):
                kept.append(tensor)
            elif tensor.name not in present:
                graph.initializer.append(tensor)
                present.add(tensor.name)
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
