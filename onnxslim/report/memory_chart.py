"""Activation memory along the network: two stepped lines on one scale, and what is held where most is.

Both networks are drawn over the layers of the original: what was made of a layer stands where the layer stood.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from onnxslim.budget.limits import Unit, parse_limit
from onnxslim.errors import PolicyError
from onnxslim.report import units
from onnxslim.report.network import ActivationPeak, LayerSummary, ModelSummary
from onnxslim.report.schema import Report

STRETCHES = 240
"""Places along the network; longer ones show the largest of each stretch, which keeps every peak."""
WIDTH, HEIGHT = 1000, 200
NEAR = 11
"""Percent of the height."""
ROOM = 2.0
"""A limit is drawn if it is no more than this times the highest peak: above it, the lines would be flat."""
_HEIGHTS = " \N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}\N{LOWER HALF BLOCK}" + (
    "\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"
)
_SILENT = frozenset({"Constant"})
"""Operators that are no step of the network."""


@dataclass(frozen=True)
class Place:
    """One stretch of the network: the layer at which most is held, before and after."""

    anchor: str
    before: int | None
    after: int | None
    x: float
    width: float

    @property
    def title(self) -> str:
        """Its words."""
        sides = (("before", self.before), ("after", self.after))
        said = [f"{name} {units.format_bytes(value)}" for name, value in sides if value is not None]
        return f"{self.anchor}: {', '.join(said)}" if len(said) > 1 else f"{self.anchor}: {said[0].split(' ', 1)[1]}"


@dataclass(frozen=True)
class Line:
    """One network: an SVG path, and its peak: percent from the left and from the top."""

    path: str
    peak_bytes: int
    peak_anchor: str
    left: float
    top: float
    held: ActivationPeak | None


@dataclass(frozen=True)
class MemoryChart:
    """Both lines."""

    before: Line | None
    after: Line | None
    places: tuple[Place, ...]
    scale: int
    limit: int | None = None
    """Bytes that the result may hold."""

    @property
    def limit_top(self) -> float | None:
        """Where the limit is drawn, in percent from the top; None where it is far above."""
        return None if self.limit is None or self.limit > self.scale else round(100 * (1 - self.limit / self.scale), 2)

    @property
    def are_near(self) -> bool:
        """Whether both peaks are so near that the words on one line would stand on the other."""
        return self.before is not None and self.after is not None and 0 <= self.after.top - self.before.top < NEAR


def chart_of(report: Report) -> MemoryChart | None:
    """Return the chart of a report's networks, with the limit that was set."""
    line = next((line for line in report.budget if line.name.replace("-", "_") == "max_activations"), None)
    return memory_chart(report.input, report.output, None if line is None else _bytes(line.limit, report.input))


def _bytes(limit: float | str, reference: ModelSummary) -> int | None:
    try:
        found = parse_limit(limit, "max_activations", Unit.BYTES, Unit.RATIO)
    except PolicyError:
        return None  # a report that somebody else wrote
    if found.unit is Unit.BYTES:
        return round(found.value)
    peak = reference.peak_activation_bytes
    return None if peak is None else round(found.value * peak)


def memory_chart(before: ModelSummary, after: ModelSummary | None, limit: int | None = None) -> MemoryChart | None:
    """Return the chart; None where no layer tells what is held.

    Args:
        limit: bytes that may be held.
    """
    ours, theirs = _known(before), _known(after)
    base = ours or theirs
    scale = max((layer.activation_bytes or 0 for layer in (*ours, *theirs)), default=0)
    if not base or not scale:
        return None
    if limit is not None and limit <= ROOM * scale:
        scale = max(scale, limit)
    count = min(len(base), STRETCHES)
    at = {layer.anchor: index * count // len(base) for index, layer in enumerate(base)}
    sides = [_stretches(layers, at, count) for layers in (ours, theirs)]
    first, second = (_line(side, scale, model) for side, model in zip(sides, (before, after), strict=True))
    return MemoryChart(first, second, tuple(_places(sides, count)), scale, limit)


def _known(model: ModelSummary | None) -> list[LayerSummary]:
    layers = model.layers if model else ()
    return [layer for layer in layers if layer.activation_bytes is not None and layer.op not in _SILENT]


def _stretches(layers: Sequence[LayerSummary], at: dict[str, int], count: int) -> list[LayerSummary | None]:
    """Return what is largest in each stretch; one that nothing falls into stays as the one before it.

    A layer stands where the layer of its name stood; those between two such are spread between them.
    """
    known = [(index, at[layer.anchor]) for index, layer in enumerate(layers) if layer.anchor in at]
    fixed = [(-1, -1)]
    for index, place in known:
        if place >= fixed[-1][1]:
            fixed.append((index, place))
    fixed.append((len(layers), count))
    starts = [index for index, _ in fixed]
    found: list[LayerSummary | None] = [None] * count
    for index, layer in enumerate(layers):
        (left, low), (right, high) = fixed[bisect_right(starts, index) - 1 :][:2]
        place = min(max(low + (high - low) * (index - left) // max(right - left, 1), 0), count - 1)
        best = found[place]
        if best is None or (layer.activation_bytes or 0) > (best.activation_bytes or 0):
            found[place] = layer
    for place in range(1, count):
        found[place] = found[place] or found[place - 1]
    return found


def _line(side: Sequence[LayerSummary | None], scale: int, model: ModelSummary | None) -> Line | None:
    if not any(side):
        return None
    heights = [round(HEIGHT * (1 - _held(layer) / scale), 1) for layer in side]
    step = WIDTH / len(side)
    path = f"M0 {HEIGHT}" + "".join(
        f"L{round(index * step, 1):g} {y:g}H{round((index + 1) * step, 1):g}" for index, y in enumerate(heights)
    )
    tallest = max(range(len(side)), key=lambda index: _held(side[index]))
    peak = side[tallest]
    return Line(
        f"{path}V{HEIGHT}Z",
        _held(peak),
        peak.anchor if peak else "",
        round(100 * (tallest + 0.5) / len(side), 2),
        round(heights[tallest] / HEIGHT * 100, 2),
        None if model is None else model.peak,
    )


def _places(sides: Sequence[Sequence[LayerSummary | None]], count: int) -> list[Place]:
    step = WIDTH / count
    places = []
    for index in range(count):
        before, after = (side[index] for side in sides)
        named = before or after
        if named is not None:
            held = [None if layer is None else layer.activation_bytes for layer in (before, after)]
            places.append(Place(named.anchor, held[0], held[1], round(index * step, 1), round(step, 1)))
    return places


def _held(layer: LayerSummary | None) -> int:
    return 0 if layer is None else layer.activation_bytes or 0


def sparkline(places: Sequence[Place], side: str, scale: int, columns: int = 60) -> str:
    """Return one side, "before" or "after", in letters of eight heights: the largest of each stretch."""
    held = [getattr(place, side) or 0 for place in places]
    size = -(-len(held) // columns)
    peaks = [max(held[start : start + size]) for start in range(0, len(held), size)]
    return "".join(_HEIGHTS[-(-(len(_HEIGHTS) - 1) * peak // scale)] for peak in peaks)
