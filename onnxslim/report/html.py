"""The report as one self-contained HTML page: no network, no framework, readable without scripts.

This module hands figures and geometry to `templates/report.html.j2`; everything from a model is escaped there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from onnxslim.measure.layer_times import LayerSum, by_origin
from onnxslim.report import units
from onnxslim.report.charts import (
    BarChart,
    Curve,
    Quantity,
    Step,
    activation_curve,
    layer_bars,
    operator_shares,
    pass_steps,
)
from onnxslim.report.evidence import LatencySide, LayerSqnr
from onnxslim.report.facts import interval_words, metric_label, qualities, sizes, speeds
from onnxslim.report.network import PassRecord
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
from onnxslim.report.schema import PassStatus, Report
from onnxslim.report.story import (
    budget_name,
    cautions,
    headline,
    integer_readings,
    limit_text,
    observed_text,
    skipped_groups,
)

MAX_ROWS = 200
"""Rows of one table; what is beyond is in the JSON, and the page says how many."""

_LATENCY_COLUMNS = (
    ("Median", "p50_ms"),
    ("90 %", "p90_ms"),
    ("99 %", "p99_ms"),
    ("Mean", "mean_ms"),
    ("Load", "load_ms"),
    ("Memory", "peak_rss_bytes"),
)
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class LayerSection:
    """One chart by layer with the sentence above it."""

    slug: str
    title: str
    quantity: Quantity
    chart: BarChart
    shares: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class PassRow:
    """One pass with its steps in the waterfall."""

    record: PassRecord
    bytes_step: Step | None
    macs_step: Step | None


@dataclass(frozen=True)
class Activations:
    """Activation memory along both networks, on one scale."""

    before: Curve | None
    after: Curve | None


def to_html(report: Report) -> str:
    """Return the report as one HTML page."""
    return _template().render(_context(report))


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes_=units.format_bytes,
        count_=units.format_count,
        percent=units.format_percent,
        points=units.format_points,
        ms=units.format_ms,
        us=units.format_us,
        seconds=units.format_seconds,
        ratio=units.format_ratio,
        db=units.format_db,
        error=units.format_error,
        tight=_tight,
        metric_label=metric_label,
        interval_words=interval_words,
        budget_name=budget_name,
        limit_text=limit_text,
        observed_text=observed_text,
    )
    return environment.get_template("report.html.j2")


def _tight(text: str) -> str:
    """Keep every number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=[%A-Za-zµ])", "\N{NO-BREAK SPACE}", text)


def _context(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "headline": headline(report),
        "cautions": cautions(report),
        "won": (*sizes(report), *speeds(report.latency), *integer_facts(report.placement)),
        "lost": qualities(report.validation),
        "passes": _pass_rows(report.passes),
        "idle": [record for record in report.passes if record.status is PassStatus.UNCHANGED],
        "sections_text": {quantity.value: quantity.text for quantity in Quantity},
        "sections": _layer_sections(report),
        "activations": _activations(report),
        "readings": integer_readings(report.validation),
        "skipped": skipped_groups(report.passes),
        "spec": ",".join(record.spec for record in report.passes),
        "layer_sqnr": _worst_first(report),
        "layer_latency": _slowest_first(report),
        "latency_columns": _latency_columns(report),
        "latency_sides": _latency_sides(report),
        "max_rows": MAX_ROWS,
        **_ranks(report),
        **_placement(report),
    }


def _ranks(report: Report) -> dict[str, Any]:
    survey = report.ranks
    edges = {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "width": WIDTH, "height": HEIGHT}
    return {
        "survey": survey,
        "factored": [record for record in report.passes if record.ranks is not None],
        "rank_charts": () if survey is None else rank_charts(survey),
        "rank_refusals": {} if survey is None else refusals(survey),
        "rank_symbol": symbol,
        "half_option": half_option,
        "ranks_text": ranks_text,
        "box": edges,
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


def _pass_rows(passes: tuple[PassRecord, ...]) -> tuple[PassRow, ...]:
    active = [record for record in passes if record.status is not PassStatus.UNCHANGED]
    steps = zip(pass_steps(active, Quantity.BYTES), pass_steps(active, Quantity.MACS), strict=True)
    return tuple(PassRow(record, *pair) for record, pair in zip(active, steps, strict=True))


def _layer_sections(report: Report) -> tuple[LayerSection, ...]:
    titles = ((Quantity.BYTES, "Where the bytes sit"), (Quantity.MACS, "Where the MACs sit"))
    sections = (
        LayerSection(
            quantity.value,
            title,
            quantity,
            layer_bars(report.input, report.output, quantity),
            operator_shares(report.input, quantity)[:4],
        )
        for quantity, title in titles
    )
    return tuple(section for section in sections if section.chart.bars)


def _activations(report: Report) -> Activations | None:
    models = [model for model in (report.input, report.output) if model is not None]
    scale = max((layer.activation_bytes or 0 for model in models for layer in model.layers), default=0)
    before, after = (activation_curve(model, scale) for model in (report.input, report.output))
    return Activations(before, after) if before or after else None


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


def _slowest_first(report: Report) -> list[LayerSum]:
    """Return the layers of the reference, with what was made of them, and what the runtime inserted."""
    layers = by_origin(report.latency.layers) if report.latency else []
    return sorted(layers, key=lambda layer: -max(layer.candidate_us or 0.0, layer.reference_us or 0.0))
