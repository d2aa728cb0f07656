"""Integers at run time in the report: figures that add up, pages that say why, names that stay text."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from onnxslim.report import Report, summary_lines, to_html, to_markdown
from onnxslim.report.facts import Tone
from onnxslim.report.placement import Placement
from onnxslim.report.placement_story import (
    float_groups,
    integer_facts,
    mostly_float,
    share_words,
    slower_groups,
    time_parts,
    waste_groups,
)
from onnxslim.report.schema import SCHEMA_FILE
from onnxslim.report.story import cautions

Document = dict[str, Any]
HOSTILE = "<script>alert(1)</script>|`x`"


def layer(anchor: str, place: str = "integer", **more: Any) -> Document:
    return {"anchor": anchor, "op": "Conv", "place": place, "kernel": "QLinearConv", **more}


def in_float(anchor: str, op: str = "Exp", time_us: float = 5.0, **more: Any) -> Document:
    more = {"why": "no_kernel", "reason": f"no kernel for {op}", "time_us": time_us, "conversion_us": 2.0, **more}
    return layer(anchor, "float", **{"kernel": op, "macs": 10, **more}) | {"op": op}


def document(**more: Any) -> Document:
    return {
        "integer": {"layers": 2, "macs": 960, "time_us": 70.0},
        "moved": {"layers": 1, "macs": 0, "time_us": 4.0},
        "float": {"layers": 3, "macs": 40, "time_us": 12.0},
        "total_us": 100.0,
        "conversion_us": 10.0,
        "layers": [
            layer("conv1", macs=900, time_us=60.0),
            layer("relu1", macs=0, within="conv1"),
            layer("conv2", macs=60, time_us=10.0),
            layer("pool", "moved", macs=0, time_us=4.0),
            in_float("e1", time_us=1.0),
            in_float(HOSTILE, op="Div", time_us=8.0, reason="no kernel | for <b>Div</b>"),
            in_float("e2", time_us=3.0),
            layer("relu2", "float", within="e2"),
        ],
        "wasted": [
            {"waste": "constant", "tensor": "w_dq", "reader": "e1", "time_us": 1.5},
            {"waste": "made_integer", "tensor": "c_dq", "reader": "e2", "time_us": 3.0},
            {"waste": "requantized", "tensor": "a_dq", "reader": "conv2", "time_us": 2.0},
            {"waste": "constant", "tensor": HOSTILE, "reader": "e2", "time_us": 0.5},
        ],
        "inserted": [{"op": "Transpose", "count": 2, "time_us": 4.0}],
        "slower": [
            {"anchors": ["conv2"], "kernels": ["QLinearConv"], "reference_us": 4.0, "time_us": 10.0},
            {"anchors": ["pool", HOSTILE], "kernels": ["MaxPool", "QLinearAdd"], "reference_us": 1.0, "time_us": 9.0},
            {"anchors": ["conv1"], "kernels": ["QLinearConv"], "reference_us": 40.0, "time_us": 60.0},
        ],
        **more,
    }


def untimed(part: Any) -> Any:
    """The same where nothing was timed."""
    if isinstance(part, list):
        return [untimed(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {
        name: untimed(value)
        for name, value in part.items()
        if not name.endswith("_us") and name not in ("inserted", "slower")
    }


def reported(minimal_document: Document, found: Document) -> Report:
    return Report.model_validate({**minimal_document, "placement": found})


def test_the_document_round_trips_and_fits_the_schema(minimal_document: Document) -> None:
    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text("utf-8")))
    for found in (document(), untimed(document())):
        report = reported(minimal_document, found)
        written = json.loads(report.to_json())
        schema.validate(written)
        assert written["placement"] == found
        assert Report.from_json(report.to_json()) == report
    assert Report.model_validate(minimal_document).placement is None


@pytest.mark.parametrize("change", [{"place": "fast"}, {"why": "because"}, {"macs": -1}])
def test_what_a_layer_cannot_be(minimal_document: Document, change: Document) -> None:
    with pytest.raises(ValidationError):
        reported(minimal_document, document(layers=[{**in_float("e"), **change}]))


def test_the_figure_counts_moved_layers_as_integers() -> None:
    placement = Placement.model_validate(document())
    (fact,) = integer_facts(placement)
    assert fact.line == "3 of 6 layers (96.0 % of MACs, 74.0 % of the time)"
    assert fact.tone is Tone.PLAIN
    assert share_words(Placement.model_validate(untimed(document()))) == "96.0 % of MACs"
    whole = Placement.model_validate(document(float={"layers": 0, "macs": 0, "time_us": 0.0}))
    assert integer_facts(whole)[0].tone is Tone.GOOD
    assert integer_facts(None) == ()


def test_unknown_macs_are_not_counted_as_none() -> None:
    unknown = document(float={"layers": 3, "time_us": 12.0})
    assert share_words(Placement.model_validate(unknown)) == "74.0 % of the time"


def test_what_stays_in_float_is_grouped_the_slowest_first() -> None:
    div, exp = float_groups(Placement.model_validate(document()))
    assert (div.op, div.anchors, div.time_us) == ("Div", (HOSTILE,), 8.0)
    assert (exp.op, exp.anchors, exp.time_us, exp.conversion_us, exp.macs) == ("Exp", ("e1", "e2"), 4.0, 4.0, 20)
    bare = float_groups(Placement.model_validate(untimed(document())))
    assert [(group.op, group.time_us) for group in bare] == [("Exp", None), ("Div", None)]


def test_what_is_wasted_is_grouped_by_kind() -> None:
    constants, own, again = waste_groups(Placement.model_validate(document()))
    assert (len(constants.places), constants.time_us) == (2, 2.0)
    assert "onnxruntime rounds" in own.what
    assert again.places == (("a_dq", "conv2"),)


def test_what_is_slower_is_grouped_by_kernels() -> None:
    convs, pools = slower_groups(Placement.model_validate(document()))
    assert (convs.kernels, len(convs.places), convs.reference_us, convs.time_us) == ("QLinearConv", 2, 44.0, 70.0)
    assert pools.kernels == "MaxPool and QLinearAdd"
    assert slower_groups(Placement.model_validate(untimed(document()))) == ()


def test_time_parts_fill_the_bar() -> None:
    parts = time_parts(Placement.model_validate(document()))
    assert [part.slug for part in parts] == ["integer", "moved", "float", "conversion", "layout"]
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    assert time_parts(Placement.model_validate(untimed(document()))) == ()


def test_weights_rounded_at_load_are_a_caution(minimal_document: Document) -> None:
    own = [layer(f"c{index}", why="rounded_at_load", reason="rounded") for index in range(3)]
    report = reported(minimal_document, document(layers=[*own, in_float("e2")]))
    (caution,) = cautions(report)
    assert ": c0, c1, c2 and 1 more." in caution.text
    assert caution.tone is Tone.WARN
    assert not cautions(reported(minimal_document, document(wasted=[])))


def test_every_format_says_why(minimal_document: Document) -> None:
    report = reported(minimal_document, document())
    page, text, lines = to_html(report), to_markdown(report), "\n".join(summary_lines(report))
    assert "Run as integers" in page
    assert "What stays float at run time, and why" in page
    assert "no kernel for Exp" in page
    assert "<script>alert(1)" not in page
    assert "<b>Div</b>" not in page
    assert "| 2 | Exp | no kernel for Exp | 20 | 4.00 µs | 4.00 µs |" in text
    assert "| 1 | Div | no kernel \\| for &lt;b&gt;Div&lt;/b&gt; | 10 |" in text
    assert "| 2 | constant dequantized at every inference | 2.00 µs |" in text
    assert "| 2 | QLinearConv | 44.0 µs | 70.0 µs |" in text
    assert "Slower as integers" in page
    assert "40.0 µs → 60.0 µs" in page
    assert "Run as integers" in lines
    assert "3 of 6 layers (96.0 % of MACs, 74.0 % of the time)" in lines


def test_pages_without_times_and_without_floats(minimal_document: Document) -> None:
    page = to_html(reported(minimal_document, untimed(document())))
    assert "Conversions" not in page
    assert 'class="spent"' not in page
    whole = untimed(document(float={"layers": 0, "macs": 0}, layers=[layer("conv1", macs=9)], wasted=[]))
    report = reported(minimal_document, whole)
    assert "Nothing stays in float." in to_html(report)
    assert "stays float" not in to_markdown(report)
    assert "Slower as integers" not in page
    only_slow = document(float={"layers": 0, "macs": 0, "time_us": 0.0}, layers=[layer("conv1", macs=9)], wasted=[])
    assert "slower as integers" in to_markdown(reported(minimal_document, only_slow))
    assert "placement" not in to_html(Report.model_validate(minimal_document))


@pytest.mark.parametrize(
    ("integer", "in_floats", "share"),
    [(960, 40, None), (500, 500, None), (499, 501, 0.499), (0, 1000, None), (None, 40, None), (10, None, None)],
)
def test_a_network_that_stays_mostly_in_float_is_a_caution(
    integer: int | None, in_floats: int | None, share: float | None
) -> None:
    found = Placement.model_validate(
        document(integer={"layers": 2, "macs": integer}, float={"layers": 3, "macs": in_floats})
    )
    assert mostly_float(found) == share
    assert mostly_float(None) is None


def test_the_caution_names_the_share_and_a_way_out(minimal_document: Document) -> None:
    few = document(integer={"layers": 2, "macs": 40}, float={"layers": 3, "macs": 960})
    words = [caution.text for caution in cautions(reported(minimal_document, few))]
    (said,) = [text for text in words if "stays in float" in text]
    assert "4 %" in said
    assert "palettize" in said
