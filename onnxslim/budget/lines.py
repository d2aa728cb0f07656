"""The budgets of one run, each judged by its point value against what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.budget.limits import Limit, Verdict


@dataclass(frozen=True)
class Budgets:
    """What the user asked for; None where nothing was asked."""

    max_drop: Limit | None = None
    min_sqnr: Limit | None = None
    max_size: Limit | None = None
    max_macs: Limit | None = None
    max_latency: Limit | None = None
    max_activations: Limit | None = None
    download_limit: Limit | None = None

    @property
    def of_quality(self) -> bool:
        """Whether any budget limits what may be lost."""
        return self.max_drop is not None or self.min_sqnr is not None


@dataclass(frozen=True)
class Observed:
    """What was measured; None where it was not."""

    drop: float | None = None
    """Reference minus candidate, in points of the metric: 0.01 is one point."""
    sqnr_db: float | None = None
    """The smallest over the outputs."""
    size: tuple[int, int] | None = None
    """Bytes of candidate and reference."""
    macs: tuple[int, int] | None = None
    latency_ms: tuple[float, float] | None = None
    activations: tuple[int, int] | None = None
    """Bytes of activations at the peak, of candidate and reference."""
    download: int | None = None
    """Bytes of the candidate, compressed."""


@dataclass(frozen=True)
class BudgetLine:
    """One budget of the report: ``limit`` as it was written, ``observed`` in the limit's own unit."""

    name: str
    limit: str
    observed: float | None
    verdict: Verdict


def judge_budgets(budgets: Budgets, observed: Observed) -> tuple[BudgetLine, ...]:
    """Return a line for each budget that was set. What was not measured is unknown, never met."""
    lines = (
        _at_most("max_drop", budgets.max_drop, observed.drop),
        _at_least("min_sqnr", budgets.min_sqnr, observed.sqnr_db),
        _at_most("max_size", budgets.max_size, _in_unit(budgets.max_size, observed.size)),
        _at_most("max_macs", budgets.max_macs, _in_unit(budgets.max_macs, observed.macs)),
        _at_most("max_latency", budgets.max_latency, _in_unit(budgets.max_latency, observed.latency_ms)),
        _at_most("max_activations", budgets.max_activations, _in_unit(budgets.max_activations, observed.activations)),
        _at_most("download_limit", budgets.download_limit, observed.download),
    )
    return tuple(line for line in lines if line is not None)


def _in_unit(limit: Limit | None, pair: tuple[float, float] | None) -> float | None:
    return None if limit is None or pair is None else limit.observe(*pair)


def _at_most(name: str, limit: Limit | None, value: float | None) -> BudgetLine | None:
    if limit is None:
        return None
    return BudgetLine(name, limit.text, value, _verdict(value, None if value is None else value <= limit.value))


def _at_least(name: str, limit: Limit | None, value: float | None) -> BudgetLine | None:
    if limit is None:
        return None
    return BudgetLine(name, limit.text, value, _verdict(value, None if value is None else value >= limit.value))


def _verdict(value: float | None, holds: bool | None) -> Verdict:
    if value is None:
        return Verdict.UNKNOWN
    return Verdict.MET if holds else Verdict.MISSED
