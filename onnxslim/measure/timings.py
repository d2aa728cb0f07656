"""Times that were measured before, kept in the user's cache folder so that the next run need not measure them again.

One JSON file for each processor and onnxruntime. The environment variable ``ONNXSLIM_CACHE`` names another folder; a
file that cannot be read counts as empty, and a folder that cannot be written is done without.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import platformdirs

from onnxslim.errors import OutputError
from onnxslim.ir.saving import write_bytes
from onnxslim.measure.machine import cpu_name
from onnxslim.runtime.sessions import version

MOST = 20_000
"""Entries of one file; the oldest go first."""
LARGEST = 16 * 2**20
"""Bytes of a file that is read."""


def cache_folder() -> Path:
    """Return where this tool keeps what it can make again."""
    named = os.environ.get("ONNXSLIM_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("onnxslim", appauthor=False))


class Timings:
    """Times by key, as shares or any other positive number."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / f"timings-{_machine()}.json"
        self._old: dict[str, float] | None = None
        self._new: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        """Return what was measured for ``key``, None if nothing was."""
        if self._old is None:
            self._old = _read(self._path)
        return self._new.get(key, self._old.get(key))

    def put(self, key: str, value: float) -> None:
        """Note what was measured; :meth:`keep` writes it."""
        self._new[key] = value

    def keep(self) -> None:
        """Write what is new to the file, beside what others have written there in the meantime."""
        if not self._new:
            return
        both = {**_read(self._path), **self._new}
        kept = dict(list(both.items())[-MOST:])
        with suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, json.dumps(kept, indent=0).encode())
        self._old, self._new = kept, {}


def _machine() -> str:
    return hashlib.sha256(f"{cpu_name()}|{version()}".encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, float]:
    """Return the numbers of a file, none where it is not one that :meth:`Timings.keep` has written."""
    try:
        if path.stat().st_size > LARGEST:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, Mapping):
        return {}
    return {str(key): float(value) for key, value in found.items() if isinstance(value, float) and 0 < value < 1e6}
