"""Shapes and element types of every tensor: inferred where possible, asked of a sample where not.

onnx's shape inference runs on a skeleton without weights, so its cost depends on nodes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxslim.errors import ModelError
from onnxslim.ir import Graph, Model, Tensor, Variable, is_standard
from onnxslim.runtime import IMPATIENT, Level, RuntimeRefusal, Session, SessionConfig

Shape = tuple[int, ...]
Dims = tuple[int | str | None, ...]
LONG_VECTOR = 2**20
"""Elements above which onnx's propagation of values takes seconds and gigabytes."""

Known = tuple[int | None, Dims | None]
"""Element type and dimensions, each None where unknown."""


def infer_shapes(model: Model) -> int:
    """Fill in the element type and shape of every computed tensor that inference can tell.

    What is known already and not contradicted stays; declared shapes of inputs and outputs are never changed,
    only completed. An operator that inference does not know leaves its outputs unknown.

    Returns:
        The number of tensors about which something was learned.
    """
    if all(_is_known(tensor) for graph in model.graphs() for tensor in _computed(graph)):
        return 0
    known = _infer(model.skeleton(), nested=model.nested)
    learned = 0
    for graph in model.graphs():
        for tensor in _computed(graph):
            dtype, dims = known.get(tensor.name, (None, None))
            learned += _learn(tensor, dtype, dims)
    return learned


def forget_shapes(model: Model) -> None:
    """Drop the shapes of intermediate tensors, after an edit that changed them; inference finds them again."""
    for graph in model.graphs():
        kept = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
        for node in graph.nodes:
            for tensor in node.outputs:
                if isinstance(tensor, Variable) and id(tensor) not in kept and is_standard(node):
                    tensor.shape = None


def concrete_shapes(model: Model, feed: Mapping[str, npt.NDArray[Any]] | None = None) -> dict[str, Shape]:
    """Return the fixed shape of every computed tensor: at the feed's shapes, otherwise at batch 1.

    Tensors whose shape depends on values are asked of onnxruntime, when a feed is given; without one they are
    absent. An input that the feed lacks keeps its dynamic dimensions, and what depends on them is absent too.

    Raises:
        ModelError: an input has a dynamic dimension other than the batch and there is no feed to fix it.
    """
    proto = model.skeleton()
    for value in proto.graph.input:
        _fix_input(value, (feed or {}).get(value.name), strict=feed is None)
    known = {name: dims for name, (_, dims) in _infer(proto, nested=model.nested).items() if dims is not None}
    shapes = {name: tuple(d for d in dims if isinstance(d, int)) for name, dims in known.items() if _is_fixed(dims)}
    names = [t.name for t in _computed(model.graph) if t.name and t.name not in shapes]
    if feed and names:
        shapes.update(_observe(model, feed, names))
    return shapes


def _is_known(tensor: Tensor) -> bool:
    return tensor.dtype is not None and tensor.shape is not None and _is_fixed(tuple(tensor.shape))


def _is_fixed(dims: Dims) -> bool:
    return all(isinstance(dim, int) for dim in dims)


def _computed(graph: Graph) -> Iterator[Tensor]:
    yield from (tensor for tensor in graph.inputs if isinstance(tensor, Variable))
    for node in graph.nodes:
        yield from (tensor for tensor in node.outputs if isinstance(tensor, Variable) and tensor.name)


_LIKE_THEIR_INPUT = frozenset({"GroupNormalization"})
"""Operators without shape inference in onnx whose output is of the type and shape of their first input."""


def _help(proto: onnx.ModelProto) -> None:
    """Let nodes that onnx cannot infer be others with the same output: ``proto`` serves inference alone."""
    for index, node in enumerate(proto.graph.node):
        if node.op_type in _LIKE_THEIR_INPUT and node.domain in ("", "ai.onnx"):
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
        elif node.op_type == "MatMulNBits" and node.domain == "com.microsoft":
            _as_product(proto.graph, node, f"onnxslim.weight.{index}")


def _as_product(graph: onnx.GraphProto, node: onnx.NodeProto, weight: str) -> None:
    """Let onnxruntime's product with a weight in blocks be a MatMul with one of its shape, K×N."""
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    if not node.input or not {"K", "N"} <= sizes.keys():
        return
    graph.input.append(onnx.helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, [sizes["K"], sizes["N"]]))
    node.op_type, node.domain = "MatMul", ""
    del node.input[1:], node.attribute[:]
    node.input.append(weight)


def _infer(proto: onnx.ModelProto, *, nested: bool) -> dict[str, Known]:
    _help(proto)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=not _has_long_vector(proto))
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = proto  # contradictory or unknown operators: what the file declares is all there is
    found: dict[str, Known] = {}
    kinds: dict[bytes, Known | None] = {}  # many tensors are of one type, which is read once
    stack = [inferred.graph]
    while stack:
        graph = stack.pop()
        for value in (*graph.input, *graph.value_info, *graph.output):
            text = value.type.SerializeToString()
            if text not in kinds:
                kinds[text] = _kind(value.type)
            kind = kinds[text]
            if kind is not None:
                name = value.name
                found[name] = _both(found[name], kind) if name in found else kind
        if nested:
            stack.extend(a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return found


def _kind(value_type: onnx.TypeProto) -> Known | None:
    """Return a tensor's element type and dimensions, None for what is no tensor."""
    if not value_type.HasField("tensor_type"):
        return None
    return value_type.tensor_type.elem_type or None, _dims(value_type.tensor_type)


def _has_long_vector(proto: onnx.ModelProto) -> bool:
    """Whether a declared vector is so long that propagating its values, element by element, takes too much."""
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    shapes = (value.type.tensor_type.shape for value in values)
    return any(len(shape.dim) == 1 and shape.dim[0].dim_value > LONG_VECTOR for shape in shapes)


def _both(first: Known, second: Known) -> Known:
    """Join what two places say of one name: a subgraph repeats what it captures, often knowing less.

    Subgraphs side by side may give one name to different tensors: then nothing is known of either.
    """
    dtype, dims = first[0] or second[0], second[1] if first[1] is None else first[1]
    if second[0] not in (None, dtype):
        return None, None
    return dtype, dims if dims is None or second[1] is None else _merge(dims, second[1])


def _dims(tensor_type: onnx.TypeProto.Tensor) -> Dims | None:
    if not tensor_type.HasField("shape"):
        return None
    return tuple(size if (size := dim.dim_value) > 0 else _dim(dim) for dim in tensor_type.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # inference subtracts what a wrong model makes it
    if dim.dim_param and not dim.dim_param.startswith("unk__"):  # onnx's own placeholder for "no idea"
        return dim.dim_param
    return None


def _learn(tensor: Tensor, dtype: int | None, dims: Dims | None) -> bool:
    learned = False
    if tensor.dtype is None and dtype is not None:
        tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(dtype)
        learned = True
    if dims is None:
        return learned
    if tensor.shape is None:
        tensor.shape = list(dims)
        return True
    merged = _merge(tuple(tensor.shape), dims)
    if merged is None or merged == tuple(tensor.shape):
        return learned
    tensor.shape = list(merged)
    return True


def _merge(old: Dims, new: Dims) -> Dims | None:
    """Complete ``old`` by ``new``; None where they contradict each other."""
    if len(old) != len(new):
        return None
    pairs = tuple(zip(old, new, strict=True))
    if any(isinstance(mine, int) and isinstance(other, int) and mine != other for mine, other in pairs):
        return None
    return tuple(other if isinstance(other, int) or mine is None else mine for mine, other in pairs)


def _fix_input(value: onnx.ValueInfoProto, array: npt.NDArray[Any] | None, *, strict: bool) -> None:
    if not value.type.HasField("tensor_type"):
        return
    dims = value.type.tensor_type.shape.dim
    if array is not None:
        del dims[:]
        for size in np.shape(array):
            dims.add(dim_value=size)
        return
    for axis, dim in enumerate(dims):
        if dim.HasField("dim_value"):
            continue
        if axis > 0 and strict:
            raise ModelError(
                f"input {value.name!r} has a dynamic dimension at axis {axis}: "
                f"give samples with --data, or fix it with --shape {value.name}=..."
            )
        if axis == 0:
            dim.dim_value = 1


def _observe(model: Model, feed: Mapping[str, npt.NDArray[Any]], names: list[str]) -> dict[str, Shape]:
    """Run the model once and look at the tensors that inference could not tell."""
    try:
        placed = model.placed(names)
        session = Session(placed.data, SessionConfig(level=Level.NONE, mapped=model.is_large, patience=IMPATIENT))
        values = session.run(dict(feed), names)
    except RuntimeRefusal:
        return {}
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, np.ndarray)}
