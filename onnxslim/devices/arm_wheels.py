"""The wheels for ARM: onnxruntime of the version that is installed here, and the numpy that it needs.

onnxruntime names further packages, which only its tools import; the emulated Python does without.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxslim.devices.arm_commands import run
from onnxslim.devices.arm_debian import Package, Runner
from onnxslim.devices.arm_home import PYTHON, file_digest
from onnxslim.errors import DeviceError
from onnxslim.runtime.sessions import version

GLIBC = 36
"""The minor version of Debian 12's C library: the newest platform tag that works there."""
ADVICE = "check the network and pip's index, and that this onnxruntime is published for Linux on ARM"

_UNNEEDED = ("backend", "datasets", "quantization", "tools", "transformers")


def fetch_wheels(folder: Path, runner: Runner = run) -> list[Path]:
    """Download the wheels into ``folder``, which is made, and return the files.

    Raises:
        DeviceError: no pip, no network, or no such wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise DeviceError("this Python has no pip, which fetches wheels: run `python -m ensurepip`, then this again")
    folder.mkdir()
    runner([*_command(folder), *requirements()], ADVICE, None)
    return sorted(folder.glob("*.whl"))


def requirements() -> list[str]:
    """Return what is asked for: numpy's newest for the emulated Python that is no newer than ours."""
    return [f"onnxruntime=={version()}", f"numpy<={np.__version__}"]


def _command(folder: Path) -> list[str]:
    tag = f"cp{PYTHON.replace('.', '')}"
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1)] + ["manylinux2014_aarch64"]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", "--abi", tag),
        *(word for name in platforms for word in ("--platform", name)),
        *("--dest", str(folder)),
    ]


def unpack_wheels(files: Sequence[Path], site: Path) -> list[Package]:
    """Unpack all into ``site``, drop what is not imported, and return what they were.

    Raises:
        DeviceError: a file is no wheel.
    """
    site.mkdir()
    packages = []
    for file in files:
        try:
            with zipfile.ZipFile(file) as wheel:
                wheel.extractall(site)
        except zipfile.BadZipFile:
            raise DeviceError(f"{file.name} is no wheel: {ADVICE}") from None
        name, number, *_ = file.name.split("-")
        packages.append(Package(name, number, file.stem.rpartition("-")[2], file.name, file_digest(file)))
    for name in _UNNEEDED:
        shutil.rmtree(site / "onnxruntime" / name, ignore_errors=True)
    for tests in [path for path in (site / "numpy").rglob("tests") if path.is_dir()]:
        shutil.rmtree(tests, ignore_errors=True)
    return packages
