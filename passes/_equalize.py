"""Scales that make the ranges of weights and activations alike, channel by channel.

For a unit u (channels that share a scale), r₁ is the largest weight that makes it or value that it takes on samples,
and r₂ the largest weight that reads it, each as a fraction of the largest of its whole weight or tensor; over several,
the largest fraction counts. Without samples, biases and the scales of normalizations stand for values. With

    s_u = r₁^α / r₂^(1 − α)

and α = ½ both become equal, which is best for the product of their precisions (Nagel et al. 2019, "Data-Free
Quantization Through Weight Equalization and Bias Correction", §4.1 and appendix A; there for weights alone, and one
layer on each side). Any other α moves more, or less, of what differs between channels into the weights that read them
(Xiao et al. 2023, "SmoothQuant", eq. 4; there for values and the weights that read them). Layers lie on both sides of
several units, so this is repeated, group by group, until nothing moves.
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

    def narrow(self, units: Labels, low: Floats, high: Floats) -> None:
        """Let ``units`` (−1 is none) lie between ``low`` and ``high`` as well, where both hold 0."""
        own = units >= 0
        np.maximum.at(self.low, units[own], low[own])
        np.minimum.at(self.high, units[own], high[own])


@dataclass(frozen=True)
class _Range:
    """The largest values of a weight or tensor, and the units that scale them. All three broadcast to one shape."""

    largest: Floats
    into: Labels
    """Units that multiply each, −1 where none does."""
    out: Labels
    """Units that divide each."""

    def scaled(self, scales: Floats) -> Floats:
        """Return what the largest values become, as fractions of the largest of all.

        Args:
            scales: of each unit, and a 1 at the end. Shape (units + 1,).
        """
        values = self.largest * (scales[self.into] / scales[self.out])
        fractions: Floats = np.maximum(values / max(float(values.max(initial=0.0)), 1e-300), LEAST)
        return fractions


def _of_constant(part: Parameter) -> _Range:
    shape = np.broadcast_shapes(part.values.shape, part.into.shape, part.out.shape)
    into, out = (labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape) for labels in (part.into, part.out))
    alike = tuple(axis for axis in range(len(shape)) if into.shape[axis] == out.shape[axis] == 1)
    largest = np.abs(np.broadcast_to(part.values, shape)).max(axis=alike, keepdims=True)
    return _Range(largest.astype(np.float64), into, out)


def _of_tensor(labels: Labels, peaks: Peaks) -> _Range:
    return _Range(peaks.largest, np.full((1,) * labels.ndim, -1, np.int64), labels)


def free(scales: Equalizable) -> Bounds:
    """Return bounds that hold nothing."""
    return Bounds(np.full(scales.size, -WIDEST), np.full(scales.size, WIDEST))


def balanced(scales: Equalizable, bounds: Bounds, peaks: Mapping[str, Peaks], strength: float = 0.5) -> Floats:
    """Return log2 of each unit's scale. Shape (units,).

    Args:
        scales: what can be scaled.
        bounds: between which each must lie.
        peaks: of tensors that get a grid, by name; none where there are no samples.
        strength: α: how much of the differences between channels moves from what makes them to what reads them.
    """
    weights = [_of_constant(part) for part in scales.weights]
    tensors = [_of_tensor(scales.tensors[name], found) for name, found in peaks.items()]
    if not tensors:
        tensors = [_of_constant(part) for part in (*scales.makers, *scales.shifts) if (part.out >= 0).any()]
    sides = [_sides(weights, tensors, group.units, scales.size) for group in scales.groups]
    logs = np.zeros(scales.size + 1)
    for _ in range(SWEEPS):
        before = logs.copy()
        for group, (makers, readers) in zip(scales.groups, sides, strict=True):
            _balance(logs, group.units, makers, readers, bounds, strength)
        if np.abs(logs - before).max(initial=0.0) <= SETTLED:
            break
    return logs[:-1]


def _balance(
    logs: Floats, units: Labels, makers: Sequence[_Range], readers: Sequence[_Range], bounds: Bounds, strength: float
) -> None:
    """Make what makes each of ``units`` and what reads it equal."""
    scales = np.exp2(logs)
    made, read = np.zeros(logs.size), np.zeros(logs.size)
    for part in makers:
        _raise(made, part.out, part.scaled(scales))
    for part in readers:
        _raise(read, part.into, part.scaled(scales))
    able = units[(made[units] > 0) & (read[units] > 0)]
    moved = logs[able] + strength * np.log2(made[able]) - (1 - strength) * np.log2(read[able])
    logs[able] = np.clip(moved, bounds.low[able], bounds.high[able])


def _raise(largest: Floats, labels: Labels, values: Floats) -> None:
    """Let ``largest`` of each label be no less than any of its values."""
    others = tuple(axis for axis, size in enumerate(labels.shape) if size == 1)
    np.maximum.at(largest, labels, values.max(axis=others, keepdims=True))


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
