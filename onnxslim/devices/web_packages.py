"""onnxruntime-web: from npm once, pinned, and only the files that a page needs (14 of 139 MB) kept in the cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from onnxslim.devices.base import Progress
from onnxslim.errors import DeviceError
from onnxslim.measure.timings import cache_folder

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""What npm's registry says that the package's contents are."""
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PATIENCE = 900
SETUP = "run `onnxslim device setup web`"


@dataclass(frozen=True)
class WebPackage:
    """onnxruntime-web where it lies."""

    dist: Path
    version: str


def find_package(folder: Path | None = None) -> WebPackage:
    """Return the package in ``folder``, as npm installs it, or the one that :func:`install` left in the cache.

    Raises:
        DeviceError: it is not there, or not whole.
    """
    place = folder or _home()
    try:
        version = str(json.loads((place / "package.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DeviceError(f"{PACKAGE} is not installed in {place}: {SETUP}") from None
    missing = next((name for name in FILES if not (place / "dist" / name).is_file()), None)
    if missing is not None:
        raise DeviceError(f"{PACKAGE} {version} in {place} lacks {missing}: {SETUP}")
    return WebPackage(place / "dist", version)


def install(progress: Progress) -> WebPackage:
    """Have npm fetch the package, and keep what is needed of it; scripts of packages are not run.

    Raises:
        DeviceError: no npm, no network, no room, or other contents than we know.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DeviceError(
            f"npm, which fetches {PACKAGE}, is not installed: install Node.js (Debian, Ubuntu: apt install npm)"
        )
    home = _home()
    progress("npm install", 0, 1)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".npm-") as name:
            folder = Path(name)
            _npm_install(npm, folder)
            _check(folder / "package-lock.json")
            _keep(folder / "node_modules" / PACKAGE, folder / "kept")
            shutil.rmtree(home, ignore_errors=True)
            (folder / "kept").rename(home)
    except OSError as error:
        raise DeviceError(f"cannot write {home}: {error.strerror or error}: free some, or set ONNXSLIM_CACHE") from None
    progress("npm install", 1, 1)
    return find_package()


def _home() -> Path:
    return cache_folder() / f"{PACKAGE}-{VERSION}"


def _npm_install(npm: str, folder: Path) -> None:
    (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--save-exact", "--package-lock"]
    try:
        done = subprocess.run(  # noqa: S603  (the user's npm)
            [npm, "install", *options, f"{PACKAGE}@{VERSION}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"npm did not fetch {PACKAGE} within {PATIENCE} s: check the network") from None
    if done.returncode != 0:
        lines = [line.removeprefix("npm").strip() for line in done.stderr.splitlines() if "log" not in line]
        said = next((line for line in lines if line.removeprefix("error").removeprefix("ERR!").strip()), "no reason")
        raise DeviceError(f"npm does not install {PACKAGE} {VERSION}: {said}: check the network and npm's registry")


def _check(lock: Path) -> None:
    """Refuse other contents than those of the pinned version."""
    found = json.loads(lock.read_text(encoding="utf-8"))["packages"][f"node_modules/{PACKAGE}"].get("integrity")
    if found != INTEGRITY:
        raise DeviceError(
            f"npm's registry has a {PACKAGE} {VERSION} that is not ours ({found}): use registry.npmjs.org"
        )


def _keep(package: Path, place: Path) -> None:
    (place / "dist").mkdir(parents=True)
    shutil.copy(package / "package.json", place)
    for name in FILES:
        shutil.copy(package / "dist" / name, place / "dist")
