"""Runs in the Python that has onnxruntime-qnn, as a program: nothing here may need onnxslim.

``run.py JOB.json`` loads one model on the HTP, runs it once and writes ``result.json`` and ``outputs.npz`` beside the
job. Without a model it only says what is installed. A model that is refused is a result like any other.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any

PROVIDER = "QNNExecutionProvider"


def main(job_file: str) -> None:
    """Do the job, and write what came of it."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    folder = Path(job_file).parent
    try:
        result = _about()
        if job["model"] is not None:
            result |= _run(job, folder)
    except ImportError as error:
        result = {"missing": error.name or str(error)}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _about() -> dict[str, Any]:
    """Return the versions of what is installed."""
    runtime, plugin = importlib.import_module("onnxruntime"), importlib.import_module("onnxruntime_qnn")
    info = getattr(plugin, "build_and_package_info", None)
    return {
        "onnxruntime": str(runtime.__version__),
        "onnxruntime_qnn": str(plugin.__version__),
        "qnn_sdk": getattr(info, "qnn_version", None),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return where the nodes went, and write the outputs; or why the model is refused."""
    import numpy as np

    with np.load(job["feed"], allow_pickle=False) as archive:
        feed = {name: archive[f"a{index}"] for index, name in enumerate(job["names"]) if name in job["inputs"]}
    try:
        session = _session(job)
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, feed)
    except Exception as error:  # onnxruntime raises a family of types that share only this base
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"refused": lines[0] if lines else type(error).__name__}
    plain = {name: value for name, value in zip(names, values, strict=True) if _is_numbers(value)}
    arrays: dict[str, Any] = {f"a{index}": value for index, value in enumerate(plain.values())}
    np.savez(folder / "outputs.npz", **arrays)
    return {"outputs": list(plain), **_placement(session)}


def _is_numbers(value: Any) -> bool:
    return getattr(value, "dtype", None) is not None and value.dtype.kind in "biufc"


def _session(job: dict[str, Any]) -> Any:
    """Load the model for the HTP; the CPU takes what that refuses."""
    runtime, plugin = importlib.import_module("onnxruntime"), importlib.import_module("onnxruntime_qnn")
    runtime.register_execution_provider_library(PROVIDER, plugin.get_library_path())
    devices = [device for device in runtime.get_ep_devices() if device.ep_name == PROVIDER]
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job["threads"]
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, size in job["sizes"].items():  # the HTP takes no dynamic shapes
        options.add_free_dimension_override_by_name(name, size)
    backend = {"backend_path": plugin.get_qnn_htp_path(), "soc_model": str(job["soc"])}
    options.add_provider_for_devices(devices[:1], backend)
    return runtime.InferenceSession(job["model"], options)


def _placement(session: Any) -> dict[str, Any]:
    """Return how many nodes each provider has, in how many parts, and what operators the CPU was left with."""
    placed: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        placed[part.ep_name] += len(nodes)
        parts[part.ep_name] += 1
        if part.ep_name != PROVIDER:
            left.update(node.op_type for node in nodes)
    return {"placed": dict(placed), "parts": parts[PROVIDER], "left": dict(left)}


if __name__ == "__main__":
    main(sys.argv[1])
