"""What the HTML page is made of: every figure, row and curve that its templates print."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnxslim.report import units
from onnxslim.report.device_story import (
    DeviceRow,
    KindShare,
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
from onnxslim.report.evidence import DeviceReading, DeviceSide, LatencySide, LayerSqnr
from onnxslim.report.facts import qualities, sizes, speeds
from onnxslim.report.memory_chart import chart_of
from onnxslim.report.placement_story import float_groups, integer_facts, slower_groups, time_parts, waste_groups
from onnxslim.report.rank_charts import (
    BOTTOM,
    ENERGY_TICKS,
    HEIGHT,
    LEFT,
    RIGHT,
    SHARE_TICKS,
    TOP,
    WIDTH,
    half_option,
    rank_charts,
    ranks_text,
    refusals,
    symbol,
)
from onnxslim.report.rows import Quantity, every_layer, layer_charts
from onnxslim.report.schema import PassStatus, Report
from onnxslim.report.story import cautions, headline, integer_readings, skipped_groups
from onnxslim.report.waterfall import change_text, waterfall

MAX_ROWS = 200
"""Rows of one table; what is beyond is in the JSON, and the page says how many."""
MAX_LINES = 2000
"""The same of tables with short rows."""
MAX_GROUPS = 30
"""Reasons that are spelt out, the most frequent first."""

_LATENCY_COLUMNS = (
    ("Median", "p50_ms"),
    ("90 %", "p90_ms"),
    ("99 %", "p99_ms"),
    ("Mean", "mean_ms"),
    ("Load", "load_ms"),
    ("Memory", "peak_rss_bytes"),
)
_TEXTS: dict[str, Callable[[float], str]] = {
    "bytes": units.format_bytes,
    "MACs": units.format_count,
    "time": units.format_us,
    "held": units.format_bytes,
}


@dataclass(frozen=True)
class DeviceSection:
    """One device: its words, both models, kinds of instructions and layers."""

    reading: DeviceReading
    counted: bool
    kind: str
    facts: str
    sides: tuple[tuple[str, DeviceSide, DeviceReading | None], ...]
    placed: bool
    """Whether some side tells which processors it ran on."""
    kinds: tuple[KindShare, ...]
    layers: tuple[DeviceRow, ...]
    text: Callable[[float | None], str]
    """Of one layer's figure."""


def context(report: Report) -> dict[str, Any]:
    """Return the names that `templates/report.html.j2` uses."""
    parts = {
        "report": report,
        "headline": headline(report),
        "cautions": cautions(report),
        "won": (*sizes(report), *speeds(report.latency), *integer_facts(report.placement)),
        "lost": qualities(report.validation),
        "sections": layer_charts(report),
        "memory": chart_of(report),
        "readings": integer_readings(report.validation),
        "skipped": skipped_groups(report.passes),
        "spec": ",".join(record.spec for record in report.passes),
        "layer_sqnr": _worst_first(report),
        "latency_columns": _latency_columns(report),
        "latency_sides": _latency_sides(report),
        "devices": [_device(report, one) for one in (report.latency.devices if report.latency else ())],
        "ranges": (report.output or report.input).ranges,
        "max_rows": MAX_ROWS,
        "max_lines": MAX_LINES,
        "max_groups": MAX_GROUPS,
        **_passes(report),
        **_every(report),
        **_ranks(report),
        **_placement(report),
        **_texts(),
    }
    return {**parts, "contents": list(_contents(parts))}


def _texts() -> dict[str, Any]:
    return {
        "side_text": side_text,
        "ratio_text": ratio_text,
        "interval_text": interval_text,
        "placed_text": placed_text,
        "percent_text": units.format_percent,
        "per_text": units.format_small,
        "real_text": units.format_real,
    }


def _passes(report: Report) -> dict[str, Any]:
    active = [record for record in report.passes if record.status is not PassStatus.UNCHANGED]
    falls = [waterfall(report.passes, quantity) for quantity in Quantity] if report.passes else []
    return {
        "passes": active,
        "idle": [record for record in report.passes if record.status is PassStatus.UNCHANGED],
        "falls": [fall for fall in falls if fall is not None],
        "quantities": tuple(Quantity),
        "change_text": change_text,
    }


def _every(report: Report) -> dict[str, Any]:
    """Return the table of all layers, with the columns that say something."""
    lines = every_layer(report)
    named = [f"{what}{side}" for what in _TEXTS for side in ("", " after")]
    used = [index for index in range(len(named)) if any(line.values[index] is not None for line in lines)]
    return {
        "every": [line.only(used) for line in lines],
        "every_columns": [
            (named[index][0].upper() + named[index][1:], _TEXTS[named[index].split()[0]]) for index in used
        ],
    }


def _device(report: Report, reading: DeviceReading) -> DeviceSection:
    sides: list[tuple[str, DeviceSide, DeviceReading | None]] = [
        ("Reference" if reading.candidate else "Model", reading.reference, None)
    ]
    sides += [("Candidate", reading.candidate, reading)] if reading.candidate else []
    return DeviceSection(
        reading=reading,
        counted=is_counted(reading),
        kind=kind_words(reading),
        facts=facts_text(reading),
        sides=tuple(sides),
        placed=any(side.placed for _, side, _ in sides),
        kinds=kind_shares(reading),
        layers=device_layers(reading, report.input, report.output),
        text=partial(layer_text, reading),
    )


def _ranks(report: Report) -> dict[str, Any]:
    survey = report.ranks
    return {
        "survey": survey,
        "factored": [record for record in report.passes if record.ranks is not None],
        "rank_charts": () if survey is None else rank_charts(survey),
        "rank_refusals": {} if survey is None else refusals(survey),
        "rank_symbol": symbol,
        "half_option": half_option,
        "ranks_text": ranks_text,
        "box": {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "width": WIDTH, "height": HEIGHT},
        "share_ticks": SHARE_TICKS,
        "energy_ticks": ENERGY_TICKS,
    }


def _placement(report: Report) -> dict[str, Any]:
    placement = report.placement
    return {
        "placement": placement,
        "float_groups": () if placement is None else float_groups(placement),
        "waste_groups": () if placement is None else waste_groups(placement),
        "slower_groups": () if placement is None else slower_groups(placement),
        "time_parts": () if placement is None else time_parts(placement),
    }


def _contents(parts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield id and title of each part of the page that is there."""
    report: Report = parts["report"]
    placed = "Float layers" if parts["float_groups"] else "Integers"
    known: Sequence[tuple[object, str, str]] = (
        (report.passes, "passes", "Passes"),
        (parts["factored"], "factoring1", "Ranks"),
        (parts["survey"], "ranks", "Low rank"),
        (parts["placement"], "placement", placed),
        *((True, section.slug, section.short) for section in parts["sections"]),
        (parts["every"], "every", "Every layer"),
        (parts["memory"], "memory", "Activation memory"),
        (report.validation, "numerics", "Numerics"),
        (report.latency, "latency", "Latency"),
        (parts["devices"], "devices", "Devices"),
        (parts["ranges"], "ranges", "Ranges"),
        (parts["skipped"], "skipped", "Left alone"),
        (True, "reproduce", "Reproduce"),
    )
    yield from ((name, title) for there, name, title in known if there)


def _latency_sides(report: Report) -> list[tuple[str, LatencySide]]:
    latency = report.latency
    sides = (("Reference", latency.reference), ("Candidate", latency.candidate)) if latency else ()
    return [(name, side) for name, side in sides if side is not None]


def _latency_columns(report: Report) -> list[tuple[str, str]]:
    """Return heading and field of each figure that some side has."""
    sides = [side for _, side in _latency_sides(report)]
    return [pair for pair in _LATENCY_COLUMNS if any(getattr(side, pair[1]) is not None for side in sides)]


def _worst_first(report: Report) -> list[LayerSqnr]:
    layers = report.validation.layers if report.validation else ()
    return sorted(layers, key=lambda layer: -1e9 if layer.sqnr_db is None else layer.sqnr_db)
