"""dequantize: a quantized model becomes the floating-point model that it stands for.

Given   y = DQ(Q(x)),  with one scale and zero point            Result  y = x, or Relu(x), see below
Given   DQ(W₈, s, z), W₈ constant                              Result  W = (W₈ − z)·s, a float32 constant, to the bit
Given   y₈ = QLinearConv(x₈, s_x, z_x, W₈, s_w, z_w, s_y, z_y, b₃₂)
Result  y₈ = Q(Conv(DQ(x₈), (W₈ − z_w)·s_w, b₃₂·s_x·s_w)), whose Q and DQ go as above

Weights keep what rounding made of them; activations are no longer rounded, so outputs change. Operators that only move
integers (Reshape, MaxPool, Concat, …) move numbers instead. What is rewritten, numbered as in the code:

1. QuantizeLinear and DequantizeLinear, in the standard and in com.microsoft, per tensor, per axis, block by block;
2. QLinearConv, QLinearMatMul and com.microsoft's QLinearAdd, QLinearMul, QLinearAveragePool, QLinearConcat,
   QLinearConv, QLinearGlobalAveragePool, QLinearLeakyRelu, QLinearSigmoid, QLinearSoftmax, QLinearWhere and QGemm;
3. dynamic quantization (DynamicQuantizeLinear, MatMulInteger or ConvInteger, Cast, Mul; DynamicQuantizeMatMul,
   MatMulIntegerToFloat, DynamicQuantizeLSTM) and weight-only MatMulNBits.

Quantizers let a Relu or Clip disappear in the QuantizeLinear behind it, whose grid then begins at 0 (and ends at 6).
So where a grid begins at 0 and nothing says that its numbers are never negative, a Relu is put back, or for [0, 6] a
Clip (``saturation=relu``). ``saturation=keep`` cuts at both ends of every grid, ``drop`` nowhere.

Left alone, with the reason:

1. integers that the model is fed or returns, or that an operator without a form on numbers computes;
2. pairs whose two halves have different scales;
3. scales and zero points that are computed otherwise than by DynamicQuantizeLinear;
4. other operators on integers (QAttention, QEmbedLayerNormalization, GatherBlockQuantized, …);
5. what lies in local functions: ``inline-functions`` opens them.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.passes import _dequantize_products as products
from onnxslim.passes._dequantize_operators import MICROSOFT, expand, form_of
from onnxslim.passes._dequantize_pairs import Pairs, Saturation, dead_after, grid_of, put
from onnxslim.passes._dequantize_values import converts
from onnxslim.pipeline import Effect, Pass, PassContext, option


@dataclass(frozen=True)
class Dequantize(Pass):
    """Turn a quantized model back into floating point: weights as they were rounded, activations not rounded."""

    name = "dequantize"
    effect = Effect.APPROXIMATE

    saturation: Saturation = option(
        Saturation.RELU, "ends of grids: relu (cut at a grid that begins at 0), keep (cut at both), or drop"
    )

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Rewrite operators, then products, then pairs; each leaves less for the next to look through."""
        reasons: dict[str, str] = {}
        for node in _nodes(rewriter.model):  # 2
            form = form_of(node)
            reason = None if form is None else expand(node, form, rewriter)
            if reason is not None:
                reasons[anchor_of(node)] = reason
        rewriter.finish()
        pairs = Pairs(rewriter, self.saturation)
        for node in _nodes(rewriter.model):  # 3
            reason = products.rewrite(node, rewriter, pairs) if products.is_product(node) else None
            if reason is not None:
                reasons[anchor_of(node)] = reason
        rewriter.finish()
        self._strip(rewriter, pairs, reasons)
        for node in _nodes(rewriter.model):
            if rewriter.alive(node) and (_is_integer(node) or anchor_of(node) in reasons):
                reason = reasons.get(anchor_of(node), "its form on numbers is not known here")
                rewriter.refuse(self.name, anchor_of(node), reason)
        for domain, name in rewriter.model.functions:
            rewriter.refuse(self.name, name, f"what is inside the function {domain}:{name} stays: inline it first")

    @staticmethod
    def _strip(rewriter: Rewriter, pairs: Pairs, reasons: dict[str, str]) -> None:
        """Replace what DequantizeLinear computes (1)."""
        for node in _nodes(rewriter.model):
            if not rewriter.alive(node) or not converts(node, "DequantizeLinear"):
                continue
            anchor = anchor_of(node)
            numbers = pairs.floating(node.inputs[0], grid_of(node))
            if numbers is None:
                reasons[anchor] = pairs.reason
                continue
            put(rewriter, pairs, node.outputs[0], numbers, rewriter.home(node))
            dead_after(rewriter, [node])


def _nodes(model: Model) -> list[Node]:
    return [node for graph in model.graphs() for node in list(graph.nodes)]


_OTHER_INTEGER = (
    "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4",
    "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE",
)  # fmt: skip
_STANDARD_INTEGER = ("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear")


def _is_integer(node: Node) -> bool:
    """Whether ``node`` is an operator of quantized models."""
    if node.op.startswith(("QLinear", "QOrdered")) or converts(node, *_STANDARD_INTEGER):
        return True
    return node.domain == MICROSOFT and node.op in _OTHER_INTEGER
