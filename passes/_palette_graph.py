"""A stored weight as nodes: integers, unpacked where several lie in a byte, then levels, then the scale.

    int8                  W = Mul(Cast(q), s)
    1, 2, 4 bits          W = Mul(Reshape(Gather(T, Cast(b))), s)       T: for each byte, the levels it holds
    3, 5, 6, 7 bits       W = Mul(Gather(levels, i), s),  i = i₁ | i₂ … unpacked from planes of 4, 2 and 1 bits
    codebook of 8 bits    W = Mul(Gather(levels, Cast(i)), s)
    float16               W = Cast(…) of the same

Nothing but Cast, Gather, Reshape, Slice, Mul and Add (BitwiseOr, where the opset has it): any opset has these, and
onnxruntime folds them from its basic level on. It keeps every intermediate result until it has folded all weights,
which is why tables hold levels rather than indices, and planes are joined as bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Rewriter, Tensor, Variable, numpy_dtype
from onnxslim.passes._palette import MOST_BITS, Palette

Array = npt.NDArray[Any]
FLOAT, INT32, FLOAT16 = 1, 6, 10
"""ONNX's numbers of these types."""
BITWISE = 18
"""The first opset with BitwiseOr."""
SLICE_INPUTS = 10
"""The first in which Slice takes its bounds as inputs."""
NODE_BYTES = 40
"""What a node with its names takes in a file, about."""


def planes_of(bits: int) -> tuple[int, ...]:
    """Return the widths, each a divisor of 8, that an index of ``bits`` is stored in, lowest bits first."""
    return (8,) if bits == MOST_BITS else tuple(width for width in (4, 2, 1) if bits & width)


def packing(elements: int, bits: int) -> tuple[int, ...]:
    """Return the widths to store that many indices in: one of 8 where packing saves less than its nodes take."""
    planes = planes_of(bits)
    packed = sum(-(-elements * width // 8) + 4 * NODE_BYTES for width in planes) + NODE_BYTES
    return planes if packed < elements else (8,)


def pack(index: npt.NDArray[np.uint8], shift: int, width: int) -> npt.NDArray[np.uint8]:
    """Return ``width`` bits of each index, from bit ``shift`` on, as bytes; the first index in the lowest bits."""
    per_byte = 8 // width
    part = (index.reshape(-1) >> shift) & (2**width - 1)
    part = np.pad(part, (0, -len(part) % per_byte)).reshape(-1, per_byte)
    packed = part[:, 0].copy()
    for place in range(1, per_byte):
        packed |= part[:, place] << (width * place)
    return packed


def unpacked_bytes(width: int, shift: int) -> npt.NDArray[np.uint8]:
    """Return the table of shape (256, 8 // width) that :func:`pack` is undone with."""
    every = np.arange(256)[:, None] >> (width * np.arange(8 // width))
    return np.asarray((every & (2**width - 1)) << shift, np.uint8)


class Expander:
    """Writes the nodes that expand weights; tables and shapes are shared by all of them."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter = rewriter
        self._shared: dict[tuple[Any, ...], Tensor] = {}

    def write(self, weight: Constant, palette: Palette) -> None:
        """Let every reader of ``weight`` read what ``palette`` stands for, under the same name."""
        if palette.levels.dtype == np.int8:
            unit = self._integers(weight.name, palette)
        else:
            unit = self._codebook(weight.name, palette)
        scale = self._rewriter.constant(f"{weight.name}_s", palette.scale)
        dtype = numpy_dtype(weight.dtype)
        result = Variable(weight.name, dtype, list(palette.index.shape))
        self._rewriter.replace(weight, result)
        if dtype == np.float16:
            whole = self._node("Mul", [unit, scale], np.float32, palette.index.shape)
            self._rewriter.insert("Cast", [whole], [result], {"to": FLOAT16})
        else:
            self._rewriter.insert("Mul", [unit, scale], [result])

    def _integers(self, name: str, palette: Palette) -> Tensor:
        """Levels are integers: they are stored themselves, or are few enough for a table of all bytes."""
        planes = packing(palette.index.size, palette.bits)
        if planes == (MOST_BITS,):
            stored = self._rewriter.constant(f"{name}_q", palette.levels[palette.index])
            return self._node("Cast", [stored], np.float32, palette.index.shape, {"to": FLOAT})
        table = palette.levels[unpacked_bytes(palette.bits, 0)]
        rows = self._cast(self._constant("levels", table), np.float32)
        return self._plane(name, palette.index, (0, palette.bits), rows)

    def _codebook(self, name: str, palette: Palette) -> Tensor:
        levels = self._rewriter.constant(f"{name}_levels", palette.levels)
        planes, shape = packing(palette.index.size, palette.bits), palette.index.shape
        if planes == (MOST_BITS,):
            index = self._cast(self._rewriter.constant(f"{name}_i", palette.index), np.int32)
            return self._node("Gather", [levels, index], np.float32, shape, {"axis": 0})
        if len(planes) == 1:
            table = self._cast(self._table(palette.bits, 0), np.int32)
            rows = self._node("Gather", [levels, table], np.float32, table.shape, {"axis": 0})
            return self._plane(name, palette.index, (0, palette.bits), rows)
        index = self._joined(name, palette.index, planes)
        return self._node("Gather", [levels, index], np.float32, shape, {"axis": 0})

    def _joined(self, name: str, index: npt.NDArray[np.uint8], planes: Sequence[int]) -> Tensor:
        """Return the index (int32) put together from planes: as bytes where those can be joined, else as int32."""
        as_bytes = self._rewriter.model.opset >= BITWISE
        dtype: type[np.generic] = np.uint8 if as_bytes else np.int32
        whole: Tensor | None = None
        shift = 0
        for width in planes:
            rows: Tensor = self._table(width, shift)
            rows = rows if as_bytes else self._cast(rows, np.int32)
            part = self._plane(name, index, (shift, width), rows)
            op = "BitwiseOr" if as_bytes else "Add"
            whole = part if whole is None else self._node(op, [whole, part], dtype, index.shape)
            shift += width
        assert whole is not None  # noqa: S101  (there is at least one plane)
        return self._cast(whole, np.int32) if as_bytes else whole

    def _plane(self, name: str, index: npt.NDArray[np.uint8], part: tuple[int, int], rows: Tensor) -> Tensor:
        """Store ``part`` (shift, width) of each index as bytes, and return the ``rows`` of their values in shape."""
        packed = pack(index, *part)
        stored = self._rewriter.constant(f"{name}_b", packed)
        each = int(rows.shape[1])
        shape = (len(packed), each)
        values = self._node("Gather", [rows, self._cast(stored, np.int32)], rows.dtype, shape, {"axis": 0})
        if len(packed) * each != index.size:
            flat = self._node("Reshape", [values, self._shape((-1,))], rows.dtype, (len(packed) * each,))
            values = self._first(flat, index.size)
        return self._node("Reshape", [values, self._shape(index.shape)], rows.dtype, index.shape)

    def _first(self, flat: Tensor, count: int) -> Tensor:
        """Return the first ``count`` elements."""
        if self._rewriter.model.opset < SLICE_INPUTS:
            attrs = {"starts": [0], "ends": [count], "axes": [0]}
            return self._node("Slice", [flat], flat.dtype, (count,), attrs)
        bounds = [self._shape((0,)), self._shape((count,)), self._shape((0,))]
        return self._node("Slice", [flat, *bounds], flat.dtype, (count,))

    # ---- parts -------------------------------------------------------------------------------------------

    def _table(self, width: int, shift: int) -> Tensor:
        return self._constant("bytes", unpacked_bytes(width, shift))

    def _shape(self, dims: Sequence[int]) -> Tensor:
        return self._constant("dims", np.array(dims, np.int64))

    def _constant(self, hint: str, values: Array) -> Tensor:
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._shared:
            self._shared[key] = self._rewriter.constant(hint, values)
        return self._shared[key]

    def _cast(self, tensor: Tensor, dtype: type[np.generic]) -> Tensor:
        key = (id(tensor), dtype)
        if key not in self._shared:
            to = FLOAT if dtype is np.float32 else INT32
            self._shared[key] = self._node("Cast", [tensor], dtype, tuple(tensor.shape), {"to": to})
        return self._shared[key]

    def _node(
        self, op: str, inputs: Sequence[Tensor], dtype: Any, shape: Sequence[int], attrs: dict[str, Any] | None = None
    ) -> Tensor:
        output = self._rewriter.variable("p", dtype, [int(dim) for dim in shape])
        self._rewriter.insert(op, inputs, [output], attrs)
        return output


def stored_bytes(elements: int, scales: int, bits: int) -> int:
    """Return about what a weight takes in a file, without tables that all weights share."""
    planes = packing(elements, bits)
    return sum(math.ceil(elements * width / 8) + 4 * NODE_BYTES for width in planes) + 4 * scales + NODE_BYTES
