"""The parts of the Markdown report by layer: where bytes, time and MACs sit, memory, devices, ranges."""

from __future__ import annotations

import html
from collections.abc import Iterator

from onnxslim.report import units
from onnxslim.report.device_story import (
    device_layers,
    facts_text,
    interval_text,
    is_counted,
    kind_shares,
    kind_words,
    layer_text,
    placed_text,
    ratio_text,
    side_text,
)
from onnxslim.report.evidence import DeviceReading, DeviceSide
from onnxslim.report.marks import escape, folded, name_text, table
from onnxslim.report.memory_chart import chart_of, sparkline
from onnxslim.report.network import ActivationPeak
from onnxslim.report.rows import Bar, LayerSection, Row, layer_charts
from onnxslim.report.schema import Report

TOP = 8
"""Rows of a table by layer; a last one sums up the others."""


def where(report: Report) -> Iterator[str]:
    """Yield where bytes, time and MACs sit, each to be opened."""
    for section in layer_charts(report, TOP):
        shares = ", ".join(f"{op} {units.format_percent(share)}" for op, share in section.shares)
        yield from folded(html.escape(f"{section.title}: {shares}" if shares else section.title), _bars(section))


def _bars(section: LayerSection) -> list[str]:
    chart = section.chart
    rows = [(_layer(bar.row), bar) for bar in chart.bars]
    if chart.rest is not None:
        rows.append((f"{chart.rest_count} smaller rows", chart.rest))
    rows.append(("**all of them**", chart.total))
    cells = [(name, *_cells(bar, section)) for name, bar in rows]
    if not chart.has_after:
        return table(("layer", "here", "share"), [row[:3] for row in cells], "lrr")
    return table(("layer", "before", "share", "after", "share"), cells, "lrrrr")


def _layer(row: Row) -> str:
    more = ", ".join(part for part in (row.op, row.note) if part)
    return f"{name_text(row.name)} {escape(more)}"


def _cells(bar: Bar, section: LayerSection) -> Iterator[str]:
    for value, share in ((bar.row.before, bar.before_share), (bar.row.after, bar.after_share)):
        yield "" if value is None else section.text(value)
        yield "" if share is None else units.format_percent(share, 1)


def memory(report: Report) -> list[str]:
    """Return the peaks of activation memory, and what is held there, to be opened."""
    chart = chart_of(report)
    if chart is None:
        return []
    said = [(name, line) for name, line in (("before", chart.before), ("after", chart.after)) if line is not None]
    peaks = [(name, units.format_bytes(line.peak_bytes), name_text(line.peak_anchor)) for name, line in said]
    lines = [*table(("", "most held", "at"), peaks, "lrl")]
    drawn = [f"{name:<6} {sparkline(chart.places, name, chart.scale)}" for name, _ in said]
    lines += ["", "```", *drawn, "```"]
    for name, line in said:
        lines += _held(name, line.held)
    words = ", ".join(f"{name} {units.format_bytes(line.peak_bytes)}" for name, line in said)
    limit = "" if chart.limit is None else f", limit {units.format_bytes(chart.limit)}"
    return folded(f"Peak of activation memory: {words}{limit}", lines)


def _held(name: str, peak: ActivationPeak | None) -> list[str]:
    tensors = () if peak is None else peak.tensors[:TOP]
    rows = [(name_text(tensor.name), units.format_bytes(tensor.bytes)) for tensor in tensors]
    held = table((f"held {name}", "bytes"), rows, "lr")
    return ["", *held] if held else []


def devices(report: Report) -> Iterator[str]:
    """Yield what every device says."""
    found = report.latency.devices if report.latency else ()
    if found:
        yield from ("### On devices", "")
    for index, device in enumerate(found):
        yield from ([""] if index else [])
        yield f"**{escape(device.name)}**, {kind_words(device)}. {escape(facts_text(device))}".rstrip()
        yield from ("", *_sides(device))
        for line in (*([f"{device.disagrees}."] if device.disagrees else []), *device.warnings):
            yield from ("", f"> {escape(line)}")
        kinds = ", ".join(f"{escape(one.name)} {units.format_percent(one.share)}" for one in kind_shares(device)[:6])
        yield from (["", f"Instructions{' after' if device.candidate else ''}: {kinds}."] if kinds else [])
        layers = folded("Instructions by layer" if is_counted(device) else "Time by layer", _layers(report, device))
        yield from (["", *layers] if layers else [])


def _sides(device: DeviceReading) -> list[str]:
    counted = is_counted(device)
    named: list[tuple[str, DeviceSide, DeviceReading | None]] = [
        ("reference" if device.candidate else "model", device.reference, None)
    ]
    named += [("candidate", device.candidate, device)] if device.candidate else []
    rows = [(name, *_side(side, ratio)) for name, side, ratio in named]
    what = ("instructions", "fewer") if counted else ("median", "faster")
    return table(("", *what, "95 % interval", "beside the host", "processors"), rows, "lrrrrl")


def _side(side: DeviceSide, ratio: DeviceReading | None) -> tuple[str, ...]:
    if side.refused is not None:
        return (f"does not run there: {escape(side.refused)}", "", "", "", "")
    near = "" if side.sqnr_db is None else units.format_db(side.sqnr_db)
    return side_text(side), ratio_text(ratio), interval_text(ratio), near, escape(placed_text(side))


def _layers(report: Report, device: DeviceReading) -> list[str]:
    rows = []
    for layer in device_layers(device, report.input, report.output)[:TOP]:
        row = (_layer(layer.row), layer_text(device, layer.row.before), layer_text(device, layer.row.after))
        each = ("" if per is None else units.format_small(per) for per in (layer.before_per_mac, layer.after_per_mac))
        rows.append((*row, *each, escape(layer.mostly)) if is_counted(device) else row)
    header = ("layer", "before", "after", "for each MAC", "after", "mostly")
    lines = table(header, rows, "lrrrrl") if is_counted(device) else table(header[:3], rows, "lrr")
    left = len(device.layers) - TOP
    return [*lines, "", f"{left} more in the JSON report."] if left > 0 else lines


def ranges(report: Report) -> list[str]:
    """Return the ranges of quantized activations, to be opened."""
    found = (report.output or report.input).ranges
    rows = [(name_text(one.tensor), *map(units.format_real, (one.low, one.high, one.step)), one.type) for one in found]
    lines = table(("tensor", "lowest", "highest", "step", "integers"), rows, "lrrrl")
    return folded(f"Ranges of {len(found)} activations", lines)
