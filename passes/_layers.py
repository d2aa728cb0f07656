"""Linear layers with constant weights, and what a per-channel scale and shift after them do to the weights.

For a layer y = W·x + b and an affine map z = s·y + t per output channel c: W'_c = s_c·W_c, b'_c = s_c·b_c + t_c.
Everything is computed in float64 and rounded once to the weights' own type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Node, Rewriter, array_of, is_standard

Array = npt.NDArray[Any]
FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose or Gemm with constant weight and bias.

    ``channels`` counts outputs; ``rank`` is the rank of the output; ``axis`` the output's channel axis.
    """

    node: Node
    weight: Array
    bias: Array | None
    """Of shape (channels,), or None; already multiplied by a Gemm's beta."""
    channels: int
    rank: int
    axis: int


def layer_of(node: Node) -> Layer | None:
    """Return the layer at ``node``, None where it is no such operator or its weights are not constant floats."""
    if not is_standard(node, "Conv", "ConvTranspose", "Gemm") or len(node.inputs) < 2:
        return None
    weight = array_of(node.inputs[1])
    if weight is None or weight.dtype not in FLOATS or weight.size == 0:
        return None
    channels = _channels(node, weight)
    bias: Array | None = None
    if len(node.inputs) > 2 and node.inputs[2].name:
        bias = array_of(node.inputs[2])
        if bias is None or bias.size not in (1, channels) or bias.shape[-1:] not in ((), (1,), (channels,)):
            return None
        bias = np.broadcast_to(bias.reshape(-1), (channels,))
        if node.op == "Gemm":
            bias = bias.astype(np.float64) * float(node.attrs.get("beta", 1.0))
    if node.op == "Gemm":
        return Layer(node, weight, bias, channels, 2, 1)
    return Layer(node, weight, bias, channels, weight.ndim, 1)


def _channels(node: Node, weight: Array) -> int:
    if node.op == "Conv":
        return int(weight.shape[0])
    if node.op == "ConvTranspose":
        return int(weight.shape[1]) * int(node.attrs.get("group", 1))
    return int(weight.shape[0 if node.attrs.get("transB") else 1])


def per_channel(constant: Array, layer: Layer) -> Array | None:
    """Return ``constant`` as a vector of one value per output channel, None where it is not one.

    A constant that would broadcast the output to a larger shape is not per channel.
    """
    if constant.ndim > layer.rank:
        return None
    padded = (1,) * (layer.rank - constant.ndim) + constant.shape
    others = padded[: layer.axis] + padded[layer.axis + 1 :]
    if any(dim != 1 for dim in others) or padded[layer.axis] not in (1, layer.channels):
        return None
    return np.broadcast_to(constant.reshape(-1).astype(np.float64), (layer.channels,))


def fold_affine(layer: Layer, scale: Array | None, shift: Array | None, rewriter: Rewriter) -> str | None:
    """Replace the weights of ``layer`` by those of scale·layer + shift (each of shape (channels,), or None).

    Returns:
        Why it was not done, None when it was.
    """
    dtype = layer.weight.dtype
    weight, bias = layer.weight, layer.bias
    if scale is not None:
        weight = _scaled(layer, scale).astype(dtype)
        bias = None if bias is None else bias * scale
    if shift is not None:
        bias = shift if bias is None else bias + shift
    bias = None if bias is None else bias.astype(dtype)
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        return f"the folded weights do not fit {dtype}"
    node = layer.node
    if scale is not None:
        rewriter.set_input(node, 1, rewriter.constant(node.inputs[1].name, weight.reshape(layer.weight.shape)))
    if bias is not None:
        rewriter.set_input(node, 2, rewriter.constant(_bias_name(node), bias))
        if node.op == "Gemm" and node.attrs.get("beta", 1.0) != 1.0:
            rewriter.set_attr(node, "beta", None)
    return None


def _scaled(layer: Layer, scale: Array) -> Array:
    """Multiply the weight, in float64, by one factor per output channel."""
    node, weight = layer.node, layer.weight.astype(np.float64)
    if node.op == "Gemm":
        return weight * (scale[:, None] if node.attrs.get("transB") else scale[None, :])
    if node.op == "Conv":
        return weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    groups = int(
        node.attrs.get("group", 1)
    )  # ConvTranspose: (Cin, Cout/groups, …), the groups follow each other in Cin
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    factors = scale.reshape((groups, 1, weight.shape[1]) + (1,) * (weight.ndim - 2))
    return (grouped * factors).reshape(weight.shape)


def _bias_name(node: Node) -> str:
    if len(node.inputs) > 2 and isinstance(node.inputs[2], Constant):
        return node.inputs[2].name
    return f"{node.inputs[1].name}_bias"
