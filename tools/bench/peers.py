"""A virtual environment with the tools we compare ourselves to."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

DEFAULT_VENV = Path(__file__).resolve().parents[2] / ".venv-bench"
REQUIREMENTS = ("onnxslim==0.1.98", "onnxsim==0.8.1", "onnxruntime>=1.32", "onnx>=1.18")


def ensure(folder: Path) -> Path:
    """Return the Python of the peers' environment, which is made if it is not there."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        print(f"installing {', '.join(REQUIREMENTS)} into {folder} ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python
