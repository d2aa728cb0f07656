"""Running the programs that setting up takes: their last word is the error, and none runs for ever."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from onnxslim.errors import DeviceError

PATIENCE = 900.0
"""Seconds that one program may take: downloads over slow lines."""


def run(command: Sequence[str], advice: str, cwd: Path | None = None) -> str:
    """Run a program to its end and return what it printed.

    Args:
        command: program and arguments; no shell reads them.
        advice: ends the line that says that it failed.
        cwd: the folder to run it in.

    Raises:
        DeviceError: it is not there, fails or takes too long.
    """
    name = Path(command[0]).name
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(  # noqa: S603  (no shell; what is run is ours to choose)
            command,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise DeviceError(f"{name} is not installed: {advice}") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{name} took longer than {PATIENCE:.0f} s: {advice}") from None
    if done.returncode != 0:
        raise DeviceError(f"{name} failed ({last_line(done.stderr or done.stdout)}): {advice}")
    return done.stdout


def last_line(text: str) -> str:
    """Return the last line that says something, without the marks that programs put in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    word = lines[-1] if lines else "it said nothing"
    return word.removeprefix("E: ").removeprefix("ERROR: ").rstrip(".:")
