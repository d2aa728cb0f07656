"""Broken models, one fault each: exit code 2, one line that names the fault, nothing written."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile import crafted
from onnx import numpy_helper

from onnxslim.cli.main import main
from onnxslim.errors import ModelError
from onnxslim.ir.guards import check_structure


def optimize(source: Path) -> list[str]:
    return ["optimize", str(source), "-o", str(source.with_name("out.onnx")), "--no-bench", "--threads", "1"]


@pytest.mark.parametrize("fault", crafted.REFUSED)
def test_a_broken_model_is_refused_with_its_fault(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build, words = crafted.REFUSED[fault]
    source = tmp_path / "model.onnx"
    source.write_bytes(build(tmp_path))
    before = sorted(tmp_path.iterdir())
    assert main(optimize(source)) == 2
    complaint = capsys.readouterr().err
    assert words in complaint
    assert complaint.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", crafted.ACCEPTED)
def test_an_odd_and_legal_model_is_optimized(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(crafted.ACCEPTED[name](tmp_path))
    assert main(optimize(source)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "validate", "bench", "gate"])
def test_every_command_refuses(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(crafted.REFUSED["cycle"][0](tmp_path))
    policy = tmp_path / "policy.toml"
    policy.write_text('[limits]\nbytes = "45%"\n')
    models = [str(source), str(source)] if command == "validate" else [str(source)]
    extra = {"validate": ["--data", "synthetic"], "gate": ["--reference", str(source), "--policy", str(policy)]}.get(
        command, []
    )
    assert main([command, *models, *extra]) == 2
    complaint = capsys.readouterr().err
    assert "cycle" in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("fault", ["million millions of calls", "doubled forty times", "Range of terabytes"])
def test_memory_and_time_are_bounded(fault: str, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(crafted.REFUSED[fault][0](tmp_path))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (500 << 20, 500 << 20))

    command = [sys.executable, "-m", "onnxslim", "inspect", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert crafted.REFUSED[fault][1] in done.stderr


def test_nesting_is_bounded() -> None:
    check_structure(crafted.nested_ifs(10), "model")
    with pytest.raises(ModelError, match="nested more than 16 deep"):
        check_structure(crafted.nested_ifs(20), "model")


def test_data_that_is_elsewhere_is_compared_without_being_read() -> None:
    tensor = numpy_helper.from_array(np.zeros(0, np.float32), "w")
    tensor.dims[:] = [2**28]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    length = tensor.external_data.add(key="length", value=str(2**30))
    made = crafted.model([onnx.helper.make_node("Add", ["x", "w"], ["y"])], [tensor])
    check_structure(made, "model")
    length.value = str(2**30 - 4)
    made.graph.initializer[0].CopyFrom(tensor)
    with pytest.raises(ModelError, match="initializer 'w': it claims 1073741824 bytes and holds 1073741820"):
        check_structure(made, "model")


def test_loops_within_loops_multiply() -> None:
    inner = onnx.parser.parse_graph(
        "b (int64 j, bool e, float[4] u) => (bool h, float[4] v) <int64 n = {2000}> { h = Identity(e)  v = Relu(u) }"
    )
    made = onnx.ModelProto.FromString(crafted.counted("2000")(Path()))
    body = next(a for a in made.graph.node[0].attribute if a.name == "body").g
    check_structure(made, "model")
    body.node.append(onnx.helper.make_node("Loop", ["n", "go", "s"], ["unused"], body=inner))
    with pytest.raises(ModelError, match="4000000 times"):
        check_structure(made, "model")
