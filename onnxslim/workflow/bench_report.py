"""The report of a race: both models' summaries around what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from onnxslim.measure import Latency
from onnxslim.report import Report
from onnxslim.report.evidence import Latency as LatencyPart
from onnxslim.report.network import OutputSummary
from onnxslim.report.placement import Placement
from onnxslim.runtime import Feed
from onnxslim.workflow.data import DataSettings, gather
from onnxslim.workflow.source import ModelLike, Source, open_source
from onnxslim.workflow.summary import cost_of, environment, tool

Shapes = Mapping[str, Sequence[int]]


def bench_report(
    models: Sequence[ModelLike],
    data: DataSettings,
    shapes: Shapes,
    batch: int | None,
    latency: Latency,
    placement: Placement | None,
    *,
    command: str,
) -> Report:
    """Return the report of one model, or of a reference and a candidate.

    Args:
        models: one or two, as they raced.
        data: as the race was given them: the first sample fixes shapes.
        latency: of the race.
        placement: of the candidate; of the one model, where it is alone.
        command: as the user typed it.

    Raises:
        ModelError: a model cannot be used.
    """
    sources = [open_source(model, shapes, batch) for model in models]
    feed: Feed = next(iter(gather(sources[0].model, data).evaluation)).feed
    before, after = sources[0], sources[1] if len(sources) > 1 else None
    return Report.model_validate(
        {
            "tool": tool(),
            "created": datetime.now(UTC),
            "command": command,
            "seed": data.seed,
            "environment": environment(),
            "input": before.summarize(cost_of(before.model, feed)),
            "output": None if after is None else _output(after, before, feed),
            "latency": LatencyPart.model_validate(latency),
            "placement": placement,
        }
    )


def _output(source: Source, reference: Source, feed: Feed) -> OutputSummary:
    summary = source.summarize(cost_of(source.model, feed), reference.model)
    return OutputSummary.model_validate(summary.model_dump())
