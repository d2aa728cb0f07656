"""Parts of a graph as protos: all of it without weights, for shape inference, or a few nodes, to be evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx_graphsurgeon import Constant, Graph, Node, Tensor, Variable

from onnxslim.ir.exporting import Everything, declaration, stored, write_node
from onnxslim.ir.lookup import constant_bytes, is_standard, subgraphs_of


def fill(into: onnx.GraphProto, graph: Graph, largest: int) -> None:
    """Write ``graph`` into the empty proto ``into``, constants above ``largest`` bytes as typed inputs."""
    into.name = graph.name or "graph"
    into.input.extend(declaration(tensor) for tensor in graph.inputs)
    into.output.extend(onnx.ValueInfoProto(name=tensor.name) for tensor in graph.outputs)
    seen: set[str] = set()
    for node in graph.nodes:
        if "sparse_value" in node.attrs and node.outputs[0].dtype is not None:
            into.input.append(declaration(node.outputs[0]))  # inference would have it and its readers sparse
            continue
        written = into.node.add()
        write_node(node, written, Everything())
        _forget_inner(written)
        for tensor in (*node.inputs, *_read_inside(node)):
            if isinstance(tensor, Constant) and tensor.name not in seen:
                seen.add(tensor.name)
                _add_constant(into, tensor, largest)
        if not is_standard(node):
            into.value_info.extend(declaration(t) for t in node.outputs if t.dtype is not None and _is_tensor(t))


def _forget_inner(node: onnx.NodeProto) -> None:
    """Drop declarations inside subgraphs: one of a captured tensor would hide what inference finds out about it."""
    for graph in (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH):
        foreign = {name for inner in graph.node if inner.domain not in ("", "ai.onnx") for name in inner.output}
        kept = [value for value in graph.value_info if value.name in foreign]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        for inner in graph.node:
            _forget_inner(inner)


def _read_inside(node: Node) -> list[Tensor]:
    """Return what the nodes of the subgraphs of ``node`` read."""
    if not subgraphs_of(node):
        return []
    return [tensor for graph in node.subgraphs(recursive=True) for inner in graph.nodes for tensor in inner.inputs]


def _is_tensor(tensor: Tensor) -> bool:
    return isinstance(tensor, Variable) and tensor.type == "tensor_type"


def _add_constant(into: onnx.GraphProto, tensor: Constant, largest: int) -> None:
    if constant_bytes(tensor) > largest:
        into.input.append(declaration(tensor))
    else:
        into.initializer.append(stored(tensor))


def fill_nodes(into: onnx.GraphProto, nodes: Sequence[Node], outputs: Sequence[str]) -> None:
    """Write ``nodes`` and the constants they read into the empty proto ``into``, which returns ``outputs``."""
    into.name = "extract"
    seen: set[str] = set()
    for node in nodes:
        write_node(node, into.node.add(), Everything())
        for tensor in node.inputs:
            if isinstance(tensor, Constant) and tensor.name not in seen:
                seen.add(tensor.name)
                into.initializer.append(stored(tensor))
    into.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
