"""Numerics and accuracy of a candidate against its reference, in one walk over the samples.

A model with integer operators is read three ways: as the operators are defined (which decides), by ARM's kernels, and
by this CPU's. They differ: x86 without VNNI saturates 16-bit sums that ARM does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxslim.measure.metric import Metric, MetricTracker, compare_metrics
from onnxslim.measure.numerics import Comparison, OutputNumerics, sqnr_db
from onnxslim.measure.parallel import map_in_order
from onnxslim.runtime import Feed, Level, Reading, RuntimeRefusal, Session, SessionConfig, with_outputs
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


@dataclass
class _Side:
    """A candidate's session of one reading and what was collected from it."""

    session: Session
    metric: MetricTracker
    comparison: Comparison = field(default_factory=Comparison)


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
    reference: bytes,
    candidate: bytes,
    samples: Samples,
    *,
    metric: str = "top1",
    held_out: bool | None = None,
    threads: int = 0,
    all_readings: bool = True,
    progress: Progress | None = None,
) -> Validation:
    """Compare ``candidate`` to ``reference``, both serialized, on ``samples``, which are walked once.

    Args:
        metric: measured where samples have labels and the first output is what the metric wants.
        held_out: handed on to the result.
        all_readings: also read integer models by ARM's and this CPU's kernels.

    Raises:
        RuntimeRefusal: onnxruntime does not load or run one of them by the operators' definition.
        ModelError: their outputs do not correspond.
    """
    ours = Session(reference, SessionConfig(1, reading=Reading.DEFINITION))
    integer = is_integer_model(onnx.load_model_from_string(candidate))
    wanted = [Reading.DEFINITION, *((Reading.ARM, Reading.KERNELS) if integer and all_readings else ())]
    sides = dict(_open_sides(candidate, wanted, metric))
    reference_metric = MetricTracker(metric)

    def evaluate(sample: Sample) -> tuple[int | None, dict[str, Any], dict[Reading, dict[str, Any]]]:
        return sample.label, ours.run(sample.feed), dict(_run_sides(sides, sample.feed))

    for index, (given, expected, outputs) in enumerate(map_in_order(evaluate, samples, threads)):
        label = given if reference_metric.fits(expected) else None
        if label is not None:
            reference_metric.add(expected, label)
        for reading in list(sides):
            if reading in outputs:
                _account(sides[reading], expected, outputs[reading], label)
            else:
                del sides[reading]
        if progress is not None:
            progress("validate", index + 1, len(samples))
    results = {
        reading: ReadingResult(side.comparison.result(), compare_metrics(reference_metric, side.metric))
        for reading, side in sides.items()
    }
    decisive = results[Reading.DEFINITION]
    return Validation(
        samples=len(samples),
        source=samples.source.value,
        held_out=held_out,
        outputs=decisive.outputs,
        metric=decisive.metric,
        arm=results.get(Reading.ARM),
        kernels=results.get(Reading.KERNELS),
    )


def _open_sides(candidate: bytes, readings: Sequence[Reading], metric: str) -> Iterator[tuple[Reading, _Side]]:
    for reading in readings:
        try:
            session = Session(candidate, SessionConfig(1, reading=reading))
        except RuntimeRefusal:
            if reading is Reading.DEFINITION:
                raise
            continue
        yield reading, _Side(session, MetricTracker(metric))


def _run_sides(sides: dict[Reading, _Side], feed: Feed) -> Iterator[tuple[Reading, dict[str, Any]]]:
    """Run every reading; ARM's is an option of onnxruntime that some graphs do not survive, and is then left out."""
    for reading, side in list(sides.items()):
        try:
            yield reading, side.session.run(feed)
        except RuntimeRefusal:
            if reading is Reading.DEFINITION:
                raise


def _account(side: _Side, expected: dict[str, Any], outputs: dict[str, Any], label: int | None) -> None:
    side.comparison.add(expected, outputs)
    if label is not None:
        side.metric.add(outputs, label)


def layer_sqnr(
    reference: bytes, candidate: bytes, samples: Samples, *, threads: int = 0, progress: Progress | None = None
) -> tuple[LayerSqnr, ...]:
    """Return the SQNR of every floating-point tensor that both models compute under the same name, in order.

    Taps are read in groups, so that one run hands out at most about :data:`TAP_LIMIT` bytes.
    """
    protos = [onnx.load_model_from_string(data) for data in (reference, candidate)]
    names = _common_tensors(*protos)
    groups = _groups(protos[0], names, next(iter(samples)).feed, threads)
    layers: list[LayerSqnr] = []
    for index, group in enumerate(groups):
        sessions = [
            Session(with_outputs(proto, group), SessionConfig(threads, Level.BASIC, Reading.DEFINITION))
            for proto in protos
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


def _groups(proto: onnx.ModelProto, names: Sequence[str], feed: Feed, threads: int) -> list[list[str]]:
    """Split floating-point tensors into groups of bounded size, measured on one sample, one chunk at a time."""
    groups: list[list[str]] = [[]]
    held = 0
    for start in range(0, len(names), 32):
        chunk = list(names[start : start + 32])
        with contextlib.suppress(RuntimeRefusal):
            values = Session(with_outputs(proto, chunk), SessionConfig(threads, Level.BASIC)).run(feed, chunk)
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
