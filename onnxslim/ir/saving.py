"""Writing a model so that it is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import onnx

from onnxslim.errors import OutputError
from onnxslim.ir import wire
from onnxslim.ir.loading import PROTOBUF_LIMIT
from onnxslim.ir.weights import SMALL_TENSOR, Files, data_of, is_marked, mark
from onnxslim.ir.wire import Sink

EXTERNAL_ABOVE = PROTOBUF_LIMIT - 64 * 2**20
"""Models larger than this many bytes get their weights in ``NAME.data``: protobuf ends at 2 GiB."""

ALIGNMENT = 4096
"""Where external data of a tensor begins: at a page, so that it can be mapped."""


class _Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


class Placed:
    """A model where onnxruntime can load it: ``data`` is its bytes, or the path of a file.

    A temporary file goes with the last reference to this object.
    """

    def __init__(self, data: bytes | Path) -> None:
        self.data = data

    @classmethod
    def in_folder(cls, name: str) -> tuple[Path, Placed]:
        """Return the file ``name`` in a new temporary folder, yet to be written, and what keeps it."""
        folder = tempfile.mkdtemp(prefix="onnxslim-")
        path = Path(folder) / name
        placed = cls(path)
        weakref.finalize(placed, shutil.rmtree, folder, ignore_errors=True)
        return path, placed


def add_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Let ``model`` return the inner tensors ``names`` too (taps)."""
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary name beside ``path``, then rename it there.

    Raises:
        OutputError: the place cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_large(path: Path, model: onnx.ModelProto, files: Files, *, apart: bool) -> None:
    """Write a model with marked tensors, one at a time: into ``path``, or ``apart`` into ``path`` + ``.data``.

    Raises:
        OutputError: the place cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            written, beside = Path(folder) / path.name, Path(folder) / f"{path.name}.data"
            if apart:
                with beside.open("wb") as data:
                    _move_data(model, files, data, beside.name)
                written.write_bytes(model.SerializeToString(deterministic=True))
                os.replace(beside, path.with_name(beside.name))
            else:
                with written.open("wb") as file:
                    wire.write_whole(file, model, lambda tensor: data_of(tensor, files))
            os.replace(written, path)
    except OSError as error:
        raise _unwritable(path, error) from None


class _Tally:
    """Takes what would be written: counts it, and digests it if that is wanted."""

    def __init__(self, digest: _Digest | None = None) -> None:
        self.size = 0
        self._digest = digest

    def write(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        if self._digest is not None:
            self._digest.update(data)

    def tell(self) -> int:
        return self.size


def size_and_digest(model: onnx.ModelProto, files: Files, *, apart: bool) -> tuple[int, str]:
    """Return what :func:`write_large` would write, without writing: all bytes, and the SHA-256 of the model file.

    ``apart``, the digest is that of a file called ``model.onnx``, since the file names the one beside it.
    """
    digest = hashlib.sha256()
    tally = _Tally(None if apart else digest)
    if apart:
        _move_data(model, files, tally, "model.onnx.data")
        data = model.SerializeToString(deterministic=True)
        digest.update(data)
        return tally.size + len(data), digest.hexdigest()
    wire.write_whole(tally, model, lambda tensor: data_of(tensor, files))
    return tally.size, digest.hexdigest()


def _move_data(model: onnx.ModelProto, files: Files, data: Sink, location: str) -> None:
    """Write the data of larger initializers to ``data``, each at a page of its own, and mark them."""
    for tensor in model.graph.initializer:
        if is_marked(tensor) or len(tensor.raw_data) > SMALL_TENSOR:
            values = data_of(tensor, files).data if is_marked(tensor) else tensor.raw_data
            data.write(bytes(-data.tell() % ALIGNMENT))
            offset = data.tell()
            data.write(values)
            mark(tensor, location, offset, len(values))


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}: choose a folder that exists and is writable")
