"""Reading ``.npz`` files that nobody vouches for: never pickle, headers first, values only when they are used.

An uncompressed member (``numpy.savez``) is mapped into memory where it lies in the file, so it may be larger than
memory. A compressed one is unpacked whole on first use, and refused above 4 GiB.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from onnxslim.errors import SampleError
from onnxslim.samples.kinds import LABELS, Column, Feed, as_label, reason

_MAX_UNPACKED = 4 << 30
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of name and extra field (APPNOTE 4.3.7)
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class _Member:
    """One array inside an ``.npz``, known by its header."""

    path: Path
    entry: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    header_bytes: int

    def load(self) -> npt.NDArray[Any]:
        """Return the values: mapped and read-only where they are stored uncompressed."""
        with _readable(self.path.name):
            if self.entry.compress_type == zipfile.ZIP_STORED and 0 not in self.shape:
                return self._mapped()
            with zipfile.ZipFile(self.path) as archive, archive.open(self.entry) as stream:
                values: npt.NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return values

    def _mapped(self) -> npt.NDArray[Any]:
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self._offset(), self.shape, order)

    def _offset(self) -> int:
        with self.path.open("rb") as file:
            file.seek(self.entry.header_offset)
            signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise SampleError(f"{self.path.name} changed while it was in use: start again")
        return int(self.entry.header_offset + _LOCAL_HEADER.size + name + extra + self.header_bytes)


def read_columns(path: Path, name: str) -> dict[str, Column]:
    """Return the arrays of an ``.npz`` by name, with their values still in the file.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        SampleError: it is not an ``.npz`` of plain arrays, or a compressed array is too large to unpack.
    """
    with _readable(name), zipfile.ZipFile(path) as archive:
        members = [_member(path, archive, entry, name) for entry in archive.infolist()]
    return {m.entry.filename.removesuffix(".npy"): Column(m.dtype, m.shape, m.load) for m in members}


def read_feed(path: Path, name: str) -> tuple[Feed, int | None]:
    """Return an ``.npz`` as one feed as it stands, and its optional scalar ``label`` or ``labels``."""
    columns = read_columns(path, name)
    label = _label(columns, name)
    return {key: np.array(column.load()) for key, column in columns.items()}, label


def read_label(path: Path, name: str) -> int | None:
    """Return the scalar ``label`` or ``labels`` of a feed's file, None where there is none."""
    return _label(read_columns(path, name), name)


def _label(columns: dict[str, Column], name: str) -> int | None:
    found = [column for key in ("label", LABELS) if (column := columns.pop(key, None)) is not None]
    return as_label(found[0].load(), name) if found else None


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> _Member:
    array = f"{name}: {entry.filename.removesuffix('.npy')!r}"
    if not entry.filename.endswith(".npy"):
        raise SampleError(f"{array} is not an array: write the file with numpy.savez")
    with archive.open(entry) as stream:
        shape, fortran, dtype = _header(stream)
        header_bytes = stream.tell()
    if dtype.hasobject:
        raise SampleError(f"{array} holds pickled objects, which are never read: store numbers or numpy strings")
    if dtype.names is not None:
        raise SampleError(f"{array} is a structured array: store one plain array per input")
    if math.prod(shape) * dtype.itemsize != entry.file_size - header_bytes or min(shape, default=0) < 0:
        raise SampleError(f"{array} is not as long as its header says: write the file again with numpy.savez")
    if entry.compress_type != zipfile.ZIP_STORED and entry.file_size > _MAX_UNPACKED:
        raise SampleError(f"{array} unpacks to {entry.file_size / 1e9:.1f} GB: write it uncompressed, with numpy.savez")
    return _Member(path, entry, dtype, shape, fortran, header_bytes)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version not in _READ_HEADER:
        raise ValueError(f"array format {version[0]}.{version[1]} is not known")
    shape, fortran, dtype = _READ_HEADER[version](stream)
    return shape, fortran, dtype


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except SampleError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header parser raise a dozen types on hostile files
        raise SampleError(f"{name} cannot be read as an .npz ({reason(error)}): write it with numpy.savez") from error
