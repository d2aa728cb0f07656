"""The part of a recurrent layer that is linear: what its input becomes before gates and states come in.

An LSTM, GRU or RNN computes W·x for every step, directions and gates below each other, and adds R·h inside: W can be
looked at as a layer of its own, whose output nobody sees but everybody knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.linear_layers import Array, Floats, LinearLayer, linear_layer, rounded
from onnxslim.ir import Constant, Node, array_of, is_standard, numpy_dtype

RECURRENT = ("LSTM", "GRU", "RNN")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class RecurrentInput(LinearLayer):
    """W of an LSTM, GRU or RNN as a matrix of (directions · gates · hidden, inputs). It has no bias of its own."""

    @property
    def has_bias(self) -> bool:
        """No: the operator's biases are those of its gates."""
        return False

    @property
    def target(self) -> str:
        """The tensor that W·x is known from: x."""
        return self.source

    @property
    def macs_beside(self) -> int:
        """Multiply-accumulates of the recurrent weights, for each position of the input."""
        return math.prod(map(int, self.node.inputs[2].shape))

    def seen(self, target: Array) -> Array:
        """Return W·x of x. Shape (…, O)."""
        product: Array = target.astype(np.float64) @ self.matrix()[0].T
        return product

    def matrix(self) -> Floats:
        """Return W. Shape (1, O, d), float64."""
        values = array_of(self.weight)
        assert values is not None  # noqa: S101  (it is a constant)
        return values.astype(np.float64).reshape(1, self.channels, self.width)

    def stored(self, matrix: Floats) -> Array:
        """Return ``matrix``, of any width, as W is stored: (directions, gates · hidden, width)."""
        directions = int(self.weight.shape[0])
        shaped = matrix.reshape(directions, self.channels // directions, -1)
        return rounded(shaped, numpy_dtype(self.weight.dtype), self.anchor)

    def bias(self) -> Floats:
        """Return zeros."""
        return np.zeros(self.channels)


def linear_part(node: Node) -> LinearLayer:
    """Return ``node`` as a linear layer, or that part of it which is one.

    Raises:
        PassError: it is none, and has none.
    """
    if why_no_input_matrix(node) is not None:
        return linear_layer(node)
    weight = node.inputs[1]
    assert isinstance(weight, Constant)  # noqa: S101  (or it would have been refused)
    directions, rows, width = (int(size) for size in weight.shape)
    return RecurrentInput(node, weight, 1, width, directions * rows, ())


def why_no_input_matrix(node: Node) -> str | None:
    """Return why ``node`` is no recurrent layer with a constant input matrix, None where it is."""
    if not is_standard(node, *RECURRENT) or len(node.inputs) < 3:
        return f"{node.op} is not one of {', '.join(RECURRENT)}"
    weight = node.inputs[1]
    if not isinstance(weight, Constant):
        return "its weight is an input or computed, not constant"
    if numpy_dtype(weight.dtype) not in _FLOATS or len(weight.shape) != 3 or 0 in weight.shape:
        return "its weight is no stack of matrices of floating-point numbers"
    if not isinstance(node.inputs[2], Constant):
        return "its recurrent weight is computed"
    return None
