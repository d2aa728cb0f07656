"""The ORT format, through onnxruntime's own converter, which works on folders, prints, and reads the environment.

It therefore runs in a child process and a temporary folder: our output stays clean and our environment as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from onnxslim.runtime.sessions import RuntimeRefusal


def convert(onnx_path: Path, folder: Path, platform: str) -> tuple[Path, Path]:
    """Convert a model to ORT format in ``folder``, which is empty.

    Args:
        onnx_path: the model.
        platform: ``arm`` keeps layouts that only x86 knows out of the file.

    Returns:
        The paths of the .ort file and of the required-operators-and-types configuration.

    Raises:
        RuntimeRefusal: the converter fails, with its last line.
    """
    copy = folder / "model.onnx"
    shutil.copyfile(onnx_path, copy)
    data = onnx_path.with_name(f"{onnx_path.name}.data")
    if data.exists():
        shutil.copyfile(data, folder / data.name)
    command = [
        sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(copy),
        "--optimization_style", "Fixed", "--target_platform", platform, "--enable_type_reduction",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORT_CONVERT_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    made = sorted(folder.rglob("*.ort"))
    configs = sorted(folder.rglob("*.config"))
    if done.returncode != 0 or not made or not configs:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it wrote nothing"]
        raise RuntimeRefusal(f"the ORT-format converter failed: {lines[-1]}")
    return made[0], configs[0]
