"""Worker processes that survive their cases: one that crashes or hangs is replaced, and the case is a result."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from tools.conformance import cases
from tools.conformance.judge import Result, crash, judge

_START_SECONDS = 60.0
"""What a worker may take longer for its first case: it makes all of onnx's node tests."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    case: str = ""
    deadline: float = 0.0


def run_all(names: Sequence[str], jobs: int, seconds: float) -> list[Result]:
    """Judge every case, each within ``seconds``, in ``jobs`` processes."""
    waiting, results, busy = deque(names), list[Result](), list[_Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                busy.append(_given(_start(), waiting.popleft(), seconds + _START_SECONDS))
            ready = wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in list(busy):
                answer = _answer(worker, worker.pipe in ready)
                if answer is None:
                    continue
                results += answer
                busy.remove(worker)
                if worker.process.is_alive() and waiting:
                    busy.append(_given(worker, waiting.popleft(), seconds))
                else:
                    worker.process.kill()
                _progress(len(results), len(waiting))
    finally:
        for worker in busy:
            worker.process.kill()
    return results


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _given(worker: _Worker, case: str, seconds: float) -> _Worker:
    worker.case, worker.deadline = case, time.monotonic() + seconds
    worker.pipe.send(case)
    return worker


def _answer(worker: _Worker, ready: bool) -> list[Result] | None:
    """Return the results of the worker's case, None while there are none yet."""
    if ready:
        try:
            answer: list[Result] = worker.pipe.recv()
            return answer
        except (EOFError, OSError):
            worker.process.join(1)
            return [crash(worker.case, f"the process died with {worker.process.exitcode}")]
    if time.monotonic() > worker.deadline:
        worker.process.kill()
        worker.process.join(1)
        return [crash(worker.case, "no end within the time limit")]
    return None


def _work(pipe: Any) -> None:
    """Judge cases until there are none."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())  # onnxruntime's own complaints
    while True:
        name = pipe.recv()
        try:
            pipe.send(judge(cases.load(name)))
        except Exception as error:  # that is what is looked for
            pipe.send([crash(name, error)])


def _progress(done: int, left: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{left:5} cases left, {done} results ")
