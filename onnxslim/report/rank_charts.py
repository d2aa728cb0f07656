"""Geometry of the pictures of low rank: spectra, and errors against costs, as SVG paths in a box of fixed size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxslim.report import units
from onnxslim.report.ranks import FactoredLayer, LayerRanks, RankCurve, RankOption, RankPoint, RankSurvey

WIDTH, HEIGHT = 460, 264
LEFT, RIGHT, TOP, BOTTOM = 62, 448, 18, 212
"""Of the axes, within the box."""
MAX_CHARTS = 80
"""Layers that are drawn, the most expensive ones; the table and the JSON have all."""
LEAST_ERROR = 1e-5
"""Errors below this are drawn at it."""
HALF = 0.52
"""What still counts as half of a layer's cost."""
_MARK = 3.6


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in the box, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point of a chart with the words beside it."""

    x: float
    y: float
    text: str
    title: str


@dataclass(frozen=True)
class SpectrumChart:
    """Energy kept against rank."""

    path: str
    x_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    """Where 90 and 99 % are kept."""
    vbmf: float | None
    """Where on the axis the estimated rank lies."""


@dataclass(frozen=True)
class Line:
    """One scheme: its line, and all its points as one path."""

    scheme: str
    path: str
    points: str


@dataclass(frozen=True)
class Timed:
    """A form that was timed."""

    mark: Mark
    pays: bool


@dataclass(frozen=True)
class ErrorChart:
    """Error against cost, a line for each scheme; the error's axis is logarithmic."""

    lines: tuple[Line, ...]
    y_ticks: tuple[Tick, ...]
    timed: tuple[Timed, ...]
    axis: str
    """What the cost is of."""


@dataclass(frozen=True)
class LayerCharts:
    """Both charts of one layer."""

    layer: LayerRanks
    spectrum: SpectrumChart
    errors: ErrorChart | None
    """None where no form is cheaper than the layer."""


SHARE_TICKS = tuple(
    Tick(LEFT + (RIGHT - LEFT) * share, units.format_percent(share)) for share in (0, 0.25, 0.5, 0.75, 1)
)
"""Along the bottom, for shares of a cost."""
ENERGY_TICKS = tuple(
    Tick(BOTTOM - (BOTTOM - TOP) * share, units.format_percent(share)) for share in (0, 0.25, 0.5, 0.75, 1)
)
"""Up the side, for fractions kept."""


def rank_charts(survey: RankSurvey) -> tuple[LayerCharts, ...]:
    """Return the charts of the most expensive layers, in the order of execution."""
    drawn = sorted(survey.layers, key=lambda layer: -(layer.macs or layer.bytes))[:MAX_CHARTS]
    anchors = {layer.anchor for layer in drawn}
    return tuple(
        LayerCharts(layer, _spectrum(layer), _errors(layer) if layer.curves else None)
        for layer in survey.layers
        if layer.anchor in anchors
    )


def half_option(layer: LayerRanks) -> RankOption | None:
    """Return the option at about half of the layer's cost, None where there is none."""
    return next((option for option in layer.options if option.cost <= HALF), None)


def schemes(survey: RankSurvey) -> tuple[str, ...]:
    """Return the schemes that some layer has, in their order."""
    return tuple(dict.fromkeys(curve.scheme for layer in survey.layers for curve in layer.curves))


def refusals(survey: RankSurvey) -> dict[str, tuple[str, ...]]:
    """Return the anchors of layers that cannot be factorized by their reason, the most frequent reason first."""
    found: dict[str, list[str]] = {}
    for layer in survey.refused:
        found.setdefault(layer.reason, []).append(layer.anchor)
    return {reason: tuple(found[reason]) for reason in sorted(found, key=lambda reason: -len(found[reason]))}


def ranks_text(point: RankPoint | FactoredLayer) -> str:
    """Return the ranks of a form: "24", or "48 and 16" for Tucker's two."""
    return str(point.rank) if point.inner is None else f"{point.rank} and {point.inner}"


# ---- spectrum --------------------------------------------------------------------------------------------------------


def _spectrum(layer: LayerRanks) -> SpectrumChart:
    full = max(layer.full_rank, 1)
    points = [(_across(0.0), _up(0.0)), *((_across(p.rank / full), _up(p.energy)) for p in layer.spectrum)]
    marks = [_kept(layer, share, rank) for share, rank in ((0.9, layer.rank_90), (0.99, layer.rank_99))]
    ranks = sorted({round(full * share) for share in (0, 0.25, 0.5, 0.75, 1)})
    ticks = tuple(Tick(_across(rank / full), str(rank)) for rank in ranks)
    vbmf = None if layer.vbmf is None else _across(layer.vbmf / full)
    return SpectrumChart(_joined(points), ticks, tuple(marks), vbmf)


def _kept(layer: LayerRanks, share: float, rank: int) -> Mark:
    words = units.format_percent(share)
    title = f"rank {rank} of {layer.full_rank} keeps {words}"
    return Mark(_across(rank / max(layer.full_rank, 1)), _up(_drawn(layer, rank)), f"{words} at {rank}", title)


def _drawn(layer: LayerRanks, rank: int) -> float:
    """Return the height of the drawn line at a rank, which may lie between two that were told."""
    before, energy = 0, 0.0
    for point in layer.spectrum:
        if point.rank >= rank:
            return energy + (point.energy - energy) * (rank - before) / max(point.rank - before, 1)
        before, energy = point.rank, point.energy
    return energy


# ---- error against cost ----------------------------------------------------------------------------------------------


def _errors(layer: LayerRanks) -> ErrorChart:
    found = [point.error for curve in layer.curves for point in curve.points]
    decades = -math.floor(math.log10(max(min(found, default=0.1), LEAST_ERROR)) + 1e-9)
    decades = max(decades, 1)

    def up(error: float) -> float:
        return _up(1 + math.log10(max(error, 10.0**-decades)) / decades)

    ticks = tuple(Tick(up(10.0**-step), f"{100 * 10.0**-step:g} %") for step in range(decades + 1))
    axis = "bytes" if any(point.macs is None for curve in layer.curves for point in curve.points) else "MACs"
    timed = [
        Timed(Mark(_across(option.cost), up(option.error), _time_text(option), _title(option)), bool(option.pays))
        for option in layer.options
        if option.time is not None
    ]
    return ErrorChart(tuple(_line(curve, up) for curve in layer.curves), ticks, tuple(timed), axis)


def _line(curve: RankCurve, up: Callable[[float], float]) -> Line:
    points = [(_across(point.cost), up(point.error)) for point in curve.points]
    return Line(curve.scheme, _joined(points), "".join(symbol(curve.scheme, x, y) for x, y in points))


def symbol(scheme: str, x: float, y: float, size: float = _MARK) -> str:
    """Return the closed path of a scheme's symbol around a point: colour alone would not tell them apart for all."""
    if scheme == "spatial":
        return f"M{x - size:.1f} {y - size:.1f}h{2 * size:.1f}v{2 * size:.1f}h{-2 * size:.1f}z"
    if scheme == "tucker":
        wide = 1.35 * size
        return f"M{x - wide:.1f} {y:.1f}l{wide:.1f} {-wide:.1f}l{wide:.1f} {wide:.1f}l{-wide:.1f} {wide:.1f}z"
    if scheme == "separable":
        wide = 1.25 * size
        return f"M{x - wide:.1f} {y + size:.1f}h{2 * wide:.1f}l{-wide:.1f} {-2 * wide:.1f}z"
    arc = f"a{size:.1f} {size:.1f} 0 1 0"
    return f"M{x - size:.1f} {y:.1f}{arc} {2 * size:.1f} 0{arc} {-2 * size:.1f} 0z"


def _time_text(option: RankOption) -> str:
    return "" if option.time is None else f"{100 * option.time:.0f} %"


def _title(option: RankOption) -> str:
    words = [
        f"{option.scheme} of rank {ranks_text(option)}",
        f"{units.format_percent(option.error, 2)} lost",
        f"{units.format_percent(option.cost)} of the {'bytes' if option.macs is None else 'MACs'}",
        f"{_time_text(option)} of the time",
    ]
    return ", ".join(words)


# ---- the box ---------------------------------------------------------------------------------------------------------


def _across(share: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * min(max(share, 0.0), 1.0), 1)


def _up(share: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * min(max(share, 0.0), 1.0), 1)


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)
