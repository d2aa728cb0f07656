"""Linear layers with constant weights, and what a scale and shift per channel before or after them do to the weights.

For a layer y = W·x + b and an affine map per channel:

- after it, z_c = s_c·y_c + t_c:  W'_c = s_c·W_c,  b'_c = s_c·b_c + t_c;
- before it, y = W·(s∘x + t) + b:  W'_ci = W_ci·s_i,  b'_c = b_c + Σᵢ W_ci·t_i, where no padding adds zeros in between.

Everything is computed in float64 and rounded once to the weights' own type. Weights in float16 are left alone: rounding
them again moves outputs by far more than the 1e-5 of their range that an exact rewrite may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Node, Rewriter, array_of, dims_of, is_standard, numpy_dtype

Array = npt.NDArray[Any]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weight and bias."""

    node: Node
    weight: Constant
    """Read from the file only when its values are asked for."""
    bias: Array | None
    """Of shape (channels,), or None; already multiplied by a Gemm's beta."""
    channels: int
    """Output channels."""
    rank: int
    """Rank of input and output; of a MatMul whose input has no known shape, the least that it may be."""

    @property
    def axis(self) -> int:
        """The channel axis of input and output."""
        return self.rank - 1 if self.node.op == "MatMul" else 1

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for everything else."""
        return int(self.node.attrs.get("group", 1))


def layer_of(node: Node | None) -> Layer | None:
    """Return the layer at ``node``, None where it is no such operator or its weights are not constant floats."""
    if node is None or not is_standard(node, *LAYERS) or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if not isinstance(weight, Constant) or numpy_dtype(weight.dtype) not in _FLOATS or 0 in weight.shape:
        return None
    channels = _channels(node, weight.shape)
    if node.op == "MatMul":
        dims = dims_of(node.inputs[0])
        return Layer(node, weight, None, channels, len(dims) if dims else 1) if len(weight.shape) == 2 else None
    rank = 2 if node.op == "Gemm" else len(weight.shape)
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return Layer(node, weight, None, channels, rank)
    bias = array_of(node.inputs[2])
    vector = None if bias is None else per_channel(bias, 1 if node.op != "Gemm" else 2, -1, channels)
    if vector is None:
        return None
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return Layer(node, weight, vector * beta, channels, rank)


def _channels(node: Node, weight: Sequence[int]) -> int:
    if node.op == "Conv":
        return int(weight[0])
    if node.op == "ConvTranspose":
        return int(weight[1]) * int(node.attrs.get("group", 1))
    return int(weight[0 if node.attrs.get("transB") else -1])


def input_channels(layer: Layer) -> int:
    """Return how many channels the layer reads."""
    weight, node = layer.weight.shape, layer.node
    if node.op == "Conv":
        return int(weight[1]) * layer.groups
    return int(weight[1 if node.attrs.get("transB") else 0])


def per_channel(constant: Array, rank: int, axis: int, channels: int) -> Array | None:
    """Return ``constant`` as a float64 vector of one value per channel, None where it is not one.

    Args:
        constant: what is broadcast against a tensor of ``rank`` dimensions, of which ``axis`` holds ``channels``.

    A constant that would broadcast that tensor to a larger shape is not per channel.
    """
    if constant.ndim > rank or constant.dtype not in _FLOATS:
        return None
    padded = (1,) * (rank - constant.ndim) + constant.shape
    axis = axis % rank
    others = padded[:axis] + padded[axis + 1 :]
    if any(dim != 1 for dim in others) or padded[axis] not in (1, channels):
        return None
    return np.broadcast_to(constant.reshape(-1).astype(np.float64), (channels,))


@dataclass(frozen=True)
class Affine:
    """scale·x + shift per channel, both of shape (channels,); None stands for 1 and 0."""

    scale: Array | None = None
    shift: Array | None = None

    def then(self, after: Affine) -> Affine:
        """Return after(self(x))."""
        scale = _times(self.scale, after.scale)
        shift = _times(self.shift, after.scale) if self.shift is not None else None
        if after.shift is not None:
            shift = after.shift if shift is None else shift + after.shift
        return Affine(scale, shift)


def _times(left: Array | None, right: Array | None) -> Array | None:
    return right if left is None else left if right is None else left * right


def fold(layer: Layer, before: Affine, after: Affine, rewriter: Rewriter) -> str | None:
    """Make ``layer`` compute after(layer(before(x))), rounding its weights once.

    Returns:
        Why it was not done, None when it was.
    """
    weight, bias = layer.weight.values.astype(np.float64), layer.bias
    if before.shift is not None and before.shift.any():
        added = _shift_inputs(layer, weight, before.shift)
        bias = added if bias is None else bias + added
    if before.scale is not None:
        weight = _scale_inputs(layer, weight, before.scale)
    if after.scale is not None:
        weight = _scale_outputs(layer, weight, after.scale)
        bias = None if bias is None else bias * after.scale
    if after.shift is not None:
        bias = after.shift if bias is None else bias + after.shift
    scaled = before.scale is not None or after.scale is not None
    return _write(layer, weight if scaled else None, bias, rewriter)


def refuses_shift(layer: Layer, *, before: bool) -> str | None:
    """Return why a shift before or after ``layer`` cannot become part of it, None when it can."""
    if layer.node.op == "MatMul":
        return "a MatMul has no bias"
    if not before:
        return None
    return "the layer pads with zeros, which are not shifted" if _pads(layer.node) else None


def _write(layer: Layer, weight: Array | None, bias: Array | None, rewriter: Rewriter) -> str | None:
    """Give the layer a new weight (None keeps it) and bias, if they fit its type."""
    node, dtype = layer.node, np.dtype(layer.weight.dtype)
    if dtype == np.float16:
        return "its weights are float16, too coarse to be rounded once more"
    with np.errstate(over="ignore"):
        weight = None if weight is None else weight.astype(dtype)
        bias = None if bias is None else bias.astype(dtype)
    if not all(part is None or np.isfinite(part).all() for part in (weight, bias)):
        return f"the folded weights do not fit {dtype}"
    if weight is not None:
        rewriter.set_input(node, 1, rewriter.constant(node.inputs[1].name, weight))
    if bias is not None:
        rewriter.set_input(node, 2, rewriter.constant(_bias_name(node), bias))
        if node.attrs.get("beta", 1.0) != 1.0:
            rewriter.set_attr(node, "beta", None)
    return None


def _scale_outputs(layer: Layer, weight: Array, scale: Array) -> Array:
    node = layer.node
    if node.op in ("Gemm", "MatMul"):
        return weight * (scale[:, None] if node.attrs.get("transB") else scale[None, :])
    if node.op == "Conv":
        return weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    # ConvTranspose: (Cin, Cout/groups, …), and the groups follow each other in Cin
    grouped = weight.reshape(layer.groups, weight.shape[0] // layer.groups, *weight.shape[1:])
    factors = scale.reshape((layer.groups, 1, weight.shape[1]) + (1,) * (weight.ndim - 2))
    return (grouped * factors).reshape(weight.shape)


def _scale_inputs(layer: Layer, weight: Array, scale: Array) -> Array:
    node = layer.node
    if node.op in ("Gemm", "MatMul"):
        return weight * (scale[None, :] if node.attrs.get("transB") else scale[:, None])
    if node.op == "ConvTranspose":
        return weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    grouped = weight.reshape(layer.groups, weight.shape[0] // layer.groups, *weight.shape[1:])
    factors = scale.reshape((layer.groups, 1, weight.shape[1]) + (1,) * (weight.ndim - 2))
    return (grouped * factors).reshape(weight.shape)


def _shift_inputs(layer: Layer, weight: Array, shift: Array) -> Array:
    """Return what a shift of the input adds to each output channel."""
    node = layer.node
    if node.op in ("Gemm", "MatMul"):
        added: Array = (weight if node.attrs.get("transB") else weight.T) @ shift
        return added * float(node.attrs.get("alpha", 1.0))
    taps = weight.reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1).sum(axis=3)
    sums: Array = np.einsum("goi,gi->go", taps, shift.reshape(layer.groups, -1))
    return sums.reshape(-1)


def _pads(node: Node) -> bool:
    """Whether zeros, or a transposed convolution's missing neighbours, are mixed into the outputs at the edges."""
    if node.op == "ConvTranspose":
        return True
    rule = node.attrs.get("auto_pad", "NOTSET")
    return rule not in ("NOTSET", "VALID") or (rule == "NOTSET" and any(node.attrs.get("pads", ())))


def _bias_name(node: Node) -> str:
    if len(node.inputs) > 2 and isinstance(node.inputs[2], Constant):
        return node.inputs[2].name
    return f"{node.inputs[1].name}_bias"
