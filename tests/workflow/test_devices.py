"""Devices beside the host: ratios, layers of the reference, outputs, and where they disagree; with a fake device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator

from onnxslim.devices.base import Device, DeviceResult, Job, Kind, LayerCount, Progress, Side
from onnxslim.devices.finding import find_device
from onnxslim.errors import DeviceError
from onnxslim.measure import Latency, RaceSettings
from onnxslim.policy import GateVerdict, judge, read_policy
from onnxslim.report import json_schema
from onnxslim.report.evidence import DeviceReading
from onnxslim.report.evidence import Latency as LatencyPart
from onnxslim.runtime import Reading, RuntimeRefusal, Session, SessionConfig
from onnxslim.workflow import devices, optimizing
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.evidence import collect_evidence
from onnxslim.workflow.measuring import run_bench
from onnxslim.workflow.optimizing import OptimizeSettings, run_optimize

MODELS = Path(__file__).resolve().parents[2] / "models"
VGG = MODELS / "vgg.onnx"


class Counting(Device):
    """Counts as many instructions as it is told, a thousand for each layer with weights."""

    name = "arm"

    def __init__(self, factors: tuple[float, ...], times: tuple[float, ...] = ()) -> None:
        self.factors, self.times = factors, times

    def setup(self, progress: Progress) -> None:
        """Nothing is needed."""

    def check(self) -> None:
        """All is there."""

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


def test_integers_are_compared_as_arm_multiplies_them_where_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Reading] = []

    def session(path: Path, config: SessionConfig) -> Session:
        asked.append(config.reading)
        if config.reading is Reading.ARM and len(asked) == 1:
            raise RuntimeRefusal("AddInitializedOrtValue")
        return Session(path, config)

    monkeypatch.setattr(devices, "Session", session)
    bench(monkeypatch, Counting((1.0, 1.0)))
    assert asked == [Reading.ARM, Reading.KERNELS, Reading.ARM]


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


# ---- optimize ----------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> OptimizeSettings:
    """A quick run of the exact passes, measured on a device."""
    return replace(OptimizeSettings(passes="exact", devices=["arm"]), **changes)


def test_optimize_measures_original_and_result_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_device", lambda name: Counting((2.0, 1.0)))
    report = run_optimize(VGG, settings()).report
    assert report.latency is not None
    (reading,) = report.latency.devices
    assert (reading.name, reading.kind) == ("arm", "emulated count")
    assert reading.speedup == pytest.approx(2.0, rel=0.02)
    json_schema_errors = list(Draft202012Validator(json_schema()).iter_errors(json.loads(report.to_json())))
    assert json_schema_errors == []


def test_what_fails_on_a_device_does_not_cost_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Counting):
        def measure(self, job: Job) -> DeviceResult:
            raise DeviceError("the phone went away")

    monkeypatch.setattr(devices, "find_device", lambda name: Broken(()))
    result = run_optimize(VGG, settings())
    assert result.report.latency is not None
    assert result.report.latency.devices == ()
    assert "the phone went away" in result.warnings


def test_a_device_that_is_not_ready_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizing._Run, "execute", lambda self: pytest.fail("worked first"))
    with pytest.raises(DeviceError, match="onnxslim device setup arm"):
        run_optimize(VGG, settings())


def test_a_device_without_measuring_is_a_contradiction() -> None:
    with pytest.raises(DeviceError, match="--no-bench"):
        run_optimize(VGG, settings(bench=False))


# ---- gate --------------------------------------------------------------------------------------------------------

POLICY = read_policy('[limits]\narm_instructions = "60%"', "gate.toml")


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [((2.0, 1.0), GateVerdict.PASS), ((1.0, 1.0), GateVerdict.FAIL)],
)
def test_the_gate_counts(monkeypatch: pytest.MonkeyPatch, factors: tuple[float, ...], verdict: GateVerdict) -> None:
    monkeypatch.setattr(devices, "find_device", lambda name: Counting(factors))
    evidence = collect_evidence(POLICY, VGG, VGG, DataSettings())
    assert judge(POLICY, evidence).verdict is verdict


def test_a_candidate_that_does_not_run_there_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Counting):
        def measure(self, job: Job) -> DeviceResult:
            found = super().measure(job)
            return replace(found, sides=(found.sides[0], Side(refused="no such kernel")))

    monkeypatch.setattr(devices, "find_device", lambda name: Refusing((1.0, 1.0)))
    rule = judge(POLICY, collect_evidence(POLICY, VGG, VGG, DataSettings())).rules[0]
    assert (rule.verdict, rule.reason) == (GateVerdict.FAIL, "the candidate does not run on ARM: no such kernel")


def test_a_gate_without_the_device_is_inconclusive_and_says_how_to_set_it_up() -> None:
    rule = judge(POLICY, collect_evidence(POLICY, VGG, VGG, DataSettings())).rules[0]
    assert rule.verdict is GateVerdict.INCONCLUSIVE
    assert "onnxslim device setup arm" in rule.reason


@pytest.mark.parametrize("name", ["phone", "web:1", "qnn:x", ""])
def test_devices_that_do_not_exist_are_named_with_those_that_do(name: str) -> None:
    with pytest.raises(DeviceError, match="choose host, arm"):
        find_device(name)
