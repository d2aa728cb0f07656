"""What Markdown is made of: escaped text, names as code, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_PLAIN_NAME = re.compile(r"[\w./:@$+=,*?'\"{}()-]([\w ./:@$+=,*?'\"{}()-]*[^ ])?", re.ASCII)
_ACTIVE = re.compile(r"([\\`*_\[\]#!|~])")

MOST_ROWS = 40
"""Of a table: the text of a pull request has an end, 65,536 letters on GitHub."""


def escape(text: str) -> str:
    """Return any text as plain Markdown on one line: no markup, no HTML, no table cell of its own."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _ACTIVE.sub(r"\\\1", flat)


def name_text(name: str) -> str:
    """Return a name from the model as code; a name that could leave its code span is escaped instead."""
    return f"`{name}`" if _PLAIN_NAME.fullmatch(name) else escape(name)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    """Lay out a table; `align` has one letter per column, l or r. No rows, no table; of many, the first."""
    every = list(rows)
    left = len(every) - MOST_ROWS
    shown = [*every[:MOST_ROWS], (f"{left} more in the JSON report", *[""] * (len(align) - 1))] if left > 1 else every
    lines = [f"| {' | '.join(row)} |" for row in shown]
    rule = "|".join("---:" if letter == "r" else "---" for letter in align)
    return [f"| {' | '.join(header)} |", f"|{rule}|", *lines] if lines else []


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Return lines that open on demand; `summary` is HTML. No lines, nothing."""
    return [f"<details><summary>{summary}</summary>", "", *lines, "", "</details>"] if lines else []
