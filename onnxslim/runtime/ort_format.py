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

_CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"


def convert(onnx_path: Path, folder: Path, platform: str) -> tuple[Path, Path]:
    """Convert a model to ORT format in ``folder``, which is empty.

    Args:
        onnx_path: the model; weights of its own in ``onnx_path.data`` are found.
        folder: where the converter works; what it reads and writes stays there.
        platform: ``arm`` keeps layouts that only x86 knows out of the file.

    Returns:
        The paths of the .ort file and of the required-operators-and-types configuration.

    Raises:
        RuntimeRefusal: the converter fails, with its last line.
    """
    copy = folder / "model.onnx"  # the converter skips names that do not end in .onnx, or end in .optimized.onnx
    shutil.copyfile(onnx_path, copy)
    data = onnx_path.with_name(f"{onnx_path.name}.data")
    if data.exists():
        shutil.copyfile(data, folder / data.name)
    arguments = ["--optimization_style", "Fixed", "--target_platform", platform, "--enable_type_reduction"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORT_CONVERT_")}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-m", _CONVERTER, copy.name, *arguments],  # -P: modules of the folder are no modules
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=environment,
        cwd=folder,
    )
    made, configs = sorted(folder.glob("*.ort")), sorted(folder.glob("*.config"))
    if done.returncode != 0 or not made or not configs:
        lines = (done.stderr.strip() or done.stdout.strip() or "it wrote nothing").splitlines()
        raise RuntimeRefusal(f"the ORT-format converter failed: {lines[-1].replace(f'{folder}{os.sep}', '')}")
    return made[0], configs[0]
