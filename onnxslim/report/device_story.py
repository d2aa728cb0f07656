"""What the report says of other devices: the same words for a page, a pull request and a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxslim.report import units
from onnxslim.report.evidence import DeviceReading, DeviceSide
from onnxslim.report.network import ModelSummary
from onnxslim.report.rows import Row, device_rows, macs_by_layer

KINDS = {
    "measured": "measured on the device: times",
    "emulated count": "emulated count: instructions, which are no times",
    "emulated": "emulated: what it takes and computes, no times",
}


@dataclass(frozen=True)
class DeviceRow:
    """One layer on a device; where instructions are counted, for each multiply-accumulate and by kind."""

    row: Row
    before_per_mac: float | None
    after_per_mac: float | None
    mostly: str


@dataclass(frozen=True)
class KindShare:
    """A kind of instruction with its fraction of the candidate's, or of the reference's where it is alone."""

    name: str
    count: int
    share: float


def is_counted(device: DeviceReading) -> bool:
    """Whether the device counted instructions instead of measuring time."""
    return device.reference.instructions is not None


def kind_words(device: DeviceReading) -> str:
    """Return how the figures came about."""
    return KINDS[device.kind or ("emulated count" if is_counted(device) else "measured")]


def side_text(side: DeviceSide) -> str:
    """Return the figure of one model: instructions where they were counted, never a time made of them."""
    if side.instructions is not None:
        return units.format_count(side.instructions)
    return "" if side.p50_ms is None else units.format_ms(side.p50_ms)


def ratio_text(device: DeviceReading | None) -> str:
    """Return how many times fewer or faster."""
    return "" if device is None or device.speedup is None else units.format_ratio(device.speedup)


def interval_text(device: DeviceReading | None) -> str:
    """Return the 95 % interval of the ratio."""
    return "" if device is None or device.interval is None else "{:.2f} to {:.2f}".format(*device.interval)


def placed_text(side: DeviceSide) -> str:
    """Return how many nodes each processor took."""
    return ", ".join(f"{name} {count}" for name, count in (side.placed or {}).items())


def facts_text(device: DeviceReading) -> str:
    """Return what is to be known of the device, in one line."""
    return ", ".join(f"{key} {value}" for key, value in (device.facts or {}).items())


def mostly_text(kinds: Mapping[str, int] | None) -> str:
    """Return the two kinds of instructions that are most: "fma 52 %, load 20 %"."""
    found = sorted((kinds or {}).items(), key=lambda pair: -pair[1])
    total = sum(count for _, count in found)
    return ", ".join(f"{kind} {units.format_percent(count / total)}" for kind, count in found[:2] if total)


def kind_shares(device: DeviceReading) -> tuple[KindShare, ...]:
    """Return the instructions of the whole model by kind, the most first."""
    sums: dict[str, int] = {}
    for layer in device.layers:
        for kind, count in (layer.kinds or {}).items():
            sums[kind] = sums.get(kind, 0) + count
    total = sum(sums.values())
    ordered = sorted(sums.items(), key=lambda pair: -pair[1])
    return tuple(KindShare(kind, count, count / total) for kind, count in ordered if total)


def layer_text(device: DeviceReading, value: float | None) -> str:
    """Return the figure of one layer, in the terms of the device."""
    if value is None:
        return ""
    return units.format_count(value) if is_counted(device) else units.format_us(value)


def device_layers(device: DeviceReading, before: ModelSummary, after: ModelSummary | None) -> tuple[DeviceRow, ...]:
    """Return the layers of the original with their instructions, for each multiply-accumulate too, or their times."""
    macs = macs_by_layer(before, after) if is_counted(device) else {}
    found = []
    for layer, row in zip(device.layers, device_rows(device, before), strict=True):
        own = macs.get(layer.node) if layer.origin else None
        each = (None, None) if own is None else (_per(row.before, own.before), _per(row.after, own.after))
        found.append(DeviceRow(row, *each, mostly_text(layer.kinds)))
    return tuple(sorted(found, key=lambda one: -one.row.largest))


def _per(count: float | None, macs: float | None) -> float | None:
    return count / macs if count is not None and macs else None
