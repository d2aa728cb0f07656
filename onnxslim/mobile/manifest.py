"""OUT.manifest.json: what an app's build needs to know about the files beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxslim.ir import Model, TensorSpec
from onnxslim.ir.loading import locations
from onnxslim.ir.saving import write_bytes
from onnxslim.mobile.compatibility import oldest_runtime
from onnxslim.mobile.grids import GridFacts, input_grids, output_grids
from onnxslim.mobile.library import library_facts
from onnxslim.mobile.operators import operators_of
from onnxslim.mobile.ort_package import OrtFiles
from onnxslim.mobile.provenance import provenance_of
from onnxslim.mobile.session import session_advice
from onnxslim.runtime.sessions import version
from onnxslim.targets import Target

Manifest = dict[str, Any]


def write_manifest(model: Model, out: Path, files: OrtFiles, target: Target) -> Manifest:
    """Write ``OUT.manifest.json`` about ``out``, which holds ``model``, and ``files`` beside it; return what it says.

    ``runtime`` says which onnxruntime made the .ort and is known to run both, the oldest release that should, and how
    large it is; ``session`` what the app should set; ``inputs`` and ``outputs`` which integers they stand for.

    Raises:
        OutputError: the place cannot be written.
    """
    operators, current = operators_of(model), version()
    versions = (model.opset, model.ir_version)
    weights = sorted(out.parent / name for name in locations(out))
    manifest: Manifest = {
        "schema": 1,
        "target": target.name,
        "files": [_file(path) for path in (out, *weights, files.ort, files.config)],
        "runtime": {
            "name": "onnxruntime",
            "made_with": current,
            "minimum": {
                "onnx": oldest_runtime(*versions, operators, current, ort_format=False),
                "ort": oldest_runtime(*versions, files.operators, current, ort_format=True),
            },
            "library": library_facts(files.versions),
        },
        "session": session_advice(target, (out.name, files.ort.name), (operators, files.operators)),
        "opset": model.opset,
        "inputs": _tensors(model.inputs, input_grids(model)),
        "outputs": _tensors(model.outputs, output_grids(model)),
        "operators": {"onnx": list(operators), "ort": list(files.operators)},
        "provenance": provenance_of(model),
    }
    write_bytes(out.with_suffix(".manifest.json"), (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _tensors(specs: Iterable[TensorSpec], grids: Mapping[str, GridFacts]) -> list[dict[str, Any]]:
    return [_tensor(spec) | ({"quantization": grids[spec.name]} if spec.name in grids else {}) for spec in specs]


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    fixed = shape is not None and all(isinstance(dim, int) for dim in shape)
    return {
        "name": spec.name,
        "type": None if spec.dtype is None else str(spec.dtype),
        "shape": shape,
        "fixed": fixed,
    }
