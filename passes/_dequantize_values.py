"""Integers as the numbers they stand for: x = (q − zero point) · scale, one of each per tensor, channel or block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Node, Rewriter, Tensor, array_of

Array = npt.NDArray[Any]

_DOMAINS = (None, "", "ai.onnx", "com.microsoft")
"""Where QuantizeLinear and DequantizeLinear mean the same: onnxruntime's own take narrow and wide integers earlier."""


def converts(node: Node | None, *ops: str) -> bool:
    """Whether ``node`` is one of ``ops``, in either of the domains that know QuantizeLinear and DequantizeLinear."""
    return node is not None and node.op in ops and node.domain in _DOMAINS


def optional(node: Node, index: int) -> Tensor | None:
    """Return input ``index`` of ``node``, None where it is omitted."""
    return node.inputs[index] if len(node.inputs) > index and node.inputs[index].name else None


def dequantized(values: Array, scale: Array, zero: Array | None = None, axis: int = 1, block: int = 0) -> Array | None:
    """Return what DequantizeLinear makes of ``values``, to the bit; None where the shapes do not go together.

    Args:
        values: integers of any width, or the narrow floats that QuantizeLinear knows.
        scale: of one element; of shape (values.shape[axis],); or with ``block``, of the shape of ``values`` with
            ceil(n / block) in place of n along ``axis``.
        zero: of the same shape as ``scale``, or None for zeros.
        axis: of the scales.
        block: how many neighbours along ``axis`` share a scale; 0 where scales are not block by block.
    """
    spread = [_spread(part, values.shape, axis, block) for part in (scale, zero) if part is not None]
    if any(part is None for part in spread):
        return None
    if "int" in values.dtype.name:
        whole = values.astype(np.int32)
        shifted = whole if zero is None else whole - np.asarray(spread[1]).astype(np.int32)
    else:
        shifted = values  # floating-point grids have no zero point but 0
    with np.errstate(over="ignore"):
        product = shifted.astype(np.float32) * np.asarray(spread[0]).astype(np.float32)
        return np.asarray(product.astype(scale.dtype))


def _spread(part: Array, shape: tuple[int, ...], axis: int, block: int) -> Array | None:
    """Return scales or zero points in a shape that broadcasts against ``shape``."""
    if part.size == 1 and not block:
        return part.reshape(())
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    if not block:
        fits = part.shape == (shape[axis],)
        return part.reshape([-1 if a == axis else 1 for a in range(len(shape))]) if fits else None
    blocks = (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
    if part.shape != blocks:
        return None
    return np.take(np.repeat(part, block, axis), range(shape[axis]), axis)


def dequantized_constant(
    rewriter: Rewriter, values: Tensor, scale: Tensor, zero: Tensor | None, *, axis: int = 1, block: int = 0
) -> Constant | None:
    """Return a new constant of what three constants stand for, None where one is computed or they do not fit."""
    integers, factors, offset = array_of(values), array_of(scale), array_of(zero)
    if integers is None or factors is None or (zero is not None and offset is None):
        return None
    numbers = dequantized(integers, factors, offset, axis, block)
    return None if numbers is None else rewriter.constant(plain_name(values.name), numbers)


def plain_name(name: str) -> str:
    """Return a weight's name without what quantizers append to it."""
    for suffix in ("_quantized", "_q"):
        name = name.removesuffix(suffix)
    return name


def limits(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Return the least and the greatest integer of a type, None for floating-point types."""
    if "int" not in dtype.name:
        return None
    bits = int(dtype.name.partition("int")[2])
    return (0, 2**bits - 1) if dtype.name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
