"""External data: weights in files beside the model. The model is untrusted, and so are the places it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx

from onnxslim.errors import ModelError
from onnxslim.ir.weights import DataFile, Files, data_of, is_marked, mark

LONGEST_NAME = 1024
"""Characters of the name of a file with external data."""


def locations(model: onnx.ModelProto) -> set[str]:
    """Return the names of the files, relative to the model's folder, that ``model`` keeps tensors in."""
    external = (tensor for tensor in tensors_of(model) if is_marked(tensor))
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}


def open_files(path: Path, tensors: list[onnx.TensorProto], files: dict[str, DataFile]) -> None:
    """Open what ``tensors`` of the model at ``path`` are kept in, and write down where exactly each is.

    Args:
        files: files that are open already; the others are added.

    Raises:
        ModelError: a file that is missing, cannot be read, or is outside the model's folder, or a place beyond its end.
    """
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if not isinstance(location, str):  # protobuf hands over bytes that are no UTF-8 as they are
            raise ModelError(f"{path}: external data of tensor {tensor.name!r} has no readable name: export it again")
        if location not in files:
            files[location] = _open(path, location)
        size = files[location].size
        offset = _number(path, tensor, entries, "offset", 0)
        length = _number(path, tensor, entries, "length", max(size - offset, 0))
        if offset + length > size:
            raise ModelError(
                f"{path}: external data of tensor {tensor.name!r} ends at byte {offset + length} of {location}, "
                f"which has {size}: copy that file again"
            )
        mark(tensor, location, offset, length)


def _open(path: Path, location: str) -> DataFile:
    """Open one file, which lies in the model's folder or deeper: no absolute path, no ``..``, no link."""
    windows = PureWindowsPath(location)
    parts = {*PurePosixPath(location).parts, *windows.parts}
    if not location or "\0" in location or windows.anchor or PurePosixPath(location).is_absolute() or ".." in parts:
        raise ModelError(
            f"{path}: external data at {location!r} is outside the model's folder: export with data beside the model"
        )
    if len(location) > LONGEST_NAME:
        raise ModelError(f"{path}: external data has a name of {len(location)} characters: export the model again")
    place = path.parent / location
    if not place.exists():
        raise ModelError(f"{path}: external data is missing: {place}: put it beside the model")
    if not place.is_file() or place.resolve() != path.parent.resolve() / location:
        raise ModelError(f"{path}: external data at {place} is a link or no regular file: put the data itself there")
    try:
        return DataFile(place)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{path}: external data at {place} cannot be read: {reason}: check its permissions") from None


def _number(path: Path, tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{path}: external data of tensor {tensor.name!r} has {key} {text!r}: export the model again")
    return int(text)


def fill(tensor: onnx.TensorProto, files: Files) -> None:
    """Read a marked tensor's data into it, and take the mark away."""
    data = data_of(tensor, files)
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    tensor.raw_data = data.tobytes()


def fill_all(model: onnx.ModelProto, files: Files) -> None:
    """Fill every marked tensor of ``model``."""
    for tensor in tensors_of(model):
        if is_marked(tensor):
            fill(tensor, files)


def fill_inner(model: onnx.ModelProto, files: Files) -> None:
    """Fill the marked tensors that are no initializers of the main graph."""
    held = {tensor.name for tensor in model.graph.initializer}
    for tensor in tensors_of(model):
        if is_marked(tensor) and tensor.name not in held:
            fill(tensor, files)


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of ``model``: initializers and attributes, of subgraphs and functions too."""
    for tensor, _ in placed_tensors(model):
        yield tensor


def placed_tensors(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Yield (tensor, whether it is a weight of the main graph: an initializer or the value of a Constant node)."""
    stack: list[Any] = [model.graph, *model.functions, *(info.algorithm for info in model.training_info)]
    while stack:
        holder = stack.pop()
        main = holder is model.graph
        for tensor in getattr(holder, "initializer", ()):
            yield tensor, main
        for sparse in getattr(holder, "sparse_initializer", ()):
            yield sparse.values, False
            yield sparse.indices, False
        for node in holder.node:
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors:
                    yield tensor, main and node.op_type == "Constant"
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)
