"""Linear layers with constant weights: reading them as y = W·p + b, and writing W and b back.

``patches`` says what p is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import PassError
from onnxslim.ir import Constant, Node, anchor_of, array_of, is_standard, numpy_dtype

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class LinearLayer:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weights, seen as y = W·p + b. Build it with
    :func:`linear_layer`.
    """

    node: Node
    weight: Constant
    groups: int
    width: int
    """d: length of a patch, within one group."""
    channels: int
    """O: output channels, of all groups."""
    kernel: tuple[int, ...]
    """Taps along each axis; empty for matrices."""

    @property
    def anchor(self) -> str:
        """The layer's first output, which is also what y is called."""
        return anchor_of(self.node)

    @property
    def source(self) -> str:
        """Name of the input tensor."""
        return str(self.node.inputs[0].name)

    @property
    def taps(self) -> int:
        """Columns of the matrix for each input channel."""
        return math.prod(self.kernel)

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """The shape of :meth:`matrix`: (groups, O/groups, d)."""
        return self.groups, self.channels // self.groups, self.width

    @property
    def target(self) -> str:
        """The tensor that y is, or is known from (:meth:`seen`)."""
        return self.anchor

    @property
    def macs_beside(self) -> int:
        """Multiply-accumulates of the node for each position that are not this layer's."""
        return 0

    def seen(self, target: Array) -> Array:
        """Return y of what is computed at :attr:`target`."""
        return target

    @property
    def has_bias(self) -> bool:
        """Whether the operator has a bias or can be given one."""
        return self.node.op != "MatMul"

    def channel_of_column(self) -> Indices:
        """Return the input channel of each column, numbered over all groups. Shape (groups, d)."""
        channels = np.repeat(np.arange(self.groups * self.width // self.taps), self.taps)
        return channels.reshape(self.groups, self.width)

    def matrix(self) -> Floats:
        """Return W, a Gemm's alpha included. Shape (groups, O/groups, d), float64."""
        values = array_of(self.weight)
        assert values is not None  # noqa: S101  (it is a constant)
        values = values.astype(np.float64)
        if self.node.op == "ConvTranspose":
            values = values.reshape(self.groups, -1, self.channels // self.groups, self.taps).swapaxes(1, 2)
        elif self.node.op != "Conv" and not self.node.attrs.get("transB"):
            values = values.T
        alpha = float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0
        matrix: Floats = alpha * values.reshape(self.groups, self.channels // self.groups, self.width)
        return matrix

    def stored(self, matrix: Floats) -> Array:
        """Return ``matrix``, of the shape that :meth:`matrix` returns, as the weight is stored: its shape and type.

        The node keeps its attributes: a Gemm's alpha is divided out.

        Raises:
            PassError: a value does not fit the type.
        """
        alpha = float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0
        values: Array = matrix / alpha
        if self.node.op == "ConvTranspose":
            parts = values.reshape(self.groups, self.channels // self.groups, -1, self.taps)
            values = parts.swapaxes(1, 2)
        elif self.node.op != "Conv" and not self.node.attrs.get("transB"):
            values = values[0].T
        return rounded(values.reshape(tuple(self.weight.shape)), numpy_dtype(self.weight.dtype), self.anchor)

    def bias(self) -> Floats:
        """Return b, a Gemm's beta included; zeros where the layer has none. Shape (O,), float64."""
        if len(self.node.inputs) < 3 or not self.node.inputs[2].name:
            return np.zeros(self.channels)
        values = array_of(self.node.inputs[2])
        assert values is not None  # noqa: S101  (linear_layer saw to it)
        beta = float(self.node.attrs.get("beta", 1.0)) if self.node.op == "Gemm" else 1.0
        vector: Floats = beta * np.broadcast_to(values.astype(np.float64).reshape(-1), (self.channels,))
        return vector

    def stored_bias(self, bias: Floats) -> Array:
        """Return ``bias``, shape (O,), in the weight's type. A Gemm's beta must be 1 (or absent) beside it.

        Raises:
            PassError: a value does not fit the type.
        """
        return rounded(bias, numpy_dtype(self.weight.dtype), self.anchor)


def rounded(values: Array, dtype: np.dtype[Any] | None, anchor: str) -> Array:
    """Return ``values`` as weights of the layer ``anchor`` are stored.

    Raises:
        PassError: a value does not fit the type.
    """
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values.astype(dtype))
    if not np.isfinite(rounded).all():
        raise PassError(f"the new weights of {anchor!r} do not fit {dtype}")
    return rounded


# ---- which nodes are such layers -------------------------------------------------------------------------------------


def linear_layer(node: Node) -> LinearLayer:
    """Return ``node`` as a linear layer.

    Raises:
        PassError: it is none; the message names it and says why (see :func:`refusal`).
    """
    reason = refusal(node)
    if reason is not None:
        raise PassError(f"{anchor_of(node)!r} is no linear layer with constant weights: {reason}")
    weight = node.inputs[1]
    assert isinstance(weight, Constant)  # noqa: S101  (or it would have been refused)
    shape = tuple(int(size) for size in weight.shape)
    groups = int(node.attrs.get("group", 1)) if node.op.startswith("Conv") else 1
    if node.op == "Conv":
        return LinearLayer(node, weight, groups, math.prod(shape[1:]), shape[0], shape[2:])
    if node.op == "ConvTranspose":
        width = shape[0] // groups * math.prod(shape[2:])
        return LinearLayer(node, weight, groups, width, shape[1] * groups, shape[2:])
    inner, outer = shape[::-1] if node.attrs.get("transB") else shape
    return LinearLayer(node, weight, 1, inner, outer, ())


def refusal(node: Node) -> str | None:
    """Return why ``node`` cannot be seen as y = W·p + b with constant W and b, None where it can."""
    if not is_standard(node, *LAYERS) or len(node.inputs) < 2:
        return f"{node.op} is not one of {', '.join(LAYERS)}"
    weight = node.inputs[1]
    if not isinstance(weight, Constant):
        return "its weights are computed"
    if numpy_dtype(weight.dtype) not in _FLOATS or 0 in weight.shape:
        return "its weights are no floating-point numbers"
    if node.op in ("Gemm", "MatMul"):
        return _matrix_refusal(node, weight)
    return _convolution_refusal(node, weight)


def _matrix_refusal(node: Node, weight: Constant) -> str | None:
    if len(weight.shape) != 2:
        return "its weights are no matrix"
    if node.attrs.get("transA"):
        return "its input is transposed"
    if node.op == "Gemm" and float(node.attrs.get("alpha", 1.0)) == 0.0:
        return "its alpha is 0"
    outer = int(weight.shape[0 if node.attrs.get("transB") else 1])
    return _bias_refusal(node, outer) if node.op == "Gemm" else None


def _bias_refusal(node: Node, channels: int) -> str | None:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    bias = node.inputs[2]
    if not isinstance(bias, Constant):
        return "its bias is computed"
    size = math.prod(map(int, bias.shape))
    per_channel = size == 1 or (size == channels and int(bias.shape[-1]) == channels)
    return None if per_channel else "its bias is not one number for each channel"


def _convolution_refusal(node: Node, weight: Constant) -> str | None:
    rank, groups = len(weight.shape) - 2, int(node.attrs.get("group", 1))
    if not 1 <= rank <= 3:
        return f"it is a convolution over {rank} axes"
    if groups < 1 or int(weight.shape[0]) % groups:
        return f"its channels do not divide into {groups} groups"
    if any(int(pad) < 0 for pad in node.attrs.get("pads", ())):
        return "it crops with negative pads"
    rule = node.attrs.get("auto_pad", "NOTSET")
    if node.op == "ConvTranspose" and (rule not in ("NOTSET", "VALID") or "output_shape" in node.attrs):
        return "it leaves its padding to the runtime"
    channels = int(weight.shape[0]) if node.op == "Conv" else int(weight.shape[1]) * groups
    return _bias_refusal(node, channels)
