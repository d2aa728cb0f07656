"""Geometry of the pictures: bars, steps and curves in percent of the widest, ready for any template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from onnxslim.report import units
from onnxslim.report.network import LayerSummary, ModelSummary, PassRecord, Totals
from onnxslim.report.schema import PassStatus

MAX_CURVE_POINTS = 400

Pair = tuple[LayerSummary | None, LayerSummary | None]


class Quantity(StrEnum):
    """What a chart shows of each layer or pass."""

    BYTES = "bytes"
    MACS = "macs"

    def of(self, part: LayerSummary | ModelSummary | Totals | None) -> int | None:
        """Return the quantity of a part; None where the part or its figure is absent."""
        value: int | None = getattr(part, self.value, None)
        return value

    def text(self, value: float) -> str:
        """Return the value with its unit."""
        return units.format_bytes(value) if self is Quantity.BYTES else units.format_count(value)


@dataclass(frozen=True)
class Bar:
    """One layer before and after; a side that does not have it is None. Widths are percent of the largest."""

    anchor: str
    op: str
    before: int | None
    after: int | None
    before_width: float
    after_width: float


@dataclass(frozen=True)
class BarChart:
    """The largest layers, and how many smaller ones `rest` sums up."""

    bars: tuple[Bar, ...]
    rest: Bar | None
    rest_count: int
    has_after: bool


@dataclass(frozen=True)
class Step:
    """Where a pass moved a total: a bar from `left` to `left + width` percent, shrinking or growing."""

    before: int
    after: int
    left: float
    width: float
    grew: bool


@dataclass(frozen=True)
class Curve:
    """A stepped line over the layers: an SVG path in a box of `width` by `height`, and its highest point."""

    path: str
    peak_x: float
    peak_y: float
    peak_bytes: int
    peak_anchor: str


def layer_bars(before: ModelSummary, after: ModelSummary | None, quantity: Quantity, top: int = 20) -> BarChart:
    """Pair the layers of two models by anchor, largest first; layers with nothing on either side are left out."""
    sides = [{layer.anchor: layer for layer in model.layers} if model else {} for model in (before, after)]
    anchors = dict.fromkeys((*sides[0], *sides[1]))
    pairs = [(sides[0].get(anchor), sides[1].get(anchor)) for anchor in anchors]
    sized = [pair for pair in pairs if _largest(pair, quantity)]
    sized.sort(key=lambda pair: -_largest(pair, quantity))
    scale = _largest(sized[0], quantity) if sized else 1
    shown, others = sized[:top], sized[top:]
    if len(others) == 1:
        shown, others = sized, []
    bars = tuple(_bar(pair, quantity, scale) for pair in shown)
    rest = _rest(others, quantity, scale) if others else None
    return BarChart(bars, rest, len(others), after is not None)


def _largest(pair: Pair, quantity: Quantity) -> int:
    return max(quantity.of(side) or 0 for side in pair)


def _bar(pair: Pair, quantity: Quantity, scale: int) -> Bar:
    before, after = quantity.of(pair[0]), quantity.of(pair[1])
    layer = next(side for side in pair if side is not None)
    return Bar(layer.anchor, layer.op, before, after, _percent(before, scale), _percent(after, scale))


def _rest(pairs: Sequence[Pair], quantity: Quantity, scale: int) -> Bar:
    before = sum(quantity.of(pair[0]) or 0 for pair in pairs)
    after = sum(quantity.of(pair[1]) or 0 for pair in pairs)
    return Bar("", "", before, after, _percent(before, scale), _percent(after, scale))


def _percent(value: int | None, scale: int) -> float:
    return round(min(100.0, 100 * (value or 0) / scale), 2)


def operator_shares(model: ModelSummary, quantity: Quantity) -> tuple[tuple[str, float], ...]:
    """Return each operator's fraction of the model's layers by quantity, largest first, those of 1 % and more."""
    sums: Counter[str] = Counter()
    for layer in model.layers:
        sums[layer.op] += quantity.of(layer) or 0
    total = sums.total()
    return tuple((op, value / total) for op, value in sums.most_common() if total and value / total >= 0.01)


def pass_steps(passes: Sequence[PassRecord], quantity: Quantity) -> tuple[Step | None, ...]:
    """Return one step per pass on one scale; None where a total is unknown or a pass changed nothing."""
    totals = [quantity.of(totals) or 0 for record in passes for totals in (record.before, record.after)]
    scale = max(totals, default=0)
    return tuple(_step(record, quantity, scale) for record in passes)


def _step(record: PassRecord, quantity: Quantity, scale: int) -> Step | None:
    before, after = quantity.of(record.before), quantity.of(record.after)
    if before is None or after is None or not scale or record.status is PassStatus.UNCHANGED:
        return None
    low, high = sorted((_percent(before, scale), _percent(after, scale)))
    return Step(before, after, low, round(high - low, 2), after > before)


def activation_curve(model: ModelSummary | None, scale: int, width: int = 1000, height: int = 200) -> Curve | None:
    """Draw the activation bytes alive along the network; None when no layer tells its own.

    `scale` is the value at full height. Long networks are thinned to the largest of each stretch, which keeps
    every peak.
    """
    known = [layer for layer in model.layers if layer.activation_bytes is not None] if model else []
    if not known or scale <= 0:
        return None
    points = [max(stretch, key=_alive) for stretch in _stretches(known)]
    x_step, tallest = width / len(points), max(range(len(points)), key=lambda index: _alive(points[index]))
    heights = [round(height * (1 - _alive(point) / scale), 1) for point in points]
    path = f"M0 {height}" + "".join(
        f"L{round(index * x_step, 1)} {y}H{round((index + 1) * x_step, 1)}" for index, y in enumerate(heights)
    )
    peak = points[tallest]
    peak_x = round((tallest + 0.5) * x_step, 1)
    return Curve(f"{path}V{height}Z", peak_x, heights[tallest], _alive(peak), peak.anchor)


def _alive(layer: LayerSummary) -> int:
    return layer.activation_bytes or 0


def _stretches(layers: Sequence[LayerSummary]) -> list[Sequence[LayerSummary]]:
    size = -(-len(layers) // MAX_CURVE_POINTS)
    return [layers[start : start + size] for start in range(0, len(layers), size)]
