"""One peer's quantization, run by that peer's Python: reads a job as JSON from standard input, prints JSON.

The job: tool, spec, model, calibration (``.npz``), out. Seconds are of calibration, quantization and files, not of
imports and of reading the calibration arrays. Nothing of ours is imported here.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["NNCF_CI"] = "1"  # NNCF sends no telemetry from a CI

import numpy as np
import onnx
import onnx.version_converter

OLDEST_OPSET = 13
"""The first that has scales per channel; both tools ask for it."""


def onnxruntime() -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """``quant_pre_process``, then ``quantize_static``; the spec is METHOD ACTIVATIONS GRAIN."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, arrays: dict[str, Any]) -> None:
            self.feeds: Iterator[dict[str, Any]] = _feeds(arrays)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    def quantize(job: dict[str, Any], arrays: dict[str, Any]) -> None:
        method, activations, grain = job["spec"].split()
        with tempfile.TemporaryDirectory() as folder:
            prepared = str(Path(folder) / "prepared.onnx")
            _prepare(job["model"], prepared)
            quantize_static(
                prepared,
                job["out"],
                Reader(arrays),
                quant_format=QuantFormat.QDQ,
                per_channel=grain == "channel",
                activation_type=QuantType[activations],
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
            )

    return quantize


def _prepare(model: str, out: str) -> None:
    """Preprocess as onnxruntime recommends; without symbolic shape inference where that fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = f"{out}.upgraded.onnx"  # of a model in memory it optimizes nothing
    onnx.save(_upgraded(model), source)
    try:
        quant_pre_process(source, out)
    except Exception as error:  # it raises whatever it trips over; leaving it out is the documented way on
        print(f"without symbolic shape inference: {error}", file=sys.stderr)
        quant_pre_process(source, out, skip_symbolic_shape=True)


def _upgraded(model: str) -> onnx.ModelProto:
    """Return the model with scales per channel at hand, and weights where the tools look for them."""
    proto = onnx.load(model)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < OLDEST_OPSET:
        proto = onnx.version_converter.convert_version(proto, OLDEST_OPSET)
    for node in [node for node in proto.graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        weight = proto.graph.initializer.add()
        weight.CopyFrom(node.attribute[0].t)
        weight.name = node.output[0]
        proto.graph.node.remove(node)
    return proto


def nncf() -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """``nncf.quantize`` on all calibration samples, its default preset."""
    peer: Any = importlib.import_module("nncf")

    def quantize(job: dict[str, Any], arrays: dict[str, Any]) -> None:
        feeds = list(_feeds(arrays))
        quantized = peer.quantize(_upgraded(job["model"]), peer.Dataset(feeds), subset_size=len(feeds))
        onnx.save(quantized, job["out"])

    return quantize


TOOLS = {"onnxruntime": onnxruntime, "nncf": nncf}


def _feeds(arrays: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for index in range(len(next(iter(arrays.values())))):
        yield {name: array[index : index + 1] for name, array in arrays.items()}


def _peak_gb() -> float:
    """Return the most memory this process ever held; getrusage would count the parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def main() -> int:
    """Do what standard input says."""
    job = json.load(sys.stdin)
    printing, sys.stdout = sys.stdout, sys.stderr  # the tools print what they like
    started = time.perf_counter()
    quantize = TOOLS[job["tool"]]()
    imported = time.perf_counter()
    with np.load(job["calibration"], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "labels"}
    loaded = time.perf_counter()
    quantize(job, arrays)
    done = time.perf_counter()
    found = {"imports": imported - started, "loading": loaded - imported, "seconds": done - loaded, "gb": _peak_gb()}
    print(json.dumps(found), file=printing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
