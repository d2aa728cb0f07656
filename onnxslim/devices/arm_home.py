"""Where what the emulation needs is kept, and whether it is whole.

::

    arm-1-onnxruntime-1.32.0/
      manifest.json        what was fetched, its SHA-256, and a digest of all that was unpacked
      root/                Debian's packages: the emulator and the compiler of this machine's kind, Python of ARM's
      site/                the wheels for ARM
      cpus/NAME/           what a program emulated on that processor sees as ``/``
      counter.so           the plugin that counts
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxslim.devices.arm_cpus import CPUS, Cpu
from onnxslim.devices.arm_kinds import table
from onnxslim.errors import DeviceError
from onnxslim.measure.timings import cache_folder
from onnxslim.runtime.sessions import version

LAYOUT = 1
"""Of the folder; a folder of another is not looked at."""
MANIFEST = "manifest.json"
GUEST = Path(__file__).parent / "arm_guest"
"""What is not run by this Python: the plugin's source and the script that is emulated."""
PYTHON = "3.11"
"""The emulated one, as Debian 12 has it."""
MEND = "run `onnxslim device setup arm`"

_LINKERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}


@dataclass(frozen=True)
class Home:
    """A folder with everything in it, at ``path``."""

    path: Path

    @property
    def root(self) -> Path:
        """Return where Debian's packages are."""
        return self.path / "root"

    @property
    def site(self) -> Path:
        """Return where the wheels are."""
        return self.path / "site"

    @property
    def counter(self) -> Path:
        """Return the plugin."""
        return self.path / "counter.so"

    @property
    def python(self) -> Path:
        """Return the emulated Python."""
        return self.root / "usr" / "bin" / f"python{PYTHON}"

    def prefix(self, cpu: Cpu) -> Path:
        """Return what a program on ``cpu`` sees as ``/``."""
        return self.path / "cpus" / cpu.name

    def tool(self, name: str) -> list[str]:
        """Return the command that runs a program of ``root`` made for this machine, with the libraries beside it."""
        libraries = self.root / "lib" / f"{machine()}-linux-gnu"
        paths = f"{libraries}:{self.root / 'usr' / 'lib' / libraries.name}"
        return [str(libraries / _LINKERS[machine()]), "--library-path", paths, str(self.root / "usr" / "bin" / name)]

    def manifest(self) -> Mapping[str, Any]:
        """Return what was written when this was made; empty if it was not made whole."""
        try:
            found = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, Mapping) else {}

    def fault(self, *, thorough: bool = False) -> str | None:
        """Return why this cannot be used as it stands, None if it can.

        Args:
            thorough: read every file, in half a second, and compare all with the manifest.
        """
        manifest = self.manifest()
        if not manifest:
            return "is not set up"
        if manifest.get("made_from") != made_from():
            return "was set up by another version of this tool"
        if not (self.counter.is_file() and self.python.is_file() and all(self.prefix(cpu).is_dir() for cpu in CPUS)):
            return "has lost files"
        if thorough and manifest.get("digest") != tree_digest(self.path):
            return "has changed since it was set up"
        return None


def default_home() -> Home:
    """Return the place in the user's cache folder for the onnxruntime that is installed here."""
    return Home(cache_folder() / f"arm-{LAYOUT}-onnxruntime-{version()}")


def ready_home(home: Home | None = None) -> Home:
    """Return the place if it can be used.

    Raises:
        DeviceError: it cannot; says how to mend that.
    """
    home = home or default_home()
    fault = home.fault()
    if fault is not None:
        raise DeviceError(f"the emulated ARM {fault} (onnxruntime {version()}): {MEND}")
    return home


def made_from() -> str:
    """Return a digest of what of this tool goes into the folder."""
    parts = [(GUEST / "counter.c").read_text(encoding="utf-8"), table(), PYTHON, *(repr(cpu) for cpu in CPUS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    """Return a digest of the names and contents of all files below ``folder``, its manifest excepted."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            content = os.readlink(path) if path.is_symlink() else file_digest(path)
            whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()


def machine() -> str:
    """Return this machine's architecture as the kernel calls it.

    Raises:
        DeviceError: none for which Debian's emulator is fetched.
    """
    name = platform.machine()
    if platform.system() != "Linux" or name not in _LINKERS:
        raise DeviceError(
            f"ARM is emulated on Linux on x86-64 or arm64, and this is {platform.system()} on {name}: "
            "use such a machine, or a container on it"
        )
    return name
