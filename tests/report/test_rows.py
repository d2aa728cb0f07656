"""Rows by layer: what was made of a layer counts for it, and nothing is lost on the way to the total."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.report.network import ModelSummary
from onnxslim.report.rows import (
    INSERTED,
    NEW,
    Quantity,
    Row,
    bar_chart,
    every_layer,
    layer_charts,
    layer_rows,
    operator_shares,
    time_rows,
)
from onnxslim.report.schema import Report


def model(sizes: dict[str, int | None], op: str = "Conv", **origins: str) -> ModelSummary:
    layers = [
        {
            "anchor": name,
            "op": op,
            "bytes": size or 0,
            "params": 1,
            "macs": size,
            "activation_bytes": size,
            "origin": origins.get(name),
        }
        for name, size in sizes.items()
    ]
    document: dict[str, Any] = {"sha256": "0" * 64, "bytes": 1, "nodes": 1, "params": 1, "opset": 17}
    return ModelSummary.model_validate({**document, "layers": layers})


def test_layers_pair_by_name_and_a_missing_side_stays_missing() -> None:
    rows = layer_rows(model({"a": 10, "gone": 40}), model({"a": 5, "other": 20}), Quantity.BYTES)
    assert [(row.name, row.before, row.after, row.note) for row in rows] == [
        ("a", 10, 5, None),
        ("gone", 40, None, None),
        ("other", None, 20, NEW),
    ]
    chart = bar_chart(rows)
    assert chart is not None
    assert [(bar.row.name, bar.before_width) for bar in chart.bars] == [("gone", 100.0), ("other", 0.0), ("a", 25.0)]


def test_what_was_made_of_a_layer_counts_for_it() -> None:
    after = model({"a_down": 3, "a_scale": 0, "a": 4, "b": 7}, a_down="a", a_scale="a")
    rows = layer_rows(model({"a": 20, "b": 7}), after, Quantity.MACS)
    assert [(row.name, row.before, row.after, row.note) for row in rows] == [
        ("a", 20, 7, "2 layers"),
        ("b", 7, 7, None),
    ]


def test_layers_of_nothing_are_left_out_and_unknown_stays_unknown() -> None:
    chart = bar_chart(layer_rows(model({"a": 10, "empty": 0, "unknown": None}), None, Quantity.MACS))
    assert chart is not None
    assert [bar.row.name for bar in chart.bars] == ["a"]
    assert not chart.has_after
    assert bar_chart(layer_rows(model({"unknown": None}), None, Quantity.MACS)) is None


SIDES = st.one_of(st.none(), st.integers(0, 10**9))


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=60), st.integers(1, 25))
def test_rows_and_rest_add_up_to_the_total(sides: list[tuple[int | None, int | None]], top: int) -> None:
    rows = [Row(f"t{index}", "Conv", *pair) for index, pair in enumerate(sides)]
    chart = bar_chart(rows, top)
    if chart is None:
        assert not any(row.largest for row in rows)
        return
    parts = [*chart.bars, *([chart.rest] if chart.rest else [])]
    for side in ("before", "after"):
        whole = sum(getattr(row, side) or 0 for row in rows)
        assert sum(getattr(bar.row, side) or 0 for bar in parts) == whole == (getattr(chart.total.row, side) or 0)
        if whole:
            assert sum(getattr(bar, f"{side}_share") or 0 for bar in parts) == pytest.approx(1)
    assert len(chart.bars) + chart.rest_count == sum(bool(row.largest) for row in rows)
    assert chart.rest_count != 1


def test_time_is_by_layer_of_the_original_and_what_the_runtime_inserted(full: Report) -> None:
    assert full.latency is not None
    rows = {row.name: row for row in time_rows(full.latency, full.input)}
    assert rows["head/Relu6:0"].op == "Conv"
    assert rows["ReorderOutput"].note == INSERTED
    assert rows["ReorderOutput"].before is None


def test_sections_of_a_report_are_bytes_time_and_macs(full: Report, minimal: Report) -> None:
    assert [section.slug for section in layer_charts(full)] == ["bytes", "time", "macs"]
    assert [section.slug for section in layer_charts(minimal)] == ["bytes"]


def test_every_layer_has_all_that_is_known(full: Report) -> None:
    lines = {line.name: line for line in every_layer(full)}
    stem = lines["stem/Relu6:0"]
    assert len(stem.values) == 8
    assert None not in stem.values
    assert [line.name for line in every_layer(full)] == [layer.anchor for layer in full.input.layers if layer.macs]


def test_operator_shares() -> None:
    rows = layer_rows(model({"a": 30, "b": 10}), None, Quantity.BYTES)
    assert operator_shares(rows) == (("Conv", 1.0),)
    assert operator_shares(layer_rows(model({"a": None}), None, Quantity.MACS)) == ()
