"""Limits as people write them, and budgets judged by point values."""

from __future__ import annotations

import pytest

from onnxslim.budget import Budgets, Observed, Unit, Verdict, judge_budgets, parse_limit
from onnxslim.errors import PolicyError


@pytest.mark.parametrize(
    ("text", "units", "value", "unit"),
    [
        ("2MB", (Unit.BYTES, Unit.RATIO), 2_000_000, Unit.BYTES),
        ("1.5 MiB", (Unit.BYTES,), 1.5 * 2**20, Unit.BYTES),
        ("50%", (Unit.BYTES, Unit.RATIO), 0.5, Unit.RATIO),
        ("300M", (Unit.COUNT, Unit.RATIO), 3e8, Unit.COUNT),
        ("12ms", (Unit.MILLISECONDS,), 12, Unit.MILLISECONDS),
        (20, (Unit.DECIBEL,), 20, Unit.DECIBEL),
        ("4096", (Unit.BYTES, Unit.RATIO), 4096, Unit.BYTES),
    ],
)
def test_limits_are_read(text: str | float, units: tuple[Unit, ...], value: float, unit: Unit) -> None:
    limit = parse_limit(text, "--max-size", *units)
    assert limit.value == pytest.approx(value)
    assert limit.unit is unit


@pytest.mark.parametrize(("text", "units"), [("many", (Unit.BYTES,)), ("5ms", (Unit.BYTES,)), ("-1%", (Unit.RATIO,))])
def test_bad_limits_name_the_option_and_an_example(text: str, units: tuple[Unit, ...]) -> None:
    with pytest.raises(PolicyError, match=r"--max-size is '.*': give a "):
        parse_limit(text, "--max-size", *units)


def test_what_was_not_measured_is_unknown() -> None:
    budgets = Budgets(
        max_drop=parse_limit("1%", "d", Unit.RATIO),
        min_sqnr=parse_limit(20, "q", Unit.DECIBEL),
        max_size=parse_limit("30%", "s", Unit.BYTES, Unit.RATIO),
        max_latency=parse_limit("50%", "l", Unit.MILLISECONDS, Unit.RATIO),
    )
    lines = judge_budgets(budgets, Observed(drop=0.0101, sqnr_db=20.0, size=(30, 100)))
    assert {line.name: line.verdict for line in lines} == {
        "max_drop": Verdict.MISSED,
        "min_sqnr": Verdict.MET,
        "max_size": Verdict.MET,
        "max_latency": Verdict.UNKNOWN,
    }
    assert lines[2].observed == pytest.approx(0.3)
