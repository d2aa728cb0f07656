"""What of a model has to reach a device: its file, the files of its weights, and its inputs in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from onnxslim.devices.base import Array
from onnxslim.errors import ModelError
from onnxslim.ir.loading import locations, read


@dataclass(frozen=True)
class ModelFiles:
    """One model of a job."""

    path: Path
    data: Mapping[str, Path] = field(default_factory=dict)
    """Files of external data, by the names that the model has for them."""
    inputs: tuple[str, ...] = ()
    """Those of the feed that it takes, in its own order."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """What the feed makes of its dynamic dimensions that have names."""

    @property
    def bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(file.stat().st_size for file in (self.path, *self.data.values()))


def model_files(path: Path, feed: Mapping[str, Array]) -> ModelFiles:
    """Return what is to be sent of the model at ``path``, which is an ONNX file or one in ORT format.

    Raises:
        ModelError: no such file, not a model, external data outside its folder, or an input that ``feed`` lacks.
    """
    if path.suffix == ".ort":
        if not path.is_file():
            raise ModelError(f"no such model: {path}: check the path")
        return ModelFiles(path, inputs=tuple(feed))
    graph = read(path).proto.graph
    optional = {tensor.name for tensor in graph.initializer}
    missing = next((i.name for i in graph.input if i.name not in feed and i.name not in optional), None)
    if missing is not None:
        raise ModelError(f"{path}: input {missing!r} is not fed: compare models with the same inputs")
    fed = [value for value in graph.input if value.name in feed]
    data = {name: path.parent / name for name in sorted(locations(path))}
    return ModelFiles(path, data, tuple(value.name for value in fed), _sizes(fed, feed))


def _sizes(fed: list[onnx.ValueInfoProto], feed: Mapping[str, Array]) -> dict[str, int]:
    found = {}
    for value in fed:
        for dim, size in zip(value.type.tensor_type.shape.dim, feed[value.name].shape, strict=False):
            if dim.dim_param:
                found[dim.dim_param] = size
    return found
