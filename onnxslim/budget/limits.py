"""A limit as people write it: ``5MB``, ``30%``, ``12ms``, ``20``."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from onnxslim.errors import PolicyError


class Unit(enum.Enum):
    """What a limit's number means."""

    RATIO = "ratio"
    """Candidate divided by reference, or for a metric's drop the drop itself: 1 % is 0.01."""
    BYTES = "bytes"
    COUNT = "count"
    MILLISECONDS = "ms"
    DECIBEL = "dB"


class Verdict(enum.Enum):
    """Whether a budget was kept."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Limit:
    """A number with its unit, and the text it was written as."""

    value: float
    unit: Unit
    text: str

    def observe(self, candidate: float, reference: float) -> float | None:
        """Return the candidate's figure in this limit's unit: itself, or its ratio to the reference's."""
        if self.unit is not Unit.RATIO:
            return float(candidate)
        return candidate / reference if reference else None


_SCALE = {
    "": (1.0, Unit.COUNT),
    "%": (0.01, Unit.RATIO),
    "b": (1.0, Unit.BYTES),
    "kb": (1e3, Unit.BYTES),
    "mb": (1e6, Unit.BYTES),
    "gb": (1e9, Unit.BYTES),
    "kib": (2.0**10, Unit.BYTES),
    "mib": (2.0**20, Unit.BYTES),
    "gib": (2.0**30, Unit.BYTES),
    "k": (1e3, Unit.COUNT),
    "m": (1e6, Unit.COUNT),
    "g": (1e9, Unit.COUNT),
    "ms": (1.0, Unit.MILLISECONDS),
    "us": (1e-3, Unit.MILLISECONDS),
    "s": (1e3, Unit.MILLISECONDS),
    "db": (1.0, Unit.DECIBEL),
}


def parse_limit(text: str | float, where: str, *units: Unit) -> Limit:
    """Read a limit that must be in one of ``units``; a bare number takes the first of them that is not a ratio.

    Raises:
        PolicyError: names ``where``, what was found and what is accepted.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?\d+)?)\s*([A-Za-z%]*)\s*", str(text))
    scale = _SCALE.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise PolicyError(f"{where} is {text!r}: give {_examples(units)}")
    factor, unit = scale
    if unit is Unit.COUNT and not match[2]:
        unit = next((u for u in units if u is not Unit.RATIO), Unit.RATIO)
    if unit not in units:
        raise PolicyError(f"{where} is {text!r}: give {_examples(units)}")
    return Limit(float(match[1]) * factor, unit, str(text).strip())


_EXAMPLES = {
    Unit.RATIO: "a percentage like 50%",
    Unit.BYTES: "a size like 2MB",
    Unit.COUNT: "a count like 300M",
    Unit.MILLISECONDS: "a time like 12ms",
    Unit.DECIBEL: "a number of decibels like 20",
}


def _examples(units: tuple[Unit, ...]) -> str:
    return " or ".join(_EXAMPLES[unit] for unit in units)
