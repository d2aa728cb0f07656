"""The document: what it takes, what it refuses, and that the shipped JSON Schema says the same."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from onnxslim.report.schema import SCHEMA_FILE, OutputSummary, PassRecord, Report, json_schema

Document = dict[str, Any]


def _check(document: Document) -> None:
    jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text("utf-8"))).validate(document)


def test_the_shipped_schema_is_the_models_own() -> None:
    written = json.loads(SCHEMA_FILE.read_text("utf-8"))
    anew = "json.dumps(json_schema(), indent=2) to report.schema.json"
    assert written == json_schema(), f"the models changed: write {anew}"
    jsonschema.Draft202012Validator.check_schema(written)


def test_documents_round_trip_and_validate(full: Report, minimal: Report) -> None:
    for report in (full, minimal):
        text = report.to_json()
        assert Report.from_json(text) == report
        assert Report.from_json(text).to_json() == text
        _check(json.loads(text))


def test_json_is_the_document_that_came_in(full_document: Document, minimal_document: Document) -> None:
    for document in (full_document, minimal_document):
        text = Report.model_validate(document).to_json()
        assert json.loads(text) == json.loads(json.dumps(document))
        assert text.endswith("}\n")
        assert '\n  "schema": 1' in text


def test_top_level_names_are_the_contract(full: Report) -> None:
    names = "schema tool created command seed environment input output passes validation latency budget"
    assert list(json.loads(full.to_json())) == names.split()


def test_what_was_not_measured_is_absent(minimal: Report) -> None:
    text = minimal.to_json()
    assert "null" not in text
    assert "[]" not in text
    assert "macs" not in text


def test_a_required_list_is_written_when_empty(full_document: Document) -> None:
    record = PassRecord.model_validate(full_document["passes"][0])
    assert json.loads(record.to_json())["skipped"] == []


def _nan(document: Document) -> None:
    document["validation"]["outputs"][0]["sqnr_db"] = math.nan


def _inf(document: Document) -> None:
    document["latency"]["speedup"] = math.inf


def _over_cap(document: Document) -> None:
    document["validation"]["outputs"][0]["sqnr_db"] = 201.0


def _unknown_key(document: Document) -> None:
    document["validation"]["accuracy"] = 0.9


def _other_schema(document: Document) -> None:
    document["schema"] = 2


def _reversed_interval(document: Document) -> None:
    document["latency"]["interval"] = [1.95, 1.86]


def _bad_status(document: Document) -> None:
    document["passes"][0]["status"] = "maybe"


def _bad_digest(document: Document) -> None:
    document["input"]["sha256"] = "abc"


def _no_time_zone(document: Document) -> None:
    document["created"] = "2025-11-23T04:31:00"


def _negative_size(document: Document) -> None:
    document["output"]["bytes"] = -1


REFUSED = [
    _nan,
    _inf,
    _over_cap,
    _unknown_key,
    _other_schema,
    _reversed_interval,
    _bad_status,
    _bad_digest,
    _no_time_zone,
    _negative_size,
]


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_refused(spoil: Callable[[Document], None], full_document: Document) -> None:
    spoil(full_document)
    with pytest.raises(ValidationError):
        Report.model_validate(full_document)


@pytest.mark.parametrize("spoil", [_over_cap, _unknown_key, _other_schema, _bad_status, _bad_digest, _negative_size])
def test_the_json_schema_refuses_too(spoil: Callable[[Document], None], full_document: Document) -> None:
    spoil(full_document)
    with pytest.raises(jsonschema.ValidationError):
        _check(json.loads(json.dumps(full_document)))


def test_a_document_without_its_schema_number_does_not_validate(full_document: Document) -> None:
    del full_document["schema"]
    with pytest.raises(jsonschema.ValidationError):
        _check(json.loads(json.dumps(full_document)))


class Outcome(enum.Enum):
    KEPT = "kept"


@dataclass(frozen=True)
class Sizes:
    bytes: int = 10
    params: int = 4
    macs: int | None = None


@dataclass(frozen=True)
class Place:
    anchor: str = "t"
    reason: str = "why"


@dataclass(frozen=True)
class Done:
    """What another room hands over: the same names, and one of its own."""

    name: str = "fold"
    spec: str = "fold"
    status: Outcome = Outcome.KEPT
    edits: int = 1
    skipped: tuple[Place, ...] = (Place(), Place("u"))
    seconds: float = 0.5
    before: Sizes = field(default_factory=Sizes)
    after: Sizes | None = field(default_factory=Sizes)
    private: int = 7


def test_dataclasses_of_other_rooms_are_taken() -> None:
    record = PassRecord.model_validate(Done())
    assert [place.anchor for place in record.skipped] == ["t", "u"]
    assert record.before.bytes == 10
    assert json.loads(record.to_json())["status"] == "kept"
    assert "macs" not in json.loads(record.to_json())["before"]


def test_parts_built_by_hand_take_dataclasses_inside(full: Report) -> None:
    report = Report.model_validate({**dict(full), "passes": (Done(),)})
    assert report.passes[0].before.params == 4


def test_an_input_summary_becomes_an_output_summary(full: Report) -> None:
    assert OutputSummary.model_validate(full.input).ort is None


def test_paths_are_spelt_out(full_document: Document) -> None:
    full_document["input"]["path"] = PurePosixPath("a/b.onnx")
    full_document["command"] = "onnxslim optimize bad\udcff.onnx"
    report = Report.model_validate(full_document)
    assert report.input.path == "a/b.onnx"
    assert report.to_json().encode("utf-8")


def test_reports_are_frozen(full: Report) -> None:
    with pytest.raises(ValidationError):
        full.seed = 3
