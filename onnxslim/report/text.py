"""The report as a few plain lines for a terminal or a log; the command line decides about colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxslim.report.facts import Fact, qualities, sizes, speeds
from onnxslim.report.placement_story import integer_facts
from onnxslim.report.schema import PassStatus, Report
from onnxslim.report.story import budget_name, cautions, headline, limit_text, observed_text


def printable(text: str) -> str:
    """Replace what is not printable, so that a name from a model cannot steer a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def summary_lines(report: Report) -> tuple[str, ...]:
    """Return the headline, the figures, the passes by status, the budgets and the cautions, a line each."""
    won = (*sizes(report), *speeds(report.latency), *integer_facts(report.placement))
    facts = (*won, *qualities(report.validation))
    lines = (" · ".join(headline(report)), *_aligned(facts), *_passes(report), *_budgets(report))
    warnings = tuple(f"! {caution.text}" for caution in cautions(report))
    return tuple(printable(line) for line in (*lines, *warnings))


def _aligned(facts: Sequence[Fact]) -> Iterator[str]:
    width = max((len(fact.label) for fact in facts), default=0)
    for fact in facts:
        yield f"  {fact.label:<{width}}  {fact.line}"


def _passes(report: Report) -> Iterator[str]:
    for status in PassStatus:
        names = [record.name for record in report.passes if record.status is status]
        if names:
            yield f"  {status.value.replace('_', ' ')}: {', '.join(names)}"


def _budgets(report: Report) -> Iterator[str]:
    for line in report.budget:
        observed = "not measured" if line.observed is None else f"observed {observed_text(line)}"
        yield f"  budget {budget_name(line)} {limit_text(line)}: {line.verdict.value}, {observed}"
