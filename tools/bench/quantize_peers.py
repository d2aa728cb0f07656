"""The Pythons of the tools that ``quantize`` compares to; one that cannot be had is a reason, not an end."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peers
from quantize_arms import Tool

NNCF_VENV = peers.DEFAULT_VENV.with_name(".venv-nncf")
NNCF_REQUIREMENTS = ("nncf==3.4.0", "onnxruntime>=1.32", "onnx>=1.18")


def pythons(folder: Path) -> dict[Tool, Path | str]:
    """Return the Python of each peer, whose environment is made if it is not there, or why there is none."""
    found: dict[Tool, Path | str] = {}
    makers: dict[Tool, Callable[[], Path]] = {Tool.ONNXRUNTIME: partial(peers.ensure, folder), Tool.NNCF: _nncf}
    for tool, make in makers.items():
        try:
            found[tool] = make()
        except (OSError, subprocess.CalledProcessError) as error:
            found[tool] = f"its environment cannot be made: {error}"
    return found


def _nncf() -> Path:
    python = NNCF_VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        print(f"installing {', '.join(NNCF_REQUIREMENTS)} into {NNCF_VENV} ...", file=sys.stderr)
        venv.create(NNCF_VENV, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *NNCF_REQUIREMENTS], check=True)
    return python
