"""A phone through adb, played by a folder: what is sent, run, read and taken away again; each fault as one line."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from devices import fake_adb

from onnxslim.devices import Job, android
from onnxslim.devices.android import AndroidDevice
from onnxslim.devices.android_adb import Adb, Reply
from onnxslim.devices.android_perf_test import check_binary, read_burst, read_nodes
from onnxslim.devices.android_phone import fastest, heat_warnings, temperatures
from onnxslim.devices.base import Array, DeviceResult, Kind
from onnxslim.errors import DeviceError, ModelError
from onnxslim.measure.latency import ratio_with_interval
from onnxslim.runtime import Session, SessionConfig
from onnxslim.runtime.profile import name_by_anchor


def network(width: int) -> onnx.ModelProto:
    """Return x → h → y; wider means a larger file, which the pretended perf_test takes longer for."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17]> f (float[n, 2] x, int64[1] k) => (float[n, 2] y) '
        "{ h = Mul (x, x)  z = Cast <to: int = 1> (k)  y = Add (h, z) }"
    )
    model.doc_string = "w" * width
    return model


class Rig:
    """A phone, a program for it and two models."""

    def __init__(self, folder: Path) -> None:
        self.adb, self.phone = fake_adb.install(folder)
        self.binary = folder / "onnxruntime_perf_test"
        self.binary.write_bytes(fake_adb.program())
        self.models = [folder / "it's big.onnx", folder / "$(small).onnx"]
        for path, width in zip(self.models, (4000, 2000), strict=True):
            onnx.save(network(width), path)
        self.feed: dict[str, Array] = {"k": np.array([3], np.int64), "x": np.ones((1, 2), np.float32)}

    def device(self, serial: str | None = None) -> AndroidDevice:
        return AndroidDevice(serial, self.binary, self.adb)

    def job(self, progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> Job:
        return Job(self.models, self.feed, 0.01, seed=5, progress=progress)

    def left_behind(self) -> list[Path]:
        return list((self.phone / "data" / "local" / "tmp").iterdir())

    def runs(self) -> list[list[str]]:
        return [words for who, words in fake_adb.calls(self.phone) if who == "perf_test"]


def settle(rig: Rig, patch: pytest.MonkeyPatch) -> None:
    """Let this phone be the one, and each start of a program count, for there are many."""
    patch.setenv("FAKE_PHONE", str(rig.phone))
    for name in ("ANDROID_SERIAL", "ANDROID_HOME", "ANDROID_SDK_ROOT", "ONNXSLIM_PERF_TEST", "FAKE_ADB"):
        patch.delenv(name, raising=False)
    patch.setattr(android, "LEAST_ROUNDS", 2)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(tmp_path)
    settle(made, monkeypatch)
    return made


@dataclass(frozen=True)
class Run:
    """A measurement on which nothing goes wrong."""

    rig: Rig
    result: DeviceResult
    steps: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Measure once for all tests that look at the same."""
    made, steps = Rig(tmp_path_factory.mktemp("rig")), list[tuple[str, int, int]]()
    with pytest.MonkeyPatch.context() as patch:
        settle(made, patch)
        yield Run(made, made.device().measure(made.job(lambda *step: steps.append(step))), steps)


# ---- it works ----------------------------------------------------------------------------------------------------


def test_rounds_are_interleaved_in_the_order_of_the_seed_and_can_be_paired(run: Run) -> None:
    draw = random.Random(5)  # noqa: S311
    order = [draw.sample(range(3), 3) for _ in range(run.result.facts["rounds"])]
    assert run.result.facts["seed"] == 5
    assert len(order) >= 2
    timed = [re.findall(r"/m(\d)/model", words[-2])[0] for words in run.rig.runs() if "-p" not in words][2:]
    assert timed == [str(arm % 2) for own in order for arm in own]  # the third arm is the first model's twin
    big, small = (np.array(side.times_ms) for side in run.result.sides)
    assert len(big) == len(small) == len(run.result.twin_ms) == len(order)
    ratio, interval = ratio_with_interval(big, small, 0)
    sizes = [path.stat().st_size for path in run.rig.models]
    assert ratio == pytest.approx(sizes[0] / sizes[1], rel=0.01)
    assert interval[0] <= ratio <= interval[1]
    assert ratio_with_interval(big, np.array(run.result.twin_ms), 0)[0] == pytest.approx(1, abs=1e-6)
    assert run.result.name == "android"
    assert run.result.kind is Kind.MEASURED
    assert run.result.sides[0].load_ms == pytest.approx(12.5)
    assert {what for what, _, _ in run.steps} == {"sending", "measuring"}


def test_perf_test_is_called_as_documented(run: Run) -> None:
    words = next(words for words in run.rig.runs() if "-p" not in words)
    pairs = dict(zip(words[:-2:2], words[1:-2:2], strict=True))
    assert pairs == {"-e": "cpu", "-m": "times", "-o": "99", "-y": "1", "-r": "3", "-x": "1"}
    assert words[-2].endswith("/m0/model.onnx")
    later = {words[words.index("-r") + 1] for words in run.rig.runs() if "-p" not in words and "/m0/" in words[-2]}
    milliseconds = run.rig.models[0].stat().st_size / 1e3 * 1.01
    assert later == {"3", str(math.ceil(200 / milliseconds))}  # a burst of 200 ms
    assert run.result.facts["runs_per_round"][0] == math.ceil(200 / milliseconds)


def test_facts_say_what_the_phone_is(run: Run) -> None:
    facts = run.result.facts
    assert (facts["maker"], facts["model"], facts["soc"]) == ("Acme", "Pretend 8", "AC8000")
    assert (facts["android"], facts["sdk"], facts["abi"], facts["serial"]) == ("14", "34", "arm64-v8a", "FAKE01")
    assert facts["cpu_features"] == ["fp", "asimd", "asimddp", "i8mm"]
    assert facts["core_mhz"] == [1800] * 4 + [2400] * 3 + [3000]
    assert facts["pinned_cores"] == [7]
    heat = {"status": 0, "cpu_c": 43.5, "skin_c": 33.25, "slowed_cores": []}
    assert facts["thermal"] == {"before": heat, "after": heat}
    assert facts["peak_rss_bytes"] == [52428800, 52428800]
    assert len(facts["perf_test_sha256"]) == 64
    assert facts["warnings"] == []
    json.dumps(facts)


def test_inputs_reach_each_model_in_its_own_order_and_under_their_names(run: Run) -> None:
    for model in ("m0", "m1"):
        folder = run.rig.phone / "kept" / model / "test_data_set_0"
        sent = [onnx.load_tensor(str(folder / f"input_{index}.pb")) for index in range(2)]
        assert [tensor.name for tensor in sent] == ["x", "k"]
        for tensor in sent:
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), run.rig.feed[tensor.name])


def test_layers_come_from_a_run_apart_under_the_names_of_outputs(run: Run) -> None:
    conv, reorder = run.result.sides[1].nodes
    assert (conv.anchor, conv.op, conv.microseconds) == ("h", "Conv", 30)
    assert (reorder.anchor, reorder.op, reorder.microseconds) == (None, "ReorderInput", 4)
    assert (run.rig.phone / "kept" / "m0" / "model.onnx").read_bytes() == run.rig.models[0].read_bytes()


def test_nothing_stays_on_the_phone(run: Run) -> None:
    assert run.rig.left_behind() == []
    asked = [words[:2] for who, words in fake_adb.calls(run.rig.phone) if who == "adb"]
    assert all(words in (["devices"], ["-s", "FAKE01"]) for words in asked)


def test_ort_format_weights_beside_the_model_and_libraries_beside_the_binary(rig: Rig, tmp_path: Path) -> None:
    rig.models[0] = tmp_path / "a.ort"
    rig.models[0].write_bytes(b"ORTM" * 500)
    rig.models[1] = tmp_path / "b.onnx"
    model = network(10)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4000, np.float32), "w"))
    onnx.save(model, rig.models[1], save_as_external_data=True, location="b.bin", size_threshold=0)
    for name in ("libonnxruntime.so", "libc++_shared.so", "libcustom.so"):
        (rig.binary.parent / name).write_bytes(fake_adb.program())
    result = rig.device().measure(rig.job())
    assert result.sides[0].nodes == ()
    assert result.sides[1].nodes
    assert (rig.phone / "kept" / "m0" / "model.ort").exists()
    assert (rig.phone / "kept" / "m1" / "b.bin").stat().st_size >= 16_000
    kept = {path.name for path in (rig.phone / "kept").iterdir()}
    assert kept == {"m0", "m1", "onnxruntime_perf_test", "libonnxruntime.so", "libc++_shared.so"}


def test_a_phone_that_tells_nothing_is_measured_all_the_same(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ADB", "silent")
    zone = rig.phone / "sys" / "class" / "thermal" / "thermal_zone3"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-1-0\n")
    (zone / "temp").write_text("51250\n")
    result = rig.device().measure(rig.job())
    assert "model" not in result.facts
    assert "pinned_cores" not in result.facts
    assert result.facts["thermal"]["after"] == {"cpu_c": 51.25, "slowed_cores": []}


def test_an_old_phone_with_a_terminal_in_between(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ADB", "old")
    assert len(rig.device("FAKE01").measure(rig.job()).sides) == 2


def test_heat_is_a_warning(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ADB", "hot")
    (rig.phone / "sys/devices/system/cpu/cpu7/cpufreq/scaling_max_freq").write_text("1000000\n")
    result = rig.device("FAKE01").measure(rig.job())
    hot, slowed = result.facts["warnings"]
    assert "thermal status 2" in hot
    assert "cores 7 below" in slowed
    assert result.name == "android:FAKE01"


def test_a_torn_profile_costs_the_layers_only(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ADB", "torn")
    result = rig.device().measure(rig.job())
    assert [side.nodes for side in result.sides] == [(), ()]
    assert all(side.times_ms for side in result.sides)
    assert len(result.facts["warnings"]) == 2
    assert "no times of layers of it's big.onnx" in result.facts["warnings"][0]


def test_what_cannot_be_taken_away_is_a_warning(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ADB", "sticky")
    result = rig.device().measure(rig.job())
    assert all(side.times_ms for side in result.sides)
    (place,) = rig.left_behind()
    assert f"remove it with `adb -s FAKE01 shell rm -rf /data/local/tmp/{place.name}`" in result.facts["warnings"][0]


# ---- faults ------------------------------------------------------------------------------------------------------

FAULTS = [
    ("none", "no Android device: connect one that has USB debugging on"),
    ("two", r"several Android devices \(FAKE01, FAKE02\): name one, as in android:FAKE01"),
    ("offline", "the phone FAKE01 is offline: unplug it"),
    ("unauthorized", "the phone FAKE01 is unauthorized: unlock its screen"),
    ("forbidden", r"the phone FAKE01 is no permissions: let this user open it"),
    ("recovery", "the phone FAKE01 is recovery: start Android on it"),
    ("server", "adb lists no devices: adb: failed to start daemon: run `adb kill-server`"),
    ("full", "the phone FAKE01 is full: free some of its storage"),
    ("denied", "the phone FAKE01 denies access to /data/local/tmp"),
    ("gone", "the phone FAKE01 went away: check the cable"),
    ("segfault", r"crashed on it's big.onnx \(signal 11\)"),
    ("refuses", r"does not run it's big.onnx: Load model .* failed: Unsupported model IR version: 99: try a newer"),
    ("unlinked", "lacks libonnxruntime.so on the phone: put it beside the binary"),
    ("format", "the phone does not execute onnxruntime_perf_test"),
    ("babbles", r"wrote is not understood \('All is well'\): build it from"),
    ("flags", "does not know our options .*: build it from"),
]


@pytest.mark.parametrize(("scenario", "message"), FAULTS, ids=[scenario for scenario, _ in FAULTS])
def test_a_fault_is_one_line_and_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, scenario: str, message: str
) -> None:
    monkeypatch.setenv("FAKE_ADB", scenario)
    with pytest.raises(DeviceError, match=message) as caught:
        rig.device().measure(rig.job())
    assert "\n" not in str(caught.value)
    assert rig.left_behind() == []


def test_ctrl_c_leaves_nothing(rig: Rig) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "measuring":
            assert rig.left_behind()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rig.device().measure(rig.job(interrupt))
    assert rig.left_behind() == []


def test_a_phone_that_does_not_answer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ADB", "hangs")
    with pytest.raises(DeviceError, match="did not answer adb within 0 s: check the cable"):
        Adb(str(rig.adb), "FAKE01").shell("true", patience=0.4)


def test_a_serial_that_is_not_there(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"no device 10\.0\.0\.9:5555: adb knows FAKE01: .*adb connect"):
        rig.device("10.0.0.9:5555").measure(rig.job())
    monkeypatch.setenv("ANDROID_SERIAL", "OTHER")
    with pytest.raises(DeviceError, match="no device OTHER"):
        rig.device().measure(rig.job())


def test_adb_is_missing_or_in_the_sdk(rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(DeviceError, match="adb is not installed: install Android's platform-tools"):
        AndroidDevice(None, rig.binary).measure(rig.job())
    with pytest.raises(DeviceError, match="is not there: install"):
        AndroidDevice(None, rig.binary, tmp_path / "adb").measure(rig.job())
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (tmp_path / "sdk").mkdir()
    (tmp_path / "sdk" / "platform-tools").symlink_to(rig.adb.parent)
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    monkeypatch.setattr("onnxslim.devices.android_adb.shutil.which", lambda path: path if "/" in path else None)
    AndroidDevice(None, rig.binary).setup(lambda what, done, total: None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!/bin/sh\n", "is no program of Android: build it from onnxruntime's source: ./build.sh --android"),
        (b"\x7fELF", "is no program of Android"),
        (fake_adb.program(183, b"/lib/ld-linux-aarch64.so.1"), "was built for Linux, not for Android"),
        (fake_adb.program(62), r"is built for x86_64 and the phone runs arm64-v8a, armeabi-v7a: build .*arm64-v8a"),
        (fake_adb.program(8), "is built for machine 8 and the phone runs"),
    ],
)
def test_a_binary_that_does_not_fit(rig: Rig, content: bytes, message: str) -> None:
    rig.binary.write_bytes(content)
    with pytest.raises(DeviceError, match=message):
        rig.device().setup(lambda what, done, total: None)


def test_no_binary_is_said_with_how_to_get_it(rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no onnxruntime_perf_test for the phone: build it .* ONNXSLIM_PERF_TEST"):
        AndroidDevice(adb=rig.adb).measure(rig.job())
    monkeypatch.setenv("ONNXSLIM_PERF_TEST", str(tmp_path / "absent"))
    with pytest.raises(DeviceError, match=r"absent cannot be read \(No such file or directory\): build it"):
        AndroidDevice(adb=rig.adb).setup(lambda what, done, total: None)
    monkeypatch.setenv("ONNXSLIM_PERF_TEST", str(rig.binary))
    AndroidDevice(adb=rig.adb).setup(lambda what, done, total: None)


def test_models_that_cannot_be_sent(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"input 'k' is not fed"):
        rig.device().measure(Job(rig.models, {"x": rig.feed["x"]}))
    with pytest.raises(ModelError, match="no such model"):
        rig.device().measure(Job([tmp_path / "no.ort"], rig.feed))
    model = network(10)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4000, np.float32), "w"))
    (tmp_path / "deep").mkdir()
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="deep/b.bin", size_threshold=0)
    with pytest.raises(DeviceError, match=r"external data lies in a folder \(deep/b.bin\): put it beside"):
        rig.device().measure(Job([tmp_path / "b.onnx"], rig.feed))
    assert rig.left_behind() == []
    text = (tmp_path / "b.onnx").read_bytes().replace(b"deep/b.bin", b"../s/b.bin")
    (tmp_path / "b.onnx").write_bytes(text)
    with pytest.raises(ModelError, match="outside the model's folder"):
        rig.device().measure(Job([tmp_path / "b.onnx"], rig.feed))


# ---- parts -------------------------------------------------------------------------------------------------------


def test_words_reach_the_phone_as_they_are(rig: Rig) -> None:
    words = ["a b", "$(reboot)", "it's", '"', "*", "", "-n"]
    phone = Adb(str(rig.adb), "FAKE01")
    assert phone.ask("printf", r"%s\n", *words).splitlines() == words
    assert phone.ask("false") == ""
    assert phone.shell("sh", "-c", "echo out; echo err >&2; exit 7").said == "err"


def test_wordings_of_other_versions_are_understood() -> None:
    lines = "m0,0.002,1024,50,0\nm0,0.004,1024,50,1\nm1,9,1,1,0\n"
    old = Reply(0, f"Total time cost:0.006\nTotal iterations:2\nAverage time cost:3 ms\n{lines}", "")
    assert read_burst(old, "m0", Path("m")).times_ms == pytest.approx((2, 4))
    assert read_burst(old, "m0", Path("m")).load_ms is None
    new = Reply(0, f"Session creation time cost: 0.5 s\nAverage inference time cost total: 3.0 ms\n{lines}", "")
    assert read_burst(new, "m0", Path("m")).load_ms == 500
    assert read_burst(new, "m0", Path("m")).peak_bytes == 1024
    nanoseconds = Reply(0, "Average time cost:3 ms\nm0,3000000,1024,50,0\n", "")
    with pytest.raises(DeviceError, match="is not understood"):
        read_burst(nanoseconds, "m0", Path("m"))


def test_a_profile_of_onnxruntime_itself_is_understood(rig: Rig, tmp_path: Path) -> None:
    model = onnx.load(rig.models[0])
    anchors = name_by_anchor(model.graph)
    session = Session(model, SessionConfig(profile_prefix=str(tmp_path / "own")))
    for _ in range(4):
        session.run({"x": np.ones((2, 2), np.float32), "k": np.array([1])})
    nodes = read_nodes(session.end_profiling(), anchors)
    assert {(node.anchor, node.op) for node in nodes if node.anchor} == {("h", "Mul"), ("z", "Cast"), ("y", "Add")}
    assert all(node.microseconds >= 0 for node in nodes)


@pytest.mark.parametrize(
    ("code", "message"), [(124, "took too long"), (137, "took too long"), (127, "does not execute"), (255, "boom")]
)
def test_exit_codes(code: int, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        read_burst(Reply(code, "", "boom\n"), "m0", Path("m.onnx"))


def test_the_fastest_cores_hold_all_threads() -> None:
    speeds = {0: 18, 1: 18, 2: 24, 3: 24, 4: 30}
    assert [fastest(speeds, threads) for threads in (1, 2, 4)] == [(4,), (2, 3, 4), (0, 1, 2, 3, 4)]
    assert fastest({}, 1) == ()


def test_cold_phones_are_not_warned_about(rig: Rig) -> None:
    heat = temperatures(Adb(str(rig.adb), "FAKE01"))
    assert heat_warnings(heat, heat) == []
    assert heat_warnings({}, {}) == []


def test_the_abi_is_read_from_the_binary(rig: Rig) -> None:
    assert check_binary(rig.binary) == "arm64-v8a"
