"""Explaining what low rank would do to each layer of a model, as a part of the report; and the report around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from onnxslim.errors import ModelError, PassError, SampleError, SpecError
from onnxslim.ir import Model, graph_nodes, selects
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import SurveyOptions, survey_ranks
from onnxslim.pipeline import PassContext, exact_fixed_point
from onnxslim.pipeline.base import Progress, silent
from onnxslim.report import Report
from onnxslim.report.network import ModelSummary
from onnxslim.report.placement import Placement
from onnxslim.report.ranks import RankSurvey
from onnxslim.runtime import Feed, RuntimeRefusal
from onnxslim.runtime.blas import blas_threads
from onnxslim.samples import Samples
from onnxslim.targets import find_target
from onnxslim.workflow.data import DataSettings, gather
from onnxslim.workflow.registry import exact_passes
from onnxslim.workflow.source import ModelLike, open_source
from onnxslim.workflow.summary import environment, tool


@dataclass(frozen=True)
class RankSettings:
    """How ranks are looked at; the command's options have the same names."""

    only: tuple[str, ...] = ()
    clock: Clock = Clock.ON
    target: str = "arm-cpu"
    threads: int = 0
    progress: Progress = silent


def run_ranks(
    model: ModelLike,
    shapes: Mapping[str, Sequence[int]],
    batch: int | None,
    data: DataSettings,
    settings: RankSettings | None = None,
) -> RankSurvey:
    """Return what low rank would do to each layer of a model, after the exact passes, as factor-low-rank would see it.

    Raises:
        ModelError: the model cannot be used, or onnxruntime does not run it on the samples.
        SampleError: the samples cannot be used.
        SpecError: no layer matches ``settings.only``.
    """
    settings = settings or RankSettings()
    source = open_source(model, shapes, batch)
    simplified = source.model.copy()
    exact_fixed_point(simplified, [cls() for cls in exact_passes()])
    _refuse_unknown(simplified, settings.only)
    samples, feed = _given(source.model, data)
    context = PassContext(
        samples=samples,
        feed=feed,
        target=find_target(settings.target),
        seed=data.seed,
        threads=settings.threads,
        progress=settings.progress,
    )
    try:
        with blas_threads(settings.threads):
            found = survey_ranks(simplified, context, SurveyOptions(settings.only, settings.clock))
    except PassError as error:
        raise ModelError(f"ranks cannot be looked at: {error}: mend the model or the samples") from None
    except RuntimeRefusal as error:
        raise ModelError(f"onnxruntime does not run the model: {error}: give it samples that it takes") from None
    return RankSurvey.model_validate(found)


def inspect_report(
    summary: ModelSummary, ranks: RankSurvey | None, placement: Placement | None = None, *, command: str, seed: int
) -> Report:
    """Return the report of a model that was looked at."""
    return Report(
        tool=tool(),
        created=datetime.now(UTC),
        command=command,
        seed=seed,
        environment=environment(),
        input=summary,
        ranks=ranks,
        placement=placement,
    )


def _given(model: Model, data: DataSettings) -> tuple[Samples | None, Feed | None]:
    """Return calibration samples and one feed; without samples a random feed, none where sizes are dynamic."""
    try:
        sets = gather(model, data)
        return sets.calibration, next(iter(sets.calibration or sets.evaluation)).feed
    except SampleError:
        if data.data is not None:
            raise
        return None, None


def _refuse_unknown(model: Model, only: Sequence[str]) -> None:
    """Refuse patterns that no node matches: a typing error would look like a model without layers."""
    for pattern in only:
        if not any(selects(node, [pattern], ()) for _, node in graph_nodes(model.graph)):
            raise SpecError(f"--only {pattern!r} matches no layer: layers are known by their first output tensor")
