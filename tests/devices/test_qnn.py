"""The emulated HTP: the program for the other Python runs for real, with an onnxruntime that is played there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxslim.devices import Job, qnn
from onnxslim.devices.base import Array, Kind
from onnxslim.devices.qnn import QnnDevice
from onnxslim.errors import DeviceError, ModelError
from onnxslim.runtime import Session

FEED: dict[str, Array] = {"x": np.array([[1, 2]], np.float32), "k": np.array([3], np.int64)}
NETWORK = (
    '<ir_version: 10, opset_import: ["" : 17]> f (float[batch, 2] x, int64[1] k) => (float[batch, 2] y, int64[1] j) '
    "{ y = Add (x, x)  j = Add (k, k) }"
)

RUNTIME = """
import json, os, signal, time
from types import SimpleNamespace as N
import numpy as np

__version__ = "1.99.0"
registered = []
def register_execution_provider_library(name, path): registered.append((name, path))
def get_ep_devices(): return [N(ep_name="CPUExecutionProvider"), N(ep_name="QNNExecutionProvider")]

class SessionOptions:
    def __init__(self): self.seen = {"entries": {}, "sizes": {}}
    def add_session_config_entry(self, key, value): self.seen["entries"][key] = value
    def add_free_dimension_override_by_name(self, name, size): self.seen["sizes"][name] = size
    def add_provider_for_devices(self, devices, options):
        self.seen["provider"] = [[device.ep_name for device in devices], options]

class InferenceSession:
    def __init__(self, model, options):
        scenario = os.environ.get("FAKE_QNN", "")
        with open(os.environ["FAKE_QNN_LOG"], "a") as file:
            told = {**options.seen, "threads": options.intra_op_num_threads, "registered": registered, "model": model}
            told["telemetry"] = os.environ.get("ORT_DISABLE_TELEMETRY")
            file.write(json.dumps(told) + chr(10))
        if scenario == "refuses" or (scenario == "refuses one" and "float" in model):
            raise RuntimeError("[ONNXRuntimeError] : 11 : EP_FAIL : Failed to finalize QNN graph." + chr(10) + "more")
        if scenario == "crashes" and "float" in model:
            os.kill(os.getpid(), signal.SIGSEGV)
        if scenario == "hangs":
            time.sleep(60)
        print("# LIBNATIVE: chatter")
    def get_outputs(self): return [N(name="y"), N(name="text"), N(name="j")]
    def run(self, names, feed):
        return [feed["x"] * 2, np.array(["a"], dtype=object), feed["k"] * 2]
    def get_provider_graph_assignment_info(self):
        def part(ep, *ops): return N(ep_name=ep + "ExecutionProvider", get_nodes=lambda: [N(op_type=op) for op in ops])
        if os.environ.get("FAKE_QNN") == "dynamic":
            return [part("CPU", "Add"), part("CPU", "Conv")]
        return [part("QNN", "Conv", "Relu", "Add"), part("CPU", "Gemm"), part("CPU", "Gemm"), part("QNN", "Conv")]
"""
PLUGIN = """
from types import SimpleNamespace as N
__version__ = "2.99.0"
build_and_package_info = N(qnn_version="2.50.0")
def get_library_path(): return "/lib/qnn.so"
def get_qnn_htp_path(): return "/lib/htp.so"
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a Python where onnxruntime and onnxruntime-qnn are played."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "onnxruntime.py").write_text(RUNTIME)
    (stubs / "onnxruntime_qnn.py").write_text(PLUGIN)
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{stubs}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o700)
    monkeypatch.setenv("FAKE_QNN_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("FAKE_QNN", raising=False)
    monkeypatch.delenv("ONNXSLIM_QNN_PYTHON", raising=False)
    return path


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "float.onnx", tmp_path / "int8.onnx"]
    for path in paths:
        onnx.save(onnx.parser.parse_model(NETWORK), path)
    return paths


def seen(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


# ---- it works ----------------------------------------------------------------------------------------------------


def test_placement_and_outputs_and_no_times(python: Path, models: list[Path]) -> None:
    steps: list[tuple[str, int, int]] = []
    job = Job(models, FEED, progress=lambda *step: steps.append(step))
    result = QnnDevice(python).measure(job)
    assert (result.name, result.kind) == ("qnn", Kind.EMULATED)
    for side in result.sides:
        assert side.placed == {"QNN": 4, "CPU": 2}
        assert set(side.outputs) == {"y", "j"}  # text is left out
        np.testing.assert_array_equal(side.outputs["y"], FEED["x"] * 2)
        np.testing.assert_array_equal(side.outputs["j"], [6])
        assert side.outputs["j"].dtype == np.int64
        assert side.times_ms == ()
        assert side.refused is None
    assert steps == [("qnn", 1, 2), ("qnn", 2, 2)]


def test_facts(python: Path, models: list[Path]) -> None:
    facts = QnnDevice(python).measure(Job(models, FEED)).facts
    assert (facts["onnxruntime"], facts["onnxruntime_qnn"], facts["qnn_sdk"]) == ("1.99.0", "2.99.0", "2.50.0")
    assert facts["soc_model"] == qnn.SOC
    assert facts["parts"] == [2, 2]
    assert facts["left_to_the_cpu"] == [{"Gemm": 2}, {"Gemm": 2}]
    assert facts["warnings"] == []
    json.dumps(facts)


def test_the_session_is_set_up_for_the_htp_at_the_shapes_of_the_feed(
    python: Path, models: list[Path], tmp_path: Path
) -> None:
    QnnDevice(python, soc=43).measure(Job(models, FEED, threads=3))
    told = seen(tmp_path)[0]
    assert told["provider"] == [["QNNExecutionProvider"], {"backend_path": "/lib/htp.so", "soc_model": "43"}]
    assert told["registered"] == [["QNNExecutionProvider", "/lib/qnn.so"]]
    assert told["sizes"] == {"batch": 1}
    assert told["threads"] == 3
    assert told["telemetry"] == "1"
    assert [one["model"] for one in seen(tmp_path)] == [str(path) for path in models]


def test_a_model_that_is_refused_beside_one_that_is_not(
    python: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QNN", "refuses one")
    first, second = QnnDevice(python).measure(Job(models, FEED)).sides
    assert first.refused == "Failed to finalize QNN graph."
    assert (first.placed, first.outputs) == ({}, {})
    assert second.placed
    monkeypatch.setenv("FAKE_QNN", "crashes")
    first, second = QnnDevice(python).measure(Job(models, FEED)).sides
    assert first.refused == "the emulator crashed (SIGSEGV)"
    assert second.placed


def test_a_model_that_the_htp_does_not_take_is_a_warning(
    python: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QNN", "dynamic")
    result = QnnDevice(python).measure(Job(models[:1], FEED))
    assert result.sides[0].placed == {"CPU": 2}
    assert result.facts["warnings"] == [
        "float.onnx: nothing runs on the HTP: fix all shapes with --shape or --batch",
    ]


def test_the_python_comes_from_the_variable_and_setup_says_yes(
    python: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXSLIM_QNN_PYTHON", str(python))
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    QnnDevice().setup(lambda what, done, total: None)
    assert QnnDevice().measure(Job(models, FEED)).sides[0].placed


# ---- faults ------------------------------------------------------------------------------------------------------


def test_none_runs(python: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_QNN", "refuses")
    with pytest.raises(DeviceError, match=r"the HTP runs none of the models: Failed to finalize QNN graph\.: validate"):
        QnnDevice(python).measure(Job(models, FEED))


def test_it_takes_too_long(python: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_QNN", "hangs")
    with pytest.raises(DeviceError, match="took longer than 3 s: fix smaller shapes"):
        QnnDevice(python, patience=3).measure(Job(models, FEED))


def test_nothing_is_installed_here(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXSLIM_QNN_PYTHON", raising=False)
    monkeypatch.setattr("onnxslim.devices.qnn.importlib.util.find_spec", lambda name: None)
    message = r"onnxruntime-qnn is not installed: `pip install onnxruntime-qnn` .* that ONNXSLIM_QNN_PYTHON names"
    for ask in (lambda: QnnDevice().measure(Job(models, FEED)), lambda: QnnDevice().setup(lambda *step: None)):
        with pytest.raises(DeviceError, match=message):
            ask()


def test_a_python_without_it(python: Path, models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "stubs" / "onnxruntime_qnn.py").unlink()
    with pytest.raises(DeviceError, match=r"python has no onnxruntime_qnn: .*python -m pip install onnxruntime-qnn"):
        QnnDevice(python).measure(Job(models, FEED))
    with pytest.raises(DeviceError, match="has no onnxruntime_qnn"):
        QnnDevice(python).setup(lambda what, done, total: None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!/bin/sh\necho hello\n", "python does not do the job: hello: name a Python with onnxruntime-qnn 2"),
        (b"#!/bin/sh\necho broken >&2\nexit 1\n", "python does not do the job: broken"),
        (b"#!/bin/sh\necho '[]' > result.json\n", "python does not do the job: exit code 0"),
        (b"#!/bin/sh\necho '{}' > result.json\n", "what the other Python wrote is not understood"),
        (b"\x7fELF", "python does not run: Exec format error: name another in ONNXSLIM_QNN_PYTHON"),
    ],
)
def test_what_is_no_python(python: Path, models: list[Path], content: bytes, message: str) -> None:
    python.write_bytes(content)
    with pytest.raises(DeviceError, match=message) as caught:
        QnnDevice(python).measure(Job(models, FEED))
    assert "\n" not in str(caught.value)


def test_a_python_that_is_not_there(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="nowhere is no Python that can be run: name one"):
        QnnDevice(tmp_path / "nowhere").measure(Job(models, FEED))


def test_a_model_that_lacks_an_input(python: Path, models: list[Path]) -> None:
    with pytest.raises(ModelError, match="input 'k' is not fed"):
        QnnDevice(python).measure(Job(models, {"x": FEED["x"]}))


# ---- a real one --------------------------------------------------------------------------------------------------


def test_the_real_emulator_takes_a_convolution_and_computes_it() -> None:
    if not os.environ.get("ONNXSLIM_QNN_PYTHON"):
        pytest.skip("set ONNXSLIM_QNN_PYTHON to a Python that has onnxruntime-qnn to run this test")
    model = Path(__file__).parents[2] / "models" / "mobilenet.onnx"
    feed: dict[str, Array] = {"image": np.random.default_rng(0).random((1, 1, 32, 32), dtype=np.float32)}
    feed = {Session(model).input_names[0]: feed["image"]}
    side = QnnDevice().measure(Job([model], feed)).sides[0]
    assert side.placed["QNN"] > 20
    for name, value in Session(model).run(dict(feed)).items():
        np.testing.assert_allclose(
            side.outputs[name].astype(np.float64), value, atol=0.05
        )  # it computes floats as float16
