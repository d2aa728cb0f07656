"""The command line: the contract of options, output and exit codes, on the models that ship."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from onnxslim.measure import MetricTracker
from onnxslim.report import json_schema
from onnxslim.runtime import Session
from onnxslim.samples import Samples

MODELS = Path(__file__).resolve().parents[2] / "models"
CALIB, EVAL = str(MODELS / "digits_calib.npz"), str(MODELS / "digits_eval.npz")
NAMES = ("vgg", "nin", "inception", "resnet", "mobilenet")
Run = Callable[..., tuple[int, str, str]]


def accuracy(path: Path) -> float:
    session, tracker = Session(path), MetricTracker("top1")
    for sample in Samples.from_path(EVAL).take(200):
        assert sample.label is not None
        tracker.add(session.run({"input": sample.feed["images"]}), sample.label)
    return float(np.mean(tracker.values))


@pytest.mark.parametrize("name", NAMES)
def test_the_main_job(run: Run, tmp_path: Path, name: str) -> None:
    source, out = MODELS / f"{name}.onnx", tmp_path / "out.onnx"
    code, stdout, _ = run(
        "optimize", source, "-o", out, "--data", CALIB, "--eval-data", EVAL, "--eval-samples", 200, "--no-bench",
        "--report", tmp_path / "out.html", "--report", tmp_path / "out.md",
    )  # fmt: skip
    assert code == 0
    assert "insert-qdq" in stdout
    report = json.loads((tmp_path / "out.report.json").read_text())
    jsonschema.validate(report, json_schema())
    assert report["output"]["bytes"] == out.stat().st_size < 0.45 * source.stat().st_size
    assert abs(report["validation"]["metric"]["drop"]) <= 0.02
    assert {"arm", "kernels"} <= report["validation"].keys()
    assert report["validation"]["held_out"] is True
    ops = {node.op_type for node in onnx.load(str(out)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= ops
    assert "BatchNormalization" not in ops
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.md", "out.onnx", "out.report.json"]


def test_without_samples_nothing_changes_but_the_graph(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    code, _, stderr = run("optimize", MODELS / "resnet.onnx", "-o", out, "--no-bench")
    assert code == 0
    assert "--data" in stderr
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["validation"]["source"] == "synthetic"
    assert report["validation"]["outputs"][0]["max_rel"] <= 1e-5
    assert accuracy(out) == pytest.approx(accuracy(MODELS / "resnet.onnx"))
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(str(out)).graph.node}


@pytest.mark.parametrize("name", NAMES)
def test_all_three_lossy_passes_together(run: Run, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.onnx"
    spec = "prune-filters{ratio=0.3},factor-low-rank{energy=0.95},insert-qdq"
    code, stdout, _ = run(
        "optimize", MODELS / f"{name}.onnx", "-o", out, "--passes", spec, "--data", CALIB, "--eval-data", EVAL,
        "--eval-samples", 50, "--no-bench", "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(stdout)
    assert report["output"]["macs"] < 0.8 * report["input"]["macs"]
    assert report["output"]["bytes"] < 0.4 * report["input"]["bytes"]
    assert 0 <= report["validation"]["metric"]["candidate"] <= 1
    statuses = {record["name"]: record["status"] for record in report["passes"]}
    assert statuses["prune-filters"] == statuses["insert-qdq"] == "kept"


def test_a_plan_replays_without_samples_to_the_same_bytes(run: Run, tmp_path: Path) -> None:
    plan, first, second = tmp_path / "plan.json", tmp_path / "a.onnx", tmp_path / "b.onnx"
    common = ("optimize", MODELS / "mobilenet.onnx", "--no-bench", "-q", "-o")
    spec = ("--passes", "prune-filters{ratio=0.2 repair=off},insert-qdq{rounding=nearest}")
    assert run(*common, first, *spec, "--data", CALIB, "--eval-samples", 20, "--plan-out", plan)[0] == 0
    assert run(*common, second, "--plan", plan)[0] == 0
    assert first.read_bytes() == second.read_bytes()


def test_a_plan_that_repairs_asks_for_its_samples(run: Run, tmp_path: Path) -> None:
    plan, first, second = tmp_path / "plan.json", tmp_path / "a.onnx", tmp_path / "b.onnx"
    common = ("optimize", MODELS / "vgg.onnx", "--no-bench", "-q", "-o")
    data = ("--data", CALIB, "--eval-samples", 20)
    assert run(*common, first, "--passes", "prune-filters{ratio=0.2 samples=32}", *data, "--plan-out", plan)[0] == 0
    code, _, stderr = run(*common, second, "--plan", plan)
    assert code == 2
    assert "--data" in stderr
    assert run(*common, second, "--plan", plan, *data)[0] == 0
    assert first.read_bytes() == second.read_bytes()


def test_a_run_repeats_to_the_same_bytes(run: Run, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        code, _, _ = run(
            "optimize", MODELS / "nin.onnx", "-o", tmp_path / name, "--data", CALIB, "--eval-samples", 10,
            "--no-bench", "-q",
        )  # fmt: skip
        assert code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_provenance_tells_how_to_make_it_again(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run("optimize", MODELS / "vgg.onnx", "-o", out, "--no-bench", "-q")
    metadata = {entry.key: entry.value for entry in onnx.load(str(out)).metadata_props}
    assert metadata["onnxslim.tool"] == "onnxslim-mobile"
    assert metadata["onnxslim.spec"].startswith("infer-shapes,fold-constants")
    assert len(metadata["onnxslim.input_sha256"]) == 64
    assert str(tmp_path) not in str(metadata)


def test_budgets_decide_the_exit_code_and_out_is_written(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    common = (
        "optimize",
        MODELS / "resnet.onnx",
        "-o",
        out,
        "--data",
        CALIB,
        "--eval-data",
        EVAL,
        "--no-bench",
        "--json",
    )
    code, stdout, _ = run(*common, "--eval-samples", 50, "--max-size", "10kB", "--max-drop", "50%")
    assert code == 1
    assert out.exists()
    verdicts = {line["name"]: line["verdict"] for line in json.loads(stdout)["budget"]}
    assert verdicts == {"max_drop": "met", "max_size": "missed"}


def test_a_broken_quality_budget_rolls_the_pass_back(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    code, stdout, stderr = run(
        "optimize", MODELS / "mobilenet.onnx", "-o", out, "--passes", "prune-filters{ratio=0.9}", "--data", CALIB,
        "--eval-data", EVAL, "--eval-samples", 100, "--max-drop", "1%", "--no-bench", "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(stdout)
    assert report["passes"][-1]["status"] == "rolled_back"
    assert "more than --max-drop 1%" in report["passes"][-1]["reason"]
    assert report["output"]["macs"] == report["input"]["macs"]
    assert "rolled back" in stderr


def test_max_macs_prunes_to_the_goal(run: Run, tmp_path: Path) -> None:
    code, stdout, _ = run(
        "optimize", MODELS / "resnet.onnx", "-o", tmp_path / "out.onnx", "--data", CALIB, "--eval-samples", 10,
        "--max-macs", "70%", "--no-bench", "--json",
    )  # fmt: skip
    report = json.loads(stdout)
    assert code == 0
    assert 0.4 < report["output"]["macs"] / report["input"]["macs"] <= 0.7


def test_the_mobile_package(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    code, stdout, _ = run(
        "optimize", MODELS / "mobilenet.onnx", "-o", out, "--data", CALIB, "--eval-samples", 10, "--no-bench",
        "--ort", "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(stdout)
    assert report["output"]["ort"]["bytes"] == (tmp_path / "out.ort").stat().st_size
    assert "QuantizeLinear" in report["output"]["operators"]
    assert (tmp_path / "out.required_operators_and_types.config").exists()
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["provenance"]["spec"].endswith("insert-qdq")


# ---- the other commands ------------------------------------------------------------------------------------------


def test_inspect_explains_channels(run: Run) -> None:
    code, stdout, _ = run("inspect", MODELS / "inception.onnx", "--channels", "--json")
    assert code == 0
    groups = json.loads(stdout)["groups"]
    joined = next(group for group in groups if len(group["branches"]) == 4)
    assert sum(joined["branches"]) == joined["units"] == joined["prunable"]
    assert "it is an output of the model" in groups[-1]["reasons"]
    assert "it is an output of the model" in " ".join(run("inspect", MODELS / "vgg.onnx", "--channels")[1].split())
    whole = run("inspect", MODELS / "inception.onnx", "--channels", "--only", joined["anchor"])[1]
    assert all(maker in whole for maker in joined["makers"])
    assert run("inspect", MODELS / "vgg.onnx", "--only", "conv*")[0] == 2


def test_inspect(run: Run) -> None:
    code, stdout, _ = run("inspect", MODELS / "vgg.onnx", "--json")
    summary = json.loads(stdout)
    assert code == 0
    assert summary["macs"] == sum(layer["macs"] for layer in summary["layers"])
    assert run("inspect", MODELS / "vgg.onnx")[1].count(" Gemm ") == 3


def test_validate(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run("optimize", MODELS / "nin.onnx", "-o", out, "--data", CALIB, "--eval-samples", 10, "--no-bench", "-q")
    common = ("validate", MODELS / "nin.onnx", out, "--data", EVAL, "--eval-samples", 50)
    code, stdout, _ = run(*common, "--layers", "--json")
    validation = json.loads(stdout)
    assert code == 0
    assert validation["samples"] == 50
    assert len(validation["layers"]) > 10
    assert run(*common, "--min-sqnr", 5)[0] == 0
    assert run(*common, "--min-sqnr", 150)[0] == 1


def test_bench(run: Run) -> None:
    small, large = MODELS / "vgg.onnx", MODELS / "nin.onnx"
    code, stdout, _ = run("bench", large, small, "--seconds", 0.5, "--json")
    latency = json.loads(stdout)
    assert code == 0
    assert latency["speedup"] > 1.5
    assert latency["interval"][0] <= latency["speedup"] <= latency["interval"][1]
    assert latency["reference"]["peak_rss_bytes"] > 10_000_000
    assert sum(layer.get("share", 0) for layer in latency["layers"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("policy", "code", "verdict"),
    [
        ('[limits]\nbytes = "45%"\n[require]\ntargets = ["arm-cpu"]', 0, "pass"),
        ('[limits]\nbytes = "10%"', 1, "fail"),
        ('[limits]\narm_instructions = "50%"', 3, "inconclusive"),
        ('[limits]\nsqnr_db = 10\nmetric_drop = "10%"\ntop1_agreement = 0.9', 0, "pass"),
        ('[require]\noperators = ["Conv"]', 1, "fail"),
    ],
)
def test_gate(run: Run, tmp_path: Path, policy: str, code: int, verdict: str) -> None:
    out, toml = tmp_path / "out.onnx", tmp_path / "gate.toml"
    toml.write_text(policy)
    run("optimize", MODELS / "mobilenet.onnx", "-o", out, "--data", CALIB, "--eval-samples", 10, "--no-bench", "-q")
    result = run("gate", out, "--reference", MODELS / "mobilenet.onnx", "--policy", toml, "--data", EVAL, "--json")
    assert result[0] == code
    assert json.loads(result[1])["verdict"] == verdict


def test_passes(run: Run) -> None:
    code, stdout, _ = run("passes", "--json")
    assert code == 0
    names = [entry["name"] for entry in json.loads(stdout)]
    assert {"prune-filters", "factor-low-rank", "insert-qdq", "fold-constants"} <= set(names)
    for name in names:
        code, stdout, _ = run("passes", name)
        assert code == 0
        assert name in stdout


@pytest.mark.parametrize("command", ["", "optimize", "inspect", "validate", "bench", "gate", "passes"])
def test_help_has_examples(run: Run, command: str) -> None:
    code, stdout, _ = run(*([command] if command else []), "--help")
    assert code == 0
    assert "onnxslim" in stdout
    assert not command or "Example" in stdout


# ---- bad input ---------------------------------------------------------------------------------------------------

GOOD = MODELS / "vgg.onnx"


def bad_model(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.onnx"
    data = GOOD.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "text":
        path.write_text("this is no model, " * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "invalid":
        model = onnx.load_model_from_string(data)
        model.graph.node[3].input[0] = "nobody"
        path.write_bytes(model.SerializeToString())
    elif kind == "external":
        model = onnx.load_model_from_string(data)
        onnx.save_model(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
        (folder / "weights.bin").unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "fragment"),
    [
        ("missing", "no such model"),
        ("truncated", "truncated"),
        ("text", "not an ONNX model"),
        ("empty", "is empty"),
        ("invalid", "not valid ONNX"),
        ("external", "weights.bin"),
    ],
)
def test_bad_models(run: Run, tmp_path: Path, kind: str, fragment: str) -> None:
    out = tmp_path / "new" / "out.onnx"
    out.parent.mkdir()
    refused(run("optimize", bad_model(tmp_path, kind), "-o", out), fragment)
    assert not list(out.parent.iterdir())


def refused(result: tuple[int, str, str], fragment: str) -> None:
    """Exit code 2, one line on stderr, nothing on stdout."""
    code, stdout, stderr = result
    assert (code, stdout) == (2, "")
    assert fragment in stderr
    assert stderr.count("\n") == 1
    assert stderr.startswith("onnxslim: ")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--passes", "prune-filter{ratio=0.3}"), "did you mean 'prune-filters'"),
        (("--passes", "prune-filters{rato=0.3}"), "did you mean 'ratio'"),
        (("--passes", "prune-filters"), "exactly one of"),
        (("--passes", "insert-qdq"), "--data"),
        (("--max-drop", "1%"), "--max-drop needs labelled samples"),
        (("--max-size", "lots"), "--max-size is 'lots'"),
        (("--target", "arm-cpus"), "did you mean 'arm-cpu'"),
        (("--data", "nowhere/"), "nowhere"),
        (("--data", CALIB, "--metric", "top2"), "unknown metric 'top2'"),
        (("--shape", "input=1x3x224x224"), "cannot be fixed"),
        (("--shape", "inputs=1x1x32x32"), "no input 'inputs'"),
        (("--shape", "input"), "input=1x3x224x224"),
        (("--plan", "nowhere.json"), "cannot read the plan"),
        (("--report", "out.pdf"), "out.pdf"),
        (("--bogus",), "No such option"),
        (("--threads", "0"), "--threads"),
    ],
)
def test_bad_options(run: Run, tmp_path: Path, arguments: tuple[str, ...], fragment: str) -> None:
    refused(run("optimize", GOOD, "-o", tmp_path / "out.onnx", "--no-bench", *arguments), fragment)
    assert not list(tmp_path.iterdir())


def test_bad_samples(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, images=np.zeros((20, 3, 8, 8), np.float32))
    out = tmp_path / "new" / "out.onnx"
    out.parent.mkdir()
    for data, extra, fragment in (
        (empty, (), "empty"),
        (pictures, ("--preprocess", "resize=32x32,color=GRAY"), "broken.png"),
        (pictures, (), "--preprocess"),
        (wrong, (), "input"),
    ):
        refused(run("optimize", GOOD, "-o", out, "--data", data, *extra), fragment)
        assert not list(out.parent.iterdir())


def test_unwritable_places(run: Run, tmp_path: Path) -> None:
    refused(run("optimize", GOOD, "-o", tmp_path / "no" / "out.onnx"), "no such folder")
    refused(run("optimize", GOOD, "-o", tmp_path), "is a folder")
    copy = tmp_path / "in.onnx"
    copy.write_bytes(GOOD.read_bytes())
    refused(run("optimize", copy, "-o", copy), "is the input itself")
    assert copy.read_bytes() == GOOD.read_bytes()


def test_unknown_commands_get_a_hint(run: Run) -> None:
    refused(run("optimise", GOOD), "did you mean 'optimize'")


def test_validate_needs_labels_for_a_drop(run: Run) -> None:
    refused(run("validate", GOOD, GOOD, "--data", "synthetic", "--max-drop", "1%"), "--max-drop needs labelled")
