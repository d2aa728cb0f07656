"""Runs mutated models through the command line, one after the other, and writes each seed down before it is run.

``worker.py FOLDER FIRST COUNT``: a crash of this process leaves the seed that caused it as the last line of FOLDER/log.
"""

from __future__ import annotations

import contextlib
import io
import random
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from onnxslim.cli.main import main  # noqa: E402
from tools.fuzz import mutators  # noqa: E402

ADDRESS_SPACE = 6 << 30


def run(data: bytes, command: str, folder: Path) -> str | None:
    """Return what is wrong with the answer to ``data``, None where nothing is."""
    model, out = folder / "model.onnx", folder / "out.onnx"
    model.write_bytes(data)
    arguments = [command, str(model)]
    if command == "optimize":
        arguments += ["-o", str(out), "--no-bench", "--threads", "1"]
    before = set(folder.iterdir())
    complaint, started = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    seconds = time.monotonic() - started
    written = set(folder.iterdir()) - before
    for path in written:
        path.unlink()
    if seconds > 10:
        return f"{seconds:.0f} s"
    if code == 0:
        return None
    if code != 2 or complaint.getvalue().count("\n") != 1:
        return f"exit code {code}: {complaint.getvalue()!r}"
    return f"written: {written}" if written else None


def batch(folder: Path, first: int, count: int) -> int:
    """Run seeds ``first`` to ``first + count - 1``; return 1 when any answer was wrong."""
    pool = mutators.seeds(ROOT / "models")
    wrong = 0
    with (folder / "log").open("w") as log:
        for seed in range(first, first + count):
            rng = random.Random(seed)  # noqa: S311
            log.write(f"seed {seed}\n")
            log.flush()
            fault = run(mutators.mutate(rng.choice(pool), rng), rng.choice(("optimize", "optimize", "inspect")), folder)
            if fault is not None:
                wrong += 1
                sys.stdout.write(f"seed {seed}: {fault}\n")
    return int(wrong > 0)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    sys.exit(batch(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
