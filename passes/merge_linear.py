"""merge-linear: linear layers with nothing between become one, where one is cheaper. The inverse of low rank.

Given   y = W₁·x + b₁,  z = W₂·y + b₂           Conv, ConvTranspose, Gemm, MatMul with constant weights
Result  z = W·x + b  with  W = W₂·W₁  and  b = W₂·b₁ + b₂

1. Gemm and MatMul, in any order. A Gemm's input has two dimensions, so with a Gemm the result is a Gemm.
2. Conv, then 1×1 (channel, separable):      W[o,i,t] = Σₘ W₂[o,m]·W₁[m,i,t]; its window, stride and padding stay.
3. 1×1, then Conv (the first half of tucker): W[o,i,t] = Σₘ W₂[o,m,t]·W₁[m,i]; a stride of the 1×1 multiplies the
   other's stride, dilation and padding.
4. Conv with windows along different axes (spatial, cp): W[o,i,t,u] = Σₘ W₂[o,m,u]·W₁[m,i,t].
5. ConvTranspose, then or after 1×1, or one along another axis: as 2 to 4.

Groups that lie within the groups of the other layer (depthwise, pointwise) leave as many groups as the one with fewer
has. Rows of layers are looked at as a whole, since three may be worth what no two of them are (``_merge_runs``): worth
it is what takes fewer multiply-accumulates and no more bytes, or fewer bytes for the same. Along axes of unknown size
that must hold for every size. Rows that share their weights share the result. ``_merging`` has the algebra of an axis.

Left alone, with the reason: a tensor between that others read or a graph returns; weights that are computed, float16,
of millions of numbers, or hold NaN or Inf; transposed inputs; a bias before a layer that pads, or scatters (the border
sees zeros instead); windows along the same axis; padding around what a window made; auto_pad beside strides or pads;
groups that do not nest; products that overflow or vanish in their type; and factors that nearly cancel, whose product
would keep few digits. All is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.linear_layers import LAYERS, LinearLayer, linear_layer, refusal, rounded
from onnxslim.errors import PassError
from onnxslim.ir import Constant, Graph, Node, Rewriter, anchor_of, is_standard, numpy_dtype
from onnxslim.passes._merge_runs import Family, Row, Stretch
from onnxslim.passes._merging import CONVOLUTIONS, MATRICES, Piece, Weights, magnitudes, product, weights_of
from onnxslim.pipeline import Effect, Pass, PassContext

CANCELLING = 100
"""How many times larger than their sum the products may be that make a weight. What is lost is the original's own
digits, but an exact rewrite is judged beside it: at 100 float32 outputs were measured to move by 5e-6 of their range,
at 1000 by 3e-5."""


@dataclass(frozen=True)
class MergeLinear(Pass):
    """Merge linear layers with nothing between into one where that is cheaper."""

    name = "merge-linear"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Divide every row of linear layers into the cheapest stretches, and make each of them one layer."""
        rows = [row for graph in rewriter.model.graphs() for row in _rows(graph, rewriter)]
        for family in _families(rows, rewriter):
            _merge(family, rewriter)


# ---- rows ------------------------------------------------------------------------------------------------------------


def _rows(graph: Graph, rewriter: Rewriter) -> Iterator[Row]:
    """Yield the longest rows of layers that follow each other with nothing between."""
    links = {id(node): after for node in graph.nodes if (after := _next(node, rewriter)) is not None}
    inner = {id(after) for after in links.values()}
    for node in graph.nodes:
        if id(node) not in links or id(node) in inner:
            continue
        row = [node]
        while id(row[-1]) in links:
            row.append(links[id(row[-1])])
        yield tuple(linear_layer(member) for member in row)


def _next(node: Node, rewriter: Rewriter) -> Node | None:
    """Return the layer that reads the layer ``node``, None (with a refusal, if there is one) where they stay apart."""
    if not is_standard(node, *LAYERS) or not node.outputs:
        return None
    out = node.outputs[0]
    kind = MATRICES if node.op in MATRICES else CONVOLUTIONS  # a matrix multiplies along another axis
    readers = [reader for reader in out.outputs if is_standard(reader, *kind) and reader.inputs[0] is out]
    for reader in readers:
        reason = _why_not_in_a_row(node, reader, rewriter)
        if reason is None:
            return reader
        rewriter.refuse(MergeLinear.name, anchor_of(reader), reason)
    return None


def _why_not_in_a_row(first: Node, second: Node, rewriter: Rewriter) -> str | None:
    if not rewriter.is_private(first.outputs[0]):
        return "the tensor between it and the layer before it is used elsewhere too"
    reason = refusal(first)
    if reason is not None:
        return f"the layer before it cannot be merged: {reason}"
    reason = refusal(second)
    if reason is not None:
        return reason
    if len(first.inputs[1].shape) != len(second.inputs[1].shape):
        return "its weights have another rank than those of the layer before it"
    dtypes = {numpy_dtype(node.inputs[1].dtype) for node in (first, second)}
    if np.dtype(np.float16) in dtypes or len(dtypes) > 1:
        return "its weights are float16, too coarse to be rounded once more"
    return None


def _families(rows: Sequence[Row], rewriter: Rewriter) -> list[Family]:
    """Put rows together that read the same constants, with the same attributes."""
    alike: dict[Any, list[Row]] = {}
    for row in rows:
        alike.setdefault(tuple(_key(layer.node) for layer in row), []).append(row)
    returned = frozenset(id(tensor) for graph in rewriter.model.graphs() for tensor in graph.outputs)
    return [Family(same, returned) for same in alike.values()]


def _key(node: Node) -> tuple[Any, ...]:
    constants = tuple(id(tensor) if tensor.name else None for tensor in node.inputs[1:])
    return node.op, constants, repr(sorted(node.attrs.items()))


# ---- merging ---------------------------------------------------------------------------------------------------------


def _merge(family: Family, rewriter: Rewriter) -> None:
    """Merge what is worth it and can be done; say of everything else why it stays."""
    done: dict[Stretch, tuple[Piece, Weights]] = {}
    while True:
        chosen = family.division()
        fresh = next((stretch for stretch in chosen if stretch not in done), None)
        if fresh is None:
            break
        found = _numbers(family, fresh)
        if isinstance(found, str):
            family.failed[fresh] = found
        else:
            done[fresh] = found
    for second in range(1, len(family.pieces)):
        if not any(start < second < end for start, end in chosen):
            reason = family.why_apart(second)
            for row in family.rows:
                rewriter.refuse(MergeLinear.name, row[second].anchor, reason)
    for stretch in chosen:
        _write(family, stretch, *done[stretch], rewriter)


def _numbers(family: Family, stretch: Stretch) -> tuple[Piece, Weights] | str:
    """Return a stretch as one layer and its numbers, or why those are no good."""
    whole = family.merged(stretch)
    assert isinstance(whole, Piece)  # noqa: S101  (it was worth merging)
    layers = family.rows[0][slice(*stretch)]
    parts = [weights_of(layer) for layer in layers]
    if not all(_is_finite(part) for part in parts):
        return "its weights, or those of the layer before it, hold NaN or Inf"
    made = parts[0]
    for part in parts[1:]:
        most = product(magnitudes(made), magnitudes(part))
        made = product(made, part)
        if _cancels(made, most):
            return "its weights and those of the layer before it nearly cancel: one layer would lose digits"
    reason = _why_not_stored(made, layers[-1])
    return reason or (whole, made)


def _is_finite(part: Weights) -> bool:
    return bool(np.isfinite(part.weight).all() and (part.bias is None or np.isfinite(part.bias).all()))


def _cancels(made: Weights, most: Weights) -> bool:
    """Whether products are much larger than their sum; a bias is judged beside weights, for inputs around 1."""
    largest = float(np.abs(made.weight).max())
    if float(most.weight.max()) > CANCELLING * largest:
        return True
    if made.bias is None or most.bias is None:
        return False
    return float(most.bias.max()) > CANCELLING * max(largest, float(np.abs(made.bias).max()))


def _why_not_stored(made: Weights, layer: LinearLayer) -> str | None:
    dtype = np.dtype(layer.weight.dtype)
    try:
        weight = rounded(made.weight, dtype, layer.anchor)
        if made.bias is not None:
            rounded(made.bias, dtype, layer.anchor)
    except PassError:
        return f"the merged weights do not fit {dtype}"
    smallest = float(np.finfo(dtype).tiny / np.finfo(dtype).eps)
    if made.weight.any() and float(np.abs(weight).max()) < smallest:
        return f"the merged weights are too small for {dtype}"
    return None


# ---- the rewrite -----------------------------------------------------------------------------------------------------


def _write(family: Family, stretch: Stretch, whole: Piece, made: Weights, rewriter: Rewriter) -> None:
    """Let the last layer of the stretch, in every row, do the work of all; it keeps its name and output."""
    last = family.rows[0][stretch[1] - 1]
    attrs = _attributes(whole, last)
    constants = _constants(whole, made, last, rewriter)
    for row in family.rows:
        *before, node = (layer.node for layer in row[slice(*stretch)])
        rewriter.set_inputs(node, [before[0].inputs[0], *constants])
        rewriter.set_op(node, whole.op, attrs)
        for other in reversed(before):
            rewriter.remove(other)


def _constants(whole: Piece, made: Weights, last: LinearLayer, rewriter: Rewriter) -> list[Constant]:
    dtype = np.dtype(last.weight.dtype)
    hint = last.weight.name
    constants = [rewriter.constant(hint, rounded(_stored(whole, made.weight, last), dtype, last.anchor))]
    if made.bias is not None:
        inputs = last.node.inputs
        hint = inputs[2].name if len(inputs) > 2 and inputs[2].name else f"{hint}_bias"
        constants.append(rewriter.constant(hint, rounded(made.bias, dtype, last.anchor)))
    return constants


def _stored(whole: Piece, weight: npt.NDArray[np.float64], last: LinearLayer) -> npt.NDArray[np.float64]:
    """Return a weight, (groups, outputs of a group, inputs of a group, k…), as its operator has it."""
    if whole.op in MATRICES:
        matrix: npt.NDArray[np.float64] = weight[0] if last.node.attrs.get("transB") else weight[0].T
        return matrix
    if whole.op == "ConvTranspose":
        weight = weight.swapaxes(1, 2)
    flat: npt.NDArray[np.float64] = weight.reshape(-1, *weight.shape[2:])
    return flat


def _attributes(whole: Piece, last: LinearLayer) -> dict[str, Any]:
    if whole.op in MATRICES:
        return {"transB": 1} if last.node.attrs.get("transB") else {}
    axes = whole.axes
    attrs: dict[str, Any] = {"kernel_shape": [axis.kernel for axis in axes], "group": whole.groups}
    attrs["strides"] = [axis.stride for axis in axes]
    attrs["dilations"] = [axis.dilation for axis in axes]
    rule = next((axis.rule for axis in axes if axis.rule), None)
    if rule is None:
        attrs["pads"] = [*(axis.begin for axis in axes), *(axis.end for axis in axes)]
    else:
        attrs["auto_pad"] = rule
    if any(axis.extra for axis in axes):
        attrs["output_padding"] = [axis.extra for axis in axes]
    return attrs
