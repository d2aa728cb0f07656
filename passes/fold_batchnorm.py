"""fold-batchnorm: a BatchNormalization after a linear layer becomes part of its weights.

Given   y = Conv(x, W, b),  z = BatchNormalization(y, γ, β, μ, σ²)       (inference form; also ConvTranspose and Gemm)
Result  z = Conv(x, W', b')  with  s = γ / √(σ² + ε),  W'_c = s_c·W_c,  b'_c = s_c·(b_c − μ_c) + β_c

(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
§3.2.)

Left alone, with the reason: the layer's output is read by other nodes or returned by a graph; parameters that are not
constant; training mode or more than one output in use; a variance below −ε; weights that would overflow their type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Graph, Node, Rewriter, array_of, producer
from onnxslim.passes._layers import Array, Layer, fold_affine, layer_of
from onnxslim.pipeline import Rule, RulePass


class FoldBatchNormalization(Rule):
    """Conv, ConvTranspose or Gemm, then BatchNormalization."""

    ops = frozenset({"BatchNormalization"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Fold the normalization at ``node`` into the layer before it."""
        maker = producer(node.inputs[0])
        layer = None if maker is None else layer_of(maker)
        if layer is None:
            rewriter.refuse(self.name, node.outputs[0].name, "no layer with constant weights comes right before it")
            return
        if not rewriter.is_private(node.inputs[0]):
            rewriter.refuse(self.name, node.outputs[0].name, "the layer's output is used before normalization too")
            return
        if node.attrs.get("training_mode") or any(t.outputs or rewriter.is_output(t) for t in node.outputs[1:]):
            rewriter.refuse(self.name, node.outputs[0].name, "it computes batch statistics (training mode)")
            return
        affine = _affine(node, layer)
        if isinstance(affine, str):
            rewriter.refuse(self.name, node.outputs[0].name, affine)
            return
        _replace(node, layer, affine, rewriter)


def _affine(node: Node, layer: Layer) -> tuple[Array, Array] | str:
    """Return scale and shift of the normalization, or why there are none."""
    arrays = [array_of(tensor) for tensor in node.inputs[1:5]]
    gamma, beta, mean, variance = (None if a is None else a.astype(np.float64) for a in arrays)
    if gamma is None or beta is None or mean is None or variance is None:
        return "its parameters are computed, not constant"
    if any(a.shape != (layer.channels,) for a in (gamma, beta, mean, variance)):
        return f"its parameters do not have one value for each of {layer.channels} channels"
    variance = variance + float(node.attrs.get("epsilon", 1e-5))
    if not (variance > 0).all():
        return "its variance is not positive"
    scale = gamma / np.sqrt(variance)
    return scale, beta - mean * scale


def _replace(node: Node, layer: Layer, affine: tuple[Array, Array], rewriter: Rewriter) -> None:
    problem = fold_affine(layer, *affine, rewriter)
    if problem is not None:
        rewriter.refuse(FoldBatchNormalization.__name__, node.outputs[0].name, problem)
        return
    out = node.outputs[0]
    rewriter.replace(out, node.inputs[0])
    rewriter.remove(node)


@dataclass(frozen=True)
class FoldBatchNorm(RulePass):
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it."""

    name = "fold-batchnorm"
    rules = (FoldBatchNormalization(),)
