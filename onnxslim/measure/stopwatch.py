"""Times of models side by side in this process: what a pass needs to know which of several forms is fastest.

Interleaved in random order, each timed run after one of the same model that does not count, so that a busy machine
slows all alike and none pays for another's caches. For claims there is ``latency``, with a process of its own.
"""

from __future__ import annotations

import enum
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxslim.runtime import Feed, ModelData, Session, SessionConfig


class Clock(enum.Enum):
    """Whether a pass asks the clock."""

    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class Rounds:
    """How long to measure: for ``seconds``, and at least and at most so many rounds."""

    seconds: float
    least: int
    most: int
    seed: int = 0


def interleaved(sessions: Sequence[Session], feeds: Sequence[Feed], threads: int, rounds: Rounds) -> list[list[float]]:
    """Return for each session its times in milliseconds, one for each round.

    Thread CPU time where ``threads`` is 1, wall clock otherwise.
    """
    clock: Callable[[], int] = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    order = random.Random(rounds.seed)  # noqa: S311  (an order, not a secret)
    times: list[list[float]] = [[] for _ in sessions]
    deadline = time.perf_counter() + rounds.seconds
    while len(times[0]) < rounds.least or (time.perf_counter() < deadline and len(times[0]) < rounds.most):
        for index in order.sample(range(len(sessions)), len(sessions)):
            sessions[index].run(feeds[index])
            started = clock()
            sessions[index].run(feeds[index])
            times[index].append((clock() - started) / 1e6)
    return times


def time_shares(models: Sequence[ModelData], feeds: Sequence[Feed], rounds: Rounds) -> list[float]:
    """Return each model's time as a share of the first one's, on one thread: the median of the rounds' ratios.

    Raises:
        RuntimeRefusal: onnxruntime does not load or run one of them.
    """
    sessions = [Session(model, SessionConfig(1)) for model in models]
    for session, feed in zip(sessions, feeds, strict=True):
        session.run(feed)
    times = interleaved(sessions, feeds, 1, rounds)
    return [statistics.median(own / first for own, first in zip(mine, times[0], strict=True)) for mine in times]
