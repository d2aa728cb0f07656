"""fold-batchnorm: a BatchNormalization beside a linear layer becomes part of its weights.

With s = γ / √(σ² + ε) and t = β − s·μ, a BatchNormalization at inference is s·x + t per channel.

Given   y = Conv(x, W, b),  z = BatchNormalization(y, γ, β, μ, σ²)          (also ConvTranspose and Gemm)
Result  z = Conv(x, W', b')  with  W'_c = s_c·W_c  and  b'_c = s_c·b_c + t_c

Given   y = Conv(BatchNormalization(x, γ, β, μ, σ²), W, b)  without padding          (also Gemm)
Result  y = Conv(x, W', b')  with  W'_ci = W_ci·s_i  and  b'_c = b_c + Σᵢ W_ci·t_i

(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
§3.2.)

Left alone, with the reason: a tensor between the two that other nodes read or a graph returns; parameters that are not
constant; training mode; a variance below −ε; a shift before a layer that pads with zeros; weights that would overflow
their type, and weights in float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Graph, Node, Rewriter, Tensor, array_of, is_standard, only_consumer, producer
from onnxslim.passes._chains import Channels, Kind, fold_neighbours
from onnxslim.passes._layers import Affine, layer_of
from onnxslim.pipeline import Rule, RulePass


class FoldNormalization(Rule):
    """A BatchNormalization, or several, before or after a Conv, ConvTranspose or Gemm."""

    ops = frozenset({"BatchNormalization"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Fold the normalization at ``node`` into the layer before it, otherwise into the one after it."""
        anchor = node.outputs[0].name
        reason = "no layer with constant weights is right beside it"
        for neighbour in (producer(node.inputs[0]), only_consumer(node.outputs[0])):
            layer = layer_of(neighbour)
            if layer is None:
                continue
            refusals = dict(fold_neighbours(layer, _NORMALIZATION, rewriter))
            if not rewriter.alive(node):
                return
            reason = refusals.get(anchor, reason)
        rewriter.refuse(self.name, anchor, reason)


def _operand(node: Node) -> Tensor | None:
    return node.inputs[0] if is_standard(node, "BatchNormalization") else None


def _affine(node: Node, channels: Channels) -> Affine | str:
    """Return scale and shift of the normalization, or why there are none."""
    if node.attrs.get("training_mode") or any(tensor.name for tensor in node.outputs[1:]):
        return "it computes batch statistics (training mode)"
    arrays = [array_of(tensor) for tensor in node.inputs[1:5]]
    gamma, beta, mean, variance = (None if a is None else a.astype(np.float64) for a in arrays)
    if gamma is None or beta is None or mean is None or variance is None:
        return "its parameters are computed, not constant"
    if any(a.shape != (channels.count,) for a in (gamma, beta, mean, variance)):
        return f"its parameters do not have one value for each of {channels.count} channels"
    variance = variance + float(node.attrs.get("epsilon", 1e-5))
    if not (variance > 0).all():
        return "its variance is not positive"
    scale = gamma / np.sqrt(variance)
    return Affine(scale, beta - mean * scale)


_NORMALIZATION = Kind(_operand, _affine)


@dataclass(frozen=True)
class FoldBatchNorm(RulePass):
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm beside it."""

    name = "fold-batchnorm"
    rules = (FoldNormalization(),)
