"""A tensor holds what it claims: every element type, packed ones, strings, sparse ones, and data in other files."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

MOST_DIMS = 64
"""numpy has no array of more dimensions."""

LARGEST = 2**48
"""Elements that a tensor may claim at all; sizes in bytes then fit 64 bits in every library."""

LARGEST_UNPACKED = 2**30
"""Bytes that all sparse tensors together may become: onnxruntime stores them whole."""

CHEAP = 65536
"""Claimed bytes up to which raw data is measured here, which copies it; above, the checker and the runtime do."""

_T = onnx.TensorProto
_BITS: dict[int, int] = {
    **dict.fromkeys((_T.UINT8, _T.INT8, _T.BOOL, _T.FLOAT8E4M3FN, _T.FLOAT8E4M3FNUZ, _T.FLOAT8E5M2), 8),
    **dict.fromkeys((_T.FLOAT8E5M2FNUZ, _T.FLOAT8E8M0), 8),
    **dict.fromkeys((_T.UINT16, _T.INT16, _T.FLOAT16, _T.BFLOAT16), 16),
    **dict.fromkeys((_T.FLOAT, _T.INT32, _T.UINT32), 32),
    **dict.fromkeys((_T.DOUBLE, _T.INT64, _T.UINT64, _T.COMPLEX64), 64),
    **dict.fromkeys((_T.UINT4, _T.INT4, _T.FLOAT4E2M1), 4),
    _T.COMPLEX128: 128,
}
"""Bits of an element where it is stored raw; later onnx adds types, which the checker then knows."""
_BITS.update({_T.DataType.Value(name): 2 for name in ("UINT2", "INT2") if name in _T.DataType.keys()})  # noqa: SIM118

_KNOWN = set(_T.DataType.values()) - {_T.UNDEFINED}

_FIELDS: dict[int, str] = {
    **dict.fromkeys((_T.FLOAT, _T.COMPLEX64), "float_data"),
    **dict.fromkeys((_T.DOUBLE, _T.COMPLEX128), "double_data"),
    **dict.fromkeys((_T.UINT32, _T.UINT64), "uint64_data"),
    _T.INT64: "int64_data",
    _T.STRING: "string_data",
}
"""Where an element type is stored that is not stored raw; all others in int32_data."""


class Fault(Exception):
    """What is wrong with a model, without the file's name and advice."""


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Compare what ``tensor`` claims with what it holds.

    Raises:
        Fault: bad dimensions or type, too little or too much data, or no usable place of it.
    """
    count = _count(tensor.dims)
    kind: int = tensor.data_type
    bits = _BITS.get(kind)
    if kind not in _KNOWN:
        raise Fault(f"it has elements of the unknown type {kind}")
    if tensor.data_location == _T.EXTERNAL:
        _check_place(tensor, count)
    elif not tensor.HasField("raw_data"):
        _check_elements(tensor, count)
    elif bits is None:
        raise Fault("it holds strings as raw bytes")
    elif count * bits <= 8 * CHEAP:
        _compare(count * bits, len(tensor.raw_data))
    if tensor.HasField("segment"):
        raise Fault("it is a segment of a tensor, which nothing reads")


def _count(dims: Sequence[int]) -> int:
    """Return the number of elements, in Python's integers, which do not overflow."""
    count = span = 1
    for size in dims:
        if size < 0:
            raise Fault(f"it has the negative dimension {size}")
        count *= size
        span *= size or 1
    if span > LARGEST:
        raise Fault(f"it claims {'x'.join(map(str, dims))} elements, more than any machine holds")
    if len(dims) > MOST_DIMS:
        raise Fault(f"it has {len(dims)} dimensions, more than {MOST_DIMS}")
    return count


def _compare(bits: int, held: int) -> None:
    needed = -(-bits // 8)
    if held != needed:
        raise Fault(f"it claims {needed} bytes and holds {held}")


def _check_elements(tensor: onnx.TensorProto, count: int) -> None:
    """Data in one of the typed fields: packed types share an element of it, complex ones take two."""
    kind: int = tensor.data_type
    held = len(getattr(tensor, _FIELDS.get(kind, "int32_data")))
    bits = _BITS.get(kind, 32)
    needed = 2 * count if kind in (_T.COMPLEX64, _T.COMPLEX128) else -(-count * bits // 8) if bits < 8 else count
    if held != needed:
        raise Fault(f"it claims {needed} elements and holds {held}")


def _check_place(tensor: onnx.TensorProto, count: int) -> None:
    """Data in another file: its place is well formed and as long as the tensor claims."""
    keys = [entry.key for entry in tensor.external_data]
    if len(set(keys)) < len(keys) or not {"location", "length"} <= set(keys):
        raise Fault("it is external, and where and how long is not said, or said twice (a path to load finds that out)")
    if tensor.data_type == _T.STRING:
        raise Fault("it holds strings in external data")
    for entry in tensor.external_data:
        if entry.key not in ("offset", "length"):
            continue
        if not (entry.value.isascii() and entry.value.isdigit() and len(entry.value) < 20):
            raise Fault(f"it has external data at the {entry.key} {entry.value[:40]!r}")
        if entry.key == "length":
            _compare(count * _BITS[tensor.data_type], int(entry.value))


def check_sparse(sparse: onnx.SparseTensorProto) -> int:
    """Check both parts of a sparse tensor, and return how many bytes it becomes; the checker looks at the indices.

    Raises:
        Fault: as for tensors, or it unpacks to more than :data:`LARGEST_UNPACKED` bytes.
    """
    check_tensor(sparse.values)
    check_tensor(sparse.indices)
    size = _count(sparse.dims) * _BITS.get(sparse.values.data_type, 64) // 8
    if size > LARGEST_UNPACKED:
        raise Fault(f"it unpacks to {size} bytes, more than {LARGEST_UNPACKED}")
    return size
