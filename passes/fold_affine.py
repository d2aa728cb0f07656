"""fold-affine: a constant multiplied with or added to a linear layer's output becomes part of its weights.

Given   y = Conv(x, W, b),  z = s·y,  z = y + t,  z = y − t,  z = t − y  or  z = y / d    (s, t, d constant per channel)
Result  z = Conv(x, W', b')  with  W'_c = s_c·W_c  and  b'_c = s_c·b_c + t_c; also ConvTranspose and Gemm.

Left alone: a layer's output that is read by other nodes or returned by a graph; a constant that varies over anything
but the channel, or broadcasts the output to a larger shape; division by zero; weights that would overflow their type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Graph, Node, Rewriter, Tensor, array_of, producer
from onnxslim.passes._layers import Array, Layer, fold_affine, layer_of, per_channel
from onnxslim.pipeline import Rule, RulePass

Affine = tuple[Array | None, Array | None]


class FoldElementwise(Rule):
    """Conv, ConvTranspose or Gemm, then Mul, Div, Add or Sub with a constant."""

    ops = frozenset({"Mul", "Div", "Add", "Sub"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Fold the operation at ``node`` into the layer that computes one of its operands."""
        for data, other in (node.inputs, node.inputs[::-1]):
            constant = array_of(other)
            maker = producer(data)
            layer = None if constant is None or maker is None else layer_of(maker)
            if constant is None or layer is None or layer.weight.dtype != constant.dtype:
                continue
            reason = _fold(node, data, constant, layer, rewriter)
            if reason is not None:
                rewriter.refuse(self.name, node.outputs[0].name, reason)
            return


def _fold(node: Node, data: Tensor, constant: Array, layer: Layer, rewriter: Rewriter) -> str | None:
    """Fold, or return why not."""
    if not rewriter.is_private(data):
        return "the layer's output is used before this operation too"
    values = per_channel(constant, layer)
    if values is None:
        return f"its constant of shape {constant.shape} is not one value per channel"
    affine = _affine(node, node.inputs[0] is data, values)
    if affine is None:
        return "it divides by the layer's output, or by zero"
    reason = fold_affine(layer, *affine, rewriter)
    if reason is None:
        rewriter.replace(node.outputs[0], data)
        rewriter.remove(node)
    return reason


def _affine(node: Node, data_is_left: bool, values: Array) -> Affine | None:
    """Return scale and shift of the operation, None where it is no affine map of the layer's output."""
    if node.op == "Mul":
        return values, None
    if node.op == "Add":
        return None, values
    if node.op == "Sub":
        return (None, -values) if data_is_left else (np.full_like(values, -1.0), values)
    return (1.0 / values, None) if data_is_left and (values != 0).all() else None


@dataclass(frozen=True)
class FoldAffine(RulePass):
    """Fold constant Mul, Div, Add and Sub into the Conv, ConvTranspose or Gemm before them."""

    name = "fold-affine"
    rules = (FoldElementwise(),)
