"""``inspect --ranks``: its tables, JSON and reports, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from onnxslim.report import json_schema
from onnxslim.report.ranks import RankSurvey

MODELS = Path(__file__).resolve().parents[2] / "models"
CALIB = MODELS / "digits_calib.npz"
VGG = MODELS / "vgg.onnx"
OFF = ("--clock", "off")
Run = Callable[..., tuple[int, str, str]]


def test_the_table_has_every_layer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    code, stdout, stderr = run("inspect", VGG, "--ranks", *OFF)
    assert code == 0
    assert not stderr
    assert "6 of 6 layers can be factorized" in stdout
    assert "--data PATH would tell about outputs" in stdout
    assert stdout.count("spatial") == 2
    code, stdout, _ = run("inspect", VGG, "--ranks", *OFF, "--data", CALIB, "--calib-samples", 16)
    assert code == 0
    assert "output on 16 samples" in stdout


def test_layers_that_are_refused_are_told(run: Run) -> None:
    code, stdout, _ = run("inspect", MODELS / "mobilenet.onnx", "--ranks", *OFF)
    assert code == 0
    assert "groups has one filter: its rank is 1" in " ".join(stdout.split())


def test_one_layer_in_detail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    code, stdout, _ = run("inspect", VGG, "--ranks", "--only", "/7/*")
    assert code == 0
    assert "VBMF estimates" in stdout
    assert stdout.count("of its MACs") == stdout.count("of its time") == stdout.count(" lost ") == 3
    assert "/10/" not in stdout


def test_json_is_the_part_of_the_report(run: Run) -> None:
    code, stdout, _ = run("inspect", VGG, "--ranks", "--data", CALIB, "--calib-samples", 16, "--json")
    assert code == 0
    document = json.loads(stdout)
    assert document.pop("schema") == 1
    survey = RankSurvey.model_validate(document)
    assert (survey.error_of, survey.samples, survey.clock) == ("output", 16, "on")
    assert [layer.op for layer in survey.layers] == ["Conv"] * 3 + ["Gemm"] * 3
    assert all(option.time is not None for layer in survey.layers for option in layer.options)


def test_reports_are_written(run: Run, tmp_path: Path) -> None:
    paths = [tmp_path / f"ranks.{ending}" for ending in ("html", "md", "json")]
    reports = [part for path in paths for part in ("--report", path)]
    code, stdout, _ = run("inspect", VGG, "--ranks", *OFF, "-q", *reports)
    assert (code, stdout) == (0, "")
    page, markdown, document = (path.read_text() for path in paths)
    assert page.count("<article") == 6
    assert "### What low rank would do" in markdown
    jsonschema.validate(json.loads(document), json_schema())
    assert len(json.loads(document)["ranks"]["layers"]) == 6


def test_a_report_of_the_model_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    assert run("inspect", VGG, "--report", path)[0] == 0
    document = json.loads(path.read_text())
    assert "ranks" not in document
    assert document["input"]["nodes"] == len(document["input"]["layers"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ranks", "--only", "nowhere"), "matches no layer"),
        (("--ranks", "--channels"), "one at a time"),
        (("--clock", "off"), "--clock goes with --ranks"),
        (("--data", CALIB), "--data goes with --ranks"),
        (("--channels", "--calib-samples", 4), "--calib-samples goes with --ranks"),
        (("--channels", "--report", "out.html"), "--channels"),
        (("--ranks", "--report", "out.txt"), "must end in .html, .json or .md"),
        (("--ranks", "--data", "missing.npz"), "missing.npz"),
        (("--ranks", "--clock", "maybe"), "maybe"),
    ],
)
def test_bad_usage_is_one_line(run: Run, arguments: tuple[object, ...], said: str) -> None:
    code, stdout, stderr = run("inspect", VGG, *arguments)
    assert (code, stdout) == (2, "")
    assert said in stderr
    assert stderr.count("\n") == 1


def test_the_report_of_optimize_tells_what_was_split(run: Run, tmp_path: Path) -> None:
    out, page = tmp_path / "out.onnx", tmp_path / "out.html"
    spec = "factor-low-rank{ratio=0.6 clock=off}"
    code, stdout, _ = run(
        "optimize", VGG, "-o", out, "--passes", spec, "--data", CALIB, "--eval-samples", 10, "--no-bench", "--json",
        "--plan-out", tmp_path / "plan.json", "--report", page,
    )  # fmt: skip
    assert code == 0
    record = next(each for each in json.loads(stdout)["passes"] if each["name"] == "factor-low-rank")
    plan = json.loads((tmp_path / "plan.json").read_text())["decisions"][0]["plan"]
    assert [layer["anchor"] for layer in record["ranks"]["layers"]] == [layer["anchor"] for layer in plan["layers"]]
    assert {layer["rank"] for layer in plan["layers"]} == {layer["rank"] for layer in record["ranks"]["layers"]}
    assert all("time" not in layer and layer["error"] > 0 for layer in record["ranks"]["layers"])
    assert 'id="factoring1"' in page.read_text()
