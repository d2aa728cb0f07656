"""bench --report: a page, a pull request's text or the document, of one model or of two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxslim.report import Report

MODELS = Path(__file__).resolve().parents[2] / "models"
Run = Callable[..., tuple[int, str, str]]


def test_two_models_are_before_and_after(run: Run, tmp_path: Path) -> None:
    pages = [tmp_path / name for name in ("r.html", "r.md", "r.json")]
    asked = [part for page in pages for part in ("--report", page)]
    code, _, _ = run("bench", MODELS / "vgg.onnx", MODELS / "resnet.onnx", "--seconds", "0.5", "-q", *asked)
    assert code == 0
    report = Report.from_json((tmp_path / "r.json").read_bytes())
    assert report.input.path == str(MODELS / "vgg.onnx")
    assert report.output is not None
    assert report.output.bytes == (MODELS / "resnet.onnx").stat().st_size
    assert report.latency is not None
    assert report.latency.speedup is not None
    assert report.input.peak is not None
    assert sum(tensor.bytes for tensor in report.input.peak.tensors) == report.input.peak_activation_bytes
    for page in pages[:2]:
        assert "Where the time goes" in page.read_text("utf-8")


def test_one_model_is_looked_at(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "r.json"
    code, _, _ = run("bench", MODELS / "nin.onnx", "--seconds", "0.5", "-q", "--report", page)
    assert code == 0
    report = Report.from_json(page.read_bytes())
    assert report.output is None
    assert report.latency is not None
    assert report.latency.candidate is None


def test_three_models_and_other_endings_are_refused_before_measuring(run: Run, tmp_path: Path) -> None:
    models = [MODELS / f"{name}.onnx" for name in ("vgg", "nin", "resnet")]
    code, _, stderr = run("bench", *models, "--report", tmp_path / "r.html")
    assert code == 2
    assert "there are 3: name one candidate" in stderr
    code, _, stderr = run("bench", models[0], "--report", tmp_path / "r.pdf")
    assert code == 2
    assert ".html, .json or .md" in stderr
