"""OUT.ort and its required-operators configuration, checked before they are put in place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import ModelError, OutputError
from onnxslim.ir import Model
from onnxslim.ir.saving import write_bytes
from onnxslim.mobile.operators import Required, required_operators, required_versions
from onnxslim.runtime import Feed, Level, RuntimeRefusal, Session, SessionConfig
from onnxslim.runtime.ort_format import convert
from onnxslim.targets import Target

TOLERANCE = 1e-3
"""Largest difference of .ort and .onnx relative to the output's range: their kernels sum in different orders."""

_X86_ONLY = "com.microsoft.nchwc:"


@dataclass(frozen=True)
class OrtFiles:
    """The files of the package beside the .onnx, and what a reduced build of the runtime must hold to run them."""

    ort: Path
    bytes: int
    config: Path
    operators: tuple[str, ...]
    """After the optimizations that the .ort has behind it; the names are those of ``operators_of``."""
    versions: frozenset[Required] = frozenset()
    """The same with the versions that the configuration names."""


def emit_ort(out: Path, target: Target, feed: Feed) -> OrtFiles:
    """Write ``out`` in ORT format beside it, with the configuration of a reduced build.

    Before anything is put in place the .ort must load, hold no operator that only x86 knows, and return what the .onnx
    returns on ``feed``.

    Raises:
        ModelError: it fails one of these.
        OutputError: the place cannot be written.
    """
    ort, config = out.with_suffix(".ort"), out.with_suffix(".required_operators_and_types.config")
    for path in (ort, config):
        if path.is_dir():
            raise OutputError(f"{path} is a folder: move it, or write elsewhere")
    with tempfile.TemporaryDirectory() as name:
        try:
            made, listed = convert(out, Path(name), target.ort_platform)
            required = _without_paths(listed.read_text(encoding="utf-8"), ort)
            check_ort(out, made, required, feed)
        except RuntimeRefusal as error:
            raise ModelError(f"{out} cannot be packaged as .ort: {error}: leave --ort out") from None
        data = made.read_bytes()
    place({ort: data, config: required.encode()})
    return OrtFiles(ort, len(data), config, required_operators(required), required_versions(required))


def refuse_dynamic(model: Model, target: Target) -> None:
    """Refuse inputs with dimensions that ``target`` needs fixed and the model leaves open.

    Raises:
        ModelError: there is one; says which option fixes it.
    """
    if target.fixed_from is None:
        return
    for spec in model.inputs:
        dims = (None,) if spec.shape is None else spec.shape
        if not all(isinstance(dim, int) for dim in dims[target.fixed_from :]):
            shown = "×".join("?" if dim is None else str(dim) for dim in dims)
            only_batch = all(isinstance(dim, int) for dim in dims[1:]) and len(dims) > 1
            sizes = "x".join(str(dim) if isinstance(dim, int) else "N" for dim in dims)
            way = "add --batch 1" if only_batch else f"add --shape {spec.name}={sizes} with numbers for N"
            raise ModelError(f"input {spec.name!r} is {shown} and {target.name} needs fixed shapes: {way}")


def check_ort(onnx_path: Path, ort_path: Path, required: str, feed: Feed) -> None:
    """Check that an .ort loads here, holds nothing that only x86 knows, and computes what its .onnx computes.

    ``required`` is its configuration: the file itself names x86's operator set whether it uses it or not.

    Raises:
        RuntimeRefusal: it does not.
    """
    if any(name.startswith(_X86_ONLY) for name in required_operators(required)):
        raise RuntimeRefusal("it holds nchwc operators, which exist on x86 only")
    actual = Session(ort_path, SessionConfig()).run(feed)
    for level in (Level.ALL, Level.BASIC):  # one of them rounds as the .ort does; the other may differ by its layout
        expected = Session(onnx_path, SessionConfig(level=level)).run(feed)
        differing = [name for name, value in expected.items() if not _agree(value, actual.get(name))]
        if not differing:
            return
    raise RuntimeRefusal(f"its output {differing[0]!r} differs from the .onnx model's")


def _agree(expected: Any, actual: Any) -> bool:
    """Whether two outputs, tensors or sequences of them, are equal within the tolerance; NaN equals NaN."""
    if isinstance(expected, list):
        same = isinstance(actual, list) and len(actual) == len(expected)
        return same and all(_agree(ours, theirs) for ours, theirs in zip(expected, actual, strict=True))
    if not isinstance(expected, np.ndarray) or expected.dtype.kind in "OSU":
        return bool(np.array_equal(expected, actual))
    if not isinstance(actual, np.ndarray) or (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return False
    return _close(expected.astype(np.float64), actual.astype(np.float64))


def _close(expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> bool:
    finite = expected[np.isfinite(expected)]
    span = max(float(np.ptp(finite)), 1e-6) if finite.size else 0.0
    return bool(np.isclose(actual, expected, rtol=0.0, atol=TOLERANCE * span, equal_nan=True).all())


def _without_paths(config: str, ort: Path) -> str:
    """Return the configuration with the .ort's own name in place of where it was made."""
    lines = [line for line in config.splitlines() if line.strip() and not line.startswith("#")]
    return "\n".join([f"# What {ort.name} needs: for --include_ops_by_config of onnxruntime's build", *lines]) + "\n"


def place(files: Mapping[Path, bytes]) -> None:
    """Write all files, or none: each under a temporary name first.

    Raises:
        OutputError: a place cannot be written.
    """
    parts = {path.with_name(f".{path.name}.part"): path for path in files}
    try:
        for part, path in parts.items():
            write_bytes(part, files[path])
        for part, path in parts.items():
            os.replace(part, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {error.filename2 or error.filename}: {error.strerror}: make room there"
        ) from None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
