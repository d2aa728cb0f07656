"""What other devices say of models, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.markup import escape

from onnxslim.cli.tables import plain_table
from onnxslim.measure import Latency
from onnxslim.report.device_story import (
    facts_text,
    interval_text,
    is_counted,
    layer_text,
    mostly_text,
    placed_text,
    ratio_text,
    side_text,
)
from onnxslim.report.evidence import DeviceReading, DeviceSide
from onnxslim.report.evidence import Latency as LatencyPart
from onnxslim.report.units import format_db

MOST_LAYERS = 12
"""Rows of a table of layers; the rest is in the JSON."""


def device_tables(results: Sequence[Latency | LatencyPart], names: Sequence[str]) -> Iterator[RenderableType]:
    """Yield for each device a table of all models, its layers, and what is to be said of it."""
    for place, first in enumerate(results[0].devices):
        readings = [result.devices[place] for result in results]
        yield ""
        yield _models(first, readings, names)
        for reading in readings:
            if reading.disagrees is not None:
                yield f"[yellow]{escape(reading.disagrees)}[/yellow]"
        if len(readings) == 1 and first.layers:
            yield ""
            yield _layers(first)
        for warning in first.warnings:
            yield f"[yellow]{escape(warning)}[/yellow]"


def _models(first: DeviceReading, readings: Sequence[DeviceReading], names: Sequence[str]) -> RenderableType:
    counted = is_counted(first)
    table = plain_table(
        f"on {first.name}", "instructions" if counted else "p50", "fewer" if counted else "speed-up", "95 % interval",
        "beside the host", "processors", right=range(1, 5),
    )  # fmt: skip
    rows = [(first.reference, None), *((reading.candidate, reading) for reading in readings if reading.candidate)]
    for name, (side, reading) in zip(names, rows, strict=False):
        if side is not None:
            table.add_row(escape(name), *_cells(side, reading))
    table.caption = escape(": ".join(part for part in (first.kind or "", facts_text(first)) if part))
    table.caption_justify = "left"
    return table


def _cells(side: DeviceSide, reading: DeviceReading | None) -> tuple[str, ...]:
    if side.refused is not None:
        return (f"[red]does not run: {escape(side.refused)}[/red]", "", "", "", "")
    near = "" if side.sqnr_db is None else format_db(side.sqnr_db)
    return side_text(side), ratio_text(reading), interval_text(reading), near, placed_text(side)


def _layers(reading: DeviceReading) -> RenderableType:
    """Return the layers that take most, with what was made of them."""
    table = plain_table("layer", "operator", "before", "after", "mostly", right=(2, 3))
    order = sorted(reading.layers, key=lambda layer: -max(layer.before or 0, layer.after or 0))
    for layer in order[:MOST_LAYERS]:
        inserted = "inserted by the runtime" if layer.op else layer.node
        name = f"[dim]{escape(inserted)}[/dim]" if layer.origin is None else escape(layer.node)
        values = (layer_text(reading, value) for value in (layer.before, layer.after))
        table.add_row(name, escape(layer.op), *values, mostly_text(layer.kinds))
    if len(order) > MOST_LAYERS:
        table.caption = f"{len(order) - MOST_LAYERS} more in --json"
        table.caption_justify = "left"
    return table
