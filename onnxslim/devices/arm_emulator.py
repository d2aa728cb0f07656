"""Running an emulated Python: the same from run to run, heard while it works, ended where it falls silent."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from onnxslim.devices.arm_commands import last_line
from onnxslim.devices.arm_cpus import Cpu
from onnxslim.devices.arm_home import Home
from onnxslim.errors import DeviceError

ERRORS = "errors.txt"
"""Where what it complains about goes, in its folder."""


@dataclass(frozen=True)
class Emulation:
    """A processor and how it is used.

    Args:
        home: where everything is.
        cpu: the processor.
        patience: seconds without a word after which a run is ended.
        compiles: keep the compiled forms of modules beside them, so that later runs start quickly.
    """

    home: Home
    cpu: Cpu
    patience: float
    compiles: bool = False

    def run(self, script: Path, folder: Path, log: str) -> Iterator[dict[str, Any]]:
        """Run a script, its clock counting instructions, and yield what it says.

        Args:
            script: prints one JSON object on each line.
            folder: where it runs; relative names in there look the same to each run.
            log: a name in ``folder`` for the records of the counter.

        Raises:
            DeviceError: it crashed or fell silent; with its last line.
        """
        machine = ["-cpu", self.cpu.model, "-L", str(self.home.prefix(self.cpu)), "-seed", "0"]
        plugin = str(self.home.counter).replace(",", ",,")  # as qemu's options escape a comma
        counting = ["-plugin", f"{plugin},log={log}"]
        python = [str(self.home.python), *_PYTHON_OPTIONS, *([] if self.compiles else ["-B"]), str(script)]
        yield from self._listen([*self.home.tool("qemu-aarch64"), *machine, *counting, *python], folder)

    def _listen(self, command: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
        with (
            (folder / ERRORS).open("w", encoding="utf-8") as errors,
            subprocess.Popen(  # noqa: S603  (what setting up has fetched)
                command,
                cwd=folder,
                env=_environment(self.home),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as process,
        ):
            assert process.stdout is not None  # noqa: S101  (a pipe was asked for)
            try:
                for line in self._lines(process.stdout):
                    if line.startswith(b"{"):  # libraries may print too
                        yield json.loads(line)
                code = process.wait()
            finally:
                process.kill()
        self._check(code, folder / ERRORS)

    def _lines(self, pipe: IO[bytes]) -> Iterator[bytes]:
        """Yield whole lines as they come."""
        pending = b""
        while True:
            ready, _, _ = select.select([pipe], [], [], self.patience)
            if not ready:
                taken = f"took over {self.patience:g} s for one step"
                raise DeviceError(f"onnxruntime on an emulated {self.cpu.name} {taken}: try a smaller model or input")
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return
            *whole, pending = (pending + chunk).split(b"\n")
            yield from whole

    def _check(self, code: int, errors: Path) -> None:
        if code == -signal.SIGKILL:
            raise DeviceError(f"the emulated {self.cpu.name} was killed, probably for want of memory: free some")
        if code != 0:
            said = last_line(errors.read_text(encoding="utf-8", errors="replace"))
            raise DeviceError(f"onnxruntime crashed on an emulated {self.cpu.name} ({said}): {_CHECK}")


_CHECK = "see whether `onnxslim validate` runs the model on this machine"
_PYTHON_OPTIONS = ("-S", "-s", "-P")
"""No site, no user's site, no script's folder: the wheels' folder alone."""


def _environment(home: Home) -> dict[str, str]:
    """Return all that the emulated one is told of the outside: the same from run to run and from user to user."""
    return {
        "PYTHONHOME": str(home.root / "usr"),
        "PYTHONPATH": str(home.site),
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "LC_ALL": "C.UTF-8",
        "ORT_DISABLE_TELEMETRY": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
