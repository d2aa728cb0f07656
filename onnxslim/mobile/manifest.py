"""OUT.manifest.json: what an app's build needs to know about the files beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from onnxslim.ir import Model, TensorSpec
from onnxslim.ir.loading import locations
from onnxslim.ir.saving import write_bytes
from onnxslim.mobile.compatibility import oldest_runtime
from onnxslim.mobile.operators import operators_of
from onnxslim.mobile.ort_package import OrtFiles
from onnxslim.mobile.provenance import provenance_of
from onnxslim.runtime.sessions import version


def write_manifest(model: Model, out: Path, files: OrtFiles) -> Path:
    """Write the manifest of ``out``, which holds ``model``, and of ``files`` beside them; return its path.

    ``runtime`` says which onnxruntime made the .ort and is known to run both, and the oldest release that should.

    Raises:
        OutputError: the place cannot be written.
    """
    operators, current = operators_of(model), version()
    versions = (model.opset, model.ir_version)
    weights = sorted(out.parent / name for name in locations(out))
    manifest: dict[str, Any] = {
        "schema": 1,
        "files": [_file(path) for path in (out, *weights, files.ort, files.config)],
        "runtime": {
            "name": "onnxruntime",
            "made_with": current,
            "minimum": {
                "onnx": oldest_runtime(*versions, operators, current, ort_format=False),
                "ort": oldest_runtime(*versions, files.operators, current, ort_format=True),
            },
        },
        "opset": model.opset,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
        "operators": {"onnx": list(operators), "ort": list(files.operators)},
        "provenance": provenance_of(model),
    }
    path = out.with_suffix(".manifest.json")
    write_bytes(path, (json.dumps(manifest, indent=2) + "\n").encode())
    return path


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "type": None if spec.dtype is None else str(spec.dtype), "shape": shape}
