"""Geometry: layers pair by name, nothing is lost in a rest, peaks survive thinning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.report.charts import (
    MAX_CURVE_POINTS,
    Quantity,
    activation_curve,
    layer_bars,
    operator_shares,
    pass_steps,
)
from onnxslim.report.network import ModelSummary, PassRecord


def _model(sizes: dict[str, int | None], op: str = "Conv") -> ModelSummary:
    layers = [
        {"anchor": name, "op": op, "bytes": size or 0, "params": 1, "macs": size, "activation_bytes": size}
        for name, size in sizes.items()
    ]
    document: dict[str, Any] = {"sha256": "0" * 64, "bytes": 1, "nodes": 1, "params": 1, "opset": 17}
    return ModelSummary.model_validate({**document, "layers": layers})


def test_layers_pair_by_anchor_and_a_missing_side_stays_missing() -> None:
    chart = layer_bars(_model({"a": 10, "gone": 40}), _model({"a": 5, "new": 20}), Quantity.BYTES)
    assert [(bar.anchor, bar.before, bar.after) for bar in chart.bars] == [
        ("gone", 40, None),
        ("new", None, 20),
        ("a", 10, 5),
    ]
    assert [bar.before_width for bar in chart.bars] == [100.0, 0.0, 25.0]


def test_layers_of_nothing_are_left_out_and_unknown_stays_unknown() -> None:
    chart = layer_bars(_model({"a": 10, "empty": 0, "unknown": None}), None, Quantity.MACS)
    assert [bar.anchor for bar in chart.bars] == ["a"]
    assert layer_bars(_model({"unknown": None}), None, Quantity.MACS).bars == ()


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60), st.integers(1, 25))
def test_the_rest_sums_what_is_not_shown(sizes: list[int], top: int) -> None:
    model = _model({f"t{index}": size for index, size in enumerate(sizes)})
    chart = layer_bars(model, None, Quantity.BYTES, top)
    shown = sum(bar.before or 0 for bar in chart.bars)
    rest = chart.rest.before or 0 if chart.rest else 0
    assert shown + rest == sum(sizes)
    assert len(chart.bars) + chart.rest_count == len(sizes)
    assert chart.rest_count != 1


@given(st.integers(1, 3 * MAX_CURVE_POINTS), st.integers(0, 2**32))
def test_a_thinned_curve_keeps_its_peak(length: int, seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(10**9, size=length).tolist()
    curve = activation_curve(_model({f"t{i}": size for i, size in enumerate(sizes)}), max(*sizes, 1))
    assert curve is not None
    assert curve.peak_bytes == max(sizes)
    assert curve.peak_anchor == f"t{sizes.index(max(sizes))}"
    assert curve.path.count("L") <= MAX_CURVE_POINTS
    assert 0 <= curve.peak_x <= 1000
    assert curve.peak_y == (0.0 if max(sizes) else 200.0)


def test_no_curve_without_activations() -> None:
    assert activation_curve(_model({"a": None}), 10) is None
    assert activation_curve(None, 10) is None


def test_operator_shares() -> None:
    model = _model({"a": 30, "b": 10})
    assert operator_shares(model, Quantity.BYTES) == (("Conv", 1.0),)
    assert operator_shares(_model({"a": None}), Quantity.MACS) == ()


def _record(status: str, before: int, after: int | None) -> PassRecord:
    totals = {"bytes": before, "params": 1}
    left = None if after is None else {"bytes": after, "params": 1}
    document = {"name": "p", "spec": "p", "status": status, "edits": 1, "skipped": [], "seconds": 0.1}
    return PassRecord.model_validate({**document, "before": totals, "after": left})


@pytest.mark.parametrize("status", ["kept", "rolled_back"])
def test_steps_share_one_scale(status: str) -> None:
    steps = pass_steps([_record(status, 100, 40), _record("kept", 40, 60)], Quantity.BYTES)
    assert [(step.left, step.width, step.grew) for step in steps if step] == [(40, 60, False), (40, 20, True)]


def test_no_step_where_nothing_is_known() -> None:
    records = [_record("failed", 100, None), _record("unchanged", 100, 100)]
    assert pass_steps(records, Quantity.BYTES) == (None, None)
    assert pass_steps([_record("kept", 100, 40)], Quantity.MACS) == (None,)
