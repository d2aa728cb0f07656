"""Operators that do an unbounded amount of work, known from constants, inside libraries that do not look first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxslim.ir.guards_tensors import LARGEST_UNPACKED, Fault

MOST_TRIPS = 1_000_000
"""Times that a body may run in loops that only count: seconds in onnxruntime."""

MOST_VALUES = 2**20
"""Elements that shape inference may compute one by one: it follows values through Range and Concat."""

LONGEST_EQUATION = 1000

FEW = 64
"""Elements up to which values of constants are looked at."""

_T = onnx.TensorProto
_NUMBERS = {_T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64, _T.BOOL, _T.FLOAT}
_NUMBERS |= {_T.FLOAT16, _T.DOUBLE}

_TERM = re.compile(r"[A-Za-z ]*(\.\.\.)?[A-Za-z ]*")


@dataclass
class Growth:
    """What is known of constants: how many elements, and the values of scalars."""

    counts: dict[str, int] = field(default_factory=dict)
    small: dict[str, onnx.TensorProto] = field(default_factory=dict)
    """Constants of at most :data:`FEW` elements."""
    stored: int = 0
    """Elements of all constants that the file itself holds."""
    unpacked: int = 0
    """Bytes that all sparse tensors become."""

    def store(self, tensor: onnx.TensorProto, name: str) -> None:
        """Note a constant of the file."""
        count = math.prod(tensor.dims)
        self.stored += count
        self.counts[name] = count
        if 0 < count <= FEW and tensor.data_location != onnx.TensorProto.EXTERNAL:
            self.small[name] = tensor

    def unpack(self, size: int) -> None:
        """Note that a sparse tensor becomes ``size`` bytes.

        Raises:
            Fault: all of them together become too many.
        """
        self.unpacked += size
        if self.unpacked > LARGEST_UNPACKED:
            raise Fault(f"with the sparse tensors before it, it unpacks to more than {LARGEST_UNPACKED} bytes")

    def values(self, name: str) -> npt.NDArray[Any] | None:
        """Return a small constant's values as a vector, None where it is none, or holds no integers or floats."""
        tensor = self.small.get(name)
        if tensor is None or tensor.data_type not in _NUMBERS:
            return None
        return np.asarray(onnx.numpy_helper.to_array(tensor)).reshape(-1)

    def scalar(self, name: str) -> float | None:
        """Return the value of a constant of one element, None where that is not known."""
        values = self.values(name)
        if values is None or values.size != 1:
            return None
        return float(values[0]) if values.dtype.kind == "f" else int(values[0])


def _check_constant(node: onnx.NodeProto, growth: Growth) -> None:
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR and node.output:
            growth.store(attribute.t, node.output[0])
        elif attribute.name == "value_int" and node.output:
            growth.store(onnx.TensorProto(data_type=onnx.TensorProto.INT64, int64_data=[attribute.i]), node.output[0])


def _check_einsum(node: onnx.NodeProto, growth: Growth) -> None:
    """Two ellipses in a term, or single dots, make shape inference loop for ever."""
    equation = next((a.s for a in node.attribute if a.name == "equation"), b"").decode("ascii", "replace")
    terms = equation.replace("->", ",", 1).split(",")
    if len(equation) > LONGEST_EQUATION or not all(_TERM.fullmatch(term) for term in terms):
        raise Fault(f"its equation {equation[:40]!r} is malformed")


def _check_range(node: onnx.NodeProto, growth: Growth) -> None:
    """Shape inference computes a constant Range, element by element."""
    found = [growth.scalar(name) for name in node.input]
    if len(found) != 3 or not node.output:
        return
    start, limit, delta = found
    if start is None or limit is None or delta is None:
        return
    if delta == 0 or not all(map(math.isfinite, (start, limit, delta))):
        raise Fault(f"it counts from {start} to {limit} in steps of {delta}")
    count = max(0, math.ceil((limit - start) / delta))
    if count > MOST_VALUES and count > growth.stored:
        raise Fault(f"it makes {count} numbers of constants, more than {MOST_VALUES}")
    growth.counts[node.output[0]] = count


def _check_concat(node: onnx.NodeProto, growth: Growth) -> None:
    """Forty times the double of a constant is a million million of it."""
    counts = [growth.counts.get(name) for name in node.input]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts) or not node.output:
        return
    count = sum(known)
    if count > max(MOST_VALUES, 2 * growth.stored):
        raise Fault(f"it repeats constants to {count} elements, more than {MOST_VALUES}")
    growth.counts[node.output[0]] = count


def _check_division(node: onnx.NodeProto, growth: Growth) -> None:
    """The smallest integer divided by -1 has no result, and the processor ends the process for it."""
    values = [growth.values(name) for name in node.input]
    if len(values) == 2 and values[0] is not None and values[1] is not None and values[0].dtype.kind == "i":
        smallest = np.iinfo(values[0].dtype).min
        if (values[0] == smallest).any() and (values[1] == -1).any():
            raise Fault(f"it divides {smallest} by -1, which has no result")
    _pass_on(node, growth)


def _pass_on(node: onnx.NodeProto, growth: Growth) -> None:
    """Elementwise and reshaping operators: as many elements as the largest input."""
    counts = [growth.counts[name] for name in node.input if name in growth.counts]
    if counts and node.output:
        growth.counts[node.output[0]] = max(counts)


def _check_shape(node: onnx.NodeProto, growth: Growth) -> None:
    if node.output:
        growth.counts[node.output[0]] = 64


CHECKS: dict[str, Callable[[onnx.NodeProto, Growth], None]] = {
    "Concat": _check_concat,
    "Constant": _check_constant,
    "Div": _check_division,
    "Einsum": _check_einsum,
    "Mod": _check_division,
    "Range": _check_range,
    "Shape": _check_shape,
    "Size": _check_shape,
    **dict.fromkeys(
        (
            "Abs",
            "Add",
            "Cast",
            "Ceil",
            "Flatten",
            "Floor",
            "Gather",
            "Identity",
            "Mul",
            "Neg",
            "Relu",
            "Reshape",
        ),
        _pass_on,
    ),
    **dict.fromkeys(("Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"), _pass_on),
}
"""By operator of the standard domain: refuses a node that would compute without end, or much from nothing."""


def loop_trips(node: onnx.NodeProto, growth: Growth) -> int:
    """Return how often the bodies of ``node`` run at least, where constants alone say so; otherwise 1.

    Raises:
        Fault: a Loop that only counts, and counts to more than :data:`MOST_TRIPS`; or that computes nothing, and how
            often is not known: onnxruntime, which looks between nodes, could not be told to end it.
    """
    if node.op_type != "Loop" or node.domain not in ("", "ai.onnx") or not node.input:
        return 1
    trips = growth.scalar(node.input[0]) if node.input[0] else math.inf
    body = next((a.g for a in node.attribute if a.name == "body"), None)
    starts = len(node.input) < 2 or not node.input[1] or bool(growth.scalar(node.input[1]))
    unbounded = (trips is None or trips > MOST_TRIPS) and (starts or growth.scalar(node.input[1]) is None)
    if body is not None and unbounded and _only_repeats(body):
        raise Fault("its body computes nothing, and how often it runs is not known")
    if trips is None or body is None or not starts or not _goes_on(body):
        return 1
    if trips > MOST_TRIPS:
        raise Fault(f"it runs its body {trips:.0f} times, more than {MOST_TRIPS}")
    return max(1, int(trips))


def _only_repeats(body: onnx.GraphProto) -> bool:
    """Whether a body has no nodes but constants, and its condition is none that ends the Loop after one trip."""
    given = {value.name for value in body.input}
    repeats = bool(body.output) and body.output[0].name in given
    return (repeats or _goes_on(body)) and all(node.op_type == "Constant" for node in body.node)


def _goes_on(body: onnx.GraphProto) -> bool:
    """Whether a Loop's body hands on the condition it was given, or true."""
    if len(body.input) < 2 or not body.output:
        return False
    name, given = body.output[0].name, body.input[1].name
    makers = {output: node for node in body.node if node.op_type in ("Identity", "Constant") for output in node.output}
    for _ in range(len(makers) + 1):
        if name == given:
            return True
        node = makers.get(name)
        if node is None:
            held = {tensor.name: tensor for tensor in body.initializer}
            return name in held and bool(np.asarray(onnx.numpy_helper.to_array(held[name])).all())
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            return value is not None and bool(np.asarray(onnx.numpy_helper.to_array(value)).all())
        name = node.input[0] if node.input else ""
    return False
