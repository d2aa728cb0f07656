"""From a GraphSurgeon graph to a GraphProto, written in place: nothing is built twice, nothing inferred is declared."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import onnx
from onnx_graphsurgeon import Constant, Graph, Node, Tensor, Variable
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnxslim.ir.importing import CARRIED_KINDS, Overload


class Everything:
    """Holds every name."""

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is held: it is."""
        return True


def write_graph(graph: Graph, into: onnx.GraphProto, declared: Container[str]) -> None:
    """Write ``graph`` into the empty proto ``into``; inner values are declared only if their names are ``declared``."""
    if graph.name is not None:
        into.name = graph.name
    if graph.doc_string:
        into.doc_string = graph.doc_string
    into.input.extend(declaration(tensor) for tensor in graph.inputs)
    into.output.extend(declaration(tensor) for tensor in graph.outputs)
    seen = {tensor.name for tensor in (*graph.inputs, *graph.outputs) if isinstance(tensor, Variable)}
    for node in graph.nodes:
        write_node(node, into.node.add(), declared)
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name not in seen and (isinstance(tensor, Constant) or tensor.inputs[:1] == [node]):
                seen.add(tensor.name)  # what a subgraph captures is declared outside
                _write_tensor(tensor, into, declared)
    for tensor in graph.outputs:
        if isinstance(tensor, Constant) and tensor.name not in seen:
            seen.add(tensor.name)
            _write_tensor(tensor, into, declared)


def _write_tensor(tensor: Tensor, into: onnx.GraphProto, declared: Container[str]) -> None:
    if isinstance(tensor, Constant):
        if isinstance(tensor._values, SparseValues):
            into.sparse_initializer.append(OnnxExporter.export_sparse_tensor_proto(tensor))
        else:
            into.initializer.append(stored(tensor))
    elif tensor.name in declared:
        into.value_info.append(declaration(tensor))


def write_node(node: Node, into: onnx.NodeProto, declared: Container[str]) -> None:
    """Write ``node``, its subgraphs too, into the empty proto ``into``."""
    into.op_type = node.op
    if node.name:
        into.name = node.name
    if node.domain is not None:
        into.domain = node.domain
    into.input.extend([tensor.name for tensor in node.inputs])
    into.output.extend([tensor.name for tensor in node.outputs])
    for name, value in node.attrs.items():
        if isinstance(value, Graph):
            attribute = into.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
            write_graph(value, attribute.g, declared)
        elif isinstance(value, Overload):
            into.overload = value
        else:
            into.attribute.append(_attribute(name, value))


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    if isinstance(value, onnx.AttributeProto):
        return value  # of a type that GraphSurgeon does not know: as it was read
    if isinstance(value, list) and not value:
        return onnx.AttributeProto(name=name, type=getattr(value, "kind", onnx.AttributeProto.INTS))
    if isinstance(value, Constant):
        return onnx.helper.make_attribute(name, stored(value))
    return OnnxExporter.export_attributes({name: value})[0]


def stored(tensor: Constant) -> onnx.TensorProto:
    """Return a constant as it is stored; types that numpy lacks, which GraphSurgeon does not pack, as onnx does."""
    values = tensor._values
    if isinstance(values, LazyValues) or (values.dtype.isbuiltin == 1 and values.dtype.kind != "O"):
        return OnnxExporter.export_tensor_proto(tensor)
    return onnx.numpy_helper.from_array(values, tensor.name)


def declaration(tensor: Tensor) -> onnx.ValueInfoProto:
    """Return a tensor's name, type and shape, as far as GraphSurgeon knows; its notes know the rarer kinds."""
    kind = tensor.type if isinstance(tensor, Variable) else "tensor_type"
    if kind not in CARRIED_KINDS:
        return onnx.ValueInfoProto(name=tensor.name)
    dtype = tensor.dtype
    if kind == "tensor_type" and isinstance(dtype, np.dtype) and dtype.isbuiltin != 1:
        number = onnx.helper.np_dtype_to_tensor_dtype(dtype)  # GraphSurgeon mistakes some
        return onnx.helper.make_tensor_value_info(tensor.name, number, tensor.shape)
    return OnnxExporter.export_value_info_proto(tensor, do_type_check=False)
