"""The curve of activation memory: peaks survive thinning, both networks stand over the same layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxslim
from onnxslim.report.memory_chart import STRETCHES, chart_of, memory_chart, sparkline
from onnxslim.report.network import ModelSummary
from onnxslim.report.units import format_bytes

MODELS = Path(__file__).parents[2] / "models"


def model(sizes: dict[str, int | None], op: str = "Conv") -> ModelSummary:
    layers = [
        {"anchor": name, "op": op, "bytes": 0, "params": 1, "activation_bytes": size} for name, size in sizes.items()
    ]
    document: dict[str, Any] = {"sha256": "0" * 64, "bytes": 1, "nodes": 1, "params": 1, "opset": 17}
    return ModelSummary.model_validate({**document, "layers": layers})


@given(st.integers(1, 5 * STRETCHES), st.integers(0, 2**32))
def test_a_thinned_line_keeps_its_peak(length: int, seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 10**9, size=length).tolist()
    chart = memory_chart(model({f"t{index}": size for index, size in enumerate(sizes)}), None)
    assert chart is not None
    assert chart.before is not None
    assert chart.after is None
    assert chart.before.peak_bytes == max(sizes)
    assert chart.before.peak_anchor == f"t{sizes.index(max(sizes))}"
    assert chart.before.path.count("L") == len(chart.places) == min(length, STRETCHES)
    assert (0 <= chart.before.left <= 100, chart.before.top) == (True, 0)


def test_what_was_made_of_a_layer_stands_where_it_stood() -> None:
    after = model({"q": 1, "a": 5, "b_q": 2, "b": 8, "c": 3, "d": 4})
    chart = memory_chart(model({"a": 10, "b": 40, "c": 20, "d": 10}), after)
    assert chart is not None
    assert [(place.anchor, place.before, place.after) for place in chart.places] == [
        ("a", 10, 5),
        ("b", 40, 8),
        ("c", 20, 3),
        ("d", 10, 4),
    ]
    assert chart.after is not None
    assert (chart.after.left, chart.after.top) == (37.5, 80)
    assert chart.places[1].title == "b: before 40 B, after 8 B"


@given(st.permutations([f"t{index}" for index in range(9)]), st.sets(st.integers(0, 8)))
def test_any_order_and_any_names_are_drawn(order: list[str], gone: set[int]) -> None:
    before = model({f"t{index}": index + 1 for index in range(9)})
    after = model({f"{name}{'_x' if index in gone else ''}": index + 1 for index, name in enumerate(order)})
    chart = memory_chart(before, after)
    assert chart is not None
    assert chart.after is not None
    assert chart.after.peak_bytes == 9


def test_constants_are_no_step_and_unknown_is_left_out() -> None:
    assert memory_chart(model({"a": 4}, "Constant"), None) is None
    assert memory_chart(model({"a": None}), None) is None
    chart = memory_chart(model({"a": None, "b": 3}), None)
    assert chart is not None
    assert chart.places[0].title == "b: 3 B"


@pytest.mark.parametrize(
    ("limit", "scale", "top"),
    [(None, 40, None), (20, 40, 50.0), (40, 40, 0.0), (50, 50, 0.0), (80, 80, 0.0), (81, 40, None)],
    ids=["none", "below the peak", "at it", "above", "twice the peak", "far above: the lines would be flat"],
)
def test_a_limit_is_a_line_where_it_is_near(limit: int | None, scale: int, top: float | None) -> None:
    chart = memory_chart(model({"a": 10, "b": 40}), None, limit)
    assert chart is not None
    assert (chart.limit, chart.scale, chart.limit_top) == (limit, scale, top)


def test_a_line_of_letters_keeps_peaks_and_tells_something_from_nothing() -> None:
    chart = memory_chart(model({"a": 1, "b": 800, "c": 0, "d": 400}), model({"a": 100, "b": 0, "c": 0, "d": 0}))
    assert chart is not None
    assert sparkline(chart.places, "before", chart.scale) == "\u2581\u2588 \u2584"
    assert sparkline(chart.places, "before", chart.scale, columns=2) == "\u2588\u2584"
    assert sparkline(chart.places, "after", chart.scale) == "\u2581   "


@pytest.mark.parametrize(("limit", "verdict"), [("1GB", "met"), ("100%", "met"), ("1KB", "missed"), ("1%", "missed")])
def test_a_budget_of_memory_is_judged_and_drawn(limit: str, verdict: str, tmp_path: Path) -> None:
    result = onnxslim.optimize(MODELS / "vgg.onnx", bench=False, max_activations=limit)
    (line,) = result.report.budget
    assert (line.name, line.verdict.value) == ("max_activations", verdict)
    peak = result.report.input.peak_activation_bytes
    assert peak is not None
    chart = chart_of(result.report)
    assert chart is not None
    assert chart.limit == {"1GB": 10**9, "100%": peak, "1KB": 1000, "1%": round(peak / 100)}[limit]
    result.report.save(tmp_path / "r.html")
    result.report.save(tmp_path / "r.md")
    assert ("<span>limit " in (tmp_path / "r.html").read_text()) == (limit != "1GB")
    assert f", limit {format_bytes(chart.limit)}" in (tmp_path / "r.md").read_text()
