"""Writing a model so that it is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx

from onnxslim.errors import OutputError
from onnxslim.ir.loading import PROTOBUF_LIMIT

EXTERNAL_ABOVE = PROTOBUF_LIMIT - 64 * 2**20
"""Models larger than this many bytes get their weights in ``NAME.data``: protobuf ends at 2 GiB."""


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


def write_external(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` to ``path`` and its weights to ``path`` + ``.data``. Consumes the model.

    Raises:
        OutputError: the place cannot be written.
    """
    location = f"{path.name}.data"
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            written = Path(folder) / path.name
            onnx.save_model(model, str(written), save_as_external_data=True, location=location, size_threshold=1024)
            beside = written.with_name(location)
            if beside.exists():
                os.replace(beside, path.with_name(location))
            os.replace(written, path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}: choose a folder that exists and is writable")
