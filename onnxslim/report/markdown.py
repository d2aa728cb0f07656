"""The report as Markdown for a pull request: what was won, what it cost, what each pass did."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from onnxslim.report import units
from onnxslim.report.facts import Fact, Tone, interval_words, qualities, sizes, speeds
from onnxslim.report.markdown_layers import devices, memory, ranges, where
from onnxslim.report.marks import escape, name_text, table
from onnxslim.report.placement import Placement
from onnxslim.report.placement_story import float_groups, integer_facts, slower_groups, waste_groups
from onnxslim.report.rank_charts import half_option, ranks_text, refusals
from onnxslim.report.ranks import LayerRanks, RankSurvey
from onnxslim.report.rows import Quantity
from onnxslim.report.schema import PassRecord, PassStatus, Report
from onnxslim.report.story import (
    budget_name,
    cautions,
    headline,
    integer_readings,
    limit_text,
    observed_text,
    skipped_groups,
)
from onnxslim.report.waterfall import change_text


def to_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown; names from the model are escaped."""
    blocks = (
        _top(report),
        _facts("What was won" if report.output else "The model", _won(report)),
        _facts("What it cost", qualities(report.validation)),
        _readings(report),
        _placement(report.placement),
        _budget(report),
        _passes(report.passes),
        *(_factoring(record) for record in report.passes),
        _ranks(report.ranks),
        where(report),
        memory(report),
        devices(report),
        ranges(report),
        _skipped(report.passes),
        _again(report),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, blocks) if lines) + "\n"


def _top(report: Report) -> Iterator[str]:
    yield f"## {escape(' · '.join(headline(report)))}"
    for caution in cautions(report):
        strong = "**" if caution.tone is Tone.BAD else ""
        yield from ("", f"> {strong}{escape(caution.text)}{strong}")


def _facts(title: str, facts: Sequence[Fact]) -> list[str]:
    rows = [(fact.label, fact.was or "", f"**{fact.value}**", escape(fact.note or "")) for fact in facts]
    with_before = any(fact.was for fact in facts)
    if with_before:
        found = table(("", "before", "after", ""), rows, "lrrl")
    else:
        found = table(("", "", ""), [(row[0], row[2], row[3]) for row in rows], "lrl")
    return [f"### {title}", "", *found] if found else []


def _won(report: Report) -> tuple[Fact, ...]:
    return (*sizes(report), *speeds(report.latency), *integer_facts(report.placement))


def _placement(placement: Placement | None) -> Iterator[str]:
    if placement is None or not (placement.float.layers or placement.wasted or placement.slower):
        return
    rows = [
        (
            str(len(group.anchors)),
            escape(group.op),
            escape(group.reason),
            "" if not group.macs else units.format_count(group.macs),
            *("" if not time else units.format_us(time) for time in (group.time_us, group.conversion_us)),
        )
        for group in float_groups(placement)
    ]
    header = ("layers", "operator", "why", "MACs", "time", "its conversions")
    yield "### What stays float at run time, and why" if rows else "### Integers at run time"
    yield from ("", *table(header, rows, "rllrrr")) if rows else ()
    waste = [
        (str(len(group.places)), group.what, "" if group.time_us is None else units.format_us(group.time_us))
        for group in waste_groups(placement)
    ]
    yield from ("", *table(("operators", "run for nothing", "time"), waste, "rlr")) if waste else ()
    slow = [
        (str(len(group.places)), escape(group.kernels), *map(units.format_us, (group.reference_us, group.time_us)))
        for group in slower_groups(placement)
    ]
    titles = ("places", "slower as integers, on this machine", "in float", "as integers")
    yield from ("", *table(titles, slow, "rlrr")) if slow else ()


def _readings(report: Report) -> list[str]:
    readings = integer_readings(report.validation)
    rows = [
        (
            f"{reading.name} (decides)" if reading.decides else reading.name,
            units.format_percent(reading.metric.candidate, 1) if reading.metric else "",
            (interval_words(reading.metric) or "") if reading.metric else "",
            units.format_db(reading.worst.sqnr_db) if reading.worst and reading.worst.sqnr_db is not None else "",
            reading.meaning,
        )
        for reading in readings
    ]
    found = table(("computed by", "metric", "change", "SQNR", "what that is"), rows, "lrlrl")
    return ["### Readings of the integer model", "", *found] if found else []


def _budget(report: Report) -> list[str]:
    rows = [
        (escape(budget_name(line)), escape(limit_text(line)), escape(observed_text(line)), f"**{line.verdict.value}**")
        for line in report.budget
    ]
    found = table(("budget", "limit", "observed", "verdict"), rows, "lrrl")
    return ["### Budgets", "", *found] if found else []


def _passes(passes: Sequence[PassRecord]) -> list[str]:
    active = [record for record in passes if record.status is not PassStatus.UNCHANGED]
    rows = [_pass_row(record) for record in active]
    found = table(("pass", "status", "edits", "bytes", "MACs", "why"), rows, "llrrrl")
    idle = [name_text(record.name) for record in passes if record.status is PassStatus.UNCHANGED]
    lines = [*found, *([""] if found and idle else [])]
    if idle:
        lines.append(f"Nothing to do: {', '.join(dict.fromkeys(idle))}.")
    return ["### Passes", "", *lines] if lines else []


def _pass_row(record: PassRecord) -> tuple[str, ...]:
    return (
        name_text(record.spec),
        record.status.value.replace("_", " "),
        str(record.edits),
        _change(record, Quantity.BYTES),
        _change(record, Quantity.MACS),
        escape(record.reason or ""),
    )


def _change(record: PassRecord, quantity: Quantity) -> str:
    before, after = quantity.of(record.before), quantity.of(record.after)
    if before is None or after is None:
        return ""
    if before == after:
        return "same"
    words = quantity.text(before), quantity.text(after)
    return change_text(record, quantity) if words[0] == words[1] else " → ".join(words)


def _factoring(record: PassRecord) -> list[str]:
    if record.ranks is None:
        return []
    rows = [
        (
            name_text(layer.anchor),
            f"{layer.scheme} {ranks_text(layer)} of {layer.full_rank}",
            *("" if value is None else units.format_percent(value) for value in (layer.error, layer.macs, layer.time)),
        )
        for layer in record.ranks.layers
    ]
    found = table(("layer", "form and rank", "lost", "MACs left", "time left"), rows, "llrrr")
    summary = f"<details><summary>Ranks: {len(rows)} layers factorized</summary>"
    return [summary, "", *found, "", "</details>"]


def _ranks(survey: RankSurvey | None) -> Iterator[str]:
    if survey is None:
        return
    yield from ("### What low rank would do", "")
    of = f"output on {survey.samples} samples" if survey.error_of == "output" else "weights (no samples were given)"
    yield f"Lost: of each layer's {of}, squared and relative. Forms at about half of each layer's MACs."
    rows = [_rank_row(layer) for layer in survey.layers]
    header = ("layer", "MACs", "full rank", "90 %", "99 %", "VBMF", "form", "lost", "time left", "pays")
    yield from ("", *table(header, rows, "lrrrrrlrrl"))
    left = [(str(len(anchors)), escape(reason)) for reason, anchors in refusals(survey).items()]
    if left:
        yield from ("", *table(("layers", "why they cannot be factorized"), left, "rl"))


def _rank_row(layer: LayerRanks) -> tuple[str, ...]:
    half = half_option(layer)
    macs = "" if layer.macs is None else units.format_count(layer.macs)
    ranks = (layer.full_rank, layer.rank_90, layer.rank_99, layer.vbmf)
    row = (name_text(layer.anchor), macs, *("" if rank is None else str(rank) for rank in ranks))
    if half is None:
        return (*row, "none", "", "", "")
    time = "" if half.time is None else units.format_percent(half.time)
    pays = "" if half.pays is None else "yes" if half.pays else "no"
    return (*row, f"{half.scheme} {ranks_text(half)}", units.format_percent(half.error, 1), time, pays)


def _skipped(passes: tuple[PassRecord, ...]) -> list[str]:
    groups = skipped_groups(passes)
    rows = []
    for group in groups:
        counts = Counter(name for name, _ in group.places)
        by = ", ".join(f"{name_text(name)} {count}" for name, count in counts.items())
        rows.append((str(len(group.places)), escape(group.reason), by))
    found = table(("places", "why", "pass"), rows, "rll")
    total = sum(len(group.places) for group in groups)
    summary = f"<details><summary>Left alone: {total} places, {len(groups)} reasons</summary>"
    return [summary, "", *found, "", "</details>"] if found else []


def _again(report: Report) -> Iterator[str]:
    machine, seed = report.environment, report.seed
    command = " ".join(report.command.split())
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    tools = f"onnx {machine.onnx}, onnxruntime {machine.onnxruntime}, Python {machine.python}"
    facts = [
        escape(f"{report.tool.name} {report.tool.version}, {tools}"),
        escape(f"{machine.cpu}, {machine.cores} cores" + ("" if seed is None else f", seed {seed}")),
        f"input sha256 `{report.input.sha256}`",
    ]
    if report.output is not None:
        facts.append(f"output sha256 `{report.output.sha256}`")
    yield from ("<details><summary>Reproduce</summary>", "", fence, command, fence, "")
    yield from (f"- {fact}" for fact in facts)
    yield from ("", "</details>")
