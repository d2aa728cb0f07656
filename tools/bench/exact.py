"""Exact simplification: nodes after, seconds in process for load, rewrites and save, and equality of outputs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

WORKER = Path(__file__).with_name("exact_worker.py")
TOOLS = ("onnxslim-mobile", "OnnxSlim", "onnxsim", "onnxruntime-basic")
OURS = TOOLS[0]
DYNAMIC_SIZE = 320
"""What a dynamic spatial dimension is fed with when outputs are compared."""


def run(models: Sequence[Path], rounds: int, peers: Path) -> int:
    """Print a table over ``models``; return 1 if our outputs differ from the original's by more than 1e-5."""
    worst = 0.0
    header = f"{'model':28} {'nodes':>6}" + "".join(f"{tool:>26}" for tool in TOOLS) + f"{'max diff / range':>18}"
    print(header + "\n" + "-" * len(header))
    for path in models:
        with tempfile.TemporaryDirectory() as folder:
            rows = _measure(path, rounds, peers, Path(folder))
            difference = _difference(path, Path(folder) / f"{OURS}.onnx")
        worst = max(worst, difference)
        before = len(onnx.load(str(path), load_external_data=False).graph.node)
        cells = "".join(f"{_cell(rows[tool]):>26}" for tool in TOOLS)
        print(f"{path.name:28} {before:>6}{cells}{difference:>18.1e}", flush=True)
    print(f"\nnodes after, then median seconds of {rounds} interleaved rounds, each the best of 3 after a warm-up;")
    print("outputs of onnxslim-mobile against the original, both unoptimized, relative to each output's range")
    return int(worst > 1e-5)


def _cell(results: list[dict[str, float]]) -> str:
    if not results:
        return "failed"
    return f"{int(results[0]['nodes'])} in {statistics.median(r['seconds'] for r in results):.3f}"


def _measure(path: Path, rounds: int, peers: Path, folder: Path) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    for index in range(rounds):
        order = TOOLS if index % 2 == 0 else TOOLS[::-1]
        for tool in order:
            python = sys.executable if tool in (OURS, "onnxruntime-basic") else str(peers)
            command = [python, str(WORKER), tool, str(path), str(folder / f"{tool}.onnx")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                results[tool].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def _difference(original: Path, candidate: Path) -> float:
    """Return the largest difference of any output, relative to that output's range, optimizations off.

    A Sigmoid's or Softmax's range is 1, however little of it random input uses; no candidate is infinitely far off.
    """
    if not candidate.exists():
        return float("inf")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = [
        ort.InferenceSession(str(p), options, providers=["CPUExecutionProvider"]) for p in (original, candidate)
    ]
    generator = np.random.default_rng(0)
    feed = {}
    for value in sessions[0].get_inputs():
        shape = [
            dim if isinstance(dim, int) else 1 if axis == 0 else DYNAMIC_SIZE for axis, dim in enumerate(value.shape)
        ]
        feed[value.name] = generator.standard_normal(shape).astype(np.float32)
    reference, ours = (session.run(None, feed) for session in sessions)
    graph = onnx.load(str(original), load_external_data=False).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    spans = [1.0 if makers.get(value.name) in ("Sigmoid", "Softmax") else 0.0 for value in graph.output]
    return max(
        float(np.abs(a - b).max() / max(np.ptp(a), span, 1e-30))
        for a, b, span in zip(reference, ours, spans, strict=True)
    )
