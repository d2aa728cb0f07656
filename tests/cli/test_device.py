"""``onnxslim device``: preparing places to measure on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxslim.cli.device_command import DEVICES
from onnxslim.devices.arm import ArmDevice
from onnxslim.devices.base import DeviceResult, Job, Kind, Progress, Side
from onnxslim.devices.finding import HOST, SPELLINGS, find_device
from onnxslim.errors import DeviceError

Run = Callable[..., tuple[int, str, str]]
MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.mark.parametrize("name", DEVICES)
def test_each_device_goes_by_the_name_it_is_listed_under(name: str) -> None:
    assert find_device(name).name == name


def test_all_devices_but_this_machine_are_listed() -> None:
    assert set(DEVICES) == {name.partition(":")[0] for name in SPELLINGS} - {HOST}


@pytest.mark.parametrize("name", ["phone", "web:5"])
def test_what_is_no_device_is_one_line(run: Run, name: str) -> None:
    code, out, err = run("device", "setup", name)
    assert (code, out) == (2, "")
    assert err == f"onnxslim: no such device: {name}: choose {', '.join(SPELLINGS)}\n"


def test_setting_up_says_how_to_measure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def setup(self: ArmDevice, progress: Progress) -> None:
        progress("arm", 1, 1)
        steps.append("done")

    monkeypatch.setattr(ArmDevice, "setup", setup)
    code, out, err = run("device", "setup", "arm")
    assert (code, err) == (0, "")
    assert out == "arm is ready: onnxslim bench MODEL... --device arm\n"
    assert run("device", "setup", "arm", "-q") == (0, "", "")
    assert steps == ["done", "done"]


def test_this_machine_is_always_ready(run: Run) -> None:
    assert run("device", "setup", "host")[0] == 0


def test_what_is_missing_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ArmDevice, progress: Progress) -> None:
        raise DeviceError("no apt-get here: this needs Debian's tools")

    monkeypatch.setattr(ArmDevice, "setup", refuse)
    assert run("device", "setup", "arm") == (2, "", "onnxslim: no apt-get here: this needs Debian's tools\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["device"], "Missing command"),
        (["device", "remove"], "No such command 'remove'"),
        (["device", "setup"], "Missing argument 'NAME'"),
        (["device", "setup", "arm", "--threads", "2"], "No such option"),
    ],
)
def test_bad_usage_is_one_line(run: Run, arguments: list[str], line: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
    assert "--help" in err


def test_devices_are_listed(run: Run) -> None:
    code, out, _ = run("device", "list")
    assert code == 0
    for name in DEVICES:
        assert f"\n{name} " in out
    _, out, _ = run("device", "list", "--json")
    assert [entry["name"] for entry in json.loads(out)] == list(DEVICES)


def test_help_names_it(run: Run) -> None:
    assert "device " in run("--help")[1]
    assert "no root is needed" in run("device", "setup", "--help")[1]


def test_optimize_takes_a_device_as_bench_does(run: Run, tmp_path: Path) -> None:
    common = ("optimize", MODELS / "vgg.onnx", "-o", tmp_path / "out.onnx")
    code, out, err = run(*common, "--device", "arm")  # the tests' own cache folder has nothing in it
    assert (code, out) == (2, "")
    assert "onnxslim device setup arm" in err
    assert run(*common, "--device", "phone")[0] == 2
    code, _, err = run(*common, "--device", "arm", "--no-bench")
    assert (code, err.count("\n")) == (2, 1)
    assert "--no-bench" in err
    assert not (tmp_path / "out.onnx").exists()


def test_optimize_shows_what_the_device_says(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: ArmDevice, job: Job) -> DeviceResult:
        return DeviceResult("arm", Kind.COUNTED, (Side(instructions=3000), Side(instructions=1000)))

    monkeypatch.setattr(ArmDevice, "check", lambda self: None)
    monkeypatch.setattr(ArmDevice, "measure", measure)
    code, out, _ = run("optimize", MODELS / "vgg.onnx", "-o", tmp_path / "out.onnx", "--device", "arm")
    assert code == 0
    assert "on arm" in out
    assert "3.0×" in out or "3.00×" in out
    written = json.loads((tmp_path / "out.report.json").read_text())
    assert written["latency"]["devices"][0]["candidate"]["instructions"] == 1000


def test_a_gate_that_cannot_count_is_inconclusive(run: Run, tmp_path: Path) -> None:
    policy = tmp_path / "gate.toml"
    policy.write_text('[limits]\narm_instructions = "50%"\n')
    model = MODELS / "vgg.onnx"
    code, out, _ = run("gate", model, "--reference", model, "--policy", policy, "--json")
    assert code == 3
    assert "onnxslim device setup arm" in json.loads(out)["rules"][0]["reason"]


def test_a_package_needs_the_shapes_that_its_target_needs(run: Run, tmp_path: Path) -> None:
    common = ("optimize", MODELS / "vgg.onnx", "-o", tmp_path / "out.onnx", "--ort", "--no-bench", "--target", "nnapi")
    code, _, err = run(*common)
    assert (code, err.count("\n")) == (2, 1)
    assert "nnapi needs fixed shapes: add --batch 1" in err
    assert not (tmp_path / "out.onnx").exists()
    code, out, _ = run(*common, "--batch", 1)
    assert code == 0
    assert "load out.onnx" in out
    assert "kernels" in out
    manifest, report = (json.loads((tmp_path / f"out.{name}.json").read_text()) for name in ("manifest", "report"))
    assert report["output"]["operators"] == manifest["operators"]["ort"]  # those that a reduced build must keep
