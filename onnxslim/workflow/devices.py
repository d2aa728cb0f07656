"""Models on other devices than this machine's own CPU, in the report's terms, beside what the host said."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from onnxslim.devices.base import DeviceResult, Job, Kind, LayerCount, Side
from onnxslim.devices.finding import find_device
from onnxslim.ir.saving import Placed
from onnxslim.measure import Comparison, Latency, RaceSettings
from onnxslim.measure.latency import claimed, ratio_with_interval
from onnxslim.measure.layer_times import Profiled, by_origin, heads_of, layer_table, origins_of
from onnxslim.pipeline.base import Progress
from onnxslim.report.evidence import DeviceLayer, DeviceReading, DeviceSide
from onnxslim.runtime import Feed, Reading, RuntimeRefusal, Session, SessionConfig, load_proto

APART = 1.25
"""Host and device disagree where one ratio is so many times the other."""
NAMED = 3
"""Layers that are named as the cause."""


@dataclass(frozen=True)
class Measured:
    """What devices found of models, before it is compared to the host."""

    results: tuple[DeviceResult, ...]
    graphs: tuple[onnx.GraphProto, ...]
    outputs: tuple[Mapping[str, object], ...]
    """Of this machine's kernels, kept from saturating where that can be."""


def measure_devices(
    names: Sequence[str], models: Sequence[Placed], feed: Feed, race: RaceSettings, progress: Progress
) -> Measured:
    """Run ``models``, the first of which is the reference, on every device.

    Args:
        names: as ``--device`` spells them.

    Raises:
        DeviceError: a device is not there, not set up, or gave up.
    """
    devices = [find_device(name) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        paths = [_file(model, Path(folder) / f"{index}.onnx") for index, model in enumerate(models)]
        job = Job(paths, feed, race.seconds, race.threads, race.seed, progress)
        results = tuple(device.measure(job) for device in devices)
        outputs = tuple(_outputs(path, feed) for path in paths)
        return Measured(results, tuple(load_proto(path).graph for path in paths), outputs)


def check_devices(names: Sequence[str]) -> None:
    """Find out before long work whether devices can be measured on.

    Raises:
        DeviceError: there is no such device, or it is known not to be ready.
    """
    for name in names:
        find_device(name).check()


def with_devices(hosts: Sequence[Latency], measured: Measured) -> tuple[Latency, ...]:
    """Return the host's results with the devices' beside them.

    Args:
        hosts: of each model after the first, or of the first alone.
        measured: the same models.
    """
    return tuple(
        replace(host, devices=tuple(_reading(found, index, measured, host) for found in measured.results))
        for index, host in enumerate(hosts, 1)
    )


def _file(model: Placed, place: Path) -> Path:
    if isinstance(model.data, Path):
        return model.data.absolute()
    place.write_bytes(model.data)
    return place


def _outputs(path: Path, feed: Feed) -> Mapping[str, object]:
    """Run a model here; integers as ARM multiplies them, unless onnxruntime does not load the model so."""
    try:
        return Session(path, SessionConfig(reading=Reading.ARM)).run(feed)
    except RuntimeRefusal:
        return Session(path, SessionConfig()).run(feed)


def _reading(found: DeviceResult, index: int, measured: Measured, host: Latency) -> DeviceReading:
    """Return what a device says of the first model and the one at ``index``, which may not be there."""
    reference = found.sides[0]
    candidate = found.sides[index] if index < len(found.sides) else None
    reading = DeviceReading(
        name=found.name,
        kind=found.kind.value,
        facts={name: _text(value) for name, value in found.facts.items() if name != "warnings"} or None,
        warnings=tuple(found.facts.get("warnings", ())),
        reference=_side(reference, measured.outputs[0]),
        candidate=None if candidate is None else _side(candidate, measured.outputs[index]),
        layers=_counts(reference, candidate, measured.graphs, index)
        if found.kind is Kind.COUNTED
        else _times(reference, candidate, measured.graphs, index),
    )
    if candidate is None or candidate.refused is not None:
        return reading
    reading = reading.model_copy(update=_compared(found, candidate))
    return reading.model_copy(update={"disagrees": _disagreement(reading, host)})


def _compared(found: DeviceResult, candidate: Side) -> dict[str, object]:
    """Return the ratio of a pair: of counts, which are exact, or of times, with what is sure of it."""
    reference = found.sides[0]
    if reference.instructions and candidate.instructions:
        return {"speedup": reference.instructions / candidate.instructions}
    if not reference.times_ms or not candidate.times_ms:
        return {}
    ours, theirs = np.array(reference.times_ms), np.array(candidate.times_ms)
    speedup, interval = ratio_with_interval(ours, theirs, 0)
    even = ratio_with_interval(ours, np.array(found.twin_ms), 0)[0] if found.twin_ms else 1.0
    return {"speedup": speedup, "interval": interval, "claim": claimed(ours, theirs, even, 0).value}


def _side(side: Side, expected: Mapping[str, object]) -> DeviceSide:
    return DeviceSide(
        p50_ms=float(np.median(side.times_ms)) if side.times_ms else None,
        load_ms=side.load_ms,
        instructions=side.instructions,
        sqnr_db=_sqnr(side, expected),
        placed=dict(side.placed) or None,
        refused=side.refused,
    )


def _sqnr(side: Side, expected: Mapping[str, object]) -> float | None:
    """Return how near the device's outputs are to the host's, in dB; None where it returns none."""
    shared = {name: value for name, value in expected.items() if name in side.outputs}
    if not shared:
        return None
    comparison = Comparison()
    comparison.add(shared, {name: side.outputs[name] for name in shared})
    found = [output.sqnr_db for output in comparison.result() if output.sqnr_db is not None]
    return min(found, default=None)


# ---- layers ------------------------------------------------------------------------------------------------------


def _times(
    reference: Side, candidate: Side | None, graphs: Sequence[onnx.GraphProto], index: int
) -> tuple[DeviceLayer, ...]:
    """Return the times of layers, where the device told those of nodes; they add up to the medians."""
    sides = [_profiled(side, graph) for side, graph in ((reference, graphs[0]), (candidate, graphs[index]))]
    if sides[0] is None or (candidate is not None and sides[1] is None):
        return ()
    return tuple(
        DeviceLayer(
            node=row.node,
            op=row.op,
            origin=row.origin,
            reference_us=row.reference_us,
            candidate_us=None if candidate is None else row.candidate_us,
        )
        for row in by_origin(layer_table(sides[0], sides[1]))
    )


def _profiled(side: Side | None, graph: onnx.GraphProto) -> Profiled | None:
    if side is None or not side.nodes or not side.times_ms:
        return None
    return Profiled(graph, side.nodes, 1000 * float(np.median(side.times_ms)))


def _counts(
    reference: Side, candidate: Side | None, graphs: Sequence[onnx.GraphProto], index: int
) -> tuple[DeviceLayer, ...]:
    """Return a row for each layer of the reference, and one for each operator that the runtime inserted."""
    graph = graphs[0]
    timed = {row.origin for row in reference.layers if row.origin is not None}
    heads = heads_of(graph, timed)
    rows: dict[tuple[str, bool], list[list[LayerCount]]] = defaultdict(lambda: [[], []])
    for row in reference.layers:
        rows[_key(row, heads)][0].append(row)
    if candidate is not None:
        origins = origins_of(graph, graphs[index])
        origins = {name: heads.get(layer, layer) for name, layer in origins.items()}
        for row in candidate.layers:
            rows[_key(row, origins)][1].append(row)
    return tuple(_layer(name, inserted, *sides) for (name, inserted), sides in rows.items())


def _key(row: LayerCount, origins: Mapping[str, str]) -> tuple[str, bool]:
    return (row.op or row.node, True) if row.origin is None else (origins.get(row.origin, row.origin), False)


def _layer(name: str, inserted: bool, before: Sequence[LayerCount], after: Sequence[LayerCount]) -> DeviceLayer:
    own = next((row for row in (*after, *before) if row.origin == name), (*after, *before)[0])
    kinds: dict[str, int] = defaultdict(int)
    for row in after or before:
        for kind, count in row.classes.items():
            kinds[kind] += count
    return DeviceLayer(
        node=name,
        op=own.op,
        origin=None if inserted else name,
        reference=sum(row.instructions for row in before) if before else None,
        candidate=sum(row.instructions for row in after) if after else None,
        kinds={kind: count for kind, count in kinds.items() if count} or None,
    )


# ---- beside the host ---------------------------------------------------------------------------------------------


def _disagreement(reading: DeviceReading, host: Latency) -> str | None:
    """Return how host and device disagree, and in which layers; None where they agree, or one of them is unknown."""
    if reading.speedup is None or host.speedup is None or reading.speedup <= 0 or host.speedup <= 0:
        return None
    apart = reading.speedup / host.speedup
    if 1 / APART <= apart <= APART:
        return None
    said = f"{reading.name} says {reading.speedup:.2f}x where this machine says {host.speedup:.2f}x"
    return f"{said}{_cause(reading, host, apart)}"


def _cause(reading: DeviceReading, host: Latency, apart: float) -> str:
    """Name the operators whose ratios differ most, weighed by what they take."""
    here = {row.node: row for row in by_origin(host.layers) if row.origin is not None}
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for layer in reading.layers:
        own = here.get(layer.node)
        if layer.origin is None or own is None or None in (own.reference_us, own.candidate_us):
            continue
        if layer.before is None or layer.after is None:
            continue
        values = (own.reference_us or 0.0, own.candidate_us or 0.0, layer.before, layer.after)
        sums[layer.op] = [a + b for a, b in zip(sums[layer.op], values, strict=True)]
    able = [(op, v[0] / v[1], v[2] / v[3], v[2]) for op, v in sums.items() if all(value > 0 for value in v)]
    total = sum(weight for *_, weight in able) or 1.0
    worst = sorted(able, key=lambda row: -abs(np.log(row[2] / row[1])) * row[3] / total)
    same_way = [row for row in worst if (row[2] > row[1]) == (apart > 1)][:NAMED]
    if not same_way:
        return ""
    told = ", ".join(f"{op} {there:.1f}x there and {own:.1f}x here" for op, own, there, _ in same_way)
    return f": its kernels differ most in {told}"


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
