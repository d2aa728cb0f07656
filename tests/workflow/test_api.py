"""The Python API, and passes of other packages."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxslim
from onnxslim import Effect, Model, Pass, PassContext, Rewriter, Samples, option
from onnxslim.errors import ModelError, PolicyError, SpecError
from onnxslim.passes import InsertQdq, PruneFilters
from onnxslim.workflow import registry

MODELS = Path(__file__).resolve().parents[2] / "models"
CALIB = MODELS / "digits_calib.npz"


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    data = Samples.from_path(CALIB).take(60)
    result = onnxslim.optimize(
        MODELS / "resnet.onnx", data=data, passes=[PruneFilters(ratio=0.1), InsertQdq()], bench=False
    )
    result.model.save(tmp_path / "out.onnx")
    result.report.save(tmp_path / "report.html")
    assert result.report.validation is not None
    assert result.report.validation.outputs[0].sqnr_db is not None
    assert result.report.validation.samples == 12
    assert "insert-qdq" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [decision.pass_ for decision in result.plan.decisions] == ["prune-filters", "insert-qdq"]
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_a_model_in_memory_is_not_changed() -> None:
    model = onnxslim.load(MODELS / "vgg.onnx")
    before = model.to_bytes()
    for source in (model, before, model.proto()):
        result = onnxslim.optimize(source, bench=False)
        assert len(result.model.graph.nodes) < len(model.graph.nodes)
    assert model.to_bytes() == before


def test_the_other_functions() -> None:
    small, large = MODELS / "vgg.onnx", MODELS / "nin.onnx"
    assert onnxslim.inspect(small).params == 179_802
    validation = onnxslim.validate(small, small, CALIB, eval_samples=5)
    assert validation.sqnr_db == 200
    (latency,) = onnxslim.bench([large, small], seconds=0.3)
    assert latency.speedup is not None


def test_a_gate_from_a_file(tmp_path: Path) -> None:
    policy = tmp_path / "gate.toml"
    policy.write_text('[limits]\nbytes = "100%"\n')
    assert onnxslim.gate(MODELS / "vgg.onnx", MODELS / "vgg.onnx", policy).verdict.value == "pass"
    with pytest.raises(PolicyError, match="cannot read the policy"):
        onnxslim.gate(MODELS / "vgg.onnx", MODELS / "vgg.onnx", tmp_path / "none.toml")


def test_a_model_that_onnxruntime_does_not_run_is_refused() -> None:
    node = onnx.helper.make_node("Mystery", ["x"], ["y"], domain="com.example")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", onnx.TensorProto.FLOAT, [1])], [value("y", onnx.TensorProto.FLOAT, [1])]
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.example", 1)]
    with pytest.raises(ModelError, match="nothing can be proven"):
        onnxslim.optimize(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), bench=False)


# ---- passes of other packages ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poison(Pass):
    """Multiplies the first weight: lossy, and with NaN broken."""

    name = "poison"
    effect = Effect.APPROXIMATE
    factor: float = option(float("nan"), "what to multiply by")

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        node = rewriter.model.graph.nodes[0]
        values: Any = node.inputs[1]
        rewriter.set_input(node, 1, rewriter.constant("w", values.values * np.float32(self.factor)))


class FakeEntryPoint:
    """What importlib.metadata hands out."""

    def __init__(self, loaded: Any) -> None:
        self.name, self.value, self._loaded = "poison", "their_package:Poison", loaded

    def load(self) -> Any:
        return self._loaded


def install(monkeypatch: pytest.MonkeyPatch, loaded: Any) -> None:
    registry.known_passes.cache_clear()
    monkeypatch.setattr(metadata, "entry_points", lambda group: [FakeEntryPoint(loaded)])


@pytest.fixture(autouse=True)
def _forget_passes() -> Any:
    yield
    registry.known_passes.cache_clear()


def test_a_pass_of_another_package_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Poison)
    result = onnxslim.optimize(MODELS / "vgg.onnx", passes="poison{factor=0.5}", bench=False)
    assert result.report.passes[-1].status == "kept"
    assert result.report.passes[-1].spec == "poison{factor=0.5}"


def test_nan_is_rolled_back_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Poison)
    result = onnxslim.optimize(MODELS / "vgg.onnx", passes="poison", bench=False)
    assert result.report.passes[-1].status == "rolled_back"
    assert "NaN or Inf" in (result.report.passes[-1].reason or "")
    assert any("poison was rolled back" in line for line in result.warnings)
    exact = onnxslim.optimize(MODELS / "vgg.onnx", bench=False)
    assert [n.op for n in result.model.graph.nodes] == [n.op for n in exact.model.graph.nodes]


@pytest.mark.parametrize("loaded", [42, InsertQdq, Model])
def test_an_entry_point_that_is_no_new_pass_is_named(monkeypatch: pytest.MonkeyPatch, loaded: Any) -> None:
    install(monkeypatch, loaded)
    with pytest.raises(SpecError, match="their_package:Poison"):
        registry.known_passes()
