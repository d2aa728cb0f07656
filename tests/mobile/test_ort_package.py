"""The ORT package: what is in place loads, computes the same, and says what it needs; otherwise nothing is in place."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from onnxslim.errors import ModelError, OutputError
from onnxslim.ir import Model, fix_input
from onnxslim.mobile import OrtFiles, emit_ort, operators_of, refuse_dynamic, stamp, write_manifest
from onnxslim.mobile.ort_package import check_ort, place
from onnxslim.runtime import RuntimeRefusal, Session, SessionConfig
from onnxslim.runtime.ort_format import convert
from onnxslim.targets import find_target

ARM = find_target("arm-cpu")
FEED = {"x": np.random.default_rng(0).normal(size=(1, 8, 9, 9)).astype(np.float32)}


def proto(scale: float = 1.0, bias: float = 0.0) -> onnx.ModelProto:
    """A convolution with a Relu, that onnxruntime fuses, and that x86 would lay out its own way."""
    rng = np.random.default_rng(1)
    weights = {
        "w": (scale * rng.normal(size=(16, 8, 3, 3))).astype(np.float32),
        "b": np.full(16, bias, np.float32),
    }
    graph = oh.make_graph(
        [
            oh.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
            oh.make_node("Relu", ["c"], ["y"], name="act"),
        ],
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 9, 9])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, 7, 7])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def saved(folder: Path, name: str = "out.onnx", **changes: float) -> Path:
    path = folder / name
    Model.load(proto(**changes)).save(path)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@dataclass(frozen=True)
class Package:
    """A model that was emitted once, for every test that only looks at it."""

    model: Model
    out: Path
    files: OrtFiles


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    model = Model.load(proto())
    stamp(model, version="1.2.3", spec="exact", input_digest="ab" * 32, plan_digest=None)
    out = tmp_path_factory.mktemp("package") / "out.onnx"
    model.save(out)
    return Package(model, out, emit_ort(out, ARM, FEED))


# ---- in place ------------------------------------------------------------------------------------------------


def test_the_package(package: Package) -> None:
    out, files = package.out, package.files
    assert files.ort == out.with_name("out.ort")
    assert files.config == out.with_name("out.required_operators_and_types.config")
    assert files.bytes == files.ort.stat().st_size
    assert files.ort.read_bytes()[4:8] == b"ORTM"
    ours, theirs = (Session(path, SessionConfig()).run(FEED)["y"] for path in (out, files.ort))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_configuration_names_operators_and_types_and_no_place(package: Package) -> None:
    assert package.files.operators == ("com.microsoft:FusedConv",)
    text = package.files.config.read_text()
    assert "com.microsoft;1;FusedConv" in text
    assert "/" not in text
    assert text.splitlines()[0].startswith("# What out.ort needs")


def test_surroundings_neither_matter_nor_change(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules in the user's folder, the converter's variable, its stdout, an older package, a name it would skip."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the wrong place')")
    (tmp_path / "out.optimized.ort").write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL", "nonsense")
    environment = dict(os.environ)
    files = emit_ort(saved(tmp_path, "out.optimized.onnx"), ARM, FEED)
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment
    assert files.ort.name == "out.optimized.ort"
    assert files.ort.read_bytes() != b"old"
    stem = "out.optimized"
    expected = ["numpy.py", f"{stem}.onnx", f"{stem}.ort", f"{stem}.required_operators_and_types.config"]
    assert names_in(tmp_path) == expected


def test_external_weights(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    onnx.save_model(proto(), out, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    files = emit_ort(out, ARM, FEED)
    manifest = write_manifest(Model.load(out), out, files, ARM)
    assert [entry["name"] for entry in manifest["files"]][:2] == ["out.onnx", "out.onnx.data"]


KINDS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[4] x) => (int64[4] order, bool[4] positive, float[4] root, seq(float[2]) parts)
<int64 axis = {0}, float zero = {0}, int64[2] halves = {2, 2}>
{
  best, order = TopK <axis = 0> (x, four)
  positive = Greater(x, zero)
  root = Sqrt(x)
  parts = SplitToSequence <axis = 0> (x, halves)
}
"""


def test_outputs_of_every_kind(tmp_path: Path) -> None:
    """Integers, booleans, NaN and sequences."""
    text = KINDS.replace("<int64 axis = {0}, ", "<int64[1] four = {4}, ")
    out = tmp_path / "out.onnx"
    Model.load(onnx.parser.parse_model(text)).save(out)
    feed = {"x": np.array([-1, 4, -9, 16], np.float32)}
    assert np.isnan(Session(out, SessionConfig()).run(feed)["root"]).any()
    assert emit_ort(out, ARM, feed).ort.exists()


# ---- refused, nothing in place -------------------------------------------------------------------------------


def test_what_the_converter_refuses(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"cannot be packaged as \.ort: the ORT-format converter failed: ") as caught:
        emit_ort(out, ARM, FEED)
    assert "\n" not in str(caught.value)
    assert str(Path(os.sep) / "tmp" / "tmp") not in str(caught.value)
    assert names_in(tmp_path) == ["out.onnx"]


def test_a_feed_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be packaged"):
        emit_ort(saved(tmp_path), ARM, {"x": np.zeros((1, 3, 9, 9), np.float32)})
    assert names_in(tmp_path) == ["out.onnx"]


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out.required_operators_and_types.config").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        emit_ort(saved(tmp_path), ARM, FEED)
    assert names_in(tmp_path) == ["out.onnx", "out.required_operators_and_types.config"]


def test_all_files_or_none(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        place({tmp_path / "first": b"1", tmp_path / "missing" / "second": b"2"})
    assert names_in(tmp_path) == []
    place({tmp_path / "first": b"1", tmp_path / "second": b"2"})
    assert names_in(tmp_path) == ["first", "second"]


@pytest.mark.parametrize("change", [{"scale": 1.01}, {"bias": 0.5}, {"bias": float("nan")}, {"bias": float("inf")}])
def test_an_ort_of_another_model_is_noticed(package: Package, tmp_path: Path, change: dict[str, float]) -> None:
    ort, required = package.files.ort, package.files.config.read_text()
    check_ort(saved(tmp_path, "right.onnx"), ort, required, FEED)
    with pytest.raises(RuntimeRefusal, match="its output 'y' differs"):
        check_ort(saved(tmp_path, "wrong.onnx", **change), ort, required, FEED)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 has nchwc operators")
def test_an_ort_for_x86_is_noticed(package: Package, tmp_path: Path) -> None:
    ort, config = convert(package.out, tmp_path, "amd64")
    with pytest.raises(RuntimeRefusal, match="nchwc operators, which exist on x86 only"):
        check_ort(package.out, ort, config.read_text(), FEED)


# ---- shapes ---------------------------------------------------------------------------------------------------


def shaped(*dims: int | str) -> Model:
    """A model of one input with these dimensions."""
    values = [oh.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("x", "y")]
    graph = oh.make_graph([oh.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    return Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(
    ("target", "dims", "line"),
    [
        ("arm-cpu", ("n", 3, "h", "w"), None),
        ("coreml", ("n", 3, 8, 8), None),
        ("xnnpack", ("n", 3, 8, 8), None),
        ("xnnpack", ("n", 3, 8, "w"), "'x' is n×3×8×w and xnnpack needs fixed shapes: add --shape x=Nx3x8xN with"),
        ("nnapi", (1, 3, 8, 8), None),
        ("nnapi", ("n", 3, 8, 8), "'x' is n×3×8×8 and nnapi needs fixed shapes: add --batch 1"),
        ("qnn", ("n",), "'x' is n and qnn needs fixed shapes: add --shape x=N with numbers for N"),
    ],
)
def test_shapes_that_a_target_needs_fixed(target: str, dims: tuple[int | str, ...], line: str | None) -> None:
    if line is None:
        refuse_dynamic(shaped(*dims), find_target(target))
        return
    with pytest.raises(ModelError, match=re.escape(line)):
        refuse_dynamic(shaped(*dims), find_target(target))


def test_a_detector_whose_output_barely_moves(zoo: Path, tmp_path: Path) -> None:
    """Its sigmoids return 1e-5 on noise, so kernels that sum in another order differ by more than their range."""
    model = Model.load(zoo / "ppocrv4_det.onnx")
    fix_input(model, "x", [1, 3, 64, 64])
    out = tmp_path / "out.onnx"
    model.save(out)
    files = emit_ort(out, ARM, {"x": np.random.default_rng(0).random((1, 3, 64, 64)).astype(np.float32)})
    assert "Conv" in operators_of(model)
    assert files.bytes > 1e6
