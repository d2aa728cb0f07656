"""What the report says in words: the headline, the cautions that belong beside it, budgets and reasons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from onnxslim.report import units
from onnxslim.report.evidence import Metric, OutputNumerics, Validation
from onnxslim.report.facts import Tone, interval_words, metric_label, speed_words, worst_output
from onnxslim.report.network import PassRecord
from onnxslim.report.placement_story import mostly_float, rounded_at_load
from onnxslim.report.schema import BudgetLine, BudgetVerdict, PassStatus, Report, Source


@dataclass(frozen=True)
class Caution:
    """One sentence that a reader must know before trusting the figures."""

    tone: Tone
    text: str


@dataclass(frozen=True)
class SkippedGroup:
    """Places left alone for one reason: `places` are (pass, anchor), in the order of the report."""

    reason: str
    places: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class IntegerReading:
    """One of the three ways to compute an integer model."""

    name: str
    meaning: str
    metric: Metric | None
    worst: OutputNumerics | None
    decides: bool = False


def headline(report: Report) -> tuple[str, ...]:
    """Return the top line in parts: size, quality, speed; unknowns are said, never left out."""
    before = report.input
    if report.output is None and report.validation is None and report.latency is None:
        macs = [] if before.macs is None else [f"{units.format_count(before.macs)} MACs"]
        sizes = [units.format_bytes(before.bytes), f"{units.format_count(before.params)} parameters"]
        return (*sizes, *macs)
    return (_size_words(report), _quality_words(report), _speed_words(report))


def _size_words(report: Report) -> str:
    was = report.input.bytes
    if report.output is None:
        return units.format_bytes(was)
    now = report.output.bytes
    if was in (now, 0):
        return f"{units.format_bytes(now)}, unchanged"
    return f"{units.format_bytes(now)} from {units.format_bytes(was)} ({units.format_percent(now / was)})"


def _quality_words(report: Report) -> str:
    validation = report.validation
    if validation is None:
        return "accuracy not measured"
    worst = worst_output(validation.outputs)
    if worst is not None and not worst.finite:
        return f"NaN or Inf in output {worst.name}"
    if validation.metric is None:
        why = "synthetic samples" if validation.source is Source.SYNTHETIC else "no labels"
        return f"accuracy unknown ({why}){_kept_words(worst)}"
    own = ", on its own calibration samples" if validation.held_out is False else ""
    return _metric_words(validation.metric) + own


def _kept_words(worst: OutputNumerics | None) -> str:
    if worst is None or worst.sqnr_db is None:
        return ""
    if worst.sqnr_db >= units.SQNR_CAP:
        return ", outputs identical"
    return f", outputs kept to {units.format_db(worst.sqnr_db)}"


def _metric_words(metric: Metric) -> str:
    now, was = (units.format_percent(value, 1) for value in (metric.candidate, metric.reference))
    change = ", ".join(w for w in (units.format_points(-metric.drop), interval_words(metric)) if w)
    return f"{metric_label(metric.name)} {now} from {was} ({change})"


def _speed_words(report: Report) -> str:
    latency = report.latency
    if latency is None:
        return "speed not measured"
    words = speed_words(latency) or f"{units.format_ms(latency.reference.p50_ms)} an inference"
    return f"{words} (not stable)" if latency.stable is False else words


def cautions(report: Report) -> tuple[Caution, ...]:
    """Return what must be known before the figures are trusted, the gravest first."""
    found = (
        *_number_cautions(report.validation),
        *_budget_cautions(report.budget),
        *_sample_cautions(report),
        *_integer_cautions(report),
        *_speed_cautions(report),
        *_pass_cautions(report.passes),
    )
    return tuple(sorted(found, key=lambda caution: caution.tone is not Tone.BAD))


def _number_cautions(validation: Validation | None) -> Iterator[Caution]:
    broken = [output.name for output in validation.outputs if not output.finite] if validation else []
    if broken:
        names = ", ".join(broken)
        yield Caution(Tone.BAD, f"The candidate gives NaN or Inf where the reference does not: {names}.")


def _budget_cautions(budget: tuple[BudgetLine, ...]) -> Iterator[Caution]:
    for line in budget:
        if line.verdict is BudgetVerdict.MISSED:
            seen = f", observed {observed_text(line)}" if line.observed is not None else ""
            yield Caution(Tone.BAD, f"Budget missed: {budget_name(line)} {limit_text(line)}{seen}.")
        elif line.verdict is BudgetVerdict.UNKNOWN:
            yield Caution(Tone.WARN, f"Budget unknown: {budget_name(line)} {limit_text(line)} could not be measured.")


def _sample_cautions(report: Report) -> Iterator[Caution]:
    validation = report.validation
    if validation is None:
        return
    if validation.source is Source.SYNTHETIC:
        text = "Checked on seeded random inputs: the distances are real, accuracy on real data is unknown."
        yield Caution(Tone.WARN, text)
    elif validation.metric is None:
        yield Caution(Tone.WARN, "The samples have no labels: numerics are measured, accuracy is unknown.")
    if validation.held_out is False and validation.source is Source.DATA:
        text = f"Not held out: the same {validation.samples} samples calibrated and measured; they flatter."
        yield Caution(Tone.WARN, text)


def _integer_cautions(report: Report) -> Iterator[Caution]:
    share = mostly_float(report.placement)
    if share is not None:
        text = f"Most of the network stays in float: integers do {units.format_percent(share)} of the MACs."
        yield Caution(Tone.WARN, f"{text} For a small file at the speed of floats see palettize, instead or after.")
    rounded = rounded_at_load(report.placement)
    if rounded:
        where = ", ".join(rounded[:3]) + (f" and {len(rounded) - 3} more" if len(rounded) > 3 else "")
        text = f"onnxruntime rounds float weights to int8 by itself at load, in one scale for each tensor: {where}."
        yield Caution(Tone.WARN, f"{text} Readings by kernels show what that costs, the definition does not.")


def _speed_cautions(report: Report) -> Iterator[Caution]:
    if report.latency is not None and report.latency.stable is False:
        text = "Latency is not stable: the same model against itself did not come out even. Measure again idle."
        yield Caution(Tone.WARN, text)


def _pass_cautions(passes: tuple[PassRecord, ...]) -> Iterator[Caution]:
    for status, words in ((PassStatus.FAILED, "failed"), (PassStatus.ROLLED_BACK, "was rolled back")):
        for record in passes:
            if record.status is status:
                why = f": {record.reason.rstrip('.')}" if record.reason else ""
                yield Caution(Tone.WARN, f"{record.name} {words}{why}.")


def budget_name(line: BudgetLine) -> str:
    """Return the budget as its option is spelt: "max-drop", also where it was handed over as "max_drop"."""
    return line.name.replace("_", "-")


def limit_text(line: BudgetLine) -> str:
    """Return the limit as the user wrote it, or a bare number in the unit of its name."""
    return line.limit if isinstance(line.limit, str) else _budget_number(line.name, line.limit)


def observed_text(line: BudgetLine) -> str:
    """Return the observed value in the terms of the limit; "not measured" where it is absent."""
    if line.observed is None:
        return "not measured"
    if isinstance(line.observed, str):
        return line.observed
    relative = isinstance(line.limit, str) and line.limit.rstrip().endswith("%")
    if relative and "drop" not in line.name:
        return units.format_percent(line.observed, 1)
    return _budget_number(line.name, line.observed)


def _budget_number(name: str, value: float) -> str:
    if "drop" in name:
        return units.format_points(value).removeprefix("+").removeprefix("±")
    for word, text in _BUDGET_UNITS.items():
        if word in name:
            return text(value)
    return units.format_count(value) if value == int(value) else f"{value:.3g}"


_BUDGET_UNITS = {
    "sqnr": units.format_db,
    "size": units.format_bytes,
    "bytes": units.format_bytes,
    "download": units.format_bytes,
    "activations": units.format_bytes,
    "macs": units.format_count,
    "latency": units.format_ms,
}


def skipped_groups(passes: tuple[PassRecord, ...]) -> tuple[SkippedGroup, ...]:
    """Return the places left alone by reason, the most frequent reason first."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in passes:
        for place in record.skipped:
            groups[place.reason].append((record.name, place.anchor))
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple(SkippedGroup(reason, tuple(dict.fromkeys(places))) for reason, places in ordered)


def integer_readings(validation: Validation | None) -> tuple[IntegerReading, ...]:
    """Return the readings of an integer model that were taken; empty when only the definition was."""
    if validation is None or (validation.arm is None and validation.kernels is None):
        return ()
    definition = "Every operator as the standard defines it, quantize and dequantize literally: this decides."
    found = [IntegerReading("Definition", definition, validation.metric, worst_output(validation.outputs), True)]
    meanings = (
        ("ARM", validation.arm, "Exact 8-bit products, bit for bit what onnxruntime computes on an ARM phone."),
        ("This CPU", validation.kernels, "This CPU's default kernels: they may saturate where a phone does not."),
    )
    for name, reading, meaning in meanings:
        if reading is not None:
            found.append(IntegerReading(name, meaning, reading.metric, worst_output(reading.outputs)))
    return tuple(found)
