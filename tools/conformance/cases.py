"""Where cases come from: onnx's node tests, which it makes in memory, and its model tests, which are files."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test as backend
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests

KINDS = ("node", "model")
_DATA = Path(backend.__file__).parent / "data"
_FROM_PROTO: Mapping[type, Callable[[Any], Any]] = {
    onnx.TensorProto: onnx.numpy_helper.to_array,
    onnx.SequenceProto: onnx.numpy_helper.to_list,
    onnx.OptionalProto: onnx.numpy_helper.to_optional,
}
_FOLDERS = ("simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class Case:
    """One model with inputs and the outputs it must give."""

    name: str
    model: onnx.ModelProto
    feeds: tuple[dict[str, Any], ...]
    expected: tuple[tuple[Any, ...], ...]
    rtol: float
    atol: float


def names(kind: str | None = None) -> list[str]:
    """Return the names of all cases, ``kind/name``."""
    found = [f"node/{name}" for name in _node_tests()] if kind != "model" else []
    return found + ([f"model/{name}" for name in _model_tests()] if kind != "node" else [])


def load(name: str) -> Case:
    """Return the case called ``name``."""
    kind, _, rest = name.partition("/")
    return _node_case(name, _node_tests()[rest]) if kind == "node" else _model_tests()[rest](name)


@functools.cache
def _node_tests() -> Mapping[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx overflows on purpose
        return {case.name: case for case in collect_testcases(None)}


def _node_case(name: str, test: Any) -> Case:
    inputs = _input_names(test.model)
    feeds = tuple(dict(zip(inputs, map(_value, given), strict=False)) for given, _ in test.data_sets)
    expected = tuple(tuple(map(_value, wanted)) for _, wanted in test.data_sets)
    return Case(name, test.model, feeds, expected, test.rtol, test.atol)


def _value(given: Any) -> Any:
    """Return what a test gives as numpy has it; types that numpy lacks come as protos."""
    for kind, convert in _FROM_PROTO.items():
        if isinstance(given, kind):
            return convert(given)
    return given


def _input_names(model: onnx.ModelProto) -> list[str]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value.name for value in model.graph.input if value.name not in stored]


# ---- model tests -------------------------------------------------------------------------------------------------


@functools.cache
def _model_tests() -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for folder in _FOLDERS:
        for test in load_model_tests(kind=folder):
            found[f"{folder}/{test.name}"] = functools.partial(_from_folder, test)
    for path in sorted((_DATA / "light").glob("light_*.onnx")):
        found[f"light/{path.stem}"] = functools.partial(_light, path)
    return found


def _from_folder(test: Any, name: str) -> Case:
    folder = Path(test.model_dir)
    model = onnx.load_model(str(folder / "model.onnx"))
    feeds, expected = [], []
    for data_set in sorted(folder.glob("test_data_set_*")):
        given = [_read(path, value.type) for path, value in _numbered(data_set, "input", _declared(model))]
        feeds.append(dict(zip(_input_names(model), given, strict=False)))
        expected.append(
            tuple(_read(path, value.type) for path, value in _numbered(data_set, "output", model.graph.output))
        )
    return Case(name, model, tuple(feeds), tuple(expected), test.rtol, test.atol)


def _declared(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    wanted = set(_input_names(model))
    return [value for value in model.graph.input if value.name in wanted]


def _numbered(
    folder: Path, kind: str, values: Sequence[onnx.ValueInfoProto]
) -> Iterator[tuple[Path, onnx.ValueInfoProto]]:
    for index, value in enumerate(values):
        yield folder / f"{kind}_{index}.pb", value


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _light(path: Path, name: str) -> Case:
    """Return a well-known network whose weights are computed; its input is a ramp from 0 to 1."""
    model = onnx.load_model(str(path))
    (value,) = _declared(model)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    size = int(np.prod(shape))
    ramp = (np.arange(size).astype(np.float32) / np.float32(size)).reshape(shape)
    wanted = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    return Case(name, model, ({value.name: ramp},), ((onnx.numpy_helper.to_array(wanted),),), 1e-3, 1e-5)
