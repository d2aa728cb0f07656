"""What each pass won, as a waterfall: from the input over every pass to the output, in percent of the largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxslim.report import units
from onnxslim.report.network import PassRecord
from onnxslim.report.rows import Quantity
from onnxslim.report.schema import PassStatus

LEAST = 0.0005
"""Fraction of the largest total below which a change is left to the table."""


@dataclass(frozen=True)
class Step:
    """One bar from `left` to `left + width` percent: a total, what a pass took away or added, or what it would have."""

    label: str
    text: str
    kind: str
    """total, cut, grew or undone."""
    left: float
    width: float
    at: float
    """Where the next step begins, in percent."""
    title: str


@dataclass(frozen=True)
class Waterfall:
    """The steps of one quantity, and the same in a sentence."""

    quantity: Quantity
    steps: tuple[Step, ...]
    words: str


def waterfall(passes: Sequence[PassRecord], quantity: Quantity) -> Waterfall | None:
    """Return the steps of passes that moved a total; None where none did, or totals are unknown."""
    sides = [quantity.of(side) for record in passes for side in (record.before, record.after)]
    scale = max((side or 0 for side in sides), default=0)
    if not scale or None in (quantity.of(passes[0].before),):
        return None
    moved = [step for step in (_step(record, quantity, scale) for record in passes) if step is not None]
    if not moved:
        return None
    first, last = quantity.of(passes[0].before), _end(passes, quantity)
    steps = (_total("before", first or 0, quantity, scale), *moved, _total("after", last, quantity, scale))
    words = "; ".join(f"{step.label} {step.text}" for step in steps)
    return Waterfall(quantity, steps, words)


def won(record: PassRecord, quantity: Quantity) -> float | None:
    """Return what a pass changed, negative where it took away; None where a total is unknown."""
    before, after = quantity.of(record.before), quantity.of(record.after)
    return None if before is None or after is None else after - before


def change_text(record: PassRecord, quantity: Quantity) -> str:
    """Return the change with its sign: "-13.6 MB"; nothing where there is none or it is unknown."""
    change = won(record, quantity)
    return "" if not change else ("+" if change > 0 else "") + quantity.text(change)


def _end(passes: Sequence[PassRecord], quantity: Quantity) -> int:
    kept = [record for record in passes if record.status in (PassStatus.KEPT, PassStatus.UNCHANGED)]
    sides = [quantity.of(record.after) for record in kept]
    known = [side for side in sides if side is not None]
    return known[-1] if known else quantity.of(passes[0].before) or 0


def _total(label: str, value: int, quantity: Quantity, scale: int) -> Step:
    width = _percent(value, scale)
    return Step(label, quantity.text(value), "total", 0.0, width, width, f"{label}: {quantity.text(value)}")


def _step(record: PassRecord, quantity: Quantity, scale: int) -> Step | None:
    before, after, change = quantity.of(record.before), quantity.of(record.after), won(record, quantity)
    if before is None or after is None or change is None or abs(change) < LEAST * scale:
        return None
    kind = "undone" if record.status is not PassStatus.KEPT else "cut" if change < 0 else "grew"
    low, high = sorted((_percent(before, scale), _percent(after, scale)))
    part = f" ({units.format_percent(change / before)})" if before else ""
    text = f"{change_text(record, quantity)}{part}"
    undone = f", {record.status.value.replace('_', ' ')}" if kind == "undone" else ""
    title = f"{record.name}: {quantity.text(before)} to {quantity.text(after)}{undone}"
    at = _percent(before if kind == "undone" else after, scale)
    return Step(record.name, f"{text}{undone}", kind, low, round(high - low, 2), at, title)


def _percent(value: float, scale: float) -> float:
    return round(min(100.0, 100 * value / scale), 2)
