"""fuse-matmul-add: a matrix product and a bias become one Gemm.

Given   y = MatMul(x, W),  z = y + b,  x of rank 2, W constant of rank 2, b constant per column
Result  z = Gemm(x, W, b)

Left alone: inputs of another or unknown rank (Gemm knows no others); a product that is read elsewhere too or returned;
a bias that varies by row; types other than float32 and float64, which not every runtime has a Gemm for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Constant, Graph, Node, Rewriter, array_of, dims_of, is_standard, producer
from onnxslim.passes._layers import layer_of, per_channel
from onnxslim.pipeline import Rule, RulePass


class FuseBias(Rule):
    """MatMul, then Add."""

    ops = frozenset({"Add"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Make a Gemm of the product and the sum at ``node``."""
        product, bias = node.inputs if isinstance(node.inputs[1], Constant) else node.inputs[::-1]
        maker = producer(product)
        layer = layer_of(maker) if maker is not None and is_standard(maker, "MatMul") else None
        constant = array_of(bias)
        if maker is None or layer is None or constant is None or not rewriter.is_private(product):
            return
        vector = per_channel(constant, 2, 1, layer.channels)
        dims = dims_of(maker.inputs[0])
        wide = np.dtype(layer.weight.dtype) in (np.dtype(np.float32), np.dtype(np.float64))
        if dims is None or len(dims) != 2 or vector is None or not wide:
            rewriter.refuse(self.name, node.outputs[0].name, "Gemm wants inputs of rank 2 and one bias per column")
            return
        same = bias if constant.shape == (layer.channels,) else None
        bias = same or rewriter.constant(bias.name, vector.astype(constant.dtype))
        rewriter.set_inputs(maker, [*maker.inputs, bias])
        rewriter.set_op(maker, "Gemm", {})
        rewriter.replace(node.outputs[0], product)
        rewriter.remove(node)


@dataclass(frozen=True)
class FuseMatmulAdd(RulePass):
    """Fuse MatMul and Add of matrices into Gemm."""

    name = "fuse-matmul-add"
    rules = (FuseBias(),)
