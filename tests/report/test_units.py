"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (88_240, "88.2 kB"),
        (999_600, "1.00 MB"),
        (5_213_000, "5.21 MB"),
        (18_600_000, "18.6 MB"),
        (186e6, "186 MB"),
        (-13.4e6, "\u221213.4 MB"),
    ],
)
def test_bytes(value: float, text: str) -> None:
    assert units.format_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (812, "812"), (4_652_008, "4.65 M"), (1.23e9, "1.23 G")])
def test_count(value: float, text: str) -> None:
    assert units.format_count(value) == text


@pytest.mark.parametrize(
    ("fraction", "decimals", "text"),
    [
        (0.28, 0, "28 %"),
        (0.879, 1, "87.9 %"),
        (1.0, 1, "100.0 %"),
        (0.0, 0, "0 %"),
        (1.37, 0, "137 %"),
        (0.9996, 0, "99.96 %"),
        (0.002, 0, "0.2 %"),
        (1e-7, 0, "<0.001 %"),
        (1 - 1e-7, 0, ">99.999 %"),
    ],
)
def test_percent(fraction: float, decimals: int, text: str) -> None:
    assert units.format_percent(fraction, decimals) == text


@given(st.floats(0, 1))
def test_only_nothing_is_zero_percent_and_only_all_is_hundred(fraction: float) -> None:
    assert (units.format_percent(fraction) == "0 %") == (100 * fraction == 0)
    assert (units.format_percent(fraction) == "100 %") == (100 * fraction == 100)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (-0.004, "\u22120.4 points"),
        (0.012, "+1.2 points"),
        (0, "\u00b10 points"),
        (-0.0002, "\u22120.02 points"),
        (1e-6, "+<0.01 points"),
    ],
)
def test_points(change: float, text: str) -> None:
    assert units.format_points(change) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0 ms"),
        (0.45, "450 \u00b5s"),
        (0.0042, "4.20 \u00b5s"),
        (1, "1.00 ms"),
        (12.34, "12.3 ms"),
        (1250, "1.25 s"),
    ],
)
def test_ms(milliseconds: float, text: str) -> None:
    assert units.format_ms(milliseconds) == text


@pytest.mark.parametrize(("ratio", "text"), [(1.9, "1.9\u00d7"), (1.04, "1.04\u00d7"), (12.2, "12\u00d7")])
def test_ratio(ratio: float, text: str) -> None:
    assert units.format_ratio(ratio) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1.2e-7, "1.2e-7"), (0.0913, "0.091"), (3.14, "3.1"), (120.4, "120"), (2e5, "2.0e5")]
)
def test_error(value: float, text: str) -> None:
    assert units.format_error(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.01, "<0.1 s"), (0.31, "0.3 s"), (74.2, "1 min 14 s")])
def test_seconds(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


def test_an_sqnr_at_the_cap_is_exact() -> None:
    assert units.format_db(200.0) == "exact"
    assert units.format_db(41.74) == "41.7 dB"
