"""Time one simplifier on one model in this process: ``exact_worker.py TOOL IN OUT [RUNS [WARM_UP]]`` prints JSON.

Timed: load, rewrites, save; the best run after a warm-up. Imports and verification are not.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx


def ours() -> Callable[[str, str], None]:
    """Our exact pipeline, without verification."""
    from onnxslim.ir import Model
    from onnxslim.pipeline import exact_fixed_point
    from onnxslim.workflow.registry import exact_passes

    def simplify(source: str, out: str) -> None:
        model = Model.load(source)
        exact_fixed_point(model, [cls() for cls in exact_passes()])
        model.save(out)

    return simplify


def onnxslim_of_pypi() -> Callable[[str, str], None]:
    """PyPI's OnnxSlim."""
    peer: Any = importlib.import_module("onnxslim")

    def simplify(source: str, out: str) -> None:
        onnx.save(peer.slim(onnx.load(source)), out)

    return simplify


def onnxsim() -> Callable[[str, str], None]:
    """PyPI's onnxsim, without its own check."""
    peer: Any = importlib.import_module("onnxsim")

    def simplify(source: str, out: str) -> None:
        onnx.save(peer.simplify(onnx.load(source), check_n=0)[0], out)

    return simplify


def onnxruntime_basic() -> Callable[[str, str], None]:
    """onnxruntime's own basic level, saved."""
    import onnxruntime as ort

    def simplify(source: str, out: str) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = out
        options.log_severity_level = 4
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return simplify


TOOLS = {
    "onnxslim-mobile": ours,
    "OnnxSlim": onnxslim_of_pypi,
    "onnxsim": onnxsim,
    "onnxruntime-basic": onnxruntime_basic,
}


def main(tool: str, source: str, out: str, runs: str = "3", warm_up: str | None = None) -> None:
    """Time ``tool`` and print its best seconds of several ``runs``, and nodes; ``warm_up`` is a model to begin with."""
    with contextlib.redirect_stdout(sys.stderr):
        simplify = TOOLS[tool]()
        simplify(warm_up or source, out)
        seconds = []
        for _ in range(int(runs)):
            started = time.perf_counter()
            simplify(source, out)
            seconds.append(time.perf_counter() - started)
    nodes = len(onnx.load(out, load_external_data=False).graph.node)
    print(json.dumps({"seconds": min(seconds), "nodes": nodes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
