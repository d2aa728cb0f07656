"""``onnxslim device setup arm``: fetch, unpack, compile, try out, and only then put in place.

Everything happens in a new folder beside the place, which is renamed at the end: what is interrupted leaves nothing
that could be taken for whole, and two at once do no harm.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from onnxslim.devices.arm_commands import run
from onnxslim.devices.arm_cpus import CPUS, Cpu
from onnxslim.devices.arm_debian import Package, Runner, check_tools, fetch_packages, unpack_packages
from onnxslim.devices.arm_emulator import Emulation
from onnxslim.devices.arm_home import GUEST, MANIFEST, Home, default_home, machine, made_from, tree_digest
from onnxslim.devices.arm_job import work_through, write_probes
from onnxslim.devices.arm_kinds import table
from onnxslim.devices.arm_wheels import fetch_wheels, unpack_wheels
from onnxslim.devices.base import Progress
from onnxslim.errors import DeviceError
from onnxslim.runtime.sessions import version

STALE = 3600
"""Seconds after which a folder that a killed setup left behind is taken away."""
TRIAL_PATIENCE = 300.0
"""Seconds that importing everything for the first time may take: a few, on a machine that does nothing else."""
STEPS = 6

_PARTIAL = ".arm-partial-"
_AGAIN = "run `onnxslim device setup arm` again"


def prepare(home: Home | None, progress: Progress, runner: Runner = run) -> bool:
    """Make sure that the place is whole, and return whether anything had to be done for that.

    Args:
        home: the place; None for that in the user's cache folder.
        progress: told of each of the steps.
        runner: what runs apt, pip and the compiler.

    Raises:
        DeviceError: not on this system, no network, or no room; says what to do.
    """
    home = home or default_home()
    if home.fault(thorough=True) is None:
        return False
    check_tools()
    with _folder_beside(home.path) as folder:
        _make(Home(folder), progress, runner)
        _replace(home.path, folder)
    return True


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Give a new folder on the same disk, which is gone at the end unless it has been renamed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{_PARTIAL}*"):
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=_PARTIAL))
    except OSError as error:
        raise DeviceError(_full(path.parent, error)) from None
    try:
        yield folder
    except OSError as error:
        raise DeviceError(_full(folder.parent, error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _full(folder: Path, error: OSError) -> str:
    return f"cannot write to {folder} ({error.strerror}): make room there, or name another folder in ONNXSLIM_CACHE"


def _make(home: Home, progress: Progress, runner: Runner) -> None:
    steps = iter(range(STEPS + 1))

    def step() -> None:
        progress("arm", next(steps), STEPS)

    step()
    fetched = home.path / "fetched"
    fetched.mkdir()
    debs = fetch_packages(fetched / "apt", runner)
    step()
    wheels = fetch_wheels(fetched / "wheels", runner)
    step()
    packages = unpack_packages(debs, home.root, runner)
    step()
    packages += unpack_wheels(wheels, home.site)
    shutil.rmtree(fetched)
    step()
    _write_prefixes(home)
    _compile_counter(home, runner)
    step()
    _try_out(home, CPUS[0])
    step()
    _write_manifest(home, packages)


def _write_prefixes(home: Home) -> None:
    """Make what a program on each processor sees as ``/``: relative links, since the whole is still to be renamed."""
    for cpu in CPUS:
        prefix = home.prefix(cpu)
        cores = prefix / "sys" / "devices" / "system" / "cpu"
        for folder in (prefix / "proc", cores):
            folder.mkdir(parents=True)
        (prefix / "proc" / "cpuinfo").write_text(cpu.cpuinfo)
        for name in ("possible", "present", "online"):
            (cores / name).write_text("0\n")
        for name in ("lib", "usr"):
            (prefix / name).symlink_to(Path("..") / ".." / "root" / name)


def _compile_counter(home: Home, runner: Runner) -> None:
    source = home.path / "source"
    source.mkdir()
    shutil.copy(GUEST / "counter.c", source)
    (source / "table.h").write_text(table())
    options = ["-shared", "-nostdlib", "-nostdinc", "-o", str(home.counter), str(source / "counter.c")]
    runner([*home.tool("tcc"), *options], f"the compiler that was fetched is at fault: {_AGAIN}", None)


def _try_out(home: Home, cpu: Cpu) -> None:
    """Measure something small, which also leaves the compiled modules that make later runs start quickly."""
    with tempfile.TemporaryDirectory(prefix="onnxslim-arm-") as folder:
        orders = write_probes(Path(folder))[:1]
        (found,) = work_through(orders, Emulation(home, cpu, TRIAL_PATIENCE, compiles=True), Path(folder)).values()
    if found.refused is not None:
        raise DeviceError(
            f"onnxruntime {version()} does not work on an emulated {cpu.name} ({found.refused}): {_AGAIN}"
        )


def _write_manifest(home: Home, packages: Sequence[Package]) -> None:
    manifest = {
        "onnxruntime": version(),
        "machine": machine(),
        "made_from": made_from(),
        "packages": [asdict(package) for package in packages],
        "digest": tree_digest(home.path),
    }
    (home.path / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _replace(place: Path, folder: Path) -> None:
    """Put ``folder`` in ``place``; what was there goes, unless another made it whole in the meantime."""
    if Home(place).fault(thorough=True) is None:
        return
    old = Path(tempfile.mkdtemp(dir=place.parent, prefix=_PARTIAL))
    try:
        if place.exists():
            os.rename(place, old / place.name)
        os.rename(folder, place)
    finally:
        shutil.rmtree(old, ignore_errors=True)
