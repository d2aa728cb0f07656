"""Write a report in the format its name asks for, whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from onnxslim.errors import OutputError
from onnxslim.report.html import to_html
from onnxslim.report.markdown import to_markdown
from onnxslim.report.schema import Report

_FORMATS: dict[str, Callable[[Report], str]] = {
    ".html": to_html,
    ".json": Report.to_json,
    ".md": to_markdown,
}


def check_report_path(path: str | os.PathLike[str]) -> None:
    """Raise OutputError when the name's ending is none of .html, .json and .md; touches no file."""
    if Path(path).suffix.lower() not in _FORMATS:
        raise OutputError(f"{path}: a report's name must end in .html, .json or .md; rename it")


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the report as HTML, JSON or Markdown, by the name's ending.

    The text goes to a temporary name in the same folder and is then renamed, so that a reader never sees half
    a report. Raises OutputError for another ending and for a place that cannot be written.
    """
    check_report_path(path)
    target = Path(path)
    text = _FORMATS[target.suffix.lower()](report)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        why = (error.strerror or type(error).__name__).lower()
        raise OutputError(f"{path}: cannot write the report ({why}); name a writable place") from error
