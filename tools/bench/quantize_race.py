"""Latency of quantized files: all of one network's in one race, single-threaded, beside float and the fastest peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from quantize_arms import Bar, Tool
from quantize_data import SEED
from quantize_verdict import Result

from onnxslim.measure.latency import Times, ratio_with_interval
from onnxslim.runtime import PATIENT

SECONDS, LEAST, MOST = 20.0, 25, 200


@dataclass(frozen=True)
class Row:
    """What is printed of one arm."""

    arm: str
    text: str
    missed: bool


def race(source: Path, calibration: Path, results: Sequence[Result], scratch: Path) -> Iterator[Row]:
    """Yield a row for each file.

    A bar is missed where the interval of the ratio to the peers' fastest lies beyond what float beside itself shows.
    """
    paths = [source, *(result.made.path for result in results)]
    times = _times(paths, calibration, scratch)
    if isinstance(times, str):
        yield Row("latency", f"MISSED: {times}", True)
        return
    _, twin = ratio_with_interval(times[0], times[-1], SEED)
    noise = max(abs(twin[0] - 1), abs(twin[1] - 1))
    yield Row("float", f"{np.median(times[0]):>9.2f} ms; beside itself [{twin[0]:.3f}, {twin[1]:.3f}]", False)
    own = dict(zip([result.arm.name for result in results], times[1:-1], strict=True))
    theirs = {result.arm.name: own[result.arm.name] for result in results if result.arm.tool is not Tool.OURS}
    fastest = min(theirs, key=lambda name: float(np.median(theirs[name])), default=None)
    for result in results:
        mine = own[result.arm.name]
        text = f"{np.median(mine):>9.2f} ms; float {_ratio(times[0], mine)[0]}"
        missed = False
        if fastest is not None and fastest != result.arm.name:
            told, high = _ratio(theirs[fastest], mine)
            text += f"; {fastest} {told}"
            missed = Bar.LATENCY in result.arm.bars and high < 1 - noise
        mark = f"  {'MISSED' if missed else 'ok'}" if Bar.LATENCY in result.arm.bars else ""
        yield Row(result.arm.name, text + mark, missed)


def _ratio(reference: Times, candidate: Times) -> tuple[str, float]:
    """Return how many times as long ``reference`` takes, as text, and the interval's upper end."""
    ratio, (low, high) = ratio_with_interval(reference, candidate, SEED)
    return f"{ratio:.2f}x [{low:.3f}, {high:.3f}]", high


def _times(paths: Sequence[Path], calibration: Path, scratch: Path) -> list[Times] | str:
    """Return milliseconds of each file, the first once more at the end; or why there are none."""
    with np.load(calibration, allow_pickle=False) as archive:
        feed = {name: archive[name][:1] for name in archive.files if name != "labels"}
    np.savez(
        scratch / "feed.npz", allow_pickle=False, **{f"a{index}": value for index, value in enumerate(feed.values())}
    )
    job = {"mode": "race", "models": [str(path) for path in paths], "inputs": list(feed), "threads": 1, "seed": SEED}
    job |= {"feed": str(scratch / "feed.npz"), "seconds": SECONDS, "least": LEAST, "most": MOST, "patience": PATIENT}
    (scratch / "race.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "onnxslim.measure.race", str(scratch / "race.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return [np.array(row) for row in json.loads(done.stdout.splitlines()[-1])["times_ms"]]
