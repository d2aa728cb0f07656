"""Numerics and accuracy of a candidate against its reference, in one walk over the samples.

A model with integer operators is read three ways: as the operators are defined (which decides), by ARM's kernels, and
by this CPU's. They differ: x86 without VNNI saturates 16-bit sums that ARM does not.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxslim.measure.metric import Metric, MetricTracker, compare_metrics
from onnxslim.measure.numerics import Comparison, OutputNumerics, sqnr_db
from onnxslim.runtime import (
    Feed,
    Level,
    ModelData,
    Reading,
    RuntimeRefusal,
    Session,
    SessionConfig,
    load_proto,
    with_outputs,
)
from onnxslim.runtime.apart import SessionApart, read_frame, write_frame
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Sample, Samples

Progress = Callable[[str, int, int], None]

TAP_LIMIT = 256 * 2**20
"""Bytes of inner tensors that one run may hand out."""


@dataclass(frozen=True)
class ReadingResult:
    """Outputs and metric of an integer candidate by one kind of kernels."""

    outputs: tuple[OutputNumerics, ...]
    metric: Metric | None


@dataclass(frozen=True)
class LayerSqnr:
    """How well one inner tensor is kept, in dB over all samples."""

    tensor: str
    sqnr_db: float | None


@dataclass(frozen=True)
class Validation:
    """What the report says of a candidate; ``outputs`` and ``metric`` are by the operators' definition."""

    samples: int
    source: str
    held_out: bool | None
    outputs: tuple[OutputNumerics, ...]
    metric: Metric | None = None
    arm: ReadingResult | None = None
    kernels: ReadingResult | None = None
    layers: tuple[LayerSqnr, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether the candidate has no NaN or Inf that the reference lacks."""
        return all(output.finite for output in self.outputs)

    @property
    def sqnr_db(self) -> float | None:
        """The smallest SQNR of all outputs, None where one is not defined."""
        values = [output.sqnr_db for output in self.outputs]
        known = [value for value in values if value is not None]
        return min(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class ValidationSettings:
    """How to compare two models."""

    metric: str = "top1"
    """Measured where samples have labels and the first output is what the metric wants."""
    held_out: bool | None = None
    """Handed on to the result."""
    threads: int = 0
    all_readings: bool = True
    """Also read integer models by ARM's and this CPU's kernels."""
    apart: bool = False
    """For large models: one at a time is loaded, in a process of its own."""


@dataclass
class _Side:
    """What was collected of a candidate by one reading."""

    metric: MetricTracker
    comparison: Comparison = field(default_factory=Comparison)

    def account(self, expected: dict[str, Any], outputs: dict[str, Any], label: int | None) -> None:
        """Add one sample; ``label`` is None where it does not count."""
        self.comparison.add(expected, outputs)
        if label is not None:
            self.metric.add(outputs, label)


def is_integer_model(model: onnx.ModelProto) -> bool:
    """Whether any node, subgraphs' and functions' included, computes with integers or stands for it."""
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        current = stack.pop()
        for node in current.node:
            if "QuantizeLinear" in node.op_type or "Integer" in node.op_type or node.op_type.startswith("QLinear"):
                return True
            stack.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return False


def validate(
    reference: ModelData,
    candidate: ModelData,
    samples: Samples,
    settings: ValidationSettings | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Compare ``candidate`` to ``reference`` on ``samples``.

    Raises:
        RuntimeRefusal: onnxruntime does not load or run one of them by the operators' definition.
        ModelError: their outputs do not correspond.
    """
    settings = settings or ValidationSettings()
    readings = [Reading.DEFINITION]
    if settings.all_readings and is_integer_model(_graph_of(candidate)):
        readings += [Reading.ARM, Reading.KERNELS]
    sides = {reading: _Side(MetricTracker(settings.metric)) for reading in readings}
    reference_metric = MetricTracker(settings.metric)
    walk = _walk_apart if settings.apart else _walk
    pairs = walk(reference, candidate, samples, readings, settings.threads)
    for done, (sample, reading, expected, outputs) in enumerate(pairs, start=1):
        if outputs is None:
            sides.pop(reading, None)
        elif reading in sides:
            label = sample.label if reference_metric.fits(expected) else None
            if reading is Reading.DEFINITION and label is not None:
                reference_metric.add(expected, label)
            sides[reading].account(expected, outputs, label)
        if progress is not None:
            progress("validate", done, len(samples) * len(readings))
    results = {
        reading: ReadingResult(side.comparison.result(), compare_metrics(reference_metric, side.metric))
        for reading, side in sides.items()
    }
    decisive = results[Reading.DEFINITION]
    return Validation(
        samples=len(samples),
        source=samples.source.value,
        held_out=settings.held_out,
        outputs=decisive.outputs,
        metric=decisive.metric,
        arm=results.get(Reading.ARM),
        kernels=results.get(Reading.KERNELS),
    )


def _graph_of(model: ModelData) -> onnx.ModelProto:
    if isinstance(model, Path):
        return onnx.load_model(str(model), load_external_data=False)
    return onnx.load_model_from_string(model)


# ---- running both ------------------------------------------------------------------------------------------------

_Step = tuple[Sample, Reading, dict[str, Any], dict[str, Any] | None]
"""A sample, how the candidate was read, the reference's outputs, the candidate's or None where that reading fails.

ARM's reading is an option of onnxruntime that some graphs do not survive, and is then left out."""


def _walk(
    reference: ModelData, candidate: ModelData, samples: Samples, readings: Sequence[Reading], threads: int
) -> Iterator[_Step]:
    """Run both side by side, several samples at once."""
    config = SessionConfig(1, patience=samples.patience)
    ours = Session(reference, replace(config, reading=Reading.DEFINITION))
    sessions = dict(_open_sessions(candidate, readings, config))

    def evaluate(sample: Sample) -> list[_Step]:
        expected = ours.run(sample.feed)
        return [(sample, reading, expected, _run(sessions.get(reading), reading, sample.feed)) for reading in readings]

    for steps in map_in_order(evaluate, samples, threads):
        yield from steps


def _open_sessions(
    candidate: ModelData, readings: Sequence[Reading], config: SessionConfig
) -> Iterator[tuple[Reading, Session]]:
    for reading in readings:
        try:
            yield reading, Session(candidate, replace(config, reading=reading))
        except RuntimeRefusal:
            if reading is Reading.DEFINITION:
                raise


def _run(session: Session | SessionApart | None, reading: Reading, feed: Feed) -> dict[str, Any] | None:
    if session is None:
        return None
    try:
        return session.run(feed)
    except RuntimeRefusal:
        if reading is Reading.DEFINITION:
            raise
        return None


def _walk_apart(
    reference: ModelData, candidate: ModelData, samples: Samples, readings: Sequence[Reading], threads: int
) -> Iterator[_Step]:
    """Run the reference on all samples, its outputs kept in a file, then the candidate, once for each reading."""
    plain = SessionConfig(threads, Level.NONE, Reading.DEFINITION, mapped=True, patience=samples.patience)
    with tempfile.TemporaryFile() as kept:
        with SessionApart(reference, plain) as session:
            for sample in samples:
                write_frame(kept, session.run(sample.feed))
        for reading in readings:
            kept.seek(0)
            kernels = replace(plain, level=Level.ALL, reading=reading, mapped=False)
            config = plain if reading is Reading.DEFINITION else kernels
            try:
                with SessionApart(candidate, config) as session:
                    for sample in samples:
                        yield sample, reading, read_frame(kept), session.run(sample.feed)
            except RuntimeRefusal:
                if reading is Reading.DEFINITION:
                    raise
                yield next(iter(samples)), reading, {}, None


def layer_sqnr(
    reference: ModelData, candidate: ModelData, samples: Samples, *, threads: int = 0, progress: Progress | None = None
) -> tuple[LayerSqnr, ...]:
    """Return the SQNR of every floating-point tensor that both models compute under the same name, in order.

    Taps are read in groups, so that one run hands out at most about :data:`TAP_LIMIT` bytes.
    """
    protos = [load_proto(data) for data in (reference, candidate)]
    names = _common_tensors(*protos)
    config = SessionConfig(threads, Level.BASIC, patience=samples.patience)
    groups = _groups(protos[0], names, next(iter(samples)).feed, config)
    layers: list[LayerSqnr] = []
    for index, group in enumerate(groups):
        sessions = [
            Session(with_outputs(proto, group), replace(config, reading=Reading.DEFINITION)) for proto in protos
        ]
        collected: dict[str, list[tuple[float, float]]] = {name: [] for name in group}
        for sample in samples:
            ours, theirs = (session.run(sample.feed, group) for session in sessions)
            for name in group:
                collected[name].append(_energies(ours[name], theirs[name]))
        layers.extend(LayerSqnr(name, _pooled(pairs)) for name, pairs in collected.items())
        if progress is not None:
            progress("layers", index + 1, len(groups))
    return tuple(layers)


def _common_tensors(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> list[str]:
    computed = {name for node in candidate.graph.node for name in node.output if name}
    return [name for node in reference.graph.node for name in node.output if name in computed]


def _groups(proto: onnx.ModelProto, names: Sequence[str], feed: Feed, config: SessionConfig) -> list[list[str]]:
    """Split floating-point tensors into groups of bounded size, measured on one sample, one chunk at a time."""
    groups: list[list[str]] = [[]]
    held = 0
    for start in range(0, len(names), 32):
        chunk = list(names[start : start + 32])
        with contextlib.suppress(RuntimeRefusal):
            values = Session(with_outputs(proto, chunk), config).run(feed, chunk)
            for name, value in values.items():
                if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                    continue
                if held + value.nbytes > TAP_LIMIT:
                    groups.append([])
                    held = 0
                groups[-1].append(name)
                held += value.nbytes
    return [group for group in groups if group]


def _energies(reference: Any, candidate: Any) -> tuple[float, float]:
    """Return the energies of signal and error of one sample; a different shape is all error."""
    if reference.shape != candidate.shape:
        return 0.0, float("inf")
    ours = reference.astype(np.float64)
    error = ours - candidate.astype(np.float64)
    return float(np.vdot(ours, ours)), float(np.vdot(error, error))


def _pooled(pairs: Sequence[tuple[float, float]]) -> float | None:
    signal, error = (float(sum(column)) for column in zip(*pairs, strict=True))
    if not np.isfinite(error):
        return None
    return sqnr_db(np.array([signal**0.5]), np.array([signal**0.5 - error**0.5]))
