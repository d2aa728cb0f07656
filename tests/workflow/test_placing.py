"""Integers at run time, from a model to its report and to the lines of a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxslim
from onnxslim import Samples
from onnxslim.cli.main import main
from onnxslim.measure.slower import slower_layers
from onnxslim.report import Report, summary_lines
from onnxslim.runtime.placed_graph import Place
from onnxslim.runtime.placement import LayerPlacement
from onnxslim.workflow.optimizing import OptimizeResult
from onnxslim.workflow.placing import bench_placements, inspect_placement

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("placing")


@pytest.fixture(scope="module")
def result(folder: Path) -> OptimizeResult:
    """A residual network in int8, but for one layer that the options exclude."""
    data = Samples.from_path(MODELS / "digits_calib.npz").take(30)
    first = next(layer.anchor for layer in onnxslim.inspect(MODELS / "resnet.onnx").layers if layer.op == "Conv")
    passes = f'exact,insert-qdq{{exclude="{first}*"}}'
    made = onnxslim.optimize(MODELS / "resnet.onnx", data=data, passes=passes, bench=False)
    made.model.save(folder / "q.onnx")
    return made


def test_all_macs_are_accounted_for(result: OptimizeResult) -> None:
    placement = result.report.placement
    assert placement is not None
    assert result.report.output is not None
    shares = (placement.integer, placement.moved, placement.float)
    assert sum(share.macs or 0 for share in shares) == result.report.output.macs
    assert sum(share.layers for share in shares) == sum(layer.within is None for layer in placement.layers)
    assert (placement.total_us, placement.inserted) == (None, ())


def test_the_words_of_the_pass_are_the_reason(result: OptimizeResult) -> None:
    placement = result.report.placement
    assert placement is not None
    floats = {layer.op: layer for layer in placement.layers if layer.place == "float" and layer.within is None}
    assert floats["Conv"].why == "refused"
    assert floats["Conv"].reason == "insert-qdq left it alone: excluded by the options"
    assert floats["Conv"].macs
    assert placement.integer.layers > 10


def test_anchors_are_those_of_the_original(result: OptimizeResult) -> None:
    placement = result.report.placement
    assert placement is not None
    known = {layer.anchor for layer in result.report.input.layers}
    assert {layer.anchor for layer in placement.layers} <= known


def test_the_summary_says_it_in_one_line(result: OptimizeResult) -> None:
    lines = [line for line in summary_lines(result.report) if "Run as integers" in line]
    assert len(lines) == 1
    assert " layers (" in lines[0]
    assert "% of MACs)" in lines[0]


def test_a_model_in_float_has_no_such_part() -> None:
    assert onnxslim.optimize(MODELS / "nin.onnx", bench=False).report.placement is None
    assert inspect_placement(MODELS / "nin.onnx", {}, None) is None


def test_times_come_with_a_race(folder: Path, result: OptimizeResult) -> None:
    pair = [MODELS / "resnet.onnx", folder / "q.onnx"]
    before, after = bench_placements(pair, {}, None, onnxslim.bench(pair, seconds=0.2))
    assert before is None
    assert after is not None
    assert after.total_us is not None
    spent = sum(share.time_us or 0.0 for share in (after.integer, after.moved, after.float))
    spent += (after.conversion_us or 0.0) + sum(one.time_us for one in after.inserted)
    assert spent == pytest.approx(after.total_us)


def test_inspect_says_it_of_a_file(folder: Path, result: OptimizeResult, capsys: pytest.CaptureFixture[str]) -> None:
    report = folder / "inspected.json"
    assert main(["inspect", str(folder / "q.onnx"), "--report", str(report)]) == 0
    assert "run as integers:" in capsys.readouterr().out
    placement = Report.from_json(report.read_text("utf-8")).placement
    assert placement is not None
    assert result.report.placement is not None
    assert placement.integer == result.report.placement.integer


def test_bench_says_it_of_quantized_models(
    folder: Path, result: OptimizeResult, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(MODELS / "resnet.onnx"), str(folder / "q.onnx"), "--seconds", "0.2"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "run as integers:" in line]
    assert len(said) == 1
    assert said[0].startswith("q.onnx: ")
    assert "of the time" in said[0]


# ---- slower as integers ------------------------------------------------------------------------------------------


def layer(
    anchor: str, time: float | None = None, within: str | None = None, place: Place = Place.INTEGER
) -> LayerPlacement:
    return LayerPlacement(anchor, anchor, "Conv", place, f"Q{anchor}", within=within, microseconds=time)


def slow(
    reference: list[LayerPlacement], candidate: list[LayerPlacement]
) -> list[tuple[tuple[str, ...], float, float]]:
    found = slower_layers(reference, candidate, total_us=1000.0)
    return [(one.anchors, one.reference_us, one.time_us) for one in found]


def test_layers_that_integers_made_slower_come_worst_first() -> None:
    reference = [layer("a", 100), layer("b", 10), layer("c", 50)]
    candidate = [layer("a", 150), layer("b", 90), layer("c", 50)]
    assert slow(reference, candidate) == [(("b",), 10, 90), (("a",), 100, 150)]
    assert slower_layers(reference, candidate, 1000.0)[0].kernels == ("Qb",)


def test_what_one_kernel_held_and_two_hold_now_is_compared_together() -> None:
    reference = [layer("conv", 100), layer("add", within="conv"), layer("relu", within="conv")]
    split = [layer("conv", 60), layer("add", 30), layer("relu", within="add")]
    assert slow(reference, split) == []
    assert slow(reference, [layer("conv", 120), layer("add", 30), layer("relu", within="add")]) == [
        (("conv", "add"), 100, 150)
    ]


def test_what_is_no_evidence() -> None:
    candidate = [layer("a", 9.0), layer("b", 400, place=Place.FLOAT), layer("new", 300), layer("d", 60)]
    reference = [layer("a", 5.0), layer("b", 100), layer("gone", 1), layer("d", 50)]
    assert slow(reference, candidate) == []  # too small, in float, on one side only, within the noise
