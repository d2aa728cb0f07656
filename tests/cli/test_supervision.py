"""The process that watches over the one that works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def supervise(work: str) -> subprocess.Popen[str]:
    lines = [
        "import os, signal, sys, time",
        "from onnxslim.cli.supervision import supervised",
        f"def work(): {work}",
        "sys.exit(supervised(work))",
    ]
    code = "\n".join(lines)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_an_exit_code_is_handed_on(code: int) -> None:
    process = supervise(f"return {code}")
    assert process.communicate()[1] == ""
    assert process.returncode == code


@pytest.mark.parametrize(
    ("killer", "line"),
    [("SIGFPE", "crash (SIGFPE): export it again"), ("SIGSEGV", "crash (SIGSEGV)"), ("SIGKILL", "for want of memory")],
)
def test_a_crash_is_one_line(killer: str, line: str) -> None:
    process = supervise(f"os.kill(os.getpid(), signal.{killer})")
    _, said = process.communicate()
    assert process.returncode == 2
    assert said.startswith("onnxslim: ")
    assert said.count("\n") == 1
    assert line in said


def test_a_signal_that_somebody_sends_ends_both_quietly() -> None:
    process = supervise("print(os.getpid(), flush=True); time.sleep(30)")
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (128 + signal.SIGTERM, "")
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_more_memory_than_the_machine_has_is_an_exception() -> None:
    process = supervise("import numpy; numpy.ones(10**12); return 0")
    _, said = process.communicate()
    assert "MemoryError" in said
    assert process.returncode == 1
