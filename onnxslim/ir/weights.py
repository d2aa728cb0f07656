"""Weights that stay in their files: of a large model only what is looked at is in memory, and only while it is.

A tensor of such a model is *marked*: its TensorProto says EXTERNAL and names a place (location, offset, length), but
the place may be inside the ``.onnx`` file itself, where the tensor's raw data begins. A :class:`DataFile` maps a file
into memory; the pages that were touched are handed back to the system before they add up.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx_graphsurgeon import Constant, Node
from onnx_graphsurgeon.ir.tensor import LazyValues

LARGE = 128 * 2**20
"""Bytes of weights above which a model is large: its weights stay in files and it is checked in other processes."""

SMALL_TENSOR = 4096
"""Bytes up to which a tensor is read along with the graph: shapes, axes and scales are looked at often."""

TOUCHED_LIMIT = 128 * 2**20
"""Bytes that may be handed out before the touched pages of a file are given back."""

Bytes = npt.NDArray[np.uint8]
Files = Mapping[str, "DataFile | Memory"]
"""Files that hold weights, by the location that marked tensors give."""


class DataFile:
    """One file, mapped into memory and read only.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = file.seek(0, 2)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self.size = size
        self._touched = 0

    def bytes_at(self, offset: int, length: int) -> Bytes:
        """Return ``length`` bytes from ``offset``, which the caller knows to be there, without copying them."""
        self._touched += length
        if self._touched > TOUCHED_LIMIT:
            self.release()
            self._touched = length
        return np.frombuffer(self._map, np.uint8, length, offset)

    def release(self) -> None:
        """Give the touched pages back; whoever still looks at them reads them again from the file."""
        if isinstance(self._map, mmap.mmap) and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    @property
    def view(self) -> memoryview:
        """The whole file."""
        return memoryview(self._map)


class StoredValues(LazyValues):
    """Values of a constant that stay in a file and are mapped anew whenever they are asked for."""

    def __init__(self, tensor: onnx.TensorProto, file: DataFile | Memory) -> None:
        super().__init__(tensor)
        self._file = file

    def load(self) -> npt.NDArray[Any]:
        """Return the values, read-only, shape as the tensor's; types that numpy packs otherwise are decoded."""
        data = data_of(self.tensor, {place(self.tensor)[0]: self._file})
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.tensor.data_type))
        if sys.byteorder == "little" and len(data) == dtype.itemsize * int(
            np.prod(tuple(self.tensor.dims), dtype=np.int64)
        ):
            return data.view(dtype).reshape(tuple(self.tensor.dims))
        decoded: npt.NDArray[Any] = onnx.numpy_helper.to_array(filled(self.tensor, data))
        return decoded


def mark(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Say in ``tensor`` where its data is, in place of the data."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = onnx.TensorProto.EXTERNAL


def is_marked(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data is elsewhere."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def place(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Return (location, offset, length) of a marked tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries["length"])


def data_of(tensor: onnx.TensorProto, files: Files) -> Bytes:
    """Return the data of a marked tensor, without copying it."""
    location, offset, length = place(tensor)
    return files[location].bytes_at(offset, length)


def filled(tensor: onnx.TensorProto, data: Bytes) -> onnx.TensorProto:
    """Return a copy of a marked ``tensor`` that holds ``data`` itself."""
    whole = onnx.TensorProto()
    whole.CopyFrom(tensor)
    whole.ClearField("data_location")
    del whole.external_data[:]
    whole.raw_data = data.tobytes()
    return whole


def attach(nodes: Iterable[Node], files: Files) -> None:
    """Give every constant at ``nodes`` whose tensor is marked its values in ``files``."""
    for node in nodes:
        for constant in (*node.inputs, *node.attrs.values()):
            if isinstance(constant, Constant) and type(constant._values) is LazyValues:
                tensor = constant._values.tensor
                if is_marked(tensor):
                    constant.values = StoredValues(tensor, files[place(tensor)[0]])
                    constant.data_location = None


class Memory:
    """Weights that passes made, in place of a file: marked tensors say which of ``arrays`` they are."""

    LOCATION = "\0memory"
    """No file can have this name."""

    def __init__(self) -> None:
        self.arrays: list[npt.NDArray[Any]] = []

    def bytes_at(self, offset: int, length: int) -> Bytes:
        """Return the data of array number ``offset``, which has ``length`` bytes."""
        flat: Bytes = np.ascontiguousarray(self.arrays[offset]).reshape(-1).view(np.uint8)
        assert len(flat) == length  # noqa: S101  (as it was marked)
        return flat

    @contextlib.contextmanager
    def holding(self, constants: Iterable[Constant]) -> Iterator[None]:
        """Mark larger arrays of ``constants`` as being here, so that an export does not copy them, until the end."""
        changed: list[tuple[Constant, npt.NDArray[Any]]] = []
        try:
            for constant in constants:
                array = constant._values
                if isinstance(array, np.ndarray) and array.nbytes > SMALL_TENSOR and _is_plain(constant, array):
                    tensor = onnx.TensorProto(name=constant.name, dims=array.shape)
                    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                    mark(tensor, self.LOCATION, len(self.arrays), array.nbytes)
                    self.arrays.append(array)
                    changed.append((constant, array))
                    constant.values = LazyValues(tensor)
            yield
        finally:
            for constant, array in changed:
                constant.values = array


def _is_plain(constant: Constant, array: npt.NDArray[Any]) -> bool:
    """Whether the array's memory is what ONNX stores: no packed, extended or converted type."""
    return array.dtype.isbuiltin == 1 and array.dtype.kind in "biufc" and constant.export_dtype == array.dtype
