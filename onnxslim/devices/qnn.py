"""Qualcomm's HTP as onnxruntime-qnn emulates it on this machine: which nodes it takes, and what they compute.

The package is large and under Qualcomm's licence, so that the user installs it, here or in a Python of its own; a child
process there runs each model once. Its cycle counts are noise, and it takes thousands of times as long as the chip:
there are no times here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.devices.base import Array, Device, DeviceResult, Job, Kind, Progress, Side
from onnxslim.devices.model_files import ModelFiles, model_files
from onnxslim.errors import DeviceError

VARIABLE = "ONNXSLIM_QNN_PYTHON"
GUEST = Path(__file__).parent / "qnn_guest" / "run.py"
"""The program that the other Python runs; a file, not a module of ours."""
SOC = 57
"""SM8650, a Snapdragon 8 Gen 3 with HTP v75 (Qualcomm's number for it). Left open, the emulator plays a chip so old
that it fails on float models."""
PATIENCE = 1800.0
"""Seconds that one model may take: the emulator is slow."""
INSTALL = f"`pip install onnxruntime-qnn` (98 MB, Qualcomm's licence) here, or in a Python that {VARIABLE} names"


@dataclass(frozen=True)
class _Task:
    """One start of the other Python."""

    python: str
    threads: int
    soc: int
    patience: float


class QnnDevice(Device):
    """The emulated HTP.

    Args:
        python: a Python that has onnxruntime-qnn; else the one that ``ONNXSLIM_QNN_PYTHON`` names, else this one.
        soc: Qualcomm's number of the chip to be emulated.
        patience: seconds that one model may take.
    """

    name = "qnn"

    def __init__(self, python: Path | None = None, soc: int = SOC, patience: float = PATIENCE) -> None:
        self._python = python
        self._soc = soc
        self._patience = patience

    def setup(self, progress: Progress) -> None:
        """Check that the package is there; it is the user's to install."""
        self.check()
        progress("qnn", 1, 1)

    def check(self) -> None:
        """Look whether the package is there and starts."""
        with tempfile.TemporaryDirectory(prefix="onnxslim-qnn-") as folder:
            _run(Path(folder), {"model": None}, self._task(1))

    def measure(self, job: Job) -> DeviceResult:
        """Run each model once; one that the emulator refuses has a reason, and all refused is a DeviceError.

        Raises:
            ModelError: one of the models cannot be sent.
        """
        models = [model_files(path, job.feed) for path in job.models]
        task = self._task(job.threads)
        told: list[Mapping[str, Any]] = []
        sides = []
        for index, model in enumerate(models):
            with tempfile.TemporaryDirectory(prefix="onnxslim-qnn-") as folder:
                told.append(_run_model(Path(folder), model, job, task))
                sides.append(_side(told[-1], Path(folder)))
            job.progress("qnn", index + 1, len(models))
        if models and all(side.refused for side in sides):
            raise DeviceError(f"the HTP runs none of the models: {sides[0].refused}: validate them on this machine")
        return DeviceResult(self.name, Kind.EMULATED, tuple(sides), _facts(told, models, task))

    def _task(self, threads: int) -> _Task:
        named = str(self._python) if self._python else os.environ.get(VARIABLE)
        if not named and importlib.util.find_spec("onnxruntime_qnn") is None:
            raise DeviceError(f"onnxruntime-qnn is not installed: {INSTALL}")
        python = shutil.which(named or sys.executable)
        if python is None:
            raise DeviceError(f"{named} is no Python that can be run: name one that has onnxruntime-qnn in {VARIABLE}")
        return _Task(python, threads, self._soc, self._patience)


def _run_model(folder: Path, model: ModelFiles, job: Job, task: _Task) -> dict[str, Any]:
    arrays: dict[str, Any] = {f"a{index}": value for index, value in enumerate(job.feed.values())}
    np.savez(folder / "feed.npz", **arrays)
    order = {
        "model": str(model.path.absolute()),
        "feed": str(folder / "feed.npz"),
        "names": list(job.feed),
        "inputs": list(model.inputs),
        "sizes": dict(model.sizes),
    }
    return _run(folder, order, task)


def _run(folder: Path, order: Mapping[str, Any], task: _Task) -> dict[str, Any]:
    """Have the other Python do one job; a crash in the emulator is a refusal."""
    (folder / "job.json").write_text(json.dumps({**order, "threads": task.threads, "soc": task.soc}), encoding="utf-8")
    ours = ("PYTHONPATH", "PYTHONHOME")  # not what the other one should import
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    try:
        done = subprocess.run(  # noqa: S603  (the Python that the user names, our own file)
            [task.python, str(GUEST), str(folder / "job.json")],
            env={**environment, "ORT_DISABLE_TELEMETRY": "1"},
            cwd=folder,  # the emulator may leave files where it runs
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=task.patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"the HTP emulator took longer than {task.patience:.0f} s: fix smaller shapes with --shape"
        ) from None
    except OSError as error:
        raise DeviceError(
            f"{task.python} does not run: {error.strerror or error}: name another in {VARIABLE}"
        ) from None
    if done.returncode < 0 and order["model"] is not None:
        return {"refused": f"the emulator crashed ({signal.Signals(-done.returncode).name})"}
    return _read(folder, done, task.python)


def _read(folder: Path, done: subprocess.CompletedProcess[str], python: str) -> dict[str, Any]:
    try:
        told: dict[str, Any] = {**json.loads((folder / "result.json").read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise DeviceError(f"{python} does not do the job: {said}: name a Python with onnxruntime-qnn 2") from None
    if "missing" in told:
        raise DeviceError(f"{python} has no {told['missing']}: {python} -m pip install onnxruntime-qnn, or {INSTALL}")
    return told


def _side(told: Mapping[str, Any], folder: Path) -> Side:
    if "refused" in told:
        return Side(refused=re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(told["refused"])))
    try:
        with np.load(folder / "outputs.npz", allow_pickle=False) as archive:
            outputs: dict[str, Array] = {name: archive[f"a{index}"] for index, name in enumerate(told["outputs"])}
        placed = {str(name).removesuffix("ExecutionProvider"): int(count) for name, count in told["placed"].items()}
    except (OSError, KeyError, ValueError, TypeError, AttributeError):
        raise DeviceError(f"what the other Python wrote is not understood: name another in {VARIABLE}") from None
    return Side(outputs=outputs, placed=placed)


def _facts(told: list[Mapping[str, Any]], models: list[ModelFiles], task: _Task) -> dict[str, Any]:
    """Return what the HTP was, and what of each model it did not take."""
    about = next((one for one in told if "onnxruntime" in one), {})
    names = ("onnxruntime", "onnxruntime_qnn", "qnn_sdk", "machine")
    warnings = [
        f"{model.path.name}: nothing runs on the HTP: fix all shapes with --shape or --batch"
        for model, one in zip(models, told, strict=True)
        if "placed" in one and not one["placed"].get("QNNExecutionProvider")
    ]
    return {
        **{name: about[name] for name in names if about.get(name)},
        "backend": "HTP",
        "soc_model": task.soc,
        "emulated": about.get("machine") in ("x86_64", "AMD64"),
        "parts": [one.get("parts") for one in told],
        "left_to_the_cpu": [one.get("left") for one in told],
        "warnings": warnings,
    }
