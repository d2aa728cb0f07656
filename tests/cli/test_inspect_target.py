"""``inspect --target``: its text, its JSON, what it refuses; and the gate that asks the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from targets.texts import paired, paired_conv, proto

from onnxslim.workflow.target_survey import TargetSurvey

MODELS = Path(__file__).resolve().parents[2] / "models"
VGG = MODELS / "vgg.onnx"
Run = Callable[..., tuple[int, str, str]]
NET = """(float[N,3,8,8] x, float[8,3,3,3] w, float[8] wb) => (float[N,8,6,6] d)
{ a = Conv(x, w, wb) b = Relu(a) c = HardSigmoid(b) d = Relu(c) }"""


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(proto(text), path)
        return path

    return write


# ---- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "tpu"), "unknown target 'tpu': choose one of arm-cpu, xnnpack, nnapi, coreml, qnn, web"),
        (("--target", "qnn", "--only", "nothing"), "--only 'nothing' matches no node"),
        (("--target", "qnn", "--channels"), "--channels and --target are two explanations: ask for one at a time"),
        (("--target", "qnn", "--ranks"), "--ranks and --target are two explanations"),
        (("--target", "qnn", "--report", "a.html"), "--report has nothing to say about --target: use --json"),
        (("--target", "qnn", "--data", "a.npz"), "--data goes with --ranks"),
        (("--only", "*"), "--only goes with --channels, --ranks or --target"),
    ],
)
def test_bad_usage_is_one_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, stdout, stderr = run("inspect", VGG, *arguments)
    assert code == 2
    assert not stdout
    assert words in stderr
    assert stderr.count("\n") == 1


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_what_does_not_run_and_what_is_left(run: Run, save: Callable[[str], Path]) -> None:
    code, stdout, stderr = run("inspect", save(NET), "--target", "xnnpack", "--batch", 1)
    assert (code, stderr) == (0, "")
    lines = stdout.splitlines()
    assert lines[0].endswith("model.onnx on xnnpack, the XNNPACK execution provider")
    assert lines[1:3] == [
        "2 of 4 nodes run there, by rules read off onnxruntime's sources: 100.0 % of MACs",
        "1 island: 2 tensors, 1.92 kB, cross between it and the CPU in every inference",
    ]
    refused = lines.index("does not run there")
    assert lines[refused + 1 : refused + 5] == [
        "  1 HardSigmoid: xnnpack has no HardSigmoid",
        "    c",
        "  1 Relu: it runs only within Conv, MaxPool or AveragePool right before it; there is HardSigmoid",
        "    d",
    ]
    islands = lines.index("islands")
    assert lines[islands + 1 : islands + 3] == [
        "  1: 2 nodes, 7.78 k MACs, a to b",
        "    enters: 1 tensor, 768 B; leaves: 1 tensor, 1.15 kB",
    ]
    assert "not looked at:" in lines


def test_pairs_are_told_with_their_layer(run: Run, save: Callable[[str], Path]) -> None:
    text = paired("c = Add(d, e)", "1,8", "1,8", more="e = DequantizeLinear(v, s, z)").replace(
        " x)", " x, uint8[1,8] v)"
    )
    _, stdout, _ = run("inspect", save(text), "--target", "xnnpack")
    assert "  1 Add with 2 DequantizeLinear, 1 QuantizeLinear: xnnpack has no Add\n    c\n" in stdout
    assert "no island: everything runs on the CPU" in stdout
    assert "0 of 4 nodes run there" in stdout


def test_sizes_that_are_not_fixed(run: Run, save: Callable[[str], Path]) -> None:
    _, stdout, _ = run("inspect", save(NET), "--target", "qnn")
    assert "4 do not run for want of fixed sizes: give them with --batch or --shape" in stdout
    assert "  2 Relu: the size of its input is not fixed\n    b, d\n" in stdout
    _, stdout, _ = run("inspect", save(NET), "--target", "qnn", "--batch", 1)
    assert "1 island: the whole model" in stdout
    assert "does not run there" not in stdout


def test_the_border_and_what_is_unknown(run: Run, save: Callable[[str], Path]) -> None:
    text = """(float[2,2] x) => (float[2,2] y) <float s = {0.1}, uint8 z = {128}>
    { a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = Sigmoid(b) d = QuantizeLinear(c, s, z)
      e = DequantizeLinear(d, s, z) y = Einsum<equation = "ij->ji">(e) }"""
    _, stdout, _ = run("inspect", save(text), "--target", "qnn")
    assert "1 more could: the CPU quantizes and dequantizes the model's inputs and outputs" in stdout
    assert "1 unknown: counted as not running" in stdout
    assert "  1 Einsum: unknown: the provider lists it, and it was not tried in detail" in stdout


def test_no_more_is_said_than_was_checked(run: Run) -> None:
    _, stdout, _ = run("inspect", VGG, "--target", "nnapi", "--batch", 1)
    assert "nodes may run there, by their operators' names" in stdout
    assert "not checked: Conv: Only 2D Conv is supported." in stdout
    _, stdout, _ = run("inspect", VGG, "--target", "arm-cpu")
    assert "nodes run there, by asking onnxruntime here" in stdout
    assert "island" not in stdout


def test_many_nodes_are_not_all_named(run: Run) -> None:
    _, stdout, _ = run("inspect", MODELS / "mobilenet.onnx", "--target", "qnn")
    assert "more (all of them with --json)" in stdout


def test_one_node_by_itself(run: Run, save: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    _, stdout, _ = run("inspect", save(NET), "--target", "xnnpack", "--batch", 1, "--only", "b", "--only", "c")
    rows = [line.split() for line in stdout.splitlines()[2:]]
    assert rows[0] == ["b", "Relu", "runs,", "island", "1"]
    assert rows[1][:3] == ["c", "HardSigmoid", "refused"]
    assert len(rows) == 2


def test_json_is_a_document_of_its_own(run: Run, save: Callable[[str], Path]) -> None:
    code, stdout, stderr = run("inspect", save(NET), "--target", "nnapi", "--batch", 1, "--json")
    assert (code, stderr) == (0, "")
    document = json.loads(stdout)
    assert document.pop("schema") == 1
    survey = TargetSurvey.model_validate(document)
    assert (survey.target, survey.checked_by, survey.graph, survey.opset) == ("nnapi", "names", "loaded", 17)
    assert [(node.anchor, node.verdict, node.partition) for node in survey.nodes] == [
        ("a", "runs", 1), ("b", "runs", 1), ("c", "refused", None), ("d", "runs", 2),
    ]  # fmt: skip
    assert all(fact.source for fact in survey.facts)
    assert survey.blind_spots
    _, stdout, _ = run("inspect", save(NET), "--target", "nnapi", "--json", "--only", "c")
    assert [node["anchor"] for node in json.loads(stdout)["nodes"]] == ["c"]


def test_quiet_and_help(run: Run) -> None:
    assert run("inspect", VGG, "--target", "qnn", "-q") == (0, "", "")
    _, stdout, _ = run("inspect", "--help")
    assert "onnxslim inspect model.onnx --target qnn --batch 1" in stdout
    assert "arm-cpu, xnnpack, nnapi, coreml, qnn, web" in " ".join(stdout.split())


# ---- the gate --------------------------------------------------------------------------------------------------------

GATE = [
    (NET, "xnnpack", 1, "fail", "do not run there: HardSigmoid c (xnnpack has no HardSigmoid); Relu d"),
    (NET, "qnn", 1, "fail", "the size of its input is not fixed: N×3×8×8"),
    (NET.replace("N", "1"), "qnn", 0, "pass", "every node runs there, by rules tried on an emulated HTP"),
    (NET, "arm-cpu", 0, "pass", "every node runs there, by asking onnxruntime here"),
    (
        NET.replace("HardSigmoid", "Relu").replace("N", "1"),
        "coreml",
        3,
        "inconclusive",
        "names only: try it on a device",
    ),
    (NET.replace("N", "1"), "tpu", 3, "inconclusive", "this version cannot check that target"),
    (paired_conv("int8", "int8", channels=False), "xnnpack", 0, "pass", "every node runs there"),
    (paired_conv("uint8", "int8", channels=False), "xnnpack", 1, "fail", "Conv c (uint8 data with int8 weights"),
]


@pytest.mark.parametrize(
    ("text", "target", "code", "verdict", "reason"), GATE, ids=[f"{row[1]}-{row[3]}" for row in GATE]
)
def test_a_gate_asks_for_every_node(
    run: Run,
    save: Callable[[str], Path],
    tmp_path: Path,
    text: str,
    target: str,
    code: int,
    verdict: str,
    reason: str,
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[require]\ntargets = ["{target}"]\n')
    path = save(text)
    found, stdout, _ = run("gate", path, "--reference", path, "--policy", policy, "--json")
    rule = json.loads(stdout)["rules"][0]
    assert (found, rule["verdict"]) == (code, verdict)
    assert reason in rule["reason"]
