"""The report as one self-contained HTML page: no network, no framework, readable without scripts.

`page` gathers what is shown, `templates/` holds the markup; everything from a model is escaped there.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from onnxslim.report import units
from onnxslim.report.facts import interval_words, metric_label
from onnxslim.report.page import context
from onnxslim.report.schema import Report
from onnxslim.report.story import budget_name, limit_text, observed_text

_TEMPLATES = Path(__file__).with_name("templates")


def to_html(report: Report) -> str:
    """Return the report as one HTML page."""
    return _template().render(context(report))


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
