"""The report, schema 1: one typed document that every command fills and every format shows.

Only the document: nothing here measures, decides or renders. Its JSON Schema ships with the package as
`report.schema.json`; a test holds that file against `json_schema()` and says how to write it anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from onnxslim.report.base import BudgetVerdict, Count, Part, PassStatus, PathText, Source
from onnxslim.report.evidence import (
    DeviceReading,
    DeviceSide,
    Latency,
    LatencyProtocol,
    LatencySide,
    LayerLatency,
    LayerSqnr,
    Metric,
    OutputNumerics,
    Reading,
    Validation,
)
from onnxslim.report.network import (
    LayerSummary,
    ModelSummary,
    OrtFile,
    OutputSummary,
    PassRecord,
    Skipped,
    Totals,
)
from onnxslim.report.placement import LayerPlacement, Placement
from onnxslim.report.ranks import Factoring, LayerRanks, RankSurvey

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


class Tool(Part):
    """Who wrote the report."""

    name: str
    version: str


class Environment(Part):
    """Where it was measured."""

    cpu: str
    cores: Count
    python: str
    onnx: str
    onnxruntime: str


class BudgetLine(Part):
    """One stated budget.

    Both sides speak the same terms: a limit given as text ("1%", "2MB") stays as the user wrote it. `observed`
    is then a fraction for a percentage (0.004 for 0.4 %), bytes for a size, and dB, a count or milliseconds
    as the name says; text is shown as it stands.
    """

    name: str
    """The option without the dashes in front: "max-drop" or "max_drop"."""
    limit: int | float | str
    observed: int | float | str | None = None
    """Absent when it could not be measured."""
    verdict: BudgetVerdict


class Report(Part):
    """Everything one command found out; see the package's `report.schema.json`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this document's form."""
    tool: Tool
    created: AwareDatetime
    command: PathText
    """The command as it was given."""
    seed: int | None = None
    environment: Environment
    input: ModelSummary
    output: OutputSummary | None = None
    passes: tuple[PassRecord, ...] = ()
    validation: Validation | None = None
    latency: Latency | None = None
    budget: tuple[BudgetLine, ...] = ()
    ranks: RankSurvey | None = None
    """What low rank would do to each layer, where that was asked."""
    placement: Placement | None = None
    """Which layers of a quantized model run as integers; absent for models in float."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as .html, .json or .md; raises OutputError as `write_report` does."""
        from onnxslim.report.write import write_report

        write_report(self, path)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `Report` documents, as the models in this room define it."""
    schema = Report.model_json_schema(by_alias=True, mode="validation")
    schema["required"] = ["schema", *schema["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


__all__ = [
    "SCHEMA_FILE",
    "BudgetLine",
    "BudgetVerdict",
    "DeviceReading",
    "DeviceSide",
    "Environment",
    "Factoring",
    "Latency",
    "LatencyProtocol",
    "LatencySide",
    "LayerLatency",
    "LayerPlacement",
    "LayerRanks",
    "LayerSqnr",
    "LayerSummary",
    "Metric",
    "ModelSummary",
    "OrtFile",
    "OutputNumerics",
    "OutputSummary",
    "PassRecord",
    "PassStatus",
    "Placement",
    "RankSurvey",
    "Reading",
    "Report",
    "Skipped",
    "Source",
    "Tool",
    "Totals",
    "Validation",
    "json_schema",
]
