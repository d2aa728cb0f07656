"""fold-affine: a constant multiplied with or added to a linear layer's output or input becomes part of its weights.

Given   y = Conv(x, W, b),  z = s·y,  z = y + t,  z = y − t,  z = t − y  or  z = y / d    (s, t, d constant per channel)
Result  z = Conv(x, W', b')  with  W'_c = s_c·W_c  and  b'_c = s_c·b_c + t_c

Given   y = Conv(s·x + t, W, b), written as any of the same operations
Result  y = Conv(x, W', b')  with  W'_ci = W_ci·s_i  and  b'_c = b_c + Σᵢ W_ci·t_i

The same for ConvTranspose, Gemm and, with a scale alone, MatMul. A chain of such operations is folded at once.

Left alone: a tensor between the two that other nodes read or a graph returns; a constant that varies over anything but
the channel, or broadcasts the tensor to a larger shape; a shift before a layer that pads with zeros, or before a
ConvTranspose; division by zero or by the tensor; weights that would overflow their type, and weights in float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Constant, Graph, Node, Rewriter, Tensor, array_of, is_standard
from onnxslim.passes._chains import Channels, Kind, fold_neighbours, has_neighbours
from onnxslim.passes._layers import LAYERS, Affine, layer_of, per_channel
from onnxslim.pipeline import Rule, RulePass


class FoldElementwise(Rule):
    """A layer with Mul, Div, Add or Sub with constants before or after it."""

    ops = frozenset(LAYERS)

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Fold the operations beside the layer at ``node``."""
        layer = layer_of(node) if has_neighbours(node, _ELEMENTWISE) else None
        if layer is None:
            return
        for anchor, reason in fold_neighbours(layer, _ELEMENTWISE, rewriter):
            rewriter.refuse(self.name, anchor, reason)


def _operand(node: Node) -> Tensor | None:
    """Return the operand that is not constant, None where that is none or both."""
    if not is_standard(node, "Mul", "Div", "Add", "Sub"):
        return None
    computed = [tensor for tensor in node.inputs if not isinstance(tensor, Constant)]
    return computed[0] if len(computed) == 1 else None


def _affine(node: Node, channels: Channels) -> Affine | str:
    """Return scale and shift of the operation, or why it is no affine map per channel."""
    left = array_of(node.inputs[0])
    constant = array_of(node.inputs[1]) if left is None else left
    values = None if constant is None else per_channel(constant, channels.rank, channels.axis, channels.count)
    if constant is None or values is None:
        return f"its constant of shape {node.inputs[left is None].shape} is not one value per channel"
    if node.op == "Mul":
        return Affine(values)
    if node.op == "Add":
        return Affine(None, values)
    if node.op == "Sub":
        return Affine(None, -values) if left is None else Affine(np.full_like(values, -1.0), values)
    if left is not None or not values.all():
        return "it divides by the tensor, or by zero"
    return Affine(1.0 / values)


_ELEMENTWISE = Kind(_operand, _affine)


@dataclass(frozen=True)
class FoldAffine(RulePass):
    """Fold constant Mul, Div, Add and Sub into the Conv, ConvTranspose, Gemm or MatMul beside them."""

    name = "fold-affine"
    rules = (FoldElementwise(),)
