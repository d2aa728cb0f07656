"""Affine quantization in numbers: grids of activations, integer weights, integer biases.

q = clip(round(x / scale) + zero_point), x ≈ scale · (q − zero_point). (Jacob et al. 2018, §2.1; Krishnamoorthi 2018,
"Quantizing deep convolutional networks for efficient inference", §3.)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NOTHING = 1e-30
"""A narrower range has no scale that float32 holds with all its digits, and says nothing about other samples."""

BIAS_LIMIT = 2**30
"""Half of what int32 holds, so that the accumulated products still fit beside the bias."""


class Integer(enum.Enum):
    """What an activation is stored as."""

    UINT8 = "uint8"
    INT8 = "int8"
    UINT16 = "uint16"
    INT16 = "int16"

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest."""
        info = np.iinfo(self.value)
        return int(info.min), int(info.max)

    @property
    def wide(self) -> Integer:
        """The same with 16 bits."""
        return Integer(self.value.replace("int8", "int16"))


@dataclass(frozen=True)
class GridKind:
    """What grids of activations look like."""

    integer: Integer = Integer.UINT8
    symmetric: bool = False
    """Zero lies in the middle: 0 of signed integers, half of what unsigned ones hold."""
    power_of_two: bool = False
    """Scales are powers of two, never finer than the range allows."""


@dataclass(frozen=True)
class Style:
    """How tensors become integer."""

    activations: GridKind = field(default_factory=GridKind)
    wide: frozenset[str] = frozenset()
    """Tensors whose integers have 16 bits."""
    per_channel: bool = True
    weight_bits: int = 8

    @property
    def weight_limit(self) -> int:
        """Weights go from its negative to it: symmetric, so that products of zero points vanish."""
        return int(2 ** (self.weight_bits - 1) - 1)

    def kind_of(self, tensor: str) -> GridKind:
        """Return what the grid of ``tensor`` looks like."""
        kind = self.activations
        return replace(kind, integer=kind.integer.wide) if tensor in self.wide else kind


@dataclass(frozen=True)
class Grid:
    """A grid of an activation; its integers are of the zero point's type."""

    scale: np.float32
    zero_point: np.integer[Any]


def grid_of(low: float, high: float, kind: GridKind = GridKind()) -> Grid:
    """Return the grid that covers [low, high] and holds zero exactly; for a range of nothing, that of [0, 1]."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < NOTHING:
        low, high = 0.0, 1.0
    least, greatest = kind.integer.limits
    middle = (least + greatest + 1) // 2
    if kind.symmetric:
        scale = np.float32(max(-low, high) / (greatest - middle))
    else:
        scale = np.float32((high - low) / (greatest - least))
    store = np.dtype(kind.integer.value).type
    if kind.power_of_two:
        scale = np.float32(2.0 ** np.ceil(np.log2(np.float64(scale))))
    zero = middle if kind.symmetric else int(np.clip(np.round(least - low / float(scale)), least, greatest))
    return Grid(scale, store(zero))


@dataclass(frozen=True)
class IntegerWeight:
    """An int8 weight with one scale for each index of ``axis``."""

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    axis: int


@dataclass(frozen=True)
class FittedWeight:
    """Integers, scales and bias of a layer that were fitted to what the original computes there."""

    values: npt.NDArray[np.int8]
    """As the operator stores its weight."""
    scale: npt.NDArray[np.float32]
    """Of each output channel."""
    bias: Array | None
    """None for operators without one."""


def quantize_weight(
    weight: Array,
    axis: int,
    bias: Array | None,
    input_scale: float | None,
    style: Style = Style(),
) -> IntegerWeight:
    """Return ``weight`` as symmetric int8 along ``axis``.

    Args:
        weight: of any shape.
        axis: the output channels' axis; of a grouped ConvTranspose, all groups' channels at an index share a scale.
        bias: of shape (groups·channels,); a channel whose bias would not fit int32 at scale input_scale·weight_scale
            gets a larger weight scale.
        input_scale: scale of the layer's input, needed with ``bias``.
        style: per channel, or the largest scale for all; bits.
    """
    limit = style.weight_limit
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scale = np.abs(weight).max(axis=others).astype(np.float64) / limit
    if bias is not None and input_scale is not None:
        widest = np.abs(bias.astype(np.float64)).reshape(-1, len(scale)).max(axis=0)
        scale = np.maximum(scale, widest / (input_scale * BIAS_LIMIT))
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    if style.activations.power_of_two:
        scale = 2.0 ** np.ceil(np.log2(scale))
    if not style.per_channel:
        scale = np.full_like(scale, scale.max())
    scale = scale.astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    values = np.round(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return IntegerWeight(np.clip(values, -limit, limit).astype(np.int8), scale, axis)


def quantize_bias(bias: Array, input_scale: np.float32, weight_scale: npt.NDArray[np.float32]) -> tuple[Array, Array]:
    """Return ``bias`` as int32 and its scale input_scale·weight_scale, one for each channel of each group."""
    scale = (np.float64(input_scale) * weight_scale.astype(np.float64)).astype(np.float32)
    scale = np.tile(scale, len(bias) // len(scale))
    values = np.round(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(values, -(2**31), 2**31 - 1).astype(np.int32), scale
