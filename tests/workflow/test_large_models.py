"""Large models take other ways, through files and other processes, to the same results."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import onnxslim
from onnxslim.errors import ModelError
from onnxslim.ir import Constant

MODELS = Path(__file__).parents[2] / "models"
CALIB = MODELS / "digits_calib.npz"


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.ir.weights.LARGE", 0)


@pytest.mark.parametrize(
    "passes",
    [
        "exact",
        "prune-filters{ratio=0.2}",
        "prune-filters{macs=0.8 clock=off}",
        "factor-low-rank{ratio=0.3 clock=off}",
        "factor-low-rank{macs=0.8 clock=off}",
        "insert-qdq",
    ],
)
def test_the_same_model_comes_out(passes: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run() -> onnxslim.OptimizeResult:
        return onnxslim.optimize(
            MODELS / "vgg.onnx", CALIB, passes=passes, calib_samples=16, eval_samples=8, bench=False
        )

    small = run()
    monkeypatch.setattr("onnxslim.ir.weights.LARGE", 0)
    large = run()
    assert large.model.proto() == small.model.proto()
    ours, theirs = large.report, small.report
    assert [record.status for record in ours.passes] == [record.status for record in theirs.passes]
    assert ours.output is not None
    assert theirs.output is not None
    assert ours.output.macs == theirs.output.macs
    assert ours.output.bytes == pytest.approx(theirs.output.bytes, rel=0.001)
    for mine, other in zip(ours.validation.outputs, theirs.validation.outputs, strict=True):
        assert mine.max_abs == pytest.approx(other.max_abs, abs=1e-4)
    large.model.save(tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    if passes == "insert-qdq":
        assert (ours.validation.arm is None) == (theirs.validation.arm is None)
        assert ours.validation.kernels is not None


@pytest.mark.usefixtures("everything_is_large")
def test_a_wrong_rewrite_is_noticed_in_the_other_process() -> None:
    reference = onnxslim.load(MODELS / "vgg.onnx")
    wrong = onnxslim.load(MODELS / "vgg.onnx")
    filters = next(node.inputs[1] for node in wrong.graph.nodes if node.op == "Conv")
    assert isinstance(filters, Constant)
    filters.values = -filters.values
    assert (onnxslim.validate(reference, wrong, CALIB, eval_samples=4).sqnr_db or 0) < 10
    assert onnxslim.validate(reference, reference, CALIB, eval_samples=4).sqnr_db == 200


def test_no_race_where_memory_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.measure.latency.available_memory", lambda: 1_000_000)
    with pytest.raises(ModelError, match=r"3 models at once need .* GB of memory"):
        onnxslim.bench([MODELS / "vgg.onnx", MODELS / "vgg.onnx"], seconds=0.1)
    result = onnxslim.optimize(MODELS / "vgg.onnx")
    assert result.report.latency is None
    assert any("latency cannot be measured" in line for line in result.warnings)
