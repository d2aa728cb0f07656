"""Debian's packages unpacked side by side: nothing is installed, nothing of the system changes, nobody has to be root.

apt works in a folder of its own, with its own lists of packages and a system on which nothing is installed, so that it
finds all that the wanted ones need, and checks Debian's signatures as always. It always is Debian 12: the emulator of
13 is built without plugins; the loader of programs comes along, so this machine's own libraries do not matter.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from onnxslim.devices.arm_commands import run
from onnxslim.devices.arm_home import PYTHON, file_digest, machine
from onnxslim.errors import DeviceError

RELEASE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
HOST_PACKAGES = ("qemu-user", "tcc")
"""For this machine: the emulator, and the smallest compiler of C, for its plugin."""
GUEST_PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6")
"""For the emulated one."""
PROGRAMS = ("qemu-aarch64", "tcc", f"python{PYTHON}")
"""What is kept of ``usr/bin``."""
ONLY_DEBIAN = "this needs Debian's tools (Debian, Ubuntu, or a container such as python:3.11-slim)"
ADVICE = "check the network and apt's mirrors, and run this again"

_MIRRORS = {"debian": "http://deb.debian.org/debian/", "debian-security": "http://deb.debian.org/debian-security/"}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_UNNEEDED = ("etc", "var", "sbin", "usr/sbin", "usr/share", "lib/systemd", "usr/games")

Runner = Callable[[Sequence[str], str, Path | None], str]


@dataclass(frozen=True)
class Package:
    """A file that was fetched."""

    name: str
    version: str
    architecture: str
    file: str
    sha256: str


def check_tools() -> None:
    """Refuse where there is no apt, or no key to check Debian's signatures with.

    Raises:
        DeviceError: says what is missing and how to get it.
    """
    machine()
    missing = next((name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None), None)
    if missing is not None:
        raise DeviceError(f"no {missing} here, from whose packages ARM's emulator comes: {ONLY_DEBIAN}")
    if not KEYRING.is_file():
        raise DeviceError(
            f"no {KEYRING}, to check the emulator's signature with: "
            "run `apt-get install debian-archive-keyring` as root, then this again"
        )


def fetch_packages(folder: Path, runner: Runner = run) -> list[Path]:
    """Download what :data:`HOST_PACKAGES` and :data:`GUEST_PACKAGES` need, and return the files.

    Args:
        folder: an empty folder for apt to work in.
        runner: as :func:`run`.

    Raises:
        DeviceError: no tools, no network, or a mirror without these packages.
    """
    host = _ARCHITECTURES[machine()]
    archives = folder / "archives"
    for name in ("state/lists/partial", "archives/partial", "log"):
        (folder / name).mkdir(parents=True)
    (folder / "status").write_text("")
    (folder / "sources.list").write_text(_sources(_mirrors(runner)))
    command = ["apt-get", *_options(folder, host)]
    runner([*command, "update", "--quiet"], ADVICE, folder)
    wanted = [f"{name}:{host}" for name in HOST_PACKAGES] + [f"{name}:arm64" for name in GUEST_PACKAGES]
    fetch = ["install", "--download-only", "--yes", "--quiet", "--no-install-recommends"]
    runner([*command, *fetch, *wanted], ADVICE, folder)
    return sorted(archives.glob("*.deb"))


def _options(folder: Path, host: str) -> list[str]:
    """Return what keeps apt within ``folder``."""
    settings = {
        "APT::Architecture": host,
        "APT::Architectures": ",".join(dict.fromkeys((host, "arm64"))),
        "Dir::State": folder / "state",
        "Dir::State::Lists": folder / "state" / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Log": folder / "log",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # apt's own user may not enter this folder
        "Debug::NoLocking": "true",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _mirrors(runner: Runner) -> dict[str, str]:
    """Return where this machine gets Debian from; Debian's own addresses where it does not say."""
    asked = ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"]
    known = [line.rstrip("/") + "/" for line in runner(asked, ADVICE, None).split() if line.startswith("http")]
    return {
        name: next((address for address in known if address.endswith(f"/{name}/")), default)
        for name, default in _MIRRORS.items()
    }


def _sources(mirrors: dict[str, str]) -> str:
    suites = ((RELEASE, "debian"), (f"{RELEASE}-updates", "debian"), (f"{RELEASE}-security", "debian-security"))
    return "".join(f"deb [signed-by={KEYRING}] {mirrors[of]} {suite} main\n" for suite, of in suites)


def unpack_packages(files: Sequence[Path], root: Path, runner: Runner = run) -> list[Package]:
    """Unpack all into ``root``, drop what is not used, and return what they were.

    Raises:
        DeviceError: a package cannot be unpacked.
    """
    root.mkdir()
    packages = []
    for file in files:
        name, version, architecture = unquote(file.stem).split("_")
        if architecture == "all":
            continue  # texts and settings
        runner(["dpkg-deb", "--extract", str(file), str(root)], "make room on the disk, and run this again", None)
        packages.append(Package(name, version, architecture, file.name, file_digest(file)))
    _trim(root)
    return packages


def _trim(root: Path) -> None:
    for name in _UNNEEDED:
        shutil.rmtree(root / name, ignore_errors=True)
    for folder in (root / "bin", root / "usr" / "bin"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in PROGRAMS:
                path.unlink()
