"""The child process of a latency measurement: ``python -m onnxslim.measure.race JOB.json`` prints one line of JSON.

It holds all models at once and runs them interleaved (see ``stopwatch``). The first model runs as an extra arm
against itself (A/A), which tells how large a difference this machine shows where there is none.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.measure.stopwatch import Rounds, interleaved
from onnxslim.runtime import Feed, RuntimeRefusal, Session, SessionConfig

WARMUP = 3

Job = dict[str, Any]
"""What to do, as latency.py writes it."""


def main(job_file: str) -> None:
    """Run the job and print its result, or say on stderr why onnxruntime does not."""
    job = json.loads(Path(job_file).read_text())
    with np.load(job["feed"], allow_pickle=False) as archive:
        feed = {name: archive[f"a{index}"] for index, name in enumerate(job["inputs"])}
    try:
        result = _alone(job, feed) if job["mode"] == "alone" else _race(job, feed)
    except RuntimeRefusal as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(result) + "\n")


def _alone(job: Job, feed: Feed) -> dict[str, float]:
    """Load one model, run it, and tell load time and peak memory of this process."""
    started = time.perf_counter()
    session = Session(Path(job["models"][0]), SessionConfig(job["threads"], patience=job["patience"]))
    loaded = time.perf_counter()
    for _ in range(2):
        session.run(feed)
    result = {"load_ms": (loaded - started) * 1e3}
    peak = peak_resident_bytes()
    return result if peak is None else {**result, "peak_rss_bytes": peak}


def peak_resident_bytes() -> int | None:
    """Return the most memory this process ever held, None where the system does not tell.

    On Linux from /proc: getrusage would also count the parent's memory, which is this process's until it executes.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _race(job: Job, feed: Feed) -> dict[str, object]:
    """Time all models round after round until the time is up."""
    threads: int = job["threads"]
    models = [Path(path) for path in job["models"]]
    sessions = [Session(path, SessionConfig(threads)) for path in (*models, models[0])]
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for session in sessions:
        for _ in range(WARMUP):
            session.run(feed)
    rounds = Rounds(job["seconds"], job["least"], job["most"], job["seed"])
    return {"times_ms": interleaved(sessions, [feed] * len(sessions), threads, rounds)}


if __name__ == "__main__":
    main(sys.argv[1])
