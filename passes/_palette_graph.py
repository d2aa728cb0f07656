"""A stored weight as nodes: integers, unpacked where several lie in a byte, then levels, then the scale.

    int8                  W = Mul(Cast(q), s)
    1, 2, 4 bits          W = Mul(Reshape(Gather(T, Cast(b))), s)       T: for each byte, the levels it holds
    3, 5, 6, 7 bits       W = Mul(Reshape(Gather(T, c)), s)             T: for each code, the levels it holds
    codebook of 8 bits    W = Mul(Gather(levels, Cast(i)), s)
    float16               W = Cast(…) of the same
    integers of few bits  q = Reshape(Gather(T, …)) as above, of the integers' own type, in front of DequantizeLinear

Bits that do not divide 8 lie in planes of 4, 2 and 1 of them. A byte of the widest plane and what belongs to it in the
others, 4 bits say, are put together to a code of 12 bits: c = b + 256·u, with u unpacked from bytes of its own.

Nothing but Cast, Gather, Reshape, Slice, Mul and Add: any opset has these, and onnxruntime folds them from its basic
level on. It keeps every intermediate result until it has folded all weights, which is why tables hold levels rather
than indices, and codes stand for several weights each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Rewriter, Tensor, Variable, array_of, numpy_dtype
from onnxslim.passes._palette import MOST_BITS, Palette

Array = npt.NDArray[Any]
FLOAT, INT32, FLOAT16 = 1, 6, 10
"""ONNX's numbers of these types."""
SLICE_INPUTS = 10
"""The first in which Slice takes its bounds as inputs."""
NODE_BYTES = 40
"""What a node with its names takes in a file, about."""


def planes_of(bits: int) -> tuple[int, ...]:
    """Return the widths, each a divisor of 8, that an index of ``bits`` is stored in, the widest and lowest first."""
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

    def pack(self, weight: Constant, bits: int) -> None:
        """Let every reader of ``weight``, integers of 8 bits that ``bits`` are enough for, read them unpacked."""
        values = array_of(weight)
        assert values is not None  # noqa: S101  (it is a constant)
        least = int(values.min())
        levels = np.clip(np.arange(least, least + 2**bits), *_limits(values.dtype)).astype(values.dtype)
        index = (values.astype(np.int64) - least).astype(np.uint8)
        planes = planes_of(bits)
        if planes == (bits,):
            rows: Tensor = self._constant("levels", levels[unpacked_bytes(bits, 0)])
        else:
            rows = self._rows(self._constant("levels", levels), planes)
        self._rewriter.replace(weight, self._unpacked(rows, self._codes(weight.name, index, planes), index.shape))

    def _rows(self, levels: Tensor, planes: Sequence[int]) -> Tensor:
        """Return the levels that each code holds. Shape (codes, levels)."""
        entries = self._entries(planes)
        return self._node("Gather", [levels, entries], levels.dtype, entries.shape, {"axis": 0})

    def _integers(self, name: str, palette: Palette) -> Tensor:
        """Levels are integers: they are stored themselves, or are few enough for a table of all bytes."""
        planes = packing(palette.index.size, palette.bits)
        if planes == (MOST_BITS,):
            stored = self._rewriter.constant(f"{name}_q", palette.levels[palette.index])
            return self._node("Cast", [stored], np.float32, palette.index.shape, {"to": FLOAT})
        rows = self._constant("levels", palette.levels[unpacked_bytes(palette.bits, 0)])
        whole = self._unpacked(rows, self._codes(name, palette.index, planes), palette.index.shape)
        return self._node("Cast", [whole], np.float32, palette.index.shape, {"to": FLOAT})

    def _codebook(self, name: str, palette: Palette) -> Tensor:
        levels = self._rewriter.constant(f"{name}_levels", palette.levels)
        planes, shape = packing(palette.index.size, palette.bits), palette.index.shape
        if planes == (MOST_BITS,):
            index = self._cast(self._rewriter.constant(f"{name}_i", palette.index), np.int32)
            return self._node("Gather", [levels, index], np.float32, shape, {"axis": 0})
        return self._unpacked(self._rows(levels, planes), self._codes(name, palette.index, planes), shape)

    def _entries(self, planes: Sequence[int]) -> Tensor:
        """Return the indices that each code holds. Shape (codes, indices), int32."""
        key = ("entries", *planes)
        if key not in self._shared:
            each, shift = MOST_BITS // planes[0], planes[0]
            whole = self._cast(self._constant("bytes", unpacked_bytes(planes[0], 0)), np.int32)
            for width in planes[1:]:
                part = unpacked_bytes(width, shift)[: 2 ** (width * each), :each]
                table = self._cast(self._constant("bits", part[:, None]), np.int32)
                count = len(part) * int(whole.shape[0])
                summed = self._node("Add", [table, whole], np.int32, (len(part), *whole.shape))
                whole = self._node("Reshape", [summed, self._shape((count, each))], np.int32, (count, each))
                shift += width
            self._shared[key] = whole
        return self._shared[key]

    def _codes(self, name: str, index: npt.NDArray[np.uint8], planes: Sequence[int]) -> Tensor:
        """Store ``index`` in ``planes``, and return the codes that stand for a byte of the first. Shape (codes,)."""
        each, shift, factor = MOST_BITS // planes[0], planes[0], 256
        codes = self._bytes(name, pack(index, 0, planes[0]))
        for width in planes[1:]:
            bits = width * each
            stored = self._bytes(name, pack(index, shift, width))
            table = self._multiples(bits, factor)
            shape = (int(stored.shape[0]), MOST_BITS // bits)
            parts = self._node("Gather", [table, stored], np.int32, shape, {"axis": 0})
            parts = self._reshaped(parts, codes.shape)
            codes = self._node("Add", [codes, parts], np.int32, codes.shape)
            shift, factor = shift + width, factor * 2**bits
        return codes

    def _bytes(self, name: str, packed: npt.NDArray[np.uint8]) -> Tensor:
        return self._cast(self._rewriter.constant(f"{name}_b", packed), np.int32)

    def _multiples(self, bits: int, factor: int) -> Tensor:
        """Return ``factor`` times what each byte holds in parts of so many bits. Shape (256, 8 // bits), int32."""
        key = ("multiples", bits, factor)
        if key not in self._shared:
            table = self._cast(self._constant("bytes", unpacked_bytes(bits, 0)), np.int32)
            times = self._constant("factor", np.array(factor, np.int32))
            self._shared[key] = self._node("Mul", [table, times], np.int32, table.shape)
        return self._shared[key]

    def _unpacked(self, rows: Tensor, codes: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the ``rows`` of ``codes`` one after the other, in ``shape``."""
        found = (int(codes.shape[0]), int(rows.shape[1]))
        return self._reshaped(self._node("Gather", [rows, codes], rows.dtype, found, {"axis": 0}), shape)

    def _reshaped(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Return ``values`` in ``shape``, without those at the end that are too many."""
        held, count = math.prod(map(int, values.shape)), math.prod(map(int, shape))
        if held != count:
            flat = self._node("Reshape", [values, self._shape((-1,))], values.dtype, (held,))
            values = self._first(flat, count)
        return self._node("Reshape", [values, self._shape(shape)], values.dtype, shape)

    def _first(self, flat: Tensor, count: int) -> Tensor:
        """Return the first ``count`` elements."""
        if self._rewriter.model.opset < SLICE_INPUTS:
            attrs = {"starts": [0], "ends": [count], "axes": [0]}
            return self._node("Slice", [flat], flat.dtype, (count,), attrs)
        bounds = [self._shape((0,)), self._shape((count,)), self._shape((0,))]
        return self._node("Slice", [flat, *bounds], flat.dtype, (count,))

    # ---- parts -------------------------------------------------------------------------------------------

    def _shape(self, dims: Sequence[int]) -> Tensor:
        return self._constant("dims", np.array([int(dim) for dim in dims], np.int64))

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


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def stored_bytes(elements: int, scales: int, bits: int) -> int:
    """Return about what a weight takes in a file, without tables that all weights share."""
    planes = packing(elements, bits)
    return sum(math.ceil(elements * width / 8) + 4 * NODE_BYTES for width in planes) + 4 * scales + NODE_BYTES
