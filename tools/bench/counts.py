"""Instructions on emulated ARM: of every network as it is, as int8 and pruned, beside this machine's times.

All three are made here, on few images, and counted several times in processes of their own: what differs between these
is what the count is worth. A ratio of counts that is more than a quarter away from the ratio of times has its reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import quantize_data
from lossy_worker import PREPROCESS
from rows import cell

import onnxslim
from onnxslim import Model, Samples
from onnxslim.errors import UserError
from onnxslim.measure import Latency, RaceSettings, compare_latency
from onnxslim.pipeline.base import silent
from onnxslim.runtime import Feed
from onnxslim.workflow.devices import Measured, measure_devices, with_devices
from onnxslim.workflow.source import Source, open_source

SPREAD = 0.001
"""Largest difference of counts of one model, as a fraction of the smallest."""
RUNS = 3
PIPELINES = {"int8": "insert-qdq", "pruned": "prune-filters{macs=0.7 clock=off samples=64}"}
HEADER = (
    f"{'model':20}{'device':16}{'as':8}{'millions of instructions':>34}{'spread':>9}{'fewer':>7}{'here':>7}"
    f"{'95 % interval':>15}  {'claim':8}{'apart':>6}"
)


@dataclass(frozen=True)
class Wish:
    """What the command line asked for."""

    devices: tuple[str, ...]
    only: tuple[str, ...] = ()
    samples: int = 48
    """Images that calibrate."""
    size: int = 160
    """Pixels along both sides where a network takes any number."""
    seconds: float = 10.0
    """Of each race on this machine."""


@dataclass(frozen=True)
class Made:
    """A network in all its forms, the float one first, and what it is fed."""

    names: tuple[str, ...]
    sources: tuple[Source, ...]
    feed: Feed


def run(folder: Path, wish: Wish) -> int:
    """Print rows as they come; return 1 where counts of one model differ by more than a thousandth."""
    print(HEADER + "\n" + "-" * len(HEADER), flush=True)
    missed = 0
    for path in sorted(folder.glob("*.onnx")):
        if wish.only and not any(name in path.stem for name in wish.only):
            continue
        try:
            missed += _network(path, wish)
        except UserError as error:
            print(f"{path.stem}: skipped: {error}", flush=True)
    print(
        f"\n{RUNS} counts, each in a process of its own; fewer: instructions of the network as it is for one of this;"
    )
    print("here: the same of this machine's times, interleaved; apart: more than a quarter between the two ratios")
    return int(missed > 0)


def _network(path: Path, wish: Wish) -> int:
    started = time.perf_counter()
    made = _make(path, wish)
    print(f"{path.stem}: {', '.join(made.names)} made in {time.perf_counter() - started:.0f} s", flush=True)
    race = RaceSettings(wish.seconds)
    started = time.perf_counter()
    hosts = compare_latency([source.placed.data for source in made.sources], made.feed, race)
    print(f"{path.stem}: raced here for {time.perf_counter() - started:.0f} s", flush=True)
    return sum(_device(path.stem, name, made, hosts, race) for name in wish.devices)


def _device(model: str, device: str, made: Made, hosts: tuple[Latency, ...], race: RaceSettings) -> int:
    placed = [source.placed for source in made.sources]
    seconds, found = [], []
    for _ in range(RUNS):
        started = time.perf_counter()
        found.append(measure_devices([device], placed, made.feed, race, silent))
        seconds.append(time.perf_counter() - started)
    print(f"{model}: counted on {device} in {', '.join(f'{each:.0f}' for each in seconds)} s", flush=True)
    missed = 0
    for line, bad in _rows(model, device, made, with_devices(hosts, found[0]), found):
        print(line, flush=True)
        missed += bad
    return missed


def _rows(
    model: str, device: str, made: Made, hosts: tuple[Latency, ...], found: Sequence[Measured]
) -> Iterator[tuple[str, bool]]:
    for index, name in enumerate(made.names):
        sides = [each.results[0].sides[index] for each in found]
        counts = [side.instructions for side in sides if side.instructions]
        if not counts:
            yield f"{model:20}{device:16}{name:8}does not run there: {sides[0].refused}", False
            continue
        spread = (max(counts) - min(counts)) / min(counts)
        told = "  ".join(f"{count / 1e6:.3f}" for count in counts)
        start = f"{model:20}{device:16}{name:8}{told:>34}{100 * spread:>8.4f}%"
        yield start + _beside(hosts[index - 1] if index else None), spread > SPREAD


def _beside(host: Latency | None) -> str:
    if host is None:
        return ""
    reading = host.devices[0]
    span = "" if host.interval is None else "{:.2f} to {:.2f}".format(*host.interval)
    claim = "" if host.claim is None else host.claim.value
    ratios = cell(reading.speedup, 7, ".2f") + cell(host.speedup, 7, ".2f")
    apart = "" if reading.disagrees is None else f"\n    {reading.disagrees}"
    return f"{ratios}{span:>15}  {claim:8}{'yes' if apart else 'no':>6}{apart}"


# ---- what is measured --------------------------------------------------------------------------------------------


def _make(path: Path, wish: Wish) -> Made:
    """Return the network as it is, and what the pipelines make of it; one that fails is left out, with a line.

    Raises:
        UserError: the network cannot be used.
    """
    samples = _samples(path, wish)
    feed = next(iter(samples.for_inputs(Model.load(path).inputs))).feed
    shapes = {name: array.shape for name, array in feed.items()}
    names, sources = ["float"], [open_source(path, shapes)]
    for name, spec in PIPELINES.items():
        result = onnxslim.optimize(path, samples, passes=spec, shapes=shapes, bench=False)
        own = result.report.passes[-1]
        if own.status != "kept":
            print(f"{path.stem}: {name}: {own.status}: {own.reason}", flush=True)
            continue
        names.append(name)
        sources.append(open_source(result.model.to_bytes()))
    return Made(tuple(names), tuple(sources), feed)


def _samples(path: Path, wish: Wish) -> Samples:
    """Return images where the folder has some that fit, otherwise random values."""
    case = next((case for case in quantize_data.CASES if case.model == path.stem), None)
    if case is None:
        return Samples.synthetic(Model.load(path).inputs, wish.samples)
    place = path.parent / ("cifar10/calib.npz" if case.kind == "cifar10" else "imagenet/calib")
    given = quantize_data.preprocess(case)
    if case.kind == "pages":
        given = PREPROCESS["pages"].replace("320x320", f"{wish.size}x{wish.size}")
    return Samples.from_path(place, preprocess=given).shuffled(quantize_data.SEED).take(wish.samples)
