"""The report: one typed document and its formats. It shows what other rooms found out and computes nothing.

The parts are classes of `schema`; `write_report` picks JSON, Markdown or HTML by the file's ending;
`summary_lines` is for terminals; `units` is how every number of the package is printed.
"""

from __future__ import annotations

from onnxslim.report.html import to_html
from onnxslim.report.markdown import to_markdown
from onnxslim.report.schema import Report, json_schema
from onnxslim.report.text import summary_lines
from onnxslim.report.units import format_bytes, format_count, format_ms, format_percent, format_points
from onnxslim.report.write import check_report_path, write_report

__all__ = [
    "Report",
    "check_report_path",
    "format_bytes",
    "format_count",
    "format_ms",
    "format_percent",
    "format_points",
    "json_schema",
    "summary_lines",
    "to_html",
    "to_markdown",
    "write_report",
]
