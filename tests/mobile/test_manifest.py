"""The manifest: what it says of files, runtime, session, inputs and outputs is so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest

from onnxslim.ir import Model
from onnxslim.mobile import OrtFiles, emit_ort, stamp, write_manifest
from onnxslim.mobile.grids import input_grids, output_grids
from onnxslim.mobile.library import library_facts
from onnxslim.mobile.session import PROVIDERS, session_advice
from onnxslim.runtime.kernels import registered_kernels
from onnxslim.targets import TARGETS, find_target

ARM = find_target("arm-cpu")
NET = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 2, 4, 4] x) => (float[batch, 2, 4, 4] y)
<float s = {0.5}, uint8 z = {3}, float t = {0.25}, uint8 o = {0}, float u = {0.1}, int8 c = {0},
 int8[2, 2, 1, 1] w = {1, 2, 3, 4}>
{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  k = DequantizeLinear(w, u, c)
  a = Conv(d, k)
  r = Relu(a)
  p = QuantizeLinear(r, t, o)
  y = DequantizeLinear(p, t, o)
}
"""
FEED = {"x": np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)}


class Package:
    """A model that was packed once."""

    def __init__(self, folder: Path) -> None:
        self.model = Model.load(onnx.parser.parse_model(NET))
        stamp(self.model, version="1.2.3", spec="exact", input_digest="ab" * 32, plan_digest=None)
        self.out = folder / "out.onnx"
        self.model.save(self.out)
        self.files: OrtFiles = emit_ort(self.out, ARM, FEED)
        self.manifest = write_manifest(self.model, self.out, self.files, ARM)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return Package(tmp_path_factory.mktemp("package"))


def test_what_is_returned_is_what_is_written(package: Package) -> None:
    text = package.out.with_name("out.manifest.json").read_text()
    assert json.loads(text) == package.manifest
    assert str(package.out.parent) not in text


def test_files_are_those_beside_it(package: Package) -> None:
    written = (package.out, package.files.ort, package.files.config)
    for entry, path in zip(package.manifest["files"], written, strict=True):
        data = path.read_bytes()
        assert entry == {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_rest_of_it(package: Package) -> None:
    manifest = {k: v for k, v in package.manifest.items() if k not in ("files", "session")}
    runtime = manifest.pop("runtime")
    assert runtime["minimum"] == {"onnx": "1.12", "ort": "1.16"}
    assert runtime["made_with"] == ort.__version__
    tensor = {"type": "float32", "shape": ["batch", 2, 4, 4], "fixed": False}
    assert manifest == {
        "schema": 1,
        "target": "arm-cpu",
        "opset": 17,
        "inputs": [{"name": "x", **tensor, "quantization": {"type": "uint8", "scale": 0.5, "zero_point": 3}}],
        "outputs": [{"name": "y", **tensor, "quantization": {"type": "uint8", "scale": 0.25, "zero_point": 0}}],
        "operators": {
            "onnx": ["Conv", "DequantizeLinear", "QuantizeLinear", "Relu"],
            "ort": list(package.files.operators),
        },
        "provenance": {"tool": "onnxslim-mobile", "version": "1.2.3", "spec": "exact", "input_sha256": "ab" * 32},
    }


# ---- integers ------------------------------------------------------------------------------------------------

GRIDS = [
    ("every reader quantizes alike", "(float[2] x) => (float[2] y)",
     "q = QuantizeLinear(x, s, z) r = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", True, True),
    ("a reader quantizes otherwise", "(float[2] x) => (float[2] y)",
     "q = QuantizeLinear(x, s, z) r = QuantizeLinear(x, t, z) y = DequantizeLinear(q, s, z)", False, True),
    ("a reader takes it as it is", "(float[2] x) => (float[2] y)",
     "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Add(d, x)", False, False),
    ("nobody reads it", "(float[2] x, float[2] v) => (float[2] y)", "y = Neg(v)", False, False),
    ("it is quantized by what is computed", "(float[2] x) => (float[2] y)",
     "n = Neg(s) q = QuantizeLinear(x, n, z) y = DequantizeLinear(q, n, z)", False, False),
    ("no zero point is uint8 at 0", "(float[2] x) => (uint8[2] y)", "y = QuantizeLinear(x, s)", True, True),
    ("integers go in", "(int8[2] x) => (float[2] y)", "d = DequantizeLinear(x, s) y = Neg(d)", True, False),
    ("an input is an output", "(float[2] x) => (float[2] x)", "", False, False),
]  # fmt: skip


@pytest.mark.parametrize(("why", "ends", "body", "goes_in", "comes_out"), GRIDS, ids=[case[0] for case in GRIDS])
def test_grids(why: str, ends: str, body: str, goes_in: bool, comes_out: bool) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g {ends}
    <float s = {{0.5}}, float t = {{0.25}}, uint8 z = {{3}}> {{ {body} }}"""
    model = Model.load(onnx.parser.parse_model(text))
    assert ("x" in input_grids(model), "y" in output_grids(model)) == (goes_in, comes_out), why


def test_a_grid_for_each_channel() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2] x) => (int8[1, 2] y)
    <float[2] s = {0.5, 0.1}, int8[2] z = {0, 7}> { y = QuantizeLinear <axis = 1> (x, s, z) }"""
    model = Model.load(onnx.parser.parse_model(text))
    expected = {"type": "int8", "scale": [0.5, 0.1], "zero_point": [0, 7], "axis": 1}
    assert input_grids(model) == {"x": expected}
    assert output_grids(model) == {"y": expected}


def test_integers_of_the_grid_are_what_the_model_computes_with(package: Package) -> None:
    """Floats on the grid of the input pass the QuantizeLinear as they are, and outputs are on theirs."""
    given, made = (package.manifest[name][0]["quantization"] for name in ("inputs", "outputs"))
    integers = np.random.default_rng(1).integers(0, 256, (1, 2, 4, 4))
    feed = {"x": ((integers - given["zero_point"]) * given["scale"]).astype(np.float32)}
    session = ort.InferenceSession(str(package.out), providers=["CPUExecutionProvider"])
    (values,) = session.run(None, feed)
    read = values / made["scale"] + made["zero_point"]
    np.testing.assert_allclose(read, np.round(read), atol=1e-4)


# ---- session -------------------------------------------------------------------------------------------------


def options_for(manifest: dict[str, Any], kind: str) -> ort.SessionOptions:
    """Return the session options that the manifest advises for a kind of file."""
    options = ort.SessionOptions()
    for setting in manifest["session"]["options"]:
        if kind not in setting["files"] or "value" not in setting:
            continue
        name, value = setting["name"], setting["value"]
        if name.startswith("session."):
            options.add_session_config_entry(name, value)
        elif name == "execution_mode":
            options.execution_mode = getattr(ort.ExecutionMode, value)
        elif name == "graph_optimization_level":
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, value)
        else:
            setattr(options, name, value)
    return options


def test_both_files_compute_the_same_with_the_options_advised(package: Package) -> None:
    expected = ort.InferenceSession(str(package.out), providers=["CPUExecutionProvider"]).run(None, FEED)[0]
    ort_bytes = package.files.ort.read_bytes()
    for kind, source in (("onnx", str(package.out)), ("ort", ort_bytes)):
        options = options_for(package.manifest, kind)
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, FEED)[0], expected, atol=1e-6)


def test_no_level_changes_what_an_ort_runs(package: Package, tmp_path: Path) -> None:
    kinds = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / level)
        session = ort.InferenceSession(str(package.files.ort), options, providers=["CPUExecutionProvider"])
        session.run(None, FEED)
        events = json.loads(Path(session.end_profiling()).read_text())
        kinds.append([event["args"]["op_name"] for event in events if event.get("cat") == "Node"])
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_providers_are_told_what_they_can_use(target: Any) -> None:
    operators = ("Conv", "Relu"), ("com.microsoft:FusedConv",)
    advice = session_advice(target, ("out.onnx", "out.ort"), operators)
    own = target.name in ("arm-cpu", "web")
    assert advice["load"] == ("out.ort" if own else "out.onnx")
    assert ("com.microsoft:FusedConv" in advice["reason"]) is not own
    assert ("provider" in advice) is (target.name in PROVIDERS) is (target.name != "arm-cpu")
    assert all(option["reason"] for option in advice["options"])
    assert ("ORT_DISABLE_ALL" in [option.get("value") for option in advice["options"]]) is own
    alike = session_advice(target, ("out.onnx", "out.ort"), (("Relu",), ("Relu",)))
    assert alike["load"] == "out.ort"


# ---- library -------------------------------------------------------------------------------------------------


def test_kernels_that_a_reduced_build_keeps() -> None:
    kernels = registered_kernels()
    assert len(kernels) > 500
    relu = [each for each in kernels if (each.domain, each.op) == ("", "Relu") and each.first <= 14 <= each.last]
    facts = library_facts([("", 14, "Relu")])["kernels"]
    assert facts["registered"] == len(kernels)
    assert facts["required"] == len(relu) > 0
    assert library_facts([("nobody's", 1, "Relu"), ("", 14, "Invented")])["kernels"]["required"] == 0


def test_what_is_not_known_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxslim.mobile import library

    monkeypatch.setattr(library, "registered_kernels", tuple)
    monkeypatch.setattr(library, "library_bytes", lambda: None)
    assert set(library_facts([])) == {"published"}
