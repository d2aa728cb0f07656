"""OUT.manifest.json: what an app's build needs to know about the files beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from onnxslim.ir import Model, TensorSpec
from onnxslim.ir.saving import write_bytes
from onnxslim.mobile.operators import operators_of
from onnxslim.mobile.ort_package import OrtFiles
from onnxslim.mobile.provenance import provenance_of
from onnxslim.runtime.sessions import version


def write_manifest(model: Model, out: Path, files: OrtFiles) -> Path:
    """Write the manifest of ``out`` and ``files`` beside them; return its path."""
    manifest: dict[str, Any] = {
        "schema": 1,
        "files": [_file(path) for path in (out, files.ort, files.config)],
        "runtime": {"name": "onnxruntime", "made_with": version()},
        "opset": model.opset,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
        "operators": list(operators_of(model)),
        "provenance": provenance_of(model),
    }
    path = out.with_suffix(".manifest.json")
    write_bytes(path, (json.dumps(manifest, indent=2) + "\n").encode())
    return path


def _file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "type": None if spec.dtype is None else str(spec.dtype), "shape": shape}
