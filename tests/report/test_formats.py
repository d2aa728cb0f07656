"""Markdown, HTML and text: the figures are there, unknowns are said, and nothing from a model becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from onnxslim.report import Report, summary_lines, to_html, to_markdown
from onnxslim.report.facts import Tone, qualities, sizes
from onnxslim.report.marks import escape, name_text
from onnxslim.report.schema import BudgetLine, BudgetVerdict
from onnxslim.report.story import budget_name, cautions, headline, limit_text, observed_text, skipped_groups

Document = dict[str, Any]
Render = Callable[[Report], str]
VOID = {"meta", "br", "link", "img", "input", "path"}


def _text(report: Report) -> str:
    return "\n".join(summary_lines(report))


RENDERERS = [pytest.param(r, id=n) for r, n in ((to_html, "html"), (to_markdown, "markdown"), (_text, "text"))]


class _Balance(HTMLParser):
    """Collects unbalanced tags, ids, and all attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.scripts = 0
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def _parsed(report: Report) -> _Balance:
    parser = _Balance()
    parser.feed(to_html(report))
    parser.close()
    return parser


@pytest.mark.parametrize("render", RENDERERS)
def test_figures_are_there(render: Render, full: Report) -> None:
    text = render(full).replace("\N{NO-BREAK SPACE}", " ")
    said = ["4.72 MB", "18.5 MB", "25 %", "87.9 %", "88.3 %", "\u22120.4 points", "21.7 dB", "94.7 %"]
    said += ["95 % interval \u22121.4 to +0.7", "95 % interval 1.86 to 1.95", "stable", "1.9\u00d7 faster", "24.3 ms"]
    said += ["385 M", "max-size", "missed", "not measured", "rolled back", "drop of 3.1 points is over --max-drop 1%"]
    assert [figure for figure in said if figure not in text] == []


@pytest.mark.parametrize("render", RENDERERS[:2])
def test_details_are_there(render: Render, full: Report) -> None:
    text = render(full)
    said = ["coupled with a residual sum", "prune-filters{macs=0.9 criterion=obs}", "head/Relu6:0", "a" * 64, "1.32.0"]
    said += ["Exact 8-bit products", "83.3 %", "smaller rows", "5.12 MB", "1.34 MB"]
    assert [figure for figure in said if figure not in text] == []


@pytest.mark.parametrize("render", RENDERERS[:2])
def test_what_is_held_and_what_integers_stand_for(render: Render, full: Report) -> None:
    text = render(full)
    said = [
        "600 kB",
        "9.00 kB",
        "ctivation memory",
        "\u22121.50",
        "6.00",
        "uint8",
    ]
    assert [figure for figure in said if figure not in text] == []


def test_long_texts_for_a_pull_request_end(full_document: Document) -> None:
    """GitHub takes 65,536 letters."""
    layer = full_document["output"]["layers"][0]
    many = [f"some/quite/long/name/of/a/layer/{index}/Conv_output_0" for index in range(3000)]
    full_document["output"]["layers"] = [{**layer, "anchor": name} for name in many]
    full_document["output"]["ranges"] = [
        {"tensor": name, "low": 0.0, "high": 1.0, "step": 0.1, "type": "int8"} for name in many
    ]
    full_document["passes"][0]["skipped"] = [{"anchor": name, "reason": f"{name} is shared"} for name in many]
    assert len(to_markdown(Report.model_validate(full_document))) < 60_000


@pytest.mark.parametrize("render", RENDERERS)
def test_minimal_reports_render_without_holes(render: Render, minimal: Report) -> None:
    text = render(minimal)
    assert "512 B" in text
    visible = re.sub(r"(?s)<style>.*</style>|<script>.*</script>|<meta[^>]*>", "", text)
    assert re.search(r"\b(None|nan|null|undefined)\b", visible) is None
    for absent in ("Latency", "What it cost", "Budgets", "Passes", "Left alone", "MACs", "candidate"):
        assert absent not in visible


@pytest.mark.parametrize("render", RENDERERS)
def test_full_reports_have_no_holes_either(render: Render, full: Report) -> None:
    visible = re.sub(r"(?s)<style>.*</style>|<script>.*</script>|<meta[^>]*>", "", render(full))
    assert re.search(r"\b(None|nan|null|undefined)\b", visible) is None


def test_hostile_names_stay_text(full: Report) -> None:
    page, marked = to_html(full), to_markdown(full)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in marked
    assert "&lt;script&gt;" in marked
    assert _parsed(full).scripts == 1


def test_a_hostile_name_cannot_leave_its_table_cell(full: Report) -> None:
    columns, hostile = 0, 0
    for line in to_markdown(full).splitlines():
        if re.fullmatch(r"\|[-:|]+\|", line):
            columns = line.count("|")
        elif line.startswith("|") and "&lt;script" in line:
            hostile += 1
            assert len(re.findall(r"(?<!\\)\|", line)) == columns
    assert hostile >= 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("layer_1/conv:0", "`layer_1/conv:0`"),
        ("a`b", r"a\`b"),
        ("a|b", r"a\|b"),
        ("a\n# b", r"a \# b"),
        ("[x](http://y)", r"\[x\](http://y)"),
        ("", ""),
    ],
)
def test_markdown_names(name: str, text: str) -> None:
    assert name_text(name) == text


def test_markdown_reasons_are_plain() -> None:
    assert escape("*a* _b_ ~c~ <b> & \\") == r"\*a\* \_b\_ \~c\~ &lt;b&gt; &amp; \\"


def test_a_terminal_is_not_steered(full_document: Document) -> None:
    full_document["passes"][4]["reason"] = "\x1b[2Jgone\r\n"
    assert not any(set(line) & set("\x1b\r\n") for line in summary_lines(Report.model_validate(full_document)))


def test_html_is_balanced_and_asks_nothing_of_a_network(full: Report, minimal: Report) -> None:
    for report in (full, minimal):
        parser = _parsed(report)
        assert (parser.wrong, parser.open) == ([], [])
        assert not [name for name, _ in parser.attributes if name in ("src", "srcset", "action")]
        ids = [value for name, value in parser.attributes if name == "id"]
        links = {value or "" for name, value in parser.attributes if name == "href"}
        assert links <= {f"#{name}" for name in ids}
        assert len(ids) == len(set(ids))
        named = {value for name, value in parser.attributes if name == "aria-labelledby"}
        assert named == set(ids) - {"main", "hatch"}
        assert not re.search(r"url\((?!#)|@import|https?://", to_html(report))


def test_long_networks_give_short_pages(full_document: Document) -> None:
    layer = full_document["input"]["layers"][0]
    many = [{**layer, "anchor": f"t{index}"} for index in range(20_000)]
    full_document["input"]["layers"] = many
    skipped = [{"anchor": f"t{index}", "reason": "shared"} for index in range(20_000)]
    full_document["passes"][0]["skipped"] = skipped
    assert len(to_html(Report.model_validate(full_document))) < 1_000_000


def _synthetic(document: Document) -> None:
    document["validation"] |= {"source": "synthetic"}
    del document["validation"]["metric"]


def _unlabelled(document: Document) -> None:
    del document["validation"]["metric"]


def _same_samples(document: Document) -> None:
    document["validation"]["held_out"] = False


def _unstable(document: Document) -> None:
    document["latency"]["stable"] = False


def _no_difference(document: Document) -> None:
    document["latency"]["interval"] = [0.97, 2.0]


def _slower(document: Document) -> None:
    document["latency"] |= {"speedup": 0.5, "interval": [0.48, 0.52]}


def _not_finite(document: Document) -> None:
    document["validation"]["outputs"][1] = {"name": "features", "finite": False}


def _unmeasured(document: Document) -> None:
    del document["latency"], document["validation"]


def _identical(document: Document) -> None:
    _unlabelled(document)
    document["validation"]["outputs"] = [{"name": "y", "finite": True, "sqnr_db": 200.0, "max_abs": 0.0}]


@pytest.mark.parametrize(
    ("change", "top", "caution"),
    [
        (_synthetic, "accuracy unknown (synthetic samples), outputs kept to 21.7 dB", "seeded random inputs"),
        (_unlabelled, "accuracy unknown (no labels)", "no labels"),
        (_same_samples, "on its own calibration samples", "Not held out"),
        (_unstable, "about 1.9\u00d7 faster (not stable)", "not stable"),
        (_no_difference, "no measurable change in speed", ""),
        (_slower, "2.0\u00d7 slower", ""),
        (_not_finite, "NaN or Inf in output features", "NaN or Inf where the reference does not: features"),
        (_unmeasured, "accuracy not measured", ""),
        (_unmeasured, "speed not measured", ""),
        (_identical, "outputs identical", "no labels"),
    ],
)
def test_honest_words(change: Callable[[Document], None], top: str, caution: str, full_document: Document) -> None:
    change(full_document)
    report = Report.model_validate(full_document)
    assert top in " · ".join(headline(report))
    assert caution in " ".join(item.text for item in cautions(report))
    for render in (to_html, to_markdown, _text):
        assert top in re.sub(r"\\([()])", r"\1", render(report)).replace("\N{NO-BREAK SPACE}", " ").replace(
            "&nbsp;", " "
        )


def test_a_missed_budget_comes_first(full: Report) -> None:
    assert [item.tone.value for item in cautions(full)] == ["bad", "warn", "warn"]
    assert cautions(full)[0].text == "Budget missed: max-size 4MB, observed 4.72 MB."


def test_one_model_alone(full_document: Document) -> None:
    for part in ("candidate", "speedup", "interval", "stable", "layers", "devices"):
        del full_document["latency"][part]
    for part in ("output", "validation", "passes", "budget"):
        del full_document[part]
    report = Report.model_validate(full_document)
    for render in (to_html, to_markdown, _text):
        assert "24.3 ms" in render(report).replace("\N{NO-BREAK SPACE}", " ")
        assert "faster" not in render(report)


def test_reasons_are_grouped_by_frequency(full: Report) -> None:
    groups = skipped_groups(full.passes)
    assert [len(group.places) for group in groups] == [5, 1, 1]
    assert groups[0].reason == "coupled with a residual sum"
    assert groups[0].places[0] == ("prune-filters", "blocks_1_0/project:0")


def test_what_it_cost_is_signed_and_coloured(full: Report, full_document: Document) -> None:
    top1 = qualities(full.validation)[0]
    assert top1.note == "\u22120.4 points, 95 % interval \u22121.4 to +0.7, 300 samples"
    assert top1.tone is Tone.PLAIN
    full_document["validation"]["metric"] |= {"candidate": 0.8, "drop": 0.083, "interval": [0.05, 0.11]}
    lost = qualities(Report.model_validate(full_document).validation)[0]
    assert (lost.was, lost.value, lost.tone) == ("88.3 %", "80.0 %", Tone.BAD)


def test_what_grew_is_not_called_won(full_document: Document) -> None:
    full_document["output"]["bytes"] = 2 * full_document["input"]["bytes"]
    fact = sizes(Report.model_validate(full_document))[0]
    assert (fact.label, fact.note, fact.tone) == ("File size", "200 %", Tone.BAD)


@pytest.mark.parametrize(
    ("name", "limit", "observed", "said"),
    [
        ("max_drop", "1%", 0.004, ("max-drop", "1%", "0.4 points")),
        ("max-size", "30%", 0.284, ("max-size", "30%", "28.4 %")),
        ("max-size", 2_000_000, 1_900_000, ("max-size", "2.00 MB", "1.90 MB")),
        ("max-latency", "10ms", 9.2, ("max-latency", "10ms", "9.20 ms")),
        ("max-macs", 300e6, None, ("max-macs", "300 M", "not measured")),
        ("min-sqnr", 20, "exact", ("min-sqnr", "20.0 dB", "exact")),
    ],
)
def test_budgets_speak_the_terms_of_their_limit(
    name: str, limit: float | str, observed: float | str | None, said: tuple[str, ...]
) -> None:
    line = BudgetLine(name=name, limit=limit, observed=observed, verdict=BudgetVerdict.MET)
    assert (budget_name(line), limit_text(line), observed_text(line)) == said
