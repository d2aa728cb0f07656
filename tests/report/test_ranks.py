"""Low rank in the report: charts that lie in their box, pages that say what they show, names that stay text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from onnxslim.report import Report, to_html, to_markdown
from onnxslim.report import rank_charts as charts_module
from onnxslim.report.rank_charts import BOTTOM, LEFT, RIGHT, TOP, half_option, rank_charts, ranks_text, refusals
from onnxslim.report.ranks import LayerRanks, RankSurvey

Document = dict[str, Any]
HOSTILE = "<script>alert(1)</script>|`x`"
NUMBERS = re.compile(r"[ML](-?[\d.]+) (-?[\d.]+)")


def layer(anchor: str = "conv1", **more: Any) -> Document:
    points = [
        {"rank": 8, "macs": 0.25, "bytes": 0.3, "error": 0.08},
        {"rank": 16, "macs": 0.5, "bytes": 0.6, "error": 0.004},
        {"rank": 24, "macs": 0.75, "bytes": 0.9, "error": 0.0},
    ]
    tucker = [{"rank": 12, "inner": 4, "macs": 0.4, "bytes": 0.4, "error": 0.02}]
    return {
        "anchor": anchor,
        "op": "Conv",
        "weight_shape": [32, 16, 3, 3],
        "input_shape": [1, 16, 8, 8],
        "output_shape": [1, 32, 8, 8],
        "full_rank": 32,
        "macs": 294912,
        "bytes": 18432,
        "microseconds": 31.5,
        "error_of": "output",
        "spectrum": [{"rank": r, "energy": e} for r, e in ((1, 0.5), (4, 0.8), (8, 0.93), (16, 0.995), (32, 1.0))],
        "rank_90": 7,
        "rank_99": 15,
        "vbmf": 5,
        "curves": [{"scheme": "channel", "points": points}, {"scheme": "tucker", "points": tucker}],
        "options": [
            {**points[2], "scheme": "channel", "time": 0.95, "pays": False, "why": "too slow"},
            {**points[1], "scheme": "channel", "time": 0.61, "pays": True},
            {**points[0], "scheme": "channel", "time": 0.4, "pays": True},
        ],
        **more,
    }


def survey(*layers: Document, **more: Any) -> RankSurvey:
    refused = [{"anchor": "deep1", "reason": "its rank is 1"}, {"anchor": HOSTILE, "reason": "computed"}]
    refused.append({"anchor": "deep2", "reason": "its rank is 1"})
    base = {"error_of": "output", "samples": 64, "clock": "on", "layers": list(layers), "refused": refused}
    return RankSurvey.model_validate({**base, **more})


def inspected(minimal_document: Document, found: RankSurvey) -> Report:
    return Report.model_validate({**minimal_document, "ranks": found})


def bare() -> Document:
    """A layer of unknown shapes that nothing was timed of, and that no form makes cheaper."""
    unknown = ("macs", "microseconds", "input_shape", "output_shape", "vbmf")
    found = {name: value for name, value in layer("bare").items() if name not in unknown}
    return {**found, "curves": [], "options": [], "error_of": "weights"}


# ---- charts ----------------------------------------------------------------------------------------------------------


def test_lines_lie_in_their_box_and_points_where_they_belong() -> None:
    (charts,) = rank_charts(survey(layer()))
    assert charts.errors is not None
    for path in (charts.spectrum.path, *(line.path for line in charts.errors.lines)):
        found = [(float(x), float(y)) for x, y in NUMBERS.findall(path)]
        assert found
        assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in found)
    spectrum = [(float(x), float(y)) for x, y in NUMBERS.findall(charts.spectrum.path)]
    assert spectrum[0] == (LEFT, BOTTOM)
    assert spectrum[-1] == (RIGHT, TOP)
    assert charts.spectrum.vbmf == pytest.approx(LEFT + (RIGHT - LEFT) * 5 / 32, abs=0.1)
    first = charts.errors.lines[0].path
    assert [float(x) for x, _ in NUMBERS.findall(first)] == [
        pytest.approx(LEFT + (RIGHT - LEFT) * share, abs=0.1) for share in (0.25, 0.5, 0.75)
    ]


def test_errors_fall_by_decades_and_none_is_off_the_chart() -> None:
    (charts,) = rank_charts(survey(layer()))
    assert charts.errors is not None
    ticks = charts.errors.y_ticks
    assert [tick.text for tick in ticks] == ["100 %", "10 %", "1 %", "0.1 %", "0.01 %", "0.001 %"]
    assert (ticks[0].at, ticks[-1].at) == (TOP, BOTTOM)
    heights = [float(y) for _, y in NUMBERS.findall(charts.errors.lines[0].path)]
    assert heights == sorted(heights)
    assert heights[-1] == BOTTOM
    assert [(timed.mark.text, timed.pays) for timed in charts.errors.timed] == [
        ("95 %", False),
        ("61 %", True),
        ("40 %", True),
    ]


def test_marks_lie_on_the_line() -> None:
    (charts,) = rank_charts(survey(layer()))
    ninety, most = charts.spectrum.marks
    assert ninety.y == pytest.approx(BOTTOM - (BOTTOM - TOP) * (0.8 + 0.13 * 3 / 4), abs=0.1)
    assert (ninety.text, most.text) == ("90 % at 7", "99 % at 15")


def test_the_most_expensive_layers_are_drawn_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts_module, "MAX_CHARTS", 2)
    found = survey(layer("a", macs=500), layer("b", macs=10), layer("c", macs=900))
    assert [charts.layer.anchor for charts in rank_charts(found)] == ["a", "c"]


def test_costs_are_bytes_where_macs_are_unknown() -> None:
    points = [{"rank": 4, "bytes": 0.5, "error": 0.1}]
    found = layer(curves=[{"scheme": "channel", "points": points}], options=[{**points[0], "scheme": "channel"}])
    (charts,) = rank_charts(survey(found))
    assert charts.errors is not None
    assert charts.errors.axis == "bytes"
    assert not charts.errors.timed


def test_words() -> None:
    found = LayerRanks.model_validate(layer())
    half = half_option(found)
    assert half is not None
    assert half.rank == 16
    assert half_option(LayerRanks.model_validate(bare())) is None
    assert ranks_text(found.curves[1].points[0]) == "12 and 4"
    assert list(refusals(survey()).items()) == [("its rank is 1", ("deep1", "deep2")), ("computed", (HOSTILE,))]


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_the_page_of_a_survey(minimal_document: Document) -> None:
    page = to_html(inspected(minimal_document, survey(layer(), layer(HOSTILE), bare())))
    assert "<script>alert" not in page
    assert page.count("<article") == 3
    assert page.count("<figure>") == 5
    assert "No form is cheaper than the layer as it is." in page
    assert "of each layer&#39;s output on 64 samples" in page or "of each layer's output on 64 samples" in page
    assert "by its weights alone" in page
    assert "VBMF estimates 5" in page
    assert 'class="ring good"' in page
    assert 'class="ring bad"' in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "None" not in page


def test_the_page_without_samples_or_clock(minimal_document: Document) -> None:
    untimed = layer(microseconds=None, error_of="weights", options=[])
    found = survey(untimed, error_of="weights", samples=None, clock="off", refused=[])
    page = to_html(inspected(minimal_document, found))
    assert "No samples were given, so errors are of the weights" in page
    assert "Nothing was timed." in page
    assert "Time left" not in page
    assert "cannot be factorized" not in page


def test_a_model_without_such_layers(minimal_document: Document) -> None:
    assert "No layer can be factorized." in to_html(inspected(minimal_document, survey()))


def test_markdown_of_a_survey(minimal_document: Document) -> None:
    text = to_markdown(inspected(minimal_document, survey(layer(), layer(HOSTILE), bare())))
    assert "| `conv1` | 295 k | 32 | 7 | 15 | 5 | channel 16 | 0.4 % | 61 % | yes |" in text
    assert "| `bare` |  | 32 | 7 | 15 |  | none |  |  |  |" in text
    assert "| 2 | its rank is 1 |" in text
    assert "<script>" not in text


def test_reports_without_ranks_have_none_of_it(minimal: Report) -> None:
    assert "--spatial" not in to_html(minimal)
    assert "low rank" not in to_html(minimal)
    assert "ranks" not in minimal.to_json()


def _with_factoring(document: Document, **more: Any) -> Document:
    plan = {"scheme": "tucker", "rank": 24, "inner": 16, "full_rank": 64, "error": 0.031, "macs": 0.42}
    split = {"layers": [{"anchor": "conv1", "time": 0.55, **plan}, {"anchor": HOSTILE, **plan}], **more}
    passes = [{**each, "ranks": split} if each["name"] == "factor-low-rank" else each for each in document["passes"]]
    return {**document, "passes": passes}


def test_what_was_split_is_shown(full_document: Document) -> None:
    report = Report.model_validate(_with_factoring(full_document, macs=0.6, time=0.7))
    assert Report.from_json(report.to_json()) == report
    page = to_html(report)
    assert "before it was rolled back" in page
    assert "leave 70&nbsp;% of" in page or "leave 70 % of" in page
    assert "24 and 16" in page
    assert 'style="width:42.0%"' in page
    assert "Time left" in page
    assert "<script>alert" not in page
    text = to_markdown(report)
    assert "| `conv1` | tucker 24 and 16 of 64 | 3 % | 42 % | 55 % |" in text
