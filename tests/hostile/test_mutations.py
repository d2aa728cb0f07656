"""Mutated models: whatever a file holds, the command answers with 0, or with 2 and one line, and writes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


def answers(folder: Path, first: int, count: int, seconds: float) -> None:
    command = [sys.executable, str(WORKER), str(folder), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    log = folder / "log"
    last = log.read_text().splitlines()[-1] if log.exists() else "start"
    assert done.returncode in (0, 1), f"the process died ({done.returncode}) at {last}: {done.stderr[-500:]}"
    assert done.returncode == 0, done.stdout


def test_a_batch_of_mutated_models(tmp_path: Path) -> None:
    answers(tmp_path, 0, 100, 60)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 7000, 1000))
def test_thousands_of_mutated_models(tmp_path: Path, first: int) -> None:
    answers(tmp_path, first, 1000, 600)
