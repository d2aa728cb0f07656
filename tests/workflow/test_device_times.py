"""Devices that tell the times of nodes: rows are the layers of the reference, and add up to the medians."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxslim.devices.base import Device, DeviceResult, Job, Kind, Progress, Side
from onnxslim.measure import RaceSettings
from onnxslim.runtime.profile import NodeTime
from onnxslim.workflow import devices
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.measuring import run_bench

VGG = Path(__file__).resolve().parents[2] / "models" / "vgg.onnx"


class Telling(Device):
    """Takes 10 and 5 ms, most of it in the first layer, and some in an operator of its own."""

    name = "android"

    def setup(self, progress: Progress) -> None:
        """Nothing is needed."""

    def check(self) -> None:
        """All is there."""

    def measure(self, job: Job) -> DeviceResult:
        """Return what was told."""
        sides = []
        for path, total in zip(job.models, (10.0, 5.0), strict=True):
            layers = [node for node in onnx.load(path).graph.node if node.op_type in ("Conv", "Gemm")]
            times = [NodeTime(n.output[0], n.output[0], n.op_type, 30.0 if n is layers[0] else 1.0) for n in layers]
            sides.append(Side((total,) * 20, nodes=(*times, NodeTime("cast", None, "Cast", 2.0))))
        return DeviceResult("android", Kind.MEASURED, tuple(sides))


def test_times_by_layer_add_up_to_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_device", lambda name: Telling())
    (host,) = run_bench([VGG, VGG], DataSettings(seed=0), {}, None, RaceSettings(seconds=0.2), devices=["android"])
    layers = host.devices[0].layers
    assert sum(layer.reference_us or 0 for layer in layers) == pytest.approx(10_000)
    assert sum(layer.candidate_us or 0 for layer in layers) == pytest.approx(5_000)
    assert [(layer.node, layer.op) for layer in layers if layer.origin is None] == [("Cast", "Cast")]
    assert all(layer.reference is None for layer in layers)
    largest = max(layers, key=lambda layer: layer.after or 0)
    assert largest.op == "Conv"
    assert host.devices[0].disagrees is not None
    assert "kernels differ most in" in host.devices[0].disagrees
