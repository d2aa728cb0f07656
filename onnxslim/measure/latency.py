"""Latency of a candidate against its reference on this machine, honest about its own noise.

The models race in one child process (see ``race``): interleaved in random order, thread CPU time with one thread and
wall clock with more. The speed-up is the median of per-round ratios, its interval a seeded bootstrap of rounds. The
reference also races itself; when that shows a difference that matters against the effect, the result is not ``stable``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import ModelError
from onnxslim.ir.loading import total_bytes
from onnxslim.measure.layer_times import LayerLatency, Profiled, layer_table
from onnxslim.measure.race import WARMUP
from onnxslim.runtime import PATIENT, Feed, ModelData, load_proto
from onnxslim.runtime.profile import profile

Progress = Callable[[str, int, int], None]
Times = npt.NDArray[np.float64]

LEAST_ROUNDS, MOST_ROUNDS = 15, 200
NOISE = 0.03
"""An A/A difference up to this is a quiet machine."""
CLAIM = 1.02
"""A model is called faster only where more than this is sure."""
SURE = 0.99
"""How sure."""


class Claim(StrEnum):
    """What a race proves."""

    FASTER = "faster"
    SLOWER = "slower"
    NOTHING = "nothing"


@dataclass(frozen=True)
class LatencyProtocol:
    """How it was measured."""

    threads: int
    warmup: int
    runs: int
    order: str
    clock: str


@dataclass(frozen=True)
class LatencySide:
    """One model's times in milliseconds, and the peak resident memory of a process that runs it alone."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    load_ms: float | None = None
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Latency:
    """A race between a reference and a candidate; ``speedup`` is reference / candidate."""

    protocol: LatencyProtocol
    reference: LatencySide
    candidate: LatencySide | None = None
    speedup: float | None = None
    interval: tuple[float, float] | None = None
    stable: bool | None = None
    claim: Claim | None = None
    layers: tuple[LayerLatency, ...] = ()
    devices: tuple[Any, ...] = ()
    """What other devices say, in the report's terms."""


@dataclass(frozen=True)
class RaceSettings:
    """How long and how to measure."""

    seconds: float = 15.0
    threads: int = 1
    seed: int = 0
    layers: bool = True
    patience: float = PATIENT
    """Seconds that the first run of a model with loops may take."""


def compare_latency(
    models: Sequence[ModelData], feed: Feed, settings: RaceSettings | None = None, progress: Progress | None = None
) -> tuple[Latency, ...]:
    """Race ``models``; return one result for each model after the first, which is the reference.

    With a single model, the one result holds its times alone.

    Raises:
        ModelError: onnxruntime does not load or run one of them, or memory is too small for all of them at once.
    """
    settings = settings or RaceSettings()
    _refuse_too_large(models)
    report = progress or (lambda what, done, total: None)
    steps = len(models) + 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [_file(model, folder / f"{index}.onnx") for index, model in enumerate(models)]
        arrays: dict[str, Any] = {f"a{index}": value for index, value in enumerate(feed.values())}
        np.savez(folder / "feed.npz", **arrays)
        job = {"inputs": list(feed), "feed": str(folder / "feed.npz"), "threads": settings.threads}
        job["patience"] = settings.patience
        alone = []
        for index, path in enumerate(paths):
            alone.append(_child(folder, {**job, "mode": "alone", "models": [str(path)]}))
            report("latency", index + 1, steps)
        limits = {"seconds": settings.seconds, "seed": settings.seed, "least": LEAST_ROUNDS, "most": MOST_ROUNDS}
        raced = _child(folder, {**job, **limits, "mode": "race", "models": [str(path) for path in paths]})
    report("latency", steps, steps)
    results = _results([np.array(times) for times in raced["times_ms"]], alone, settings)
    return tuple(_with_layers(results, models, feed)) if settings.layers else results


def _refuse_too_large(models: Sequence[ModelData]) -> None:
    """All models are in memory at once, the first one twice, each with copies of its weights in kernels' layouts."""
    free = available_memory()
    needed = 2 * sum(_size(model) for model in (models[0], *models))
    if free is not None and needed > free:
        raise ModelError(
            f"latency cannot be measured: {len(models) + 1} models at once need {needed / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free: measure on a larger machine, or use --no-bench"
        )


def _size(model: ModelData) -> int:
    return total_bytes(model) if isinstance(model, Path) else len(model)


def available_memory() -> int | None:
    """Return the bytes that new processes may take without swapping, None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _file(model: ModelData, place: Path) -> Path:
    """Return the file of ``model``, written to ``place`` if it has none."""
    if isinstance(model, Path):
        return model.absolute()
    place.write_bytes(model)
    return place


def _child(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run one job in a process of its own."""
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job))
    done = subprocess.run(  # noqa: S603  (our own module, our own files)
        [sys.executable, "-m", "onnxslim.measure.race", str(job_file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(job["threads"])},
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModelError(f"latency cannot be measured: {lines[-1]}: check the model, or use --no-bench")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---- statistics --------------------------------------------------------------------------------------------------


def _results(times: Sequence[Times], alone: Sequence[dict[str, Any]], settings: RaceSettings) -> tuple[Latency, ...]:
    """Turn times (all models, then the first once more) into results."""
    protocol = LatencyProtocol(
        threads=settings.threads,
        warmup=WARMUP,
        runs=len(times[0]),
        order="interleaved, seeded random order",
        clock="thread CPU time" if settings.threads == 1 else "wall clock",
    )
    sides = [_side(values, extra) for values, extra in zip(times, alone, strict=False)]
    if len(sides) == 1:
        return (Latency(protocol, sides[0]),)
    even, twin = ratio_with_interval(times[0], times[-1], settings.seed)
    results = []
    for side, values in zip(sides[1:], times[1:-1], strict=True):
        speedup, interval = ratio_with_interval(times[0], values, settings.seed)
        claim = claimed(times[0], values, even, settings.seed)
        results.append(Latency(protocol, sides[0], side, speedup, interval, is_stable(speedup, twin), claim))
    return tuple(results)


def claimed(reference: Times, candidate: Times, even: float, seed: int) -> Claim:
    """Return what is sure at 99 %, the interval widened by how far the reference was from itself (``even``)."""
    _, (low, high) = ratio_with_interval(reference, candidate, seed, SURE)
    off = max(even, 1 / even)
    if low / off > CLAIM:
        return Claim.FASTER
    return Claim.SLOWER if high * off < 1 / CLAIM else Claim.NOTHING


def _side(times: Times, alone: dict[str, Any]) -> LatencySide:
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return LatencySide(p50, p90, p99, float(times.mean()), alone.get("load_ms"), alone.get("peak_rss_bytes"))


def ratio_with_interval(
    reference: Times, candidate: Times, seed: int, sure: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Return the median of per-round ratios and its bootstrap interval (2,000 draws of rounds)."""
    ratios = reference / np.maximum(candidate, 1e-9)
    draws = np.random.default_rng(seed).integers(0, len(ratios), (2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), ((1 - sure) / 2, (1 + sure) / 2))
    return float(np.median(ratios)), (float(low), float(high))


def is_stable(speedup: float, twin: tuple[float, float]) -> bool:
    """Whether the machine was quiet: the A/A interval is within 3 % of one, or within half the effect."""
    noise = max(abs(twin[0] - 1), abs(twin[1] - 1))
    return noise <= max(NOISE, 0.5 * abs(speedup - 1))


# ---- layers ------------------------------------------------------------------------------------------------------


def _with_layers(results: Sequence[Latency], models: Sequence[ModelData], feed: Feed) -> list[Latency]:
    """Add the per-layer table to each result, from profiled runs that are separate from the timed ones."""
    sides = [results[0].reference, *(result.candidate for result in results if result.candidate is not None)]
    profiled = [
        Profiled(load_proto(model).graph, profile(model, feed), 1e3 * side.p50_ms)
        for model, side in zip(models, sides, strict=True)
    ]
    candidates: Sequence[Profiled | None] = profiled[1:] or [None]
    return [
        replace(result, layers=layer_table(profiled[0], candidate))
        for result, candidate in zip(results, candidates, strict=True)
    ]
