"""Rows by layer, before and after: what charts and tables of bytes, MACs, time and instructions show.

Rows are the layers of the original, each with all that was made of it, and what belongs to none of them: operators
that the runtime inserted, and new layers. They add up to the totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from onnxslim.measure.layer_times import by_origin
from onnxslim.report import units
from onnxslim.report.evidence import DeviceReading, Latency
from onnxslim.report.network import LayerSummary, ModelSummary, Totals
from onnxslim.report.schema import Report

TOP = 20
"""Rows of a chart; a last one sums up the others."""


class Quantity(StrEnum):
    """What a chart shows of each layer or pass."""

    BYTES = "bytes"
    MACS = "macs"

    def of(self, part: LayerSummary | ModelSummary | Totals | None) -> int | None:
        """Return the quantity of a part; None where the part or its figure is absent."""
        value: int | None = getattr(part, self.value, None)
        return value

    def text(self, value: float) -> str:
        """Return the value with its unit."""
        return units.format_bytes(value) if self is Quantity.BYTES else units.format_count(value)


@dataclass(frozen=True)
class Row:
    """One layer before and after; a side that does not have it is None."""

    name: str
    op: str
    before: float | None
    after: float | None
    note: str | None = None
    """What it is, where it is no layer of the original; or how many operators it became."""

    @property
    def largest(self) -> float:
        """The larger of both sides."""
        return max(self.before or 0, self.after or 0)

    @property
    def kept(self) -> float | None:
        """After divided by before."""
        return self.after / self.before if self.before and self.after is not None else None


@dataclass(frozen=True)
class Bar:
    """A row with its place in the chart: widths are percent of the largest, shares of the totals are fractions."""

    row: Row
    before_width: float
    after_width: float
    before_share: float | None
    after_share: float | None


@dataclass(frozen=True)
class BarChart:
    """The largest rows, one that sums up the smaller ones, and the total."""

    bars: tuple[Bar, ...]
    rest: Bar | None
    rest_count: int
    total: Bar
    has_after: bool


_PAIR = ("QuantizeLinear", "DequantizeLinear")
INSERTED = "inserted by the runtime"
OWN = "the runtime's own work"
NEW = "new"


def bar_chart(rows: Iterable[Row], top: int = TOP) -> BarChart | None:
    """Return the chart of rows, the largest first; those with nothing on either side are left out, None if all are."""
    sized = sorted((row for row in rows if row.largest), key=lambda row: -row.largest)
    if not sized:
        return None
    shown, others = (sized[:top], sized[top:]) if len(sized) != top + 1 else (sized, [])
    total, scale = _sum("All of them", sized), sized[0].largest
    rest = _bar(_sum("", others), total, scale) if others else None
    bars = tuple(_bar(row, total, scale) for row in shown)
    has_after = any(row.after is not None for row in sized)
    return BarChart(bars, rest, len(others), _bar(total, total, scale), has_after)


def _sum(name: str, rows: Sequence[Row]) -> Row:
    before = [row.before for row in rows if row.before is not None]
    after = [row.after for row in rows if row.after is not None]
    return Row(name, "", sum(before) if before else None, sum(after) if after else None)


def _bar(row: Row, total: Row, scale: float) -> Bar:
    before, after = (round(min(100.0, 100 * (side or 0) / scale), 2) for side in (row.before, row.after))
    return Bar(row, before, after, _share(row.before, total.before), _share(row.after, total.after))


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


# ---- rows of each quantity -----------------------------------------------------------------------------------


def layer_rows(before: ModelSummary, after: ModelSummary | None, quantity: Quantity) -> list[Row]:
    """Return bytes or MACs by layer of the original; what works for none of them is new."""
    return _paired(before, after, quantity.of)


def _paired(before: ModelSummary, after: ModelSummary | None, value: Callable[[LayerSummary], int | None]) -> list[Row]:
    ops = {layer.anchor: layer.op for layer in before.layers}
    ours: dict[str, float | None] = {layer.anchor: value(layer) for layer in before.layers}
    theirs: dict[str, float | None] = {}
    parts: Counter[str] = Counter()
    for layer in after.layers if after else ():
        name = layer.origin if layer.origin in ops else layer.anchor
        own = value(layer)
        if own is not None:
            theirs[name] = (theirs.get(name) or 0) + own
            parts[name] += bool(own) and layer.op not in _PAIR
        ops.setdefault(name, layer.op)
    rows = []
    for name, op in ops.items():
        note = NEW if name not in ours else f"{parts[name]} layers" if parts[name] > 1 else None
        rows.append(Row(name, op, ours.get(name), theirs.get(name), note))
    return rows


def time_rows(latency: Latency, before: ModelSummary) -> list[Row]:
    """Return microseconds by layer of the original; they add up to the median latencies."""
    ops = {layer.anchor: layer.op for layer in before.layers}
    return [
        Row(
            layer.node,
            ops.get(layer.node, layer.op) if layer.origin else layer.op,
            layer.reference_us,
            None if latency.candidate is None else layer.candidate_us,
            INSERTED if not layer.origin else f"{layer.nodes} operators" if layer.nodes > 1 else None,
        )
        for layer in by_origin(latency.layers)
    ]


def device_rows(device: DeviceReading, before: ModelSummary) -> list[Row]:
    """Return what a device tells by layer of the original: instructions, or microseconds where none were counted."""
    ops = {layer.anchor: layer.op for layer in before.layers}
    return [
        Row(
            layer.node,
            ops.get(layer.node, layer.op) if layer.origin else layer.op,
            layer.before,
            layer.after,
            None if layer.origin else INSERTED if layer.op else OWN,
        )
        for layer in device.layers
    ]


def macs_by_layer(before: ModelSummary, after: ModelSummary | None) -> dict[str, Row]:
    """Return MACs by layer of the original, by name."""
    return {row.name: row for row in layer_rows(before, after, Quantity.MACS)}


def operator_shares(rows: Iterable[Row]) -> tuple[tuple[str, float], ...]:
    """Return each operator's fraction of the original, largest first, those of 1 % and more."""
    sums: dict[str, float] = {}
    for row in rows:
        sums[row.op] = sums.get(row.op, 0) + (row.before or 0)
    total = sum(sums.values())
    ordered = sorted(sums.items(), key=lambda pair: -pair[1])
    return tuple((op, value / total) for op, value in ordered if total and op and value / total >= 0.01)


# ---- what is shown of a report -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSection:
    """One chart by layer with its words."""

    slug: str
    title: str
    short: str
    unit: str
    text: Callable[[float], str]
    chart: BarChart
    shares: tuple[tuple[str, float], ...]
    lead: str = ""
    sides: tuple[str, str] = ("before", "after")


def layer_charts(report: Report, top: int = TOP) -> tuple[LayerSection, ...]:
    """Return where bytes, time and MACs sit, as far as they are known."""
    return tuple(section for section in _sections(report, top) if section is not None)


def _sections(report: Report, top: int) -> Iterator[LayerSection | None]:
    yield _section(
        ("bytes", "Where the bytes sit", "Bytes", "Bytes"),
        units.format_bytes,
        layer_rows(report.input, report.output, Quantity.BYTES),
        top,
        "Constants; files have names and structure on top.",
    )
    if report.latency is not None and report.latency.layers:
        yield _section(
            ("time", "Where the time goes", "Time", "Time"),
            units.format_us,
            time_rows(report.latency, report.input),
            top,
            "On this machine; a profile's shares of the median latencies.",
        )
    yield _section(
        ("macs", "Where the MACs sit", "MACs", "MACs"),
        units.format_count,
        layer_rows(report.input, report.output, Quantity.MACS),
        top,
        "Multiply-accumulates of one inference.",
    )


def _section(
    names: tuple[str, str, str, str], text: Callable[[float], str], rows: Sequence[Row], top: int, lead: str
) -> LayerSection | None:
    chart = bar_chart(rows, top)
    return None if chart is None else LayerSection(*names, text, chart, operator_shares(rows)[:4], lead)


@dataclass(frozen=True)
class EveryLine:
    """One layer with all that is known of it: bytes, MACs, time and activations held, each before and after."""

    name: str
    op: str
    values: tuple[float | None, ...]

    def only(self, columns: Sequence[int]) -> EveryLine:
        """Return the line with some of its values."""
        return EveryLine(self.name, self.op, tuple(self.values[index] for index in columns))


def every_layer(report: Report) -> list[EveryLine]:
    """Return the layers of the original in order, then what is new; without those of which there is nothing to say."""
    held = {
        side: {layer.anchor: layer.activation_bytes for layer in model.layers}
        for side, model in (("before", report.input), ("after", report.output))
        if model is not None
    }
    times = {row.name: row for row in time_rows(report.latency, report.input)} if report.latency else {}
    sized = zip(*(layer_rows(report.input, report.output, quantity) for quantity in Quantity), strict=True)
    found = []
    for weights, macs in sized:
        name, time = weights.name, times.get(weights.name)
        own = (weights.before, weights.after, macs.before, macs.after)
        if weights.op != "Constant" and (any(own) or time is not None):
            spent = (None, None) if time is None else (time.before, time.after)
            alive = (held["before"].get(name), held.get("after", {}).get(name))
            found.append(EveryLine(name, weights.op, (*own, *spent, *alive)))
    return found
