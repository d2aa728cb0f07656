"""Scales that make the ranges of weights and activations alike, channel by channel.

For a unit u (channels that share a scale), r₁ is the largest weight that makes it or value that it takes on samples,
and r₂ the largest weight that reads it, each as a fraction of the largest of its whole weight or tensor; over several,
the largest fraction counts. With

    s_u = √(r₁ / r₂)

both become equal, which is best for the product of their precisions (Nagel et al. 2019, "Data-Free Quantization Through
Weight Equalization and Bias Correction", §4.1 and appendix A; there for weights alone, and one layer on each side).
Layers lie on both sides of several units, so this is repeated, group by group, until nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.channel_peaks import Peaks
from onnxslim.analysis.equalizable import Equalizable, Labels, Parameter
from onnxslim.errors import PassError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

SWEEPS = 100
"""Over all groups, at most."""
SETTLED = 0.01
"""Change of log2 of any scale at which nothing moves any more."""
LEAST = 2.0**-12
"""Smaller fractions count as this one: what is that small is nothing on a grid of 8 bits, whatever its scale."""
WIDEST = 16.0
"""log2 of the largest scale, and of the smallest one's reciprocal."""


@dataclass(frozen=True)
class Bounds:
    """log2 of the least and the largest scale of each unit, equal where it must stay. Shape (units,)."""

    low: Floats
    high: Floats


@dataclass(frozen=True)
class _Range:
    """The largest values of a weight or tensor, and the units that scale them."""

    largest: Floats
    """Shape (n,)."""
    into: Labels
    """Units that multiply each, −1 where none does. Shape (n,)."""
    out: Labels
    """Units that divide each."""

    def scaled(self, logs: Floats) -> Floats:
        """Return what the largest values become, as fractions of the largest of all.

        Args:
            logs: log2 of each scale, and a 0 at the end. Shape (units + 1,).
        """
        values = self.largest * np.exp2(logs[self.into] - logs[self.out])
        fractions: Floats = np.maximum(values / max(float(values.max(initial=0.0)), 1e-300), LEAST)
        return fractions


def _of_weight(part: Parameter) -> _Range:
    shape = np.broadcast_shapes(part.into.shape, part.out.shape)
    others = tuple(axis for axis, size in enumerate(shape) if size == 1)
    largest = np.abs(part.values).max(axis=others, keepdims=True).astype(np.float64)
    into, out = (np.broadcast_to(labels, largest.shape).reshape(-1) for labels in (part.into, part.out))
    return _Range(largest.reshape(-1), into, out)


def _of_tensor(labels: Labels, peaks: Peaks) -> _Range:
    largest, units = peaks.largest.reshape(-1), labels.reshape(-1)
    return _Range(largest, np.full(units.size, -1, np.int64), units)


def free(scales: Equalizable) -> Bounds:
    """Return bounds that hold nothing."""
    return Bounds(np.full(scales.size, -WIDEST), np.full(scales.size, WIDEST))


def balanced(scales: Equalizable, bounds: Bounds, peaks: Mapping[str, Peaks]) -> Floats:
    """Return log2 of each unit's scale. Shape (units,).

    Args:
        scales: what can be scaled.
        bounds: between which each must lie.
        peaks: of tensors that get a grid, by name; none where there are no samples.
    """
    weights = [_of_weight(part) for part in scales.weights]
    tensors = [_of_tensor(scales.tensors[name], found) for name, found in peaks.items()]
    sides = [_sides(weights, tensors, group.units, scales.size) for group in scales.groups]
    logs = np.zeros(scales.size + 1)
    for _ in range(SWEEPS):
        before = logs.copy()
        for group, (makers, readers) in zip(scales.groups, sides, strict=True):
            _balance(logs, group.units, makers, readers, bounds)
        if np.abs(logs - before).max(initial=0.0) <= SETTLED:
            break
    return logs[:-1]


def _balance(logs: Floats, units: Labels, makers: Sequence[_Range], readers: Sequence[_Range], bounds: Bounds) -> None:
    """Make what makes each of ``units`` and what reads it equal."""
    made, read = np.zeros(logs.size), np.zeros(logs.size)
    for part in makers:
        np.maximum.at(made, part.out, part.scaled(logs))
    for part in readers:
        np.maximum.at(read, part.into, part.scaled(logs))
    able = units[(made[units] > 0) & (read[units] > 0)]
    moved = logs[able] + 0.5 * np.log2(made[able] / read[able])
    logs[able] = np.clip(moved, bounds.low[able], bounds.high[able])


def _sides(
    weights: Sequence[_Range], tensors: Sequence[_Range], units: Labels, size: int
) -> tuple[list[_Range], list[_Range]]:
    """Return what some of ``units`` divide, and what some multiply."""
    inside = np.zeros(size + 1, np.bool_)
    inside[units] = True
    return (
        [part for part in (*weights, *tensors) if inside[part.out].any()],
        [part for part in weights if inside[part.into].any()],
    )


def rescaled(part: Parameter, logs: Floats) -> Array | None:
    """Return the constant's new values in its own type, None where they stay.

    Args:
        part: the constant.
        logs: log2 of each scale, and a 0 at the end. Shape (units + 1,).

    Raises:
        PassError: a value does not fit the type.
    """
    change = logs[part.into] - logs[part.out]
    if not change.any() or not part.values.any():
        return None
    with np.errstate(over="ignore"):
        values = (part.values.astype(np.float64) * np.exp2(change)).astype(part.values.dtype)
    if not np.isfinite(values).all():
        raise PassError(f"the scaled weights of {part.anchor!r} do not fit {part.values.dtype}")
    return values
