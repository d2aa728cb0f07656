"""Setting ARM up: what is fetched and from where, nothing as root, whole or not at all, and each fault as one line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from onnxslim.devices import arm_debian, arm_home, arm_preparing
from onnxslim.devices.arm import ArmDevice
from onnxslim.devices.arm_commands import run
from onnxslim.devices.arm_cpus import CPUS, cpu_named
from onnxslim.devices.arm_debian import check_tools, fetch_packages, unpack_packages
from onnxslim.devices.arm_home import MANIFEST, Home, default_home, made_from, ready_home
from onnxslim.devices.arm_preparing import prepare
from onnxslim.devices.arm_wheels import fetch_wheels, requirements, unpack_wheels
from onnxslim.devices.base import Job
from onnxslim.errors import DeviceError
from onnxslim.runtime.sessions import version

DEBS = (
    "qemu-user_1%3a7.2+dfsg-7_amd64.deb",
    "tcc_0.9.27_amd64.deb",
    "libc6_2.36-9_arm64.deb",
    "python3.11-minimal_3.11.2-6_arm64.deb",
    "media-types_10.0.0_all.deb",
)
WHEELS = (
    "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl",
    "numpy-2.4.6-cp311-cp311-manylinux_2_28_aarch64.whl",
)
UNPACKED = {
    "qemu-user": ("usr/bin/qemu-aarch64", "usr/bin/qemu-alpha", "usr/share/doc/qemu-user/copyright"),
    "tcc": ("usr/bin/tcc", "etc/tcc.conf"),
    "libc6": ("lib/aarch64-linux-gnu/libc.so.6",),
    "python3.11-minimal": ("usr/bin/python3.11", "usr/lib/python3.11/os.py"),
}


class Registry:
    """Plays apt, dpkg, pip and the compiler, and notes what they were asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.fails_at: str | None = None

    def __call__(self, command: Sequence[str], advice: str, cwd: Path | None) -> str:
        self.asked.append(list(command))
        if self.fails_at is not None and self.fails_at in command:
            raise DeviceError(f"{Path(command[0]).name} failed (no route): {advice}")
        if "indextargets" in command:
            return "http://mirror.example/debian/\nhttp://mirror.example/debian/\nhttps://other.example/nodesource/\n"
        if "install" in command:
            assert cwd is not None
            for name in DEBS:
                (cwd / "archives" / name).write_bytes(name.encode())
        if "--extract" in command:
            package, root = Path(command[2]).name.split("_")[0], Path(command[3])
            for name in UNPACKED[package]:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(name)
        if "download" in command:
            for name in WHEELS:
                write_wheel(Path(command[command.index("--dest") + 1]) / name)
        if "-shared" in command:
            Path(command[command.index("-o") + 1]).write_bytes(b"ELF")
        return ""

    def words(self, program: str) -> list[list[str]]:
        return [command for command in self.asked if Path(command[0]).name == program or program in command]


def write_wheel(path: Path) -> None:
    package = path.name.split("-")[0]
    with zipfile.ZipFile(path, "w") as wheel:
        for name in ("__init__.py", "tools/big.py", "core/tests/test_it.py"):
            wheel.writestr(f"{package}/{name}", "x = 1\n")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(arm_debian, "KEYRING", tmp_path / "key.gpg")
    (tmp_path / "key.gpg").write_text("")
    monkeypatch.setattr(arm_preparing, "_try_out", lambda home, cpu: None)
    return Registry()


def quiet(what: str, done: int, total: int) -> None:
    pass


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_from_nothing_to_whole(registry: Registry, tmp_path: Path) -> None:
    home, steps = Home(tmp_path / "deep" / "arm"), []
    assert prepare(home, lambda what, done, total: steps.append((done, total)), registry)
    assert steps == [(done, arm_preparing.STEPS) for done in range(arm_preparing.STEPS + 1)]
    assert home.fault(thorough=True) is None
    assert ready_home(home) is home
    assert list((tmp_path / "deep").iterdir()) == [home.path]
    assert {"root/usr/bin/qemu-aarch64", "root/usr/bin/python3.11", "counter.so", "source/table.h"} <= files(home.path)


def test_what_was_fetched_is_in_the_manifest_with_its_digest(registry: Registry, tmp_path: Path) -> None:
    home = Home(tmp_path / "arm")
    prepare(home, quiet, registry)
    manifest = json.loads((home.path / MANIFEST).read_text())
    assert manifest["onnxruntime"] == version()
    packages = {package["name"]: package for package in manifest["packages"]}
    assert packages["qemu-user"] == {
        "name": "qemu-user",
        "version": "1:7.2+dfsg-7",
        "architecture": "amd64",
        "file": DEBS[0],
        "sha256": hashlib.sha256(DEBS[0].encode()).hexdigest(),
    }
    assert packages["numpy"]["version"] == "2.4.6"
    assert "media-types" not in packages


def test_a_second_time_fetches_nothing(registry: Registry, tmp_path: Path) -> None:
    home = Home(tmp_path / "arm")
    prepare(home, quiet, registry)
    registry.asked.clear()
    assert not prepare(home, quiet, registry)
    assert registry.asked == []


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda home: (home.path / MANIFEST).unlink(), "is not set up"),
        (lambda home: (home.path / MANIFEST).write_text("{"), "is not set up"),
        (lambda home: (home.path / MANIFEST).write_text("[]"), "is not set up"),
        (lambda home: (home.path / MANIFEST).write_text('{"made_from": "x"}'), "was set up by another version"),
        (lambda home: home.counter.unlink(), "has lost files"),
        (lambda home: (home.prefix(CPUS[1]) / "proc" / "cpuinfo").write_text("x"), "has changed since"),
        (lambda home: (home.site / "numpy" / "new.py").write_text(""), "has changed since"),
        (lambda home: (home.root / "usr" / "lib" / "python3.11" / "os.py").write_text(""), "has changed since"),
    ],
)
def test_what_is_broken_is_seen_and_made_again(registry: Registry, tmp_path: Path, harm: object, fault: str) -> None:
    home = Home(tmp_path / "arm")
    prepare(home, quiet, registry)
    assert callable(harm)
    harm(home)
    assert fault in str(home.fault(thorough=True))
    assert prepare(home, quiet, registry)
    assert home.fault(thorough=True) is None


@pytest.mark.parametrize("step", ["update", "install", "download", "--extract", "-shared"])
def test_a_fault_on_the_way_leaves_what_was_there(registry: Registry, tmp_path: Path, step: str) -> None:
    home = Home(tmp_path / "caches" / "arm")
    home.path.mkdir(parents=True)
    (home.path / "old").write_text("")
    registry.fails_at = step
    with pytest.raises(DeviceError, match=r"failed \(no route\): .") as caught:
        prepare(home, quiet, registry)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "caches").iterdir()) == [home.path]
    assert files(home.path) == {"old"}


def test_an_emulator_that_does_not_start_leaves_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(home: Home, cpu: object) -> None:
        raise DeviceError("onnxruntime does not load on cortex-a76 crashed")

    monkeypatch.setattr(arm_preparing, "_try_out", refuse)
    with pytest.raises(DeviceError, match="does not load"):
        prepare(Home(tmp_path / "caches" / "arm"), quiet, registry)
    assert list((tmp_path / "caches").iterdir()) == []


def test_what_a_killed_setup_left_goes_when_it_is_old(registry: Registry, tmp_path: Path) -> None:
    old, young = tmp_path / ".arm-partial-old", tmp_path / ".arm-partial-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (time.time() - 2 * arm_preparing.STALE,) * 2)
    prepare(Home(tmp_path / "arm"), quiet, registry)
    assert not old.exists()
    assert young.exists()


def test_a_place_that_cannot_be_written_is_one_line(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match=r"cannot write to .*file \(.*\): make room there, or name .* ONNXSLIM_CACHE"):
        prepare(Home(tmp_path / "file" / "arm"), quiet, registry)


def test_nothing_needs_root_and_nothing_of_the_system_changes(registry: Registry, tmp_path: Path) -> None:
    prepare(Home(tmp_path / "arm"), quiet, registry)
    programs = {Path(command[0]).name for command in registry.asked}
    assert programs == {"apt-get", "dpkg-deb", Path(sys.executable).name, "ld-linux-x86-64.so.2"}
    changing = [command for command in registry.words("apt-get") if "indextargets" not in command]
    assert len(changing) == 2
    for command in changing:
        settings = dict(word.split("=", 1) for word in command if "::" in word or word.startswith("Dir"))
        for key in (
            "Dir::State",
            "Dir::State::Lists",
            "Dir::State::status",
            "Dir::Cache",
            "Dir::Cache::archives",
            "Dir::Log",
        ):
            assert settings[key].startswith(str(tmp_path)), key
        assert "--download-only" in command or "update" in command
    assert not {"--add-architecture", "sudo", "dpkg"} & {word for command in registry.asked for word in command}


def test_the_packages_and_their_architectures(registry: Registry, tmp_path: Path) -> None:
    found = fetch_packages(tmp_path / "apt", registry)
    assert {path.name for path in found} == set(DEBS)
    (install,) = (command for command in registry.asked if "install" in command)
    assert install[-5:] == [
        "qemu-user:amd64",
        "tcc:amd64",
        "python3.11-minimal:arm64",
        "libpython3.11-stdlib:arm64",
        "libstdc++6:arm64",
    ]
    assert "APT::Architectures=amd64,arm64" in install
    assert "APT::Architecture=amd64" in install


def test_on_arm_the_emulator_is_arms(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    fetch_packages(tmp_path / "apt", registry)
    (install,) = (command for command in registry.asked if "install" in command)
    assert "APT::Architectures=arm64" in install
    assert "qemu-user:arm64" in install
    assert Home(tmp_path).tool("tcc")[0].endswith("lib/aarch64-linux-gnu/ld-linux-aarch64.so.1")


def test_the_machines_own_mirror_is_used_and_signatures_are_checked(registry: Registry, tmp_path: Path) -> None:
    fetch_packages(tmp_path / "apt", registry)
    lines = (tmp_path / "apt" / "sources.list").read_text().splitlines()
    key = arm_debian.KEYRING
    assert lines == [
        f"deb [signed-by={key}] http://mirror.example/debian/ bookworm main",
        f"deb [signed-by={key}] http://mirror.example/debian/ bookworm-updates main",
        f"deb [signed-by={key}] http://deb.debian.org/debian-security/ bookworm-security main",
    ]


def test_of_the_packages_only_what_is_run_is_kept(registry: Registry, tmp_path: Path) -> None:
    debs = fetch_packages(tmp_path / "apt", registry)
    unpack_packages(debs, tmp_path / "root", registry)
    assert files(tmp_path / "root") == {
        "usr/bin/qemu-aarch64",
        "usr/bin/tcc",
        "usr/bin/python3.11",
        "usr/lib/python3.11/os.py",
        "lib/aarch64-linux-gnu/libc.so.6",
    }


def test_the_wheels_are_of_this_onnxruntime_for_arm(registry: Registry, tmp_path: Path) -> None:
    fetch_wheels(tmp_path / "wheels", registry)
    (command,) = registry.asked
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-2:] == requirements() == [f"onnxruntime=={version()}", f"numpy<={np.__version__}"]
    platforms = [command[i + 1] for i, word in enumerate(command) if word == "--platform"]
    assert {
        "manylinux_2_17_aarch64",
        "manylinux_2_28_aarch64",
        "manylinux_2_36_aarch64",
        "manylinux2014_aarch64",
    } <= set(platforms)
    assert all(name.endswith("_aarch64") for name in platforms)
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[command.index("--python-version") + 1] == "3.11"


def test_of_the_wheels_only_what_is_imported_is_kept(registry: Registry, tmp_path: Path) -> None:
    found = fetch_wheels(tmp_path / "wheels", registry)
    packages = unpack_wheels(found, tmp_path / "site")
    assert files(tmp_path / "site") == {"onnxruntime/__init__.py", "onnxruntime/core/tests/test_it.py", *NUMPY}
    assert [(package.name, package.version, package.architecture) for package in packages] == [
        ("numpy", "2.4.6", "manylinux_2_28_aarch64"),
        ("onnxruntime", "1.32.0", "manylinux_2_28_aarch64"),
    ]


NUMPY = {"numpy/__init__.py", "numpy/tools/big.py"}


def test_a_broken_wheel_is_one_line(tmp_path: Path) -> None:
    (tmp_path / WHEELS[0]).write_text("<html>")
    with pytest.raises(DeviceError, match=r"onnxruntime-1\.32\.0.*\.whl is no wheel: check the network"):
        unpack_wheels([tmp_path / WHEELS[0]], tmp_path / "site")


@pytest.mark.parametrize(
    ("system", "machine", "line"),
    [
        (
            "Darwin",
            "arm64",
            "ARM is emulated on Linux on x86-64 or arm64, and this is Darwin on arm64: use such a machine",
        ),
        ("Windows", "AMD64", "this is Windows on AMD64"),
        ("Linux", "riscv64", "this is Linux on riscv64"),
    ],
)
def test_other_systems_are_refused_in_one_line(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, line: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(DeviceError) as caught:
        prepare(Home(tmp_path / "arm"), quiet, registry)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert registry.asked == []


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_a_linux_without_debians_tools_is_refused_in_one_line(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else name)
    with pytest.raises(
        DeviceError, match=rf"no {missing} here, .*: this needs Debian's tools \(Debian, Ubuntu, or a con"
    ):
        prepare(Home(tmp_path / "arm"), quiet, registry)


def test_without_debians_key_it_says_where_that_is_from(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(arm_debian, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(DeviceError, match=r"none\.gpg.*: run `apt-get install debian-archive-keyring` as root"):
        check_tools()


def test_without_pip_it_says_how_to_get_it(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"no pip.*: run `python -m ensurepip`"):
        fetch_wheels(tmp_path / "wheels", registry)


def test_a_programs_last_word_is_the_error(tmp_path: Path) -> None:
    assert run([sys.executable, "-c", "print('fine')"], "advice") == "fine\n"
    code = "import sys; sys.exit('W: old\\nE: Unable to locate package qemu-user\\n\\n')"
    with pytest.raises(DeviceError, match=r"^python\S* failed \(Unable to locate package qemu-user\): do this$"):
        run([sys.executable, "-c", code], "do this")
    with pytest.raises(DeviceError, match=r"^python\S* failed \(it said nothing\): do this$"):
        run([sys.executable, "-c", "raise SystemExit(3)"], "do this")
    with pytest.raises(DeviceError, match=r"^no-such-program is not installed: do this$"):
        run([str(tmp_path / "no-such-program")], "do this")


def test_measuring_before_setting_up_says_what_to_run(tmp_path: Path) -> None:
    device = ArmDevice(home=tmp_path / "arm")
    with pytest.raises(DeviceError, match=r"^the emulated ARM is not set up .*: run `onnxslim device setup arm`$"):
        device.measure(Job([], {}))


def test_the_place_is_in_the_cache_and_of_this_onnxruntime(tmp_path: Path) -> None:
    assert default_home().path.parent == tmp_path / "cache"  # as own_cache has it
    assert default_home().path.name.endswith(f"onnxruntime-{version()}")


def test_another_source_of_the_plugin_is_another_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made_from()
    monkeypatch.setattr(arm_home, "table", lambda: "")
    assert made_from() != before


def test_each_processor_is_told_apart(registry: Registry, tmp_path: Path) -> None:
    home = Home(tmp_path / "arm")
    prepare(home, quiet, registry)
    features = {}
    for cpu in CPUS:
        text = (home.prefix(cpu) / "proc" / "cpuinfo").read_text()
        assert f"CPU part\t: 0x{cpu.part:x}\n" in text
        features[cpu.name] = set(text.split("Features\t: ")[1].splitlines()[0].split())
        assert (home.prefix(cpu) / "usr" / "bin" / "python3.11").is_file()
    assert [{"asimddp", "i8mm"} & features[name] for name in ("cortex-a53", "cortex-a76", "i8mm")] == [
        set(),
        {"asimddp"},
        {"asimddp", "i8mm"},
    ]


def test_processors_go_by_name() -> None:
    assert cpu_named("") is CPUS[0]
    assert cpu_named("i8mm").model == "max,sve=off,sme=off"
    with pytest.raises(DeviceError, match=r"^no ARM processor 'x1': choose arm:cortex-a76, arm:cortex-a53, arm:i8mm$"):
        ArmDevice("x1")
