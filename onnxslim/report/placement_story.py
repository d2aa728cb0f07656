"""What the report says of integers at run time: the figure, where time goes, what stays in float and what is wasted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from onnxslim.report import units
from onnxslim.report.facts import Fact, Tone
from onnxslim.report.placement import LayerPlacement, Placement, SlowerLayers

_WASTE = {
    "constant": "constant dequantized at every inference",
    "made_integer": "float weight that onnxruntime rounds to int8 at load and dequantizes at every inference",
    "requantized": "integers made float to become integers again",
    "rounded": "floats rounded to integers that nobody computes with",
}


@dataclass(frozen=True)
class FloatGroup:
    """Layers of one operator that stay in float for one reason."""

    op: str
    reason: str
    anchors: tuple[str, ...]
    macs: float | None
    time_us: float | None
    conversion_us: float | None


@dataclass(frozen=True)
class WasteGroup:
    """Operators of one kind that are run for nothing: (what they write, who reads it)."""

    what: str
    places: tuple[tuple[str, str], ...]
    time_us: float | None


@dataclass(frozen=True)
class SlowerGroup:
    """Layers that run by the same integer kernels, slower than in float."""

    kernels: str
    places: tuple[SlowerLayers, ...]
    reference_us: float
    time_us: float


@dataclass(frozen=True)
class TimePart:
    """A part of the time of one inference; `share` is its fraction."""

    slug: str
    label: str
    time_us: float
    share: float


def integer_facts(placement: Placement | None) -> tuple[Fact, ...]:
    """Return how much runs as integers, as one fact; nothing for a model in float."""
    if placement is None:
        return ()
    whole = placement.integer.layers + placement.moved.layers
    total = whole + placement.float.layers
    tone = Tone.GOOD if whole == total else Tone.PLAIN
    return (Fact("Run as integers", f"{whole} of {total} layers", note=share_words(placement) or None, tone=tone),)


def share_words(placement: Placement) -> str:
    """Return "99.1 % of MACs, 93.2 % of the time", as far as they are known."""
    integer, moved = placement.integer, placement.moved
    words = []
    if integer.macs is not None and moved.macs is not None and placement.float.macs is not None:
        whole = integer.macs + moved.macs
        total = whole + placement.float.macs
        words += [f"{units.format_percent(whole / total, 1)} of MACs"] if total else []
    if integer.time_us is not None and moved.time_us is not None and placement.total_us:
        words.append(f"{units.format_percent((integer.time_us + moved.time_us) / placement.total_us, 1)} of the time")
    return ", ".join(words)


def mostly_float(placement: Placement | None) -> float | None:
    """Return the share of MACs that integers have, where they have some but less than half; None elsewhere."""
    if placement is None:
        return None
    ours, theirs = placement.integer.macs, placement.float.macs
    if not ours or theirs is None or ours >= theirs:
        return None
    return ours / (ours + theirs)


def rounded_at_load(placement: Placement | None) -> tuple[str, ...]:
    """Return the layers whose float weights onnxruntime makes int8 of by itself, which the definition does not show."""
    if placement is None:
        return ()
    layers = [layer.anchor for layer in placement.layers if layer.why == "rounded_at_load"]
    layers += [one.reader for one in placement.wasted if one.waste == "made_integer"]
    return tuple(dict.fromkeys(layers))


def float_groups(placement: Placement) -> tuple[FloatGroup, ...]:
    """Return what stays in float by operator and reason, what takes most time (or most MACs) first."""
    groups: dict[tuple[str, str], list[LayerPlacement]] = defaultdict(list)
    for layer in placement.layers:
        if layer.place == "float" and layer.within is None:
            groups[layer.op, layer.reason or ""].append(layer)
    found = [_group(op, reason, layers) for (op, reason), layers in groups.items()]
    return tuple(sorted(found, key=_cost))


def _cost(group: FloatGroup) -> tuple[float, float, int]:
    return -(group.time_us or 0.0) - (group.conversion_us or 0.0), -(group.macs or 0), -len(group.anchors)


def _group(op: str, reason: str, layers: list[LayerPlacement]) -> FloatGroup:
    return FloatGroup(
        op,
        reason,
        tuple(layer.anchor for layer in layers),
        _sum(layer.macs for layer in layers),
        _sum(layer.time_us for layer in layers),
        _sum(layer.conversion_us for layer in layers),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Add up; an unknown makes the sum unknown."""
    found = list(values)
    return None if None in found else sum(value or 0 for value in found)


def waste_groups(placement: Placement) -> tuple[WasteGroup, ...]:
    """Return what is run for nothing, by kind."""
    groups = []
    for kind, what in _WASTE.items():
        chosen = [one for one in placement.wasted if one.waste == kind]
        if chosen:
            places = tuple((one.tensor, one.reader) for one in chosen)
            groups.append(WasteGroup(what, places, _sum(one.time_us for one in chosen)))
    return tuple(groups)


def slower_groups(placement: Placement) -> tuple[SlowerGroup, ...]:
    """Return what is slower as integers by kernel, where most time is lost first."""
    groups: dict[str, list[SlowerLayers]] = defaultdict(list)
    for one in placement.slower:
        groups[" and ".join(one.kernels)].append(one)
    found = (
        SlowerGroup(kernels, tuple(ones), sum(one.reference_us for one in ones), sum(one.time_us for one in ones))
        for kernels, ones in groups.items()
    )
    return tuple(sorted(found, key=lambda group: group.reference_us - group.time_us))


def time_parts(placement: Placement) -> tuple[TimePart, ...]:
    """Return where the time of an inference goes; nothing where it was not measured."""
    total = placement.total_us
    if not total or placement.conversion_us is None:
        return ()
    spent = (
        ("integer", "integer kernels", placement.integer.time_us or 0.0),
        ("moved", "moving integers", placement.moved.time_us or 0.0),
        ("float", "float kernels", placement.float.time_us or 0.0),
        ("conversion", "quantizing and dequantizing", placement.conversion_us),
        ("layout", "changing layouts", sum(one.time_us for one in placement.inserted)),
    )
    return tuple(TimePart(slug, label, time, time / total) for slug, label, time in spent if time > 0)
