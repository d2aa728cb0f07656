"""Growth: seconds against nodes, on graphs of 10,000 to 40,000 nodes, beside onnxruntime's basic level and onnxsim."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
from onnx import NodeProto, TensorProto, numpy_helper

WORKER = Path(__file__).with_name("exact_worker.py")
TOOLS = ("onnxslim-mobile", "onnxsim", "onnxruntime-basic")
OURS, BASIC = TOOLS[0], TOOLS[-1]
CHANNELS = 8


def run(sizes: Sequence[int], rounds: int, peers: Path) -> int:
    """Print a table of seconds and the slope of log(seconds) over log(nodes); return 1 if ours is above 1.1."""
    header = f"{'graph':10}{'nodes':>8}" + "".join(f"{tool:>20}" for tool in TOOLS) + f"{'ours / basic':>14}"
    print(header + "\n" + "-" * len(header))
    steepest = 0.0
    for name, build in GRAPHS.items():
        seconds: dict[str, list[float]] = {tool: [] for tool in TOOLS}
        for size in sizes:
            row = _measure(build(size), rounds, peers)
            for tool in TOOLS:
                seconds[tool].append(row[tool])
            cells = "".join(f"{row[tool]:>20.2f}" for tool in TOOLS)
            print(f"{name:10}{size:>8}{cells}{row[OURS] / row[BASIC]:>14.2f}", flush=True)
        slopes = {tool: _slope(sizes, seconds[tool]) for tool in TOOLS}
        print(f"{name:10}{'slope':>8}" + "".join(f"{slopes[tool]:>20.2f}" for tool in TOOLS), flush=True)
        steepest = max(steepest, slopes[OURS])
    print(
        f"\nbest of {rounds} interleaved rounds, in process: load, rewrites, save; slope: of log seconds over log nodes"
    )
    return int(steepest > 1.1)


def _slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    if len(sizes) < 2 or not all(map(math.isfinite, seconds)):
        return math.nan
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(s) for s in seconds]).slope


def _measure(model: onnx.ModelProto, rounds: int, peers: Path) -> dict[str, float]:
    best = dict.fromkeys(TOOLS, math.inf)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.onnx"
        onnx.save_model(model, str(path))
        small = Path(folder) / "small.onnx"
        onnx.save_model(blocks(100), str(small))
        for index in range(rounds):
            for tool in TOOLS if index % 2 == 0 else TOOLS[::-1]:
                python = str(peers) if tool == "onnxsim" else sys.executable
                command = [python, str(WORKER), tool, str(path), str(Path(folder) / f"{tool}.onnx"), "1", str(small)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    best[tool] = min(best[tool], json.loads(done.stdout.splitlines()[-1])["seconds"])
    return best


# ---- graphs ------------------------------------------------------------------------------------------------------


def _model(nodes: list[NodeProto], last: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    shape = [1, CHANNELS, 4, 4]
    graph = oh.make_graph(
        nodes,
        "growth",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [oh.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def chain(size: int) -> onnx.ModelProto:
    """One long chain in which there is nothing to rewrite."""
    ops = ("Sigmoid", "Tanh", "Softplus", "Abs")
    nodes = [oh.make_node(ops[i % len(ops)], [f"t{i}" if i else "x"], [f"t{i + 1}"], f"n{i}") for i in range(size)]
    return _model(nodes, f"t{size}", {})


def blocks(size: int) -> onnx.ModelProto:
    """Residual blocks with much to rewrite: batch normalization, scales, no-ops, computed shapes, twins."""
    random = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    last, index = "x", 0
    while len(nodes) < size:
        added, values = _block(f"b{index}_", last, random)
        nodes += added
        weights |= values
        last, index = nodes[-1].output[0], index + 1
    return _model(nodes, last, weights)


def _block(p: str, x: str, random: np.random.Generator) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    def values(*shape: int) -> np.ndarray:
        return (random.random(shape, dtype=np.float32) + 0.5) / 4

    weights = {f"{p}w": values(CHANNELS, CHANNELS, 1, 1), f"{p}v": values(CHANNELS, CHANNELS, 1, 1)}
    weights |= {f"{p}{name}": values(CHANNELS) for name in ("scale", "bias", "mean", "var")}
    weights |= {f"{p}gain": values(1), f"{p}last": np.array([-1], np.int64), f"{p}zero": np.array(0, np.int64)}
    bn = [f"{p}c", *(f"{p}{name}" for name in ("scale", "bias", "mean", "var"))]
    node = oh.make_node
    return [
        node("Conv", [x, f"{p}w"], [f"{p}c"]),
        node("BatchNormalization", bn, [f"{p}n"]),
        node("Relu", [f"{p}n"], [f"{p}r"]),
        node("Identity", [f"{p}r"], [f"{p}i"]),
        node("Conv", [f"{p}i", f"{p}v"], [f"{p}d"]),
        node("Mul", [f"{p}d", f"{p}gain"], [f"{p}m"]),
        node("Shape", [f"{p}m"], [f"{p}s"]),
        node("Reshape", [f"{p}m", f"{p}s"], [f"{p}e"]),
        node("Relu", [x], [f"{p}t1"]),
        node("Relu", [x], [f"{p}t2"]),
        node("Add", [f"{p}t1", f"{p}t2"], [f"{p}u"]),
        node("Add", [f"{p}e", f"{p}u"], [f"{p}y"]),
    ], weights


GRAPHS: dict[str, Callable[[int], onnx.ModelProto]] = {"chain": chain, "blocks": blocks}
