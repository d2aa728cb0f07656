"""From a path, bytes or a ModelProto to a checked ModelProto. Models are untrusted input.

Every failure is a ModelError of one line.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxslim.errors import ModelError, one_line
from onnxslim.ir import external, weights
from onnxslim.ir.guards import check_structure
from onnxslim.ir.weights import SMALL_TENSOR, DataFile, Files, is_marked, place
from onnxslim.ir.wire import without_weights

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes a single protobuf message can hold; larger models keep their weights in external data."""

OLDEST_IR_VERSION = 3
OLDEST_OPSET = 7
"""The first whose operators broadcast as today's do; older models are converted to it."""


@dataclass(frozen=True)
class Loaded:
    """A model as it was read. Data of marked tensors is in ``files``."""

    proto: onnx.ModelProto
    files: Files


def read(path: Path) -> Loaded:
    """Read the model at ``path``; the weights of a large one stay in its files.

    Raises:
        ModelError: missing, unreadable, truncated, not ONNX, or with external data that cannot be used.
    """
    model, file = _parse_file(path)
    files = {path.name: file}
    marked = [(tensor, main) for tensor, main in external.placed_tensors(model) if is_marked(tensor)]
    external.open_files(path, [tensor for tensor, _ in marked], files)
    large = sum(place(tensor)[2] for tensor, _ in marked) > weights.LARGE
    for tensor, main in marked:
        if not (large and main and place(tensor)[2] > SMALL_TENSOR):
            external.fill(tensor, files)
    return Loaded(model, files if large else {})


def locations(path: Path) -> set[str]:
    """Return the names of the external data files that the model file at ``path`` refers to."""
    model, _ = _parse_file(path)
    return external.locations(model) - {path.name}


def file_facts(path: Path) -> tuple[int, str]:
    """Return the bytes of a model's files, external data included, and the SHA-256 of the model file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return total_bytes(path), digest.hexdigest()


def total_bytes(path: Path) -> int:
    """Return the bytes of the model file at ``path`` and of its external data."""
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in locations(path))


def _parse_file(path: Path) -> tuple[onnx.ModelProto, DataFile]:
    """Read a model file without its external data, and if it is large, without its weights, which are marked."""
    if path.is_dir():
        raise ModelError(f"{path} is a folder: name the .onnx file in it")
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is no regular file: name an .onnx file")  # reading a pipe might never end
    try:
        file = DataFile(path)
    except FileNotFoundError:
        raise ModelError(f"no such model: {path}: check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ModelError(f"cannot read {path}: {reason}: check its permissions") from None
    if file.size <= weights.LARGE:
        return parse(bytes(file.view), str(path)), file
    try:
        skeleton = without_weights(file.view, path.name)
    except DecodeError:
        raise _not_onnx(str(path), file.size) from None
    return parse(skeleton, str(path)), file


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """Parse serialized ``data``; ``where`` names its source in messages."""
    if not data:
        raise ModelError(f"{where} is empty: export or copy the model again")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise _not_onnx(where, len(data)) from None
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{where} is not an ONNX model: it holds no graph: name an .onnx file")
    return model


def _not_onnx(where: str, size: int) -> ModelError:
    return ModelError(f"{where} is not an ONNX model, or it is truncated ({size} bytes): export or copy it again")


def check(model: onnx.ModelProto, where: str, files: Files) -> None:
    """Check that ``model`` is valid ONNX of a version this tool understands.

    Args:
        files: what its marked tensors are in; empty where there are none.

    Raises:
        ModelError: with the guards' fault or the checker's first line.
    """
    if model.ir_version < OLDEST_IR_VERSION:
        raise ModelError(f"{where}: IR version {model.ir_version} is older than {OLDEST_IR_VERSION}: export it again")
    check_structure(model, where)
    if model.ByteSize() > PROTOBUF_LIMIT:
        return  # given in memory; the checker reads serialized bytes, and onnxruntime checks it when it loads it
    try:
        onnx.checker.check_model(_without_marked(model) if files else model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{where} is not valid ONNX: {one_line(error)}: export it again") from None


def refuse_marked(model: onnx.ModelProto, where: str) -> None:
    """Refuse a model in memory whose weights are in files, which are beside nothing.

    Raises:
        ModelError: a tensor has external data.
    """
    outside = next((tensor.name for tensor in external.tensors_of(model) if is_marked(tensor)), None)
    if outside is not None:
        raise ModelError(f"{where} has external data (tensor {outside!r}): load it from its path")


def modernized(model: onnx.ModelProto, where: str, files: Files) -> onnx.ModelProto:
    """Return a checked ``model`` as it is, or one of an older opset than passes understand, converted by onnx.

    Raises:
        ModelError: the converter refuses.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if not 0 < opset < OLDEST_OPSET:
        return model
    if files:
        raise ModelError(f"{where}: opset {opset} is too old for a model this large: export it again")
    try:
        return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise ModelError(
            f"{where}: opset {opset} is older than {OLDEST_OPSET} and cannot be converted ({one_line(error)}): "
            "export it again"
        ) from None


def _without_marked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with marked tensors as inputs: the checker would look for their files elsewhere."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    held = [(tensor.name, tensor) for tensor in graph.initializer if is_marked(tensor)]
    held += [(node.output[0], node.attribute[0].t) for node in graph.node if _is_marked_constant(node)]
    kept = [tensor for tensor in graph.initializer if not is_marked(tensor)]
    nodes = [node for node in graph.node if not _is_marked_constant(node)]
    del graph.initializer[:]
    del graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    declared = {value.name for value in graph.input}
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        for name, tensor in held
        if name not in declared
    )
    return bare


def _is_marked_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and len(node.attribute) == 1 and is_marked(node.attribute[0].t)
