"""The main job: a model in, a smaller and faster model out, with the proof."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from onnxslim.analysis.cost import ModelCost
from onnxslim.budget import Budgets, Observed, Unit, judge_budgets
from onnxslim.errors import DeviceError, ModelError, PolicyError, SpecError
from onnxslim.ir import Model
from onnxslim.ir.saving import Placed
from onnxslim.measure import Latency, RaceSettings, Validation, ValidationSettings, compare_latency, validate
from onnxslim.mobile import refuse_dynamic, stamp
from onnxslim.mobile.download import LIMIT, download_bytes
from onnxslim.passes import FactorLowRank, InsertQdq, PruneFilters
from onnxslim.passes.insert_qdq import DEFAULT_DROP, DEFAULT_SQNR
from onnxslim.pipeline import (
    Goals,
    Pass,
    PassContext,
    PassManager,
    PassResult,
    format_spec,
    parse_spec,
    put_exact_first,
)
from onnxslim.pipeline.base import Progress, silent
from onnxslim.report import Report
from onnxslim.report.network import OutputSummary, PassRecord
from onnxslim.report.ranks import FactoredLayer
from onnxslim.report.schema import BudgetLine
from onnxslim.runtime import Feed, RuntimeRefusal
from onnxslim.targets import find_target
from onnxslim.workflow.checks import Checker, Judge
from onnxslim.workflow.data import DataSettings, SampleSets, gather
from onnxslim.workflow.devices import check_devices, measure_devices, with_devices
from onnxslim.workflow.placing import raced, run_placement
from onnxslim.workflow.plans import PlanFile, collect
from onnxslim.workflow.registry import exact_passes, known_passes
from onnxslim.workflow.source import ModelLike, Source, open_source
from onnxslim.workflow.summary import both_known, cost_of, environment, summarize, tool, totals

PassesLike = str | Sequence[Pass] | None


@dataclass(frozen=True)
class OptimizeSettings:
    """Everything ``optimize`` can be told; the command's options have the same names."""

    data: DataSettings = field(default_factory=DataSettings)
    passes: PassesLike = None
    budgets: Budgets = field(default_factory=Budgets)
    metric: str = "top1"
    target: str = "arm-cpu"
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    batch: int | None = None
    plan: PlanFile | None = None
    exact: bool = True
    bench: bool = True
    devices: Sequence[str] = ()
    """Where original and result are measured besides this machine, as ``--device`` spells them."""
    package: bool = False
    """Whether an ORT package will be made of the result, so that shapes must be as the target needs them."""
    threads: int = 0
    """Threads for calibration and validation; 0 means one per core. Latency is measured on one."""
    command: str = "onnxslim.optimize(...)"
    progress: Progress = silent


@dataclass(frozen=True)
class OptimizeResult:
    """What ``optimize`` returns."""

    model: Model
    report: Report
    plan: PlanFile
    feed: Feed
    """One feed of the original, as the model takes it."""
    warnings: tuple[str, ...]
    """Lines that deserve attention, most important first."""

    @property
    def budgets_met(self) -> bool:
        """Whether no stated budget was missed or left unknown."""
        return all(line.verdict == "met" for line in self.report.budget)


def run_optimize(source: ModelLike, settings: OptimizeSettings) -> OptimizeResult:
    """Optimize a model as ``settings`` say.

    Raises:
        UserError: a model, samples, pipeline or plan that cannot be used.
    """
    original = open_source(source, settings.shapes, settings.batch)
    return _Run(original, gather(original.model, settings.data), settings).execute()


class _Run:
    """One optimization from start to end; each method is a stage."""

    def __init__(self, original: Source, samples: SampleSets, settings: OptimizeSettings) -> None:
        self.original = original
        self.samples = samples
        self.settings = settings
        if settings.budgets.max_drop is not None and not samples.evaluation.labelled:
            raise PolicyError("--max-drop needs labelled samples and there are none: add --eval-data with labels")
        if settings.devices and not settings.bench:
            raise DeviceError("--device measures and --no-bench does not: leave one of them out")
        if settings.package:
            refuse_dynamic(original.model, find_target(settings.target))
        check_devices(settings.devices)
        self.notes: list[str] = []
        self.feed: Feed = next(iter(samples.evaluation)).feed
        self.cost = cost_of(original.model, self.feed)
        _refuse_if_memory_lacks(self.cost.peak_activation_bytes)
        self.baseline = totals(self.cost)
        self.passes = self._pipeline()

    def execute(self) -> OptimizeResult:
        """Run the passes, prove the result, measure it, and write it all down."""
        model = self.original.model.copy()
        results = self._run_passes(model)
        spec = format_spec(self.passes)
        plan = collect(spec, self.original.sha256, results)
        stamp(
            model,
            version=tool().version,
            spec=spec,
            input_digest=self.original.sha256,
            plan_digest=plan.digest() if plan.decisions else None,
        )
        placed = model.placed()
        validation = self._validate(model, placed)
        latency = self._on_devices(placed, self._latency(model, placed))
        report = self._report(model, placed, results, validation, latency)
        return OptimizeResult(model, report, plan, self.feed, tuple(self._warnings(results, validation, report)))

    # ---- stages ------------------------------------------------------------------------------------------

    def _pipeline(self) -> list[Pass]:
        settings = self.settings
        chosen = settings.passes
        if chosen is None:
            chosen = settings.plan.spec if settings.plan is not None else self._default_passes()
        passes = parse_spec(chosen, known_passes(), exact_passes()) if isinstance(chosen, str) else list(chosen)
        return put_exact_first(passes, exact_passes()) if settings.exact else passes

    def _default_passes(self) -> list[Pass]:
        """Exact rewrites, pruning if MACs are limited, int8 if there are samples to calibrate on."""
        passes: list[Pass] = []
        limit = self.settings.budgets.max_macs
        if limit is not None:
            fraction = limit.value if limit.unit is Unit.RATIO else limit.value / max(self.baseline.macs or 1, 1)
            passes.append(PruneFilters(macs=min(fraction, 1.0)))
        if self.samples.calibration is not None:
            passes.append(InsertQdq())
        return passes

    def _run_passes(self, model: Model) -> tuple[PassResult, ...]:
        settings = self.settings
        judge = Judge(settings.budgets, settings.metric, settings.threads, settings.progress)
        checker = Checker(self.original, self.samples, judge)
        manager = PassManager(self.passes, checker, lambda candidate: totals(cost_of(candidate, self.feed)))
        context = PassContext(
            samples=self.samples.calibration,
            feed=self.feed,
            baseline=self.baseline,
            target=find_target(settings.target),
            goals=self._goals(),
            seed=settings.data.seed,
            threads=settings.threads,
            progress=settings.progress,
        )
        return manager.run(model, context, self._replayed())

    def _goals(self) -> Goals:
        budgets = self.settings.budgets
        sqnr, drop = (None if limit is None else limit.value for limit in (budgets.min_sqnr, budgets.max_drop))
        return Goals(sqnr, drop, self.settings.metric)

    def _replayed(self) -> list[dict[str, object]] | None:
        plan = self.settings.plan
        if plan is None:
            return None
        if plan.input_sha256 != self.original.sha256:
            raise SpecError("--plan was made for another model (its input digest differs): make a plan for this one")
        return [decision.plan for decision in plan.decisions]

    def _validate(self, model: Model, placed: Placed) -> Validation:
        apart = model.is_large or self.original.model.is_large
        return validate(
            self.original.placed.data,
            placed.data,
            self.samples.evaluation,
            ValidationSettings(self.settings.metric, self.samples.held_out, self.settings.threads, apart=apart),
            self.settings.progress,
        )

    def _latency(self, model: Model, placed: Placed) -> Latency | None:
        if not self.settings.bench:
            return None
        large = model.is_large or self.original.model.is_large
        race = RaceSettings(seed=self.settings.data.seed, layers=not large)
        pair = [self.original.placed.data, placed.data]
        try:
            return compare_latency(pair, self.feed, race, self.settings.progress)[0]
        except ModelError as error:
            self.notes.append(str(error))  # the model is made and proven: that is not lost for a measurement
            return None

    def _on_devices(self, placed: Placed, host: Latency | None) -> Latency | None:
        """Return ``host`` with what the devices say of original and result beside it."""
        settings = self.settings
        if host is None or not settings.devices:
            return host
        race = RaceSettings(seed=settings.data.seed)
        pair = [self.original.placed, placed]
        try:
            measured = measure_devices(settings.devices, pair, self.feed, race, settings.progress)
        except (DeviceError, ModelError, RuntimeRefusal) as error:
            self.notes.append(str(error))  # as above
            return host
        return with_devices([host], measured)[0]

    # ---- writing it down ---------------------------------------------------------------------------------

    def _report(
        self,
        model: Model,
        placed: Placed,
        results: Sequence[PassResult],
        validation: Validation,
        latency: Latency | None,
    ) -> Report:
        cost = cost_of(model, self.feed)
        size, digest = model.size_and_digest()
        download = download_bytes(placed.data)
        summary = summarize(
            model, cost, path=None, size=size, sha256=digest, download=download, reference=self.original.model
        )
        observed = self._observed((size, download), cost, validation, latency)
        lines = judge_budgets(self.settings.budgets, observed)
        return Report.model_validate(
            {
                "tool": tool(),
                "created": datetime.now(UTC),
                "command": self.settings.command,
                "seed": self.settings.data.seed,
                "environment": environment(),
                "input": self.original.summarize(self.cost),
                "output": OutputSummary.model_validate(summary.model_dump()),
                "passes": tuple(PassRecord.model_validate(_record(result)) for result in results),
                "validation": validation,
                "latency": latency,
                "budget": tuple(BudgetLine.model_validate(line) for line in lines),
                "placement": run_placement(model, cost, raced(self.original.placed.data, latency), results),
            }
        )

    def _observed(
        self,
        sizes: tuple[int, int | None],
        cost: ModelCost,
        validation: Validation,
        latency: Latency | None,
    ) -> Observed:
        times = None
        if latency is not None and latency.candidate is not None and latency.speedup:
            times = (latency.reference.p50_ms / latency.speedup, latency.reference.p50_ms)
        return Observed(
            drop=None if validation.metric is None else validation.metric.drop,
            sqnr_db=validation.sqnr_db,
            size=(sizes[0], self.original.bytes),
            download=sizes[1],
            macs=both_known(cost.macs, self.baseline.macs),
            activations=both_known(cost.peak_activation_bytes, self.cost.peak_activation_bytes),
            latency_ms=times,
        )

    def _warnings(self, results: Sequence[PassResult], validation: Validation, report: Report) -> Iterator[str]:
        if self.samples.evaluation.labelled and validation.metric is None:
            yield f"labels are not used: {self.settings.metric} needs a vector of class scores as the first output"
        for result in results:
            if result.status.value in ("failed", "rolled_back"):
                yield f"{result.name} was {result.status.value.replace('_', ' ')}: {result.reason}"
        if not validation.finite:
            yield "the result has NaN or Inf that the original does not"
        if self.settings.passes is None and not self.settings.budgets.of_quality:
            yield from _missed_goals(validation)
        kernels = validation.kernels
        if kernels is not None and kernels.metric is not None and validation.metric is not None:
            gap = validation.metric.candidate - kernels.metric.candidate
            if gap > DEFAULT_DROP:
                yield (
                    f"this CPU's integer kernels read {100 * gap:.1f} points less than the operators' definition: "
                    "they saturate where ARM's do not"
                )
        yield from self.notes
        download = None if report.output is None else report.output.download_bytes
        if self.settings.budgets.download_limit is None and (download or 0) > LIMIT:
            yield f"{(download or 0) / 1e6:.0f} MB to download: above {LIMIT / 1e6:.0f} MB phones ask for Wi-Fi first"
        if self.samples.held_out is False:
            yield "too few samples to hold any back: the same ones calibrated and judged"


def _refuse_if_memory_lacks(activations: int | None) -> None:
    """Refuse a model whose activations alone are more than this machine's memory, before trying."""
    if activations is None or not hasattr(os, "sysconf"):
        return
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if activations > physical:
        raise ModelError(
            f"activations take {activations / 1e9:.1f} GB at once and this machine has {physical / 1e9:.1f}: "
            "fix smaller shapes with --shape, or give smaller samples"
        )


def _record(result: PassResult) -> dict[str, object]:
    """Return a pass's result in the report's terms."""
    facts = {name: getattr(result, name) for name in PassRecord.model_fields if name != "ranks"}
    return facts | {"ranks": _factoring(result)}


def _factoring(result: PassResult) -> dict[str, object] | None:
    """Return what factor-low-rank decided, in the report's terms; None for other passes and where nothing was split."""
    plan = result.plan
    if result.name != FactorLowRank.name or plan is None or not plan["layers"]:
        return None
    whole = plan.get("whole") or {}
    layers = [{name: layer.get(name) for name in FactoredLayer.model_fields} for layer in plan["layers"]]
    return {"layers": layers, "macs": whole.get("macs"), "time": whole.get("time")}


def _missed_goals(validation: Validation) -> Iterator[str]:
    """Say where the default pipeline fell short of its own goals."""
    if validation.metric is not None:
        if validation.metric.drop > DEFAULT_DROP:
            points = 100 * validation.metric.drop
            yield f"{validation.metric.name} drops by {points:.2f} points, more than the goal of 1"
        return
    for output in validation.outputs:
        if output.sqnr_db is None or output.sqnr_db < DEFAULT_SQNR:
            found = "is not defined" if output.sqnr_db is None else f"is {output.sqnr_db:.1f} dB"
            yield f"SQNR of output {output.name!r} {found}: the goal is {DEFAULT_SQNR:g} dB"
