"""From a path, bytes or a ModelProto to a checked ModelProto. Models are untrusted input.

Every failure is a ModelError of one line. External data is read only from the model's own folder: ``onnx``
refuses absolute paths, ``..`` and links, and the refusal is passed on.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxslim.errors import ModelError, one_line

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes a single protobuf message can hold; larger models keep their weights in external data."""

OLDEST_IR_VERSION = 3
OLDEST_OPSET = 7


def read(path: Path) -> tuple[onnx.ModelProto, int]:
    """Read the model at ``path``, external data included; return it with its size in bytes.

    Raises:
        ModelError: missing, unreadable, truncated, not ONNX, invalid, or with missing external data.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder: name the .onnx file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"no such model: {path}: check the path") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}: check its permissions") from None
    model = parse(data, str(path))
    externals = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except FileNotFoundError as error:
        missing = error.filename or one_line(error)
        raise ModelError(f"{path}: external data is missing: {missing}: put it beside the model") from None
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelError(f"{path}: external data cannot be used: {one_line(error)}: export the model again") from None
    return model, len(data) + sum(len(t.raw_data) for t in externals)


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """Parse serialized ``data``; ``where`` names its source in messages."""
    if not data:
        raise ModelError(f"{where} is empty: export or copy the model again")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{where} is not an ONNX model, or it is truncated ({len(data)} bytes): export or copy it again"
        ) from None
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{where} is not an ONNX model: it holds no graph: name an .onnx file")
    return model


def check(model: onnx.ModelProto, where: str, size: int) -> None:
    """Check that ``model``, of ``size`` bytes, is valid ONNX of a version this tool understands.

    Raises:
        ModelError: with the checker's first line.
    """
    if model.ir_version < OLDEST_IR_VERSION:
        raise ModelError(f"{where}: IR version {model.ir_version} is older than {OLDEST_IR_VERSION}: export it again")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if 0 < opset < OLDEST_OPSET:
        raise ModelError(f"{where}: opset {opset} is older than {OLDEST_OPSET}: convert it with onnx.version_converter")
    if size > PROTOBUF_LIMIT:
        return  # the checker reads serialized bytes; onnxruntime checks such a model when it loads it
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{where} is not valid ONNX: {one_line(error)}: export it again") from None
