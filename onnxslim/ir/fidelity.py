"""Back into an exported graph goes what :mod:`onnxslim.ir.noting` noted, where what it belonged to still exists."""

from __future__ import annotations

from collections.abc import Iterable, Set

import onnx
from onnx_graphsurgeon import Constant, Graph, Variable

from onnxslim.ir.noting import GraphNotes, Notes, key_of, placed_graphs


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
    if nested:
        _hoist_captured_weights(graph, notes.outer_weights | shared, all_of_them=notes.weights_are_inputs)
    for place, current in placed_graphs(graph) if nested else (((), graph),):
        noted = notes.graphs.get(place, notes.graphs[()])
        _put_back_into(current, noted)
        if current is not graph:
            declared = [value for value in current.value_info if value.name in noted.values]
            del current.value_info[:]  # what inference found for us, it finds again: the file need not carry it
            current.value_info.extend(declared)
    if notes.referred:
        present = {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(tensor for name, tensor in notes.referred.items() if name not in present)
    for _, current in placed_graphs(graph) if notes.sparse else ():
        _restore_sparse(current, notes.sparse)
    _restore_inputs(graph, notes)
    for place, current in placed_graphs(graph) if len(notes.graphs) > 1 else (((), graph),):
        if place in notes.graphs:
            _restore_shell(current, notes.graphs[place].shell)


def _put_back_into(graph: onnx.GraphProto, notes: GraphNotes) -> None:
    for node in graph.node if notes.nodes else ():
        note = notes.nodes.get(key_of(node) or ("", ""))
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
    attributes = list(node.attribute)
    node.MergeFrom(note)
    said = {attribute.name: attribute.doc_string for attribute in note.attribute}
    if not said:
        return
    del node.attribute[:]
    for attribute in attributes:
        if attribute.name in said:
            attribute.doc_string = said[attribute.name]
    node.attribute.extend(attributes)


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


def _restore_sparse(graph: onnx.GraphProto, names: Set[str]) -> None:
    """Store again as sparse initializers what became Constant nodes for passes."""
    kept = []
    for node in graph.node:
        value = next((a.sparse_tensor for a in node.attribute if a.name == "sparse_value"), None)
        if node.op_type == "Constant" and value is not None and node.output[0] in names:
            graph.sparse_initializer.append(value)
            graph.sparse_initializer[-1].values.name = node.output[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


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
    for _, inner in placed_graphs(graph):
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
    names += [name for name in (*declared, *initializers) if name not in names]  # every initializer is an input there
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
