"""Waterfalls: every kept change stands between the totals, what was undone is shown as such."""

from __future__ import annotations

import pytest

from onnxslim.report.network import PassRecord
from onnxslim.report.rows import Quantity
from onnxslim.report.waterfall import change_text, waterfall


def record(status: str, before: int, after: int | None, name: str = "p") -> PassRecord:
    totals = {"bytes": before, "params": 1}
    left = None if after is None else {"bytes": after, "params": 1}
    document = {"name": name, "spec": name, "status": status, "edits": 1, "skipped": [], "seconds": 0.1}
    return PassRecord.model_validate({**document, "before": totals, "after": left})


def test_steps_share_one_scale() -> None:
    fall = waterfall([record("kept", 100, 40, "cut"), record("kept", 40, 60, "grow")], Quantity.BYTES)
    assert fall is not None
    assert [(step.label, step.kind, step.left, step.width, step.at) for step in fall.steps] == [
        ("before", "total", 0, 100, 100),
        ("cut", "cut", 40, 60, 40),
        ("grow", "grew", 40, 20, 60),
        ("after", "total", 0, 60, 60),
    ]
    assert "cut \u221260 B (\u221260 %)" in fall.words
    assert "grow +20 B (50 %)" in fall.words


@pytest.mark.parametrize("status", ["rolled_back", "failed"])
def test_what_was_undone_leaves_the_total(status: str) -> None:
    fall = waterfall([record(status, 100, 40), record("kept", 100, 90)], Quantity.BYTES)
    assert fall is not None
    assert [(step.kind, step.left, step.width, step.at) for step in fall.steps[1:3]] == [
        ("undone", 40, 60, 100),
        ("cut", 90, 10, 90),
    ]
    assert status.replace("_", " ") in fall.steps[1].text
    assert fall.steps[-1].width == 90


def test_no_waterfall_where_nothing_moved_or_nothing_is_known() -> None:
    assert waterfall([record("failed", 100, None), record("unchanged", 100, 100)], Quantity.BYTES) is None
    assert waterfall([record("kept", 100, 40)], Quantity.MACS) is None
    assert waterfall([record("kept", 1_000_000, 999_999)], Quantity.BYTES) is None


def test_changes_in_words() -> None:
    assert change_text(record("kept", 100, 40), Quantity.BYTES) == "\u221260 B"
    assert change_text(record("kept", 40, 100), Quantity.BYTES) == "+60 B"
    assert change_text(record("kept", 40, 40), Quantity.BYTES) == ""
