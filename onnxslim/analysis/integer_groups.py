"""What a QDQ graph asks to be computed with integers, read off the graph: the groups that onnxruntime makes kernels of.

A group is an operator, the DequantizeLinear before it and the QuantizeLinear after it, with a Relu or Clip between that
vanishes in the range. Within one no float is ever held. The operators are those of :mod:`onnxslim.targets.cpu`; that
they are what onnxruntime fuses is held by a test on quantized models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxslim.ir import Constant, Graph, Node, Tensor, numpy_dtype, producer
from onnxslim.targets.cpu import INTEGER_OPERATORS

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_VANISHING = frozenset({"Relu", "Clip"})
_COMPUTED = INTEGER_OPERATORS - _VANISHING - {QUANTIZE, DEQUANTIZE}
_FLOAT_OUTPUT = frozenset({"MatMul", "Gemm"})
"""Operators with a kernel that reads integers and writes floats."""


@dataclass
class IntegerGroups:
    """The groups of one graph, by id of nodes."""

    written: dict[int, list[Tensor]] = field(default_factory=dict)
    """What the operator of a group really writes: the integers behind its pairs."""
    absorbed: set[int] = field(default_factory=set)
    """Nodes that vanish in a group: QuantizeLinear, and the activation before it."""

    def source(self, tensor: Tensor, reader: Node) -> Tensor:
        """Return what ``reader`` really reads for ``tensor``: within a group, the integers before the pair."""
        maker = producer(tensor)
        within = id(reader) in self.written and maker is not None and maker.op == DEQUANTIZE
        return maker.inputs[0] if within and maker is not None else tensor


def integer_groups(graph: Graph) -> IntegerGroups:
    """Find the groups of the main graph."""
    groups = IntegerGroups()
    ends = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        if node.op not in _COMPUTED or not _reads_integers(node):
            continue
        paths = [_path(tensor, ends) for tensor in node.outputs if not tensor.is_empty()]
        if all(paths):
            groups.written[id(node)] = [path[-1].outputs[0] for path in paths]
            groups.absorbed.update(id(one) for path in paths for one in path)
        elif node.op in _FLOAT_OUTPUT:
            groups.written[id(node)] = list(node.outputs)
    return groups


def _reads_integers(node: Node) -> bool:
    """Whether all activations that ``node`` reads come from 8-bit integers, and there are some."""
    found = list(_activations(node))
    return bool(found) and all(is_dequantized(tensor) for tensor in found)


def _activations(node: Node) -> Iterator[Tensor]:
    """Yield what ``node`` reads that is computed in float; sizes and weights are neither."""
    for tensor in node.inputs:
        maker = producer(tensor)
        stored = isinstance(tensor, Constant) or tensor.is_empty() or (maker is not None and is_stored(maker))
        if not stored and (tensor.dtype is None or np.issubdtype(numpy_dtype(tensor.dtype), np.floating)):
            yield tensor


def is_stored(node: Node) -> bool:
    """Whether ``node`` turns a constant into floats."""
    return node.op == DEQUANTIZE and isinstance(node.inputs[0], Constant)


def is_dequantized(tensor: Tensor) -> bool:
    """Whether ``tensor`` is what DequantizeLinear makes of 8-bit integers."""
    maker = producer(tensor)
    if maker is None or maker.op != DEQUANTIZE:
        return False
    dtype = numpy_dtype(maker.inputs[0].dtype) or quantized_type(maker.inputs[0])
    return dtype is None or dtype.itemsize == 1


def quantized_type(tensor: Tensor) -> np.dtype[Any] | None:
    """Return the type that QuantizeLinear gives a tensor by its zero point; None for what another operator makes."""
    maker = producer(tensor)
    if maker is None or maker.op != QUANTIZE:
        return None
    zero_point = maker.inputs[2] if len(maker.inputs) > 2 else None
    known = None if zero_point is None or zero_point.is_empty() else numpy_dtype(zero_point.dtype)
    return known or np.dtype(np.uint8)


def _path(tensor: Tensor, ends: set[int]) -> list[Node]:
    """Return the nodes from an output to its only QuantizeLinear, that one included; none where it is read as float."""
    path: list[Node] = []
    while id(tensor) not in ends and len(tensor.outputs) == 1:
        reader = tensor.outputs[0]
        path.append(reader)
        if reader.op == QUANTIZE:
            return path
        if reader.op not in _VANISHING or len(path) > 1:
            break
        tensor = reader.outputs[0]
    return []
