"""OUT.ort and its required-operators configuration, checked before they are put in place."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxslim.errors import ModelError
from onnxslim.ir.saving import write_bytes
from onnxslim.runtime import Feed, RuntimeRefusal, Session, SessionConfig
from onnxslim.runtime.ort_format import convert
from onnxslim.targets import Target

TOLERANCE = 1e-3
"""Largest difference of .ort and .onnx relative to the output's range: their kernels sum in different orders."""


@dataclass(frozen=True)
class OrtFiles:
    """The files of the package beside the .onnx."""

    ort: Path
    bytes: int
    config: Path


def emit_ort(out: Path, target: Target, feed: Feed) -> OrtFiles:
    """Write ``out`` in ORT format beside it, with the configuration of a reduced build.

    Before anything is put in place the .ort must load, hold no operator that only x86 knows, and return what the .onnx
    returns on ``feed``.

    Raises:
        ModelError: it fails one of these.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            made, config = convert(out, Path(name), target.ort_platform)
            _check(out, made, feed)
        except RuntimeRefusal as error:
            raise ModelError(f"{out} cannot be packaged as .ort: {error}: leave --ort out") from None
        files = OrtFiles(
            out.with_suffix(".ort"), made.stat().st_size, out.with_suffix(".required_operators_and_types.config")
        )
        write_bytes(files.ort, made.read_bytes())
        write_bytes(files.config, config.read_bytes())
    return files


def _check(onnx_path: Path, ort_path: Path, feed: Feed) -> None:
    if b"com.microsoft.nchwc" in ort_path.read_bytes():
        raise RuntimeRefusal("it holds nchwc operators, which exist on x86 only")
    expected, actual = (Session(path, SessionConfig()).run(feed) for path in (onnx_path, ort_path))
    for key, value in expected.items():
        ours, theirs = np.asarray(value, dtype=np.float64), np.asarray(actual[key], dtype=np.float64)
        if np.abs(ours - theirs).max(initial=0.0) > TOLERANCE * max(float(np.ptp(ours)) if ours.size else 0.0, 1e-6):
            raise RuntimeRefusal(f"its output {key!r} differs from the .onnx model's")
