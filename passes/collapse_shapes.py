"""collapse-shapes: what a graph computes about its own shapes becomes constant where the shapes are known.

Given → Result, numbered as in the code:

1. Shape, Size, and Gather, Slice, Concat, Cast, Squeeze, Unsqueeze, Reshape, Add, Sub, Mul of them,
   if all elements are known → a constant.
   A dimension is known when shape inference found its number; Gather(Shape(x), 1) needs dimension 1.
2. Reshape to a computed target [d₀, …, dₙ] in which single elements are unknown → a constant target:
   an unknown element that is the size of the reshaped tensor's own dimension at the same place becomes 0 (copy it);
   one other unknown element becomes −1 (the rest), which is what it must be, or the original Reshape would fail too
   (of a tensor without elements every number would fit, so an empty batch may fail now).

Left alone: targets with more unknowns, elements that may be 0 themselves, shapes of unknown rank.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim.ir import Node, Rewriter, Tensor, array_of, dims_of, is_standard, numpy_dtype
from onnxslim.pipeline import Effect, Pass, PassContext

Element = int | str | tuple[int, int] | None
"""A number, the symbol of a dimension, (tensor, axis) for a dimension without a symbol, or nothing known."""

LONGEST = 64
"""Vectors longer than this are data, not shapes."""


@dataclass(frozen=True)
class Vector:
    """What is known of a small integer tensor: its elements, and whether it is a scalar."""

    elements: tuple[Element, ...]
    scalar: bool = False


@dataclass(frozen=True)
class CollapseShapes(Pass):
    """Replace calculations with shapes by their results where the shapes are known."""

    name = "collapse-shapes"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Follow shapes through each graph in order; what is not followed is not touched."""
        for graph in list(rewriter.model.graphs()):
            known: dict[int, Vector] = {}
            for node in list(graph.nodes):
                if not is_standard(node):
                    continue
                if node.op == "Reshape":
                    _fix_target(node, known, rewriter)
                vector = _follow(node, known)
                if vector is not None:
                    known[id(node.outputs[0])] = vector
                    _make_constant(node, vector, rewriter)


def _make_constant(node: Node, vector: Vector, rewriter: Rewriter) -> None:
    """Case 1: every element is a number."""
    numbers = [element for element in vector.elements if isinstance(element, int)]
    out = node.outputs[0]
    if len(numbers) < len(vector.elements) or not out.outputs:
        return
    dtype = np.dtype(np.int64) if node.op in ("Shape", "Size") else numpy_dtype(out.dtype)
    if dtype is None or dtype.kind not in "iu" or any(not _fits(number, dtype) for number in numbers):
        return
    values = np.array(numbers[0] if vector.scalar else numbers, dtype)
    if rewriter.fold(out, values):
        rewriter.remove(node)


def _fits(number: int, dtype: np.dtype[Any]) -> bool:
    return int(np.iinfo(dtype).min) <= number <= int(np.iinfo(dtype).max)


def _fix_target(node: Node, known: dict[int, Vector], rewriter: Rewriter) -> None:
    """Case 2: a Reshape whose target is computed."""
    vector = known.get(id(node.inputs[1]))
    if vector is None or array_of(node.inputs[1]) is not None or node.attrs.get("allowzero"):
        return
    target = _target(vector.elements, node.inputs[0])
    if target is not None:
        rewriter.set_input(node, 1, rewriter.constant(node.inputs[1].name, np.array(target, np.int64)))


def _target(elements: Sequence[Element], data: Tensor) -> list[int] | None:
    """Return a constant target that always says the same as ``elements``, None where there is none."""
    own = [_dimension(data, axis) for axis in range(len(dims_of(data) or ()))]
    target: list[int] = []
    for axis, element in enumerate(elements):
        if isinstance(element, int):
            target.append(element)
        elif element is not None and axis < len(own) and own[axis] == element:
            target.append(0)
        else:
            target.append(-1)
    unknown = sum(element == -1 for element in target)
    if unknown > 1 or any(element == 0 for element in elements):
        return None
    return target


# ---- following shapes ---------------------------------------------------------------------------------------------


def _dimension(tensor: Tensor, axis: int) -> Element:
    """Return one dimension: its number, its symbol, or (tensor, axis), which is known to be equal to itself alone."""
    dims = dims_of(tensor)
    dim = None if dims is None else dims[axis]
    return (id(tensor), axis) if dim is None else dim


def _value(tensor: Tensor, known: dict[int, Vector]) -> Vector | None:
    if id(tensor) in known:
        return known[id(tensor)]
    dims = dims_of(tensor)
    if dims is None or len(dims) > 1 or (dims and (not isinstance(dims[0], int) or dims[0] > LONGEST)):
        return None
    array = array_of(tensor)
    if array is None or array.dtype.kind not in "iu":
        return None
    return Vector(tuple(int(value) for value in array.reshape(-1)), scalar=array.ndim == 0)


def _follow(node: Node, known: dict[int, Vector]) -> Vector | None:
    """Return what is known of the node's first output, None where it is no small integer tensor."""
    follow = _FOLLOW.get(node.op)
    return None if follow is None or not node.inputs else follow(node, known)


Follow = Callable[[Node, dict[int, Vector]], Vector | None]


def _shape(node: Node, known: dict[int, Vector]) -> Vector | None:
    dims = dims_of(node.inputs[0])
    if dims is None:
        return None
    elements = tuple(_dimension(node.inputs[0], axis) for axis in range(len(dims)))
    return Vector(elements[slice(node.attrs.get("start", 0), node.attrs.get("end"))])


def _size(node: Node, known: dict[int, Vector]) -> Vector | None:
    dims = dims_of(node.inputs[0])
    sizes = [dim for dim in dims or () if isinstance(dim, int)]
    if dims is None or len(sizes) < len(dims):
        return None
    return Vector((int(np.prod(sizes, dtype=np.int64)),), scalar=True)


def _gather(node: Node, known: dict[int, Vector]) -> Vector | None:
    data, indices = _value(node.inputs[0], known), _value(node.inputs[1], known)
    if data is None or indices is None or data.scalar or node.attrs.get("axis", 0) not in (0, -1):
        return None
    picked = []
    for index in indices.elements:
        if not isinstance(index, int) or not -len(data.elements) <= index < len(data.elements):
            return None
        picked.append(data.elements[index])
    return Vector(tuple(picked), scalar=indices.scalar)


def _slice(node: Node, known: dict[int, Vector]) -> Vector | None:
    data = _value(node.inputs[0], known)
    if data is None or data.scalar:
        return None
    if "starts" in node.attrs:  # before opset 10
        bounds: list[Any] = [node.attrs["starts"], node.attrs["ends"], None, None]
    else:
        arrays = [array_of(tensor) if tensor.name else None for tensor in node.inputs[1:5]]
        if any(array is None and tensor.name for array, tensor in zip(arrays, node.inputs[1:5], strict=True)):
            return None
        bounds = [*arrays, None, None]
    starts, ends, _, steps = bounds[:4]
    step = 1 if steps is None else int(steps[0])
    if starts is None or ends is None or step == 0:
        return None
    end: int | None = int(ends[0])
    if step < 0 and end is not None and end < -len(data.elements):
        end = None
    return Vector(data.elements[slice(int(starts[0]), end, step)])


def _concat(node: Node, known: dict[int, Vector]) -> Vector | None:
    parts = [_value(tensor, known) for tensor in node.inputs]
    whole = [part for part in parts if part is not None and not part.scalar]
    if len(whole) < len(parts):
        return None
    elements = tuple(element for part in whole for element in part.elements)
    return Vector(elements) if len(elements) <= LONGEST else None


def _reshaped(*, scalar: bool | None) -> Follow:
    """Squeeze makes a scalar of one element, Unsqueeze a vector of a scalar; None keeps what it is."""

    def follow(node: Node, known: dict[int, Vector]) -> Vector | None:
        data = _value(node.inputs[0], known)
        if data is None:
            return None
        if scalar is None:
            return data
        return Vector(data.elements, scalar) if len(data.elements) == 1 and data.scalar is not scalar else None

    return follow


def _reshape(node: Node, known: dict[int, Vector]) -> Vector | None:
    """To [], [-1] or [count]: the same elements as a scalar or a vector."""
    data, target = _value(node.inputs[0], known), array_of(node.inputs[1])
    if data is None or target is None or target.ndim != 1 or target.size > 1 or (target == 0).any():
        return None
    return Vector(data.elements, scalar=target.size == 0)


def _cast(node: Node, known: dict[int, Vector]) -> Vector | None:
    dtype = numpy_dtype(int(node.attrs["to"]))
    data = _value(node.inputs[0], known)
    if data is None or dtype is None or dtype not in (np.dtype(np.int64), np.dtype(np.int32)):
        return None
    whole = all(not isinstance(element, int) or _fits(element, dtype) for element in data.elements)
    return data if whole else None


def _arithmetic(function: Callable[[int, int], int]) -> Follow:
    def follow(node: Node, known: dict[int, Vector]) -> Vector | None:
        left, right = _value(node.inputs[0], known), _value(node.inputs[1], known)
        if left is None or right is None:
            return None
        count = max(len(left.elements), len(right.elements))
        if any(len(side.elements) not in (1, count) for side in (left, right)):
            return None
        a, b = (side.elements * (count if len(side.elements) == 1 else 1) for side in (left, right))
        return Vector(
            tuple(_apply(function, x, y) for x, y in zip(a, b, strict=True)), scalar=left.scalar and right.scalar
        )

    return follow


def _apply(function: Callable[[int, int], int], left: Element, right: Element) -> Element:
    if not isinstance(left, int) or not isinstance(right, int):
        return None
    return function(left, right)


_FOLLOW: dict[str, Follow] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _reshaped(scalar=True),
    "Unsqueeze": _reshaped(scalar=False),
    "Identity": _reshaped(scalar=None),
    "Reshape": _reshape,
    "Cast": _cast,
    "Add": _arithmetic(operator.add),
    "Sub": _arithmetic(operator.sub),
    "Mul": _arithmetic(operator.mul),
}
