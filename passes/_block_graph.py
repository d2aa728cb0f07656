"""Layers in blocks as nodes.

1. ``matmul-nbits``: com.microsoft's MatMulNBits, which takes packed levels of shape (N, blocks, block·bits / 8), scales
   of shape (N, blocks), zero points packed along each row unless all are in the middle, and a bias.
2. ``qdq``: DequantizeLinear with ``block_size`` along axis 0 of a weight of shape (K, N), before a MatMul, or a Gemm
   without transB, alpha and beta: of these alone onnxruntime makes the operator above.

A Gemm's alpha is part of the weight by then, and its beta of the bias.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxslim.analysis.linear_layers import linear_layer
from onnxslim.ir import Node, Rewriter, Tensor, Variable, anchor_of, array_of
from onnxslim.passes._block_choice import FLOAT32, Form, Stored
from onnxslim.passes._block_fit import Fitted, has_bias, in_blocks_alone
from onnxslim.passes._block_grid import BlockWeight, Grids
from onnxslim.passes._block_packing import packed

MICROSOFT = "com.microsoft"
INT8_INPUTS = 4
"""The accuracy level of MatMulNBits at which inputs become 8-bit integers, block by block; without it they do not."""


class BlockWriter:
    """Writes layers; those that share a weight share its blocks.

    Args:
        int8_inputs: let MatMulNBits round its inputs.
    """

    def __init__(self, rewriter: Rewriter, *, int8_inputs: bool) -> None:
        self._rewriter = rewriter
        self._int8_inputs = int8_inputs
        self._shared: dict[Hashable, list[Tensor]] = {}

    def write(self, node: Node, stored: Stored, fitted: Fitted | None) -> None:
        """Store the weight of ``node`` as it was ``fitted``, or rounded to the nearest."""
        key = _key(node, stored) if fitted is None else anchor_of(node)
        fitted = fitted or in_blocks_alone(node, stored.style)
        if key not in self._shared:
            make = self._nbits if stored.form is Form.NBITS else self._dequantized
            self._shared[key] = make(node.inputs[1].name, fitted.weight)
        inputs = [node.inputs[0], *self._shared[key]]
        bias = [] if fitted.bias is None else [self._bias(node, fitted.bias.astype(np.float32))]
        if stored.form is Form.NBITS:
            self._replace(node, stored, inputs, bias)
        else:
            self._rewriter.set_inputs(node, [*inputs, *bias])
            self._rewriter.set_op(node, node.op, {})

    def _nbits(self, name: str, weight: BlockWeight) -> list[Tensor]:
        """Return levels, scales and zero points as MatMulNBits takes them."""
        grids, style = weight.grids, weight.grids.style
        missing = -weight.levels.shape[1] % style.block
        levels = np.pad(weight.levels, [(0, 0), (0, missing)], constant_values=style.middle)
        parts = levels.reshape(len(levels), -1, style.block)
        made: list[Tensor] = [
            self._rewriter.constant(f"{name}_q{style.bits}", packed(parts, style.bits)),
            self._rewriter.constant(f"{name}_s", grids.scale),
        ]
        if not style.symmetric:
            made.append(self._rewriter.constant(f"{name}_z", packed(grids.zero, style.bits)))
        return made

    def _replace(self, node: Node, stored: Stored, inputs: list[Tensor], bias: list[Tensor]) -> None:
        layer = linear_layer(node)
        sizes = {"K": layer.width, "N": layer.channels, "bits": stored.bits, "block_size": stored.block}
        level = {"accuracy_level": INT8_INPUTS} if self._int8_inputs else {}
        left_out = [Variable.empty() for _ in range(5 - len(inputs))] if bias else []  # zero points, g_idx
        outputs, name = list(node.outputs), node.name
        self._rewriter.insert(
            "MatMulNBits", [*inputs, *left_out, *bias], outputs, {**sizes, **level}, name=name, domain=MICROSOFT
        )
        self._rewriter.remove(node)

    def _dequantized(self, name: str, weight: BlockWeight) -> list[Tensor]:
        """Return the weight as DequantizeLinear computes it."""
        style, scale = weight.grids.style, weight.grids.scale.T
        levels = [weight.levels.T] if style.symmetric else [weight.levels.T, weight.grids.zero.T]
        integers = [_integers(part, weight.grids) for part in levels]
        made = [self._rewriter.constant(f"{name}_q{style.bits}", integers[0])]
        made.append(self._rewriter.constant(f"{name}_s", scale))
        made += [self._rewriter.constant(f"{name}_z", part) for part in integers[1:]]
        out = self._rewriter.variable(f"{name}_dq", FLOAT32, list(integers[0].shape))
        self._rewriter.insert("DequantizeLinear", made, [out], {"axis": 0, "block_size": style.block})
        return [out]

    def _bias(self, node: Node, bias: npt.NDArray[np.float32]) -> Tensor:
        """Return ``bias`` as a constant: the one that is there, where it says the same."""
        if not has_bias(node):
            return self._rewriter.constant(f"{anchor_of(node)}_bias", bias)
        there = array_of(node.inputs[2])
        if there is not None and there.dtype == FLOAT32 and np.array_equal(there, bias):
            return node.inputs[2]
        return self._rewriter.constant(node.inputs[2].name, bias)


def _key(node: Node, stored: Stored) -> Hashable:
    """Return what is equal for layers that have the same blocks."""
    transposed, alpha = (node.attrs.get(name) for name in ("transB", "alpha"))
    return id(node.inputs[1]), bool(transposed), 1.0 if alpha is None else float(alpha), stored


def _integers(levels: npt.NDArray[np.uint8], grids: Grids) -> npt.NDArray[Any]:
    """Return levels as ONNX's integers: signed ones where zero is in the middle, so that no zero point is needed."""
    bits, symmetric = grids.style.bits, grids.style.symmetric
    number = getattr(onnx.TensorProto, f"{'' if symmetric else 'U'}INT{bits}")
    values = levels.astype(np.int16) - (grids.style.middle if symmetric else 0)
    return values.astype(onnx.helper.tensor_dtype_to_np_dtype(number))
