"""Tables of what low rank would do: all layers in a line each, or a few with all their forms."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from onnxslim.cli.tables import plain_table
from onnxslim.report import format_bytes, format_count, format_ms, format_percent
from onnxslim.report.rank_charts import half_option, ranks_text, refusals
from onnxslim.report.ranks import LayerRanks, RankOption, RankSurvey


def rank_lines(survey: RankSurvey) -> Iterator[str]:
    """What the figures mean."""
    if survey.error_of == "output":
        yield f"lost: of each layer's output on {survey.samples} samples, squared and relative; every layer by itself"
    else:
        yield "lost: of each layer's weights, squared and relative; --data PATH would tell about outputs"


def rank_table(survey: RankSurvey) -> Table:
    """All layers, one line each, with the form that loses least at about half of the multiply-accumulates."""
    table = plain_table("layer", "MACs", "time", "90 % at", "half MACs", "lost", "time", "", right=(1, 2, 3, 5, 6))
    for column in table.columns[1:]:
        column.no_wrap = True
    for layer in survey.layers:
        half = half_option(layer)
        form, lost, time, verdict = ("none", "", "", "") if half is None else _form(half)
        table.add_row(
            escape(layer.anchor),
            "?" if layer.macs is None else format_count(layer.macs),
            _time(layer),
            f"{layer.rank_90}/{layer.full_rank}",
            form.replace(" and ", "/"),
            lost,
            time,
            verdict,
        )
    table.caption = "90 % at: the rank that keeps 90 %, of the full one; more with --only LAYER, --report or --json"
    table.caption_justify = "left"
    return table


def refusal_lines(survey: RankSurvey) -> list[str]:
    """Why layers cannot be factorized."""
    return [
        f"{len(anchors)} {'layer' if len(anchors) == 1 else 'layers'}: {reason}"
        for reason, anchors in refusals(survey).items()
    ]


def layer_ranks_table(layer: LayerRanks) -> Table:
    """One layer with its spectrum in words and the forms that were chosen and timed."""
    table = plain_table("", "", "", "", "", right=(2, 3, 4))
    facts = {
        "layer": layer.anchor,
        "shared with": ", ".join(layer.also),
        "operator": f"{layer.op} {'×'.join(map(str, layer.weight_shape))}, {format_bytes(layer.bytes)}",
        "MACs": "unknown: fix the shapes with --shape" if layer.macs is None else format_count(layer.macs),
        "time": _time(layer),
        "ranks": f"{layer.full_rank}; 90 % at {layer.rank_90}, 99 % at {layer.rank_99}{_estimate(layer)}",
        "lost is of": "its output" if layer.error_of == "output" else "its weights",
    }
    for name, value in facts.items():
        if value:
            table.add_row(name, escape(value))
    for option in layer.options:
        told = {True: "[green]pays[/green]", False: "[dim]does not pay[/dim]", None: ""}[option.pays]
        cost = f"{format_percent(option.cost)} of its {'bytes' if option.macs is None else 'MACs'}"
        form, lost, time, _ = _form(option)
        left = f"{time} of its time" if time else ""
        table.add_row(cost, f"{form}  {told}".rstrip(), f"{lost} lost", left)
    if not layer.options:
        table.add_row("forms", "none is cheaper than the layer")
    return table


def _estimate(layer: LayerRanks) -> str:
    return "" if layer.vbmf is None else f"; VBMF estimates {layer.vbmf}"


def _time(layer: LayerRanks) -> str:
    return "" if layer.microseconds is None else format_ms(layer.microseconds / 1000)


def _form(option: RankOption) -> tuple[str, str, str, str]:
    """Return form, loss, time and verdict of an option."""
    verdict = {True: "[green]pays[/green]", False: "[dim]no[/dim]", None: ""}[option.pays]
    time = "" if option.time is None else format_percent(option.time)
    return f"{option.scheme} {ranks_text(option)}", format_percent(option.error, 1), time, verdict
