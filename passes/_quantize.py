"""Affine quantization in numbers: grids of activations, integer weights, integer biases.

q = clip(round(x / scale) + zero_point), x ≈ scale · (q − zero_point). (Jacob et al. 2018, §2.1; Krishnamoorthi 2018,
"Quantizing deep convolutional networks for efficient inference", §3.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WEIGHT_LIMIT = 127
"""Weights use −127 … 127: symmetric, so that products of zero points vanish."""

BIAS_LIMIT = 2**30
"""Half of what int32 holds, so that the accumulated products still fit beside the bias."""


@dataclass(frozen=True)
class Grid:
    """An asymmetric uint8 grid of an activation."""

    scale: np.float32
    zero_point: np.uint8


def grid_of(low: float, high: float) -> Grid:
    """Return the uint8 grid that covers [low, high] and holds zero exactly; a range of nothing gets scale 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    if not scale > 0:
        return Grid(np.float32(1), np.uint8(0))
    return Grid(scale, np.uint8(np.clip(np.round(-low / float(scale)), 0, 255)))


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
    weight: Array, axis: int, bias: Array | None, input_scale: float | None, *, per_channel: bool = True
) -> IntegerWeight:
    """Return ``weight`` as symmetric int8 along ``axis``.

    Args:
        weight: of any shape.
        axis: the output channels' axis.
        bias: of shape (channels,); a channel whose bias would not fit int32 at scale input_scale·weight_scale gets a
            larger weight scale.
        input_scale: scale of the layer's input, needed with ``bias``.
        per_channel: one scale for each channel, or the largest for all.
    """
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scale = np.abs(weight).max(axis=others).astype(np.float64) / WEIGHT_LIMIT
    if bias is not None and input_scale is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LIMIT))
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    if not per_channel:
        scale = np.full_like(scale, scale.max())
    scale = scale.astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    values = np.round(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return IntegerWeight(np.clip(values, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8), scale, axis)


def quantize_bias(bias: Array, input_scale: np.float32, weight_scale: npt.NDArray[np.float32]) -> tuple[Array, Array]:
    """Return ``bias`` as int32 and its scale input_scale·weight_scale, one for each channel."""
    scale = (np.float64(input_scale) * weight_scale.astype(np.float64)).astype(np.float32)
    values = np.round(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(values, -(2**31), 2**31 - 1).astype(np.int32), scale
