"""inspect, validate and bench: looking at models without changing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxslim.errors import ModelError, SampleError
from onnxslim.measure import (
    Latency,
    RaceSettings,
    Validation,
    ValidationSettings,
    compare_latency,
    layer_sqnr,
    validate,
)
from onnxslim.pipeline.base import Progress, silent
from onnxslim.report.network import ModelSummary
from onnxslim.runtime import Feed, RuntimeRefusal
from onnxslim.workflow.data import DataSettings, gather
from onnxslim.workflow.devices import measure_devices, with_devices
from onnxslim.workflow.source import ModelLike, Source, open_source
from onnxslim.workflow.summary import cost_of

Shapes = Mapping[str, Sequence[int]]


def run_inspect(model: ModelLike, shapes: Shapes, batch: int | None, data: DataSettings) -> ModelSummary:
    """Return the summary of a model, at fixed shapes, those of the first sample, or batch 1."""
    source = open_source(model, shapes, batch)
    feed = None if data.data is None else _first_feed(source, data)
    try:
        return source.summarize(cost_of(source.model, feed))
    except ModelError:
        if feed is not None:
            raise
        return source.summarize(cost_of(source.model, {}))  # dynamic sizes: counts that need them are absent


def run_validate(
    reference: ModelLike,
    candidate: ModelLike,
    data: DataSettings,
    *,
    metric: str = "top1",
    layers: bool = False,
    threads: int = 0,
    progress: Progress = silent,
) -> Validation:
    """Compare two models on ``data.eval_data``.

    Raises:
        ModelError: they do not load, run, or correspond.
        SampleError: the samples cannot be used.
    """
    ours, theirs = open_source(reference), open_source(candidate)
    samples = gather(ours.model, data).evaluation
    pair = ours.placed.data, theirs.placed.data
    apart = ours.model.is_large or theirs.model.is_large
    try:
        validation = validate(*pair, samples, ValidationSettings(metric, None, threads, apart=apart), progress)
        if layers:
            found = layer_sqnr(*pair, samples, threads=threads, progress=progress)
            validation = replace(validation, layers=found)
    except RuntimeRefusal as error:
        raise ModelError(
            f"onnxruntime does not run one of the models: {error}: compare models with like inputs"
        ) from None
    return validation


def run_bench(
    models: Sequence[ModelLike],
    data: DataSettings,
    shapes: Shapes,
    batch: int | None,
    race: RaceSettings,
    progress: Progress = silent,
    devices: Sequence[str] = (),
) -> tuple[Latency, ...]:
    """Race models on the first sample, or on seeded random values; on this machine and on ``devices``.

    Raises:
        SampleError: a dynamic dimension other than the batch, and neither samples nor a shape to fix it.
    """
    if not models:
        raise SampleError("nothing to measure: name at least one model")
    sources = [open_source(model, shapes, batch) for model in models]
    samples = gather(sources[0].model, data).evaluation
    race = replace(race, patience=samples.patience)
    feed = next(iter(samples)).feed
    measured = (
        measure_devices(devices, [source.placed for source in sources], feed, race, progress) if devices else None
    )
    results = compare_latency([source.placed.data for source in sources], feed, race, progress)
    return results if measured is None else with_devices(results, measured)


def _first_feed(source: Source, data: DataSettings) -> Feed:
    return next(iter(gather(source.model, data).evaluation)).feed
