"""Devices beside the host: ratios, layers of the reference, outputs, and where they disagree; with a fake device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim.devices.base import Device, DeviceResult, Job, Kind, LayerCount, Progress, Side
from onnxslim.devices.finding import find_device
from onnxslim.errors import DeviceError
from onnxslim.measure import Latency, RaceSettings
from onnxslim.report.evidence import DeviceReading
from onnxslim.report.evidence import Latency as LatencyPart
from onnxslim.runtime import Session, SessionConfig
from onnxslim.workflow import devices
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.measuring import run_bench

MODELS = Path(__file__).resolve().parents[2] / "models"
VGG = MODELS / "vgg.onnx"


class Counting(Device):
    """Counts as many instructions as it is told, a thousand for each layer with weights."""

    name = "arm"

    def __init__(self, factors: tuple[float, ...], times: tuple[float, ...] = ()) -> None:
        self.factors, self.times = factors, times

    def setup(self, progress: Progress) -> None:
        """Nothing is needed."""

    def measure(self, job: Job) -> DeviceResult:
        """Return what was told."""
        sides: list[Side] = []
        for path, factor in zip(job.models, self.factors, strict=True):
            layers = [node for node in onnx.load(path).graph.node if node.op_type in ("Conv", "Gemm")]
            rows = [LayerCount(n.output[0], n.op_type, n.output[0], round(1000 * factor), {"fma": 900}) for n in layers]
            rows.append(LayerCount("reorder", "ReorderInput", None, 50))
            values = Session(path, SessionConfig()).run(dict(job.feed))
            outputs = {name: np.asarray(value) for name, value in values.items()}
            counted = None if self.times else sum(row.instructions for row in rows)
            own = tuple(np.full(20, self.times[len(sides)])) if self.times else ()
            sides.append(Side(own, None, counted, tuple(rows), outputs))
        kind = Kind.MEASURED if self.times else Kind.COUNTED
        return DeviceResult("arm", kind, tuple(sides), {"cpu": "fake", "warnings": ["it is a fake"]})


def bench(monkeypatch: pytest.MonkeyPatch, device: Device, speedup: float = 1.0) -> DeviceReading:
    monkeypatch.setattr(devices, "find_device", lambda name: device)
    data = DataSettings(seed=0)
    (host,) = run_bench([VGG, VGG], data, {}, None, RaceSettings(seconds=0.2), devices=["arm"])
    found: DeviceReading = host.devices[0]
    LatencyPart.model_validate(host)
    assert host.speedup is not None
    return found


def test_counts_are_compared_exactly_and_layers_are_the_reference_s(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = bench(monkeypatch, Counting((2.0, 1.0)))
    assert reading.kind == "emulated count"
    assert reading.candidate is not None
    assert reading.speedup == pytest.approx(2.0, rel=0.02)
    assert (reading.interval, reading.claim) == (None, None)
    assert reading.candidate.p50_ms is None
    assert sum(layer.candidate or 0 for layer in reading.layers) == reading.candidate.instructions
    names = {output for node in onnx.load(VGG).graph.node for output in node.output}
    assert {layer.node for layer in reading.layers if layer.origin is not None} <= names
    assert {layer.op for layer in reading.layers if layer.origin is None} == {"ReorderInput"}
    assert (reading.facts, reading.warnings) == ({"cpu": "fake"}, ("it is a fake",))


def test_outputs_are_compared_with_the_host_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench(monkeypatch, Counting((1.0, 1.0))).reference.sqnr_db == 200.0


def test_host_and_device_that_disagree_are_told_apart_with_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    said = bench(monkeypatch, Counting((3.0, 1.0))).disagrees
    assert said is not None
    assert "arm says" in said
    assert "kernels differ most in" in said
    assert "Conv" in said
    assert bench(monkeypatch, Counting((1.0, 1.0))).disagrees is None


def test_times_have_an_interval_and_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = bench(monkeypatch, Counting((1.0, 1.0), times=(10.0, 5.0)))
    assert reading.kind == "measured"
    assert reading.speedup == 2.0
    assert reading.interval == (2.0, 2.0)
    assert reading.claim == "faster"
    assert reading.candidate is not None
    assert reading.candidate.p50_ms == 5.0
    assert reading.layers == ()


def test_one_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_device", lambda name: Counting((1.0,)))
    (host,) = run_bench([VGG], DataSettings(seed=0), {}, None, RaceSettings(seconds=0.2), devices=["arm"])
    assert isinstance(host, Latency)
    assert host.devices[0].candidate is None
    assert host.devices[0].reference.instructions


@pytest.mark.parametrize("name", ["phone", "web:1", "qnn:x", ""])
def test_devices_that_do_not_exist_are_named_with_those_that_do(name: str) -> None:
    with pytest.raises(DeviceError, match="choose host, arm"):
        find_device(name)
