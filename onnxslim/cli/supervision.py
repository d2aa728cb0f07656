"""A process that watches over the one that works: a crash inside onnxruntime or onnx becomes one line.

Models are untrusted, and both libraries are C++: a model may divide by zero in a kernel, and no exception tells. Where
the system can fork, the command line runs in a child, and what kills that is said as plainly as any other fault.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from onnxslim.cli.output import Output

_BAD_INPUT = 2


def supervised(work: Callable[[], int]) -> int:
    """Run ``work`` in a child process and return its exit code; without fork, run it here.

    A child that a signal kills gives 2 and one line, unless somebody sent us that signal: then 128 and its number.
    """
    if not hasattr(os, "fork"):
        return work()
    child = os.fork()
    if child == 0:
        _limit_memory()
        sys.exit(work())
    asked = _forward(signal.SIGTERM, child)
    code = os.waitstatus_to_exitcode(_wait(child))
    if code >= 0:
        return code
    if asked:
        return 128 - code
    Output.complain(_epitaph(signal.Signals(-code)))
    return _BAD_INPUT


def _epitaph(killer: signal.Signals) -> str:
    if killer is signal.SIGKILL:
        return (
            "the run was killed, probably for want of memory: free some, fix smaller shapes with --shape, or add swap"
        )
    return f"the model made onnxruntime or onnx crash ({killer.name}): export it again; nothing was written"


def _forward(kind: signal.Signals, child: int) -> list[int]:
    """Hand a signal that we are sent to the child; return the list of those that were."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        os.kill(child, number)

    signal.signal(kind, handle)
    return seen


def _wait(child: int) -> int:
    while True:
        try:
            return os.waitpid(child, 0)[1]
        except KeyboardInterrupt:  # the terminal told the child too, which cleans up and says so
            continue


def _limit_memory() -> None:
    """Let an allocation beyond the machine's memory fail, which is an exception, instead of filling all of it."""
    if sys.platform != "linux":
        return
    import resource

    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = physical if hard == resource.RLIM_INFINITY else min(physical, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
