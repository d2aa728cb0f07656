"""Numbers as people read them: a unit, three significant digits, no digit that was not measured.

MB is 10⁶ bytes, as in every budget and policy. A change that is not zero never prints as zero, and a fraction
short of one never prints as 100 %. Printed signs are typographic (MINUS SIGN, MULTIPLICATION SIGN); the examples
below spell them - and x.
"""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
SQNR_CAP = 200
"""dB at which schema 1 caps an SQNR: the tensors are equal."""
_UNITS = ("", "k", "M", "G", "T", "P")


def _significant(value: float) -> str:
    """Three significant digits, never fewer than the integer part has: 5.21, 18.6, 386."""
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return _signed(f"{value:.{decimals}f}")


def _signed(digits: str) -> str:
    return digits.replace("-", MINUS)


def _scaled(value: float) -> tuple[float, str]:
    """Divide by the power of 1000 after which three digits stand before the point at most."""
    step = 0
    while abs(value) >= 999.5 and step < len(_UNITS) - 1:
        value /= 1000
        step += 1
    return value, _UNITS[step]


def format_bytes(size: float) -> str:
    """Return bytes as "812 B", "88.2 kB", "5.21 MB"; a negative size is a saving: "-13.4 MB"."""
    scaled, prefix = _scaled(size)
    return f"{_significant(scaled) if prefix else _signed(f'{scaled:.0f}')} {prefix}B"


def format_count(count: float) -> str:
    """Return a count as "812", "4.65 M", "1.23 G"."""
    scaled, prefix = _scaled(count)
    return f"{_significant(scaled)} {prefix}" if prefix else _signed(f"{scaled:.0f}")


def format_percent(fraction: float, decimals: int = 0) -> str:
    """Return a fraction as "28 %"; more decimals than asked for where 0 % or 100 % would not be true."""
    percent = 100 * fraction
    for places in range(decimals, 4):
        text = f"{percent:.{places}f}"
        if float(text) not in (0.0, 100.0) or float(text) == percent:
            return f"{_signed(text)} %"
    return "<0.001 %" if abs(percent) < 1 else f"{'>99.999' if percent < 100 else '>100'} %"


def format_points(change: float) -> str:
    """Return a signed change of a fraction in points: 0.004 lost is "-0.4 points". Pass minus the drop."""
    points = 100 * change
    if points == 0:
        return "±0 points"
    decimals = 1 if abs(points) >= 0.05 else 2
    if abs(points) < 0.005:
        return f"{'+' if points > 0 else MINUS}<0.01 points"
    return f"{_signed(f'{points:+.{decimals}f}')} points"


def format_ms(milliseconds: float) -> str:
    """Return a time as "450 µs", "12.3 ms", "1.25 s"."""
    if abs(milliseconds) < 0.9995:
        return f"{_significant(1000 * milliseconds)} µs" if milliseconds else "0 ms"
    if abs(milliseconds) >= 999.5:
        return f"{_significant(milliseconds / 1000)} s"
    return f"{_significant(milliseconds)} ms"


def format_us(microseconds: float) -> str:
    """Return a time given in microseconds as `format_ms` does."""
    return format_ms(microseconds / 1000)


def format_seconds(seconds: float) -> str:
    """Return a duration as "0.4 s", "12 s", "3 min 5 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "<0.1 s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_ratio(ratio: float) -> str:
    """Return a ratio as "1.04x", "1.9x", "12x": two digits, three near 1 where they tell something."""
    if ratio >= 9.95:
        return f"{ratio:.0f}{TIMES}"
    text = f"{ratio:.2f}"
    return f"{text[:-1] if text.endswith('0') else text}{TIMES}"


def format_db(decibel: float) -> str:
    """Return an SQNR as "41.7 dB"; at the cap the tensors are equal: "exact"."""
    return "exact" if decibel >= SQNR_CAP else f"{_signed(f'{decibel:.1f}')} dB"


def format_error(value: float) -> str:
    """Return an absolute or relative error with two significant digits: "0", "1.2e-7", "0.034"."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 < exponent < 4:
        return f"{value:.{max(0, 1 - exponent)}f}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(power)}"


def format_small(value: float) -> str:
    """Return a ratio of counts with two digits: "0.045", "0.38", "1.2", "12"."""
    return format_error(value) if value < 0.01 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def format_real(value: float) -> str:
    """Return any real number with three digits: "-1.24", "0", "6.00", "1.2e-5"."""
    if value == 0 or 0.001 <= abs(value) < 999.5:
        return "0" if value == 0 else _signed(f"{value:#.3g}".removesuffix("."))
    return _signed(f"{value:.2e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e"))
