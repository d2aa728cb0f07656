"""What the report says in figures: one `Fact` per quantity, the same for every format.

Only words and order are chosen here; every number is one that the report holds, or the ratio of two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from onnxslim.mobile.download import LIMIT
from onnxslim.report import units
from onnxslim.report.base import Claim
from onnxslim.report.evidence import Latency, Metric, OutputNumerics, Validation
from onnxslim.report.network import ModelSummary, OutputSummary
from onnxslim.report.schema import Report, Source

_METRIC_NAMES = {"top1": "top-1", "top5": "top-5"}


class Tone(StrEnum):
    """How a fact reads: what it says is good, bad, uncertain, or plain."""

    GOOD = "good"
    BAD = "bad"
    WARN = "warn"
    PLAIN = "plain"


@dataclass(frozen=True)
class Fact:
    """One quantity: its value now, what it was, and a remark. `fraction` is now / was, where that means much."""

    label: str
    value: str
    was: str | None = None
    note: str | None = None
    tone: Tone = Tone.PLAIN
    fraction: float | None = None

    @property
    def line(self) -> str:
        """The fact in one line: "18.6 MB → 5.21 MB (28 %)"."""
        change = f"{self.was} → {self.value}" if self.was else self.value
        return f"{change} ({self.note})" if self.note else change


def metric_label(name: str) -> str:
    """Return "top-1" for "top1"; a metric of the user's own keeps its name."""
    return _METRIC_NAMES.get(name, name)


def interval_words(metric: Metric) -> str | None:
    """Return the 95 % interval of the change in points, from the worst end up: "95 % interval -1.2 to +0.3"."""
    if metric.interval is None:
        return None
    low, high = (units.format_points(-drop).removesuffix(" points") for drop in reversed(metric.interval))
    return f"95 % interval {low} to {high}"


def worst_output(outputs: tuple[OutputNumerics, ...]) -> OutputNumerics | None:
    """Return the output with the lowest SQNR, one that is not finite before all others."""
    broken = [output for output in outputs if not output.finite]
    measured = [output for output in outputs if output.sqnr_db is not None]
    ranked = broken or sorted(measured, key=lambda output: output.sqnr_db or 0.0)
    return ranked[0] if ranked else None


def sizes(report: Report) -> tuple[Fact, ...]:
    """Return file size, MACs, parameters and peak activation memory; without an output, the input's alone."""
    after = report.output
    facts = [
        _size("File size", report.input, after, "bytes", units.format_bytes),
        _download(report.input, after),
        _size("MACs", report.input, after, "macs", units.format_count),
        _size("Parameters", report.input, after, "params", units.format_count),
        _size("Peak activations", report.input, after, "peak_activation_bytes", units.format_bytes),
    ]
    if after is not None and after.ort is not None:
        facts.append(Fact("ORT file", units.format_bytes(after.ort.bytes)))
    return tuple(fact for fact in facts if fact is not None)


def _download(before: ModelSummary, after: OutputSummary | None) -> Fact | None:
    """Return the compressed size, as a part of what a phone downloads without asking."""
    found = _size("Download", before, after, "download_bytes", units.format_bytes)
    held = (after or before).download_bytes
    if found is None or held is None:
        return found
    part = (
        f"{units.format_percent(held / LIMIT, 1)} of the {units.format_bytes(LIMIT)} above which stores ask for Wi-Fi"
    )
    return replace(found, note=f"{found.note}; {part}" if found.note else part, fraction=None)  # a line of its own


def _size(
    label: str,
    before: ModelSummary,
    after: OutputSummary | None,
    field: str,
    text: Callable[[float], str],
) -> Fact | None:
    was: int | None = getattr(before, field)
    now: int | None = getattr(after, field, None)
    if now is None:
        return None if was is None or after is not None else Fact(label, text(was))
    if was is None:
        return Fact(label, text(now))
    if was == now:
        return Fact(label, text(now), note="unchanged")
    fraction = now / was if was else None
    note = units.format_percent(fraction) if fraction is not None else None
    return Fact(label, text(now), text(was), note, Tone.GOOD if now < was else Tone.BAD, fraction)


def speeds(latency: Latency | None) -> tuple[Fact, ...]:
    """Return latency, load time, resident memory and devices, as far as they were measured."""
    if latency is None:
        return ()
    return (*_host_speeds(latency), *_device_speeds(latency))


def _host_speeds(latency: Latency) -> Iterator[Fact]:
    before, after = latency.reference, latency.candidate
    if after is None:
        yield Fact("Latency", units.format_ms(before.p50_ms), note="median")
        return
    was, now = units.format_ms(before.p50_ms), units.format_ms(after.p50_ms)
    yield Fact("Latency", now, was, speed_note(latency), speed_tone(latency))
    if before.load_ms is not None and after.load_ms is not None:
        yield Fact("Load time", units.format_ms(after.load_ms), units.format_ms(before.load_ms))
    if before.peak_rss_bytes is not None and after.peak_rss_bytes is not None:
        now, was = units.format_bytes(after.peak_rss_bytes), units.format_bytes(before.peak_rss_bytes)
        yield Fact("Resident memory", now, was)


def _device_speeds(latency: Latency) -> Iterator[Fact]:
    for device in latency.devices:
        if device.candidate is None or device.speedup is None:
            continue
        counted = device.candidate.instructions is not None
        what = "fewer instructions" if counted else "faster"
        bounds = None
        if device.interval is not None:
            bounds = f"95 % interval {_bounds(device.interval)}"
        good = Tone.GOOD if device.speedup > 1 else Tone.BAD
        yield Fact(f"On {device.name}", f"{units.format_ratio(device.speedup)} {what}", note=bounds, tone=good)


def speed_words(latency: Latency) -> str | None:
    """Return "1.9x faster", "1.3x slower" or "no measurable change in speed"; None without a comparison."""
    if latency.speedup is None or latency.speedup <= 0:
        return None
    even = latency.interval is not None and latency.interval[0] <= 1 <= latency.interval[1]
    if even or latency.claim is Claim.NOTHING:
        return "no measurable change in speed"
    about = "" if latency.stable is not False else "about "
    if latency.speedup >= 1:
        return f"{about}{units.format_ratio(latency.speedup)} faster"
    return f"{about}{units.format_ratio(1 / latency.speedup)} slower"


def speed_note(latency: Latency) -> str | None:
    """Return the speed in words with its interval and whether the measurement was stable."""
    words = [speed_words(latency)]
    if latency.interval is not None:
        words.append(f"95 % interval {_bounds(latency.interval)}")
    if latency.stable is not None:
        words.append("stable" if latency.stable else "not stable")
    return ", ".join(word for word in words if word) or None


def speed_tone(latency: Latency) -> Tone:
    """Return good or bad for a proven change of speed; an unstable measurement proves nothing."""
    if latency.stable is False:
        return Tone.WARN
    if latency.claim is not None:
        return {Claim.FASTER: Tone.GOOD, Claim.SLOWER: Tone.BAD, Claim.NOTHING: Tone.PLAIN}[latency.claim]
    low, high = latency.interval or (latency.speedup or 1.0,) * 2
    return Tone.GOOD if low > 1 else Tone.BAD if high < 1 else Tone.PLAIN


def _bounds(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def qualities(validation: Validation | None) -> tuple[Fact, ...]:
    """Return what the candidate lost: metric, SQNR, agreement, largest error, the metric as ARM computes it."""
    if validation is None:
        return ()
    return (*_metrics(validation), *_numerics(validation))


def _metrics(validation: Validation) -> Iterator[Fact]:
    metric = validation.metric
    if metric is not None:
        yield _metric_fact(metric_label(metric.name).capitalize(), metric)
    elif validation.source is Source.SYNTHETIC:
        yield Fact("Accuracy", "unknown", note="synthetic samples have no labels", tone=Tone.WARN)
    else:
        yield Fact("Accuracy", "unknown", note="the samples have no labels", tone=Tone.WARN)
    if validation.arm is not None and validation.arm.metric is not None:
        yield _metric_fact("As ARM computes it", validation.arm.metric)


def _metric_fact(label: str, metric: Metric) -> Fact:
    was, now = (units.format_percent(value, 1) for value in (metric.reference, metric.candidate))
    words = [units.format_points(-metric.drop), interval_words(metric), f"{metric.samples} samples"]
    low, high = metric.interval or (metric.drop, metric.drop)
    tone = Tone.BAD if low > 0 else Tone.GOOD if high <= 0 else Tone.PLAIN
    return Fact(label, now, was, ", ".join(word for word in words if word), tone)


def _numerics(validation: Validation) -> Iterator[Fact]:
    worst = worst_output(validation.outputs)
    if worst is not None and not worst.finite:
        yield Fact("Outputs", "not finite", note=f"NaN or Inf in {worst.name}", tone=Tone.BAD)
    elif worst is not None and worst.sqnr_db is not None:
        note = f"lowest of {len(validation.outputs)}, {worst.name}" if len(validation.outputs) > 1 else None
        yield Fact("Output SQNR", units.format_db(worst.sqnr_db), note=note)
    agreements = [o.top1_agreement for o in validation.outputs if o.top1_agreement is not None]
    if agreements:
        note = f"of {validation.samples} samples"
        yield Fact("Top-1 agreement", units.format_percent(min(agreements), 1), note=note)
    errors = [output.max_abs for output in validation.outputs if output.max_abs is not None]
    if errors:
        yield Fact("Largest error", units.format_error(max(errors)), note="absolute, any output")
