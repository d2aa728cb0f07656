"""Questions about a graph that every pass asks. Nothing here changes anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx_graphsurgeon import Constant, Graph, Node, Tensor

from onnxslim.ir.weights import StoredValues

Dim = int | str | None


def is_standard(node: Node, *ops: str) -> bool:
    """Whether ``node`` is one of ``ops`` (any operator when none is named) of the standard ONNX domain."""
    return node.domain in (None, "", "ai.onnx") and (not ops or node.op in ops)


def anchor_of(node: Node) -> str:
    """Return what a layer is known by: its first named output, or its name where it has none."""
    return next((tensor.name for tensor in node.outputs if tensor.name), node.name)


def producer(tensor: Tensor) -> Node | None:
    """Return the node that computes ``tensor``, or None for inputs, constants and outer tensors."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: Tensor) -> list[Node]:
    """Return the nodes that read ``tensor``, subgraphs' included, each once, in order of first use."""
    seen: dict[int, Node] = {id(node): node for node in tensor.outputs}
    return list(seen.values())


def only_consumer(tensor: Tensor) -> Node | None:
    """Return the single node that reads ``tensor`` exactly once, otherwise None."""
    return tensor.outputs[0] if len(tensor.outputs) == 1 else None


def array_of(tensor: Tensor | None) -> npt.NDArray[Any] | None:
    """Return a constant's values, or None where the tensor is computed. Never write into the array."""
    if not isinstance(tensor, Constant):
        return None
    if isinstance(tensor._values, StoredValues):
        return tensor._values.load()  # not kept: it can be mapped again
    if tensor.dtype == object and not isinstance(tensor._values, np.ndarray):
        return _strings(tensor._values.tensor)  # not kept: the file's own are exported
    return tensor.values


def _strings(tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    """Return strings as text, all of them as bytes where one is no text."""
    try:
        texts: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    except UnicodeDecodeError:
        texts = np.array(list(tensor.string_data), object).reshape(tuple(tensor.dims))
    return texts


def constant_bytes(tensor: Constant) -> int:
    """Return the size of a constant's data in bytes, without reading it. 4-bit types count half a byte."""
    count = math.prod(map(int, tensor.shape))
    dtype = numpy_dtype(tensor.dtype)
    if dtype is not None and dtype.isbuiltin == 1 and dtype.kind != "O":
        return count * dtype.itemsize
    if dtype is None or dtype.kind == "O":
        return int(getattr(tensor._values, "nbytes", 0))
    if dtype.name in ("int4", "uint4"):
        return (count + 1) // 2
    return count * dtype.itemsize


def numpy_dtype(dtype: Any) -> np.dtype[Any] | None:
    """Return the numpy dtype of GraphSurgeon's dtype (numpy's or ONNX's number), None where unknown."""
    if dtype is None:
        return None
    if isinstance(dtype, int):
        try:
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
        except KeyError:
            return None
    resolved: np.dtype[Any] = np.dtype(dtype)
    return resolved


def dims_of(tensor: Tensor) -> tuple[Dim, ...] | None:
    """Return a tensor's dimensions (int, symbol or None), or None where even the rank is unknown."""
    return None if tensor.shape is None else tuple(tensor.shape)


def attribute(node: Node, name: str, default: Any = None) -> Any:
    """Return an attribute's value, ``default`` when the node does not carry it."""
    return node.attrs.get(name, default)


def subgraphs_of(node: Node) -> list[Graph]:
    """Return the graphs that ``node`` itself holds."""
    return [value for value in node.attrs.values() if isinstance(value, Graph)] if node.attrs else []


def graph_nodes(graph: Graph) -> Iterator[tuple[Graph, Node]]:
    """Yield every node of ``graph`` and of its subgraphs, with the graph that holds it, outer first."""
    stack = [graph]
    while stack:
        current = stack.pop()
        for node in current.nodes:
            yield current, node
            stack.extend(subgraphs_of(node))
