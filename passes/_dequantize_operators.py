"""Operators on integers as what they are defined by: DequantizeLinear, the operator on numbers, QuantizeLinear.

Nothing changes but roundings inside; the pairs that appear between neighbours are another module's to remove.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim.ir import Node, Rewriter, Tensor, array_of, attribute, is_standard, numpy_dtype
from onnxslim.passes._dequantize_values import dequantized, dequantized_constant, optional, plain_name

MICROSOFT = "com.microsoft"

_SOFTMAX_OF_AN_AXIS = 13
"""The first opset whose Softmax is along one axis, and not over all that follow."""


@dataclass(frozen=True)
class Form:
    """Where an operator on integers keeps what: each operand is followed by its scale and zero point."""

    op: str
    """The operator on numbers."""
    operands: tuple[int, ...]
    output: int
    """Index of the output's scale, before its zero point."""
    attributes: tuple[str, ...] = ()
    """Those that the operator on numbers has too."""
    bias: int | None = None
    """Index of int32 numbers in steps of the product of both operands' scales."""


_POOLING = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
_SLIDING = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_STANDARD = {
    "QLinearConv": Form("Conv", (0, 3), 6, _SLIDING, 8),
    "QLinearMatMul": Form("MatMul", (0, 3), 6),
}
_CONTRIBUTED = {
    "QLinearAdd": Form("Add", (0, 3), 6),
    "QLinearAveragePool": Form("AveragePool", (0,), 3, _POOLING),
    "QLinearConv": _STANDARD["QLinearConv"],
    "QLinearGlobalAveragePool": Form("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": Form("LeakyRelu", (0,), 3, ("alpha",)),
    "QLinearMul": Form("Mul", (0, 3), 6),
    "QLinearSigmoid": Form("Sigmoid", (0,), 3),
    "QLinearSoftmax": Form("Softmax", (0,), 3, ("axis",)),
    "QLinearWhere": Form("Where", (1, 4), 7),
    "QGemm": Form("Gemm", (0, 3), 7, ("alpha", "transA", "transB"), 6),
}


def form_of(node: Node) -> Form | None:
    """Return how ``node`` is written, None where it is no operator on integers that this module knows."""
    if is_standard(node):
        return _STANDARD.get(node.op)
    if node.domain != MICROSOFT:
        return None
    if node.op == "QLinearConcat":
        return Form("Concat", tuple(range(2, len(node.inputs), 3)), 0, ("axis",))
    return _CONTRIBUTED.get(node.op)


def expand(node: Node, form: Form, rewriter: Rewriter) -> str | None:
    """Put the operator on numbers in the place of ``node``, between DequantizeLinear and QuantizeLinear.

    Returns:
        Why it was not done, None when it was.
    """
    reason = _why_not(node, form, rewriter.model.opset)
    if reason is not None:
        return reason
    inputs = [_operand(node, index, form, rewriter) for index in form.operands]
    if form.op == "Where":
        inputs.insert(0, node.inputs[0])
    bias = None if form.bias is None else optional(node, form.bias)
    numbers = None if bias is None else _bias(node, bias)
    if bias is not None and numbers is not None:
        inputs.append(rewriter.constant(plain_name(bias.name), numbers))
    attributes = {name: node.attrs[name] for name in form.attributes if name in node.attrs}
    graph, output = rewriter.home(node), _output(node, form, rewriter)
    rewriter.insert(form.op, inputs, [output], attributes, name=node.name, graph=graph)
    rewriter.remove(node)
    return None


def _why_not(node: Node, form: Form, opset: int) -> str | None:
    if attribute(node, "channels_last", 0):
        return "its channels are last, which the operator on numbers has no form for"
    if form.op == "Softmax" and not _is_softmax_of(node, opset):
        return "its Softmax is of another opset than the model"
    if _type_of_output(node, form) is None:
        return "the type of its result is unknown"
    if any(_is_misfit(node, index, form) for index in form.operands):
        return "its scales or zero points are computed, or do not fit what they scale"
    bias = None if form.bias is None else optional(node, form.bias)
    if bias is not None and _bias(node, bias) is None:
        return "its bias is computed, or does not fit its weights"
    return None


def _is_softmax_of(node: Node, opset: int) -> bool:
    later = int(attribute(node, "opset", 0)) >= _SOFTMAX_OF_AN_AXIS
    return later == (opset >= _SOFTMAX_OF_AN_AXIS) and "axis" in node.attrs


def _is_misfit(node: Node, index: int, form: Form) -> bool:
    """Whether the scale of an operand is no single one, except a constant weight's along its output channels."""
    values, scale, zero = (array_of(optional(node, index + i)) for i in range(3))
    if scale is None or (zero is None and optional(node, index + 2) is not None):
        return True
    if scale.size == 1 and (zero is None or zero.size == 1):
        return False
    if form.op not in ("Conv", "Gemm", "MatMul") or index != form.operands[1] or values is None:
        return True
    return dequantized(values, scale, zero, _axis(node, form, values.ndim)) is None


def _axis(node: Node, form: Form, rank: int) -> int:
    """Return the axis of a weight's scales."""
    if form.op == "Conv" or (form.op == "Gemm" and attribute(node, "transB", 0)):
        return 0
    return rank - 1


def _operand(node: Node, index: int, form: Form, rewriter: Rewriter) -> Tensor:
    """Return the number that an operand stands for: a constant where everything is, otherwise a DequantizeLinear's."""
    values, scale, zero = node.inputs[index], node.inputs[index + 1], optional(node, index + 2)
    axis = _axis(node, form, len(values.shape or ()))
    constant = dequantized_constant(rewriter, values, scale, zero, axis=axis)
    if constant is not None:
        return constant
    out = rewriter.variable(f"{values.name}_dq", numpy_dtype(scale.dtype), values.shape)
    inputs = [values, scale] if zero is None else [values, scale, zero]
    rewriter.insert("DequantizeLinear", inputs, [out], graph=rewriter.home(node))
    return out


def _bias(node: Node, stored: Tensor) -> np.ndarray[Any, Any] | None:
    """Return a bias as numbers, None where it is computed or no vector of its layer's channels."""
    values, first, second = (array_of(tensor) for tensor in (stored, node.inputs[1], node.inputs[4]))
    if values is None or first is None or second is None:
        return None
    scale = (first.reshape(-1)[:1] * second.reshape(-1)).astype(first.dtype)
    scale = (scale * np.asarray(attribute(node, "alpha", 1.0), first.dtype)).astype(first.dtype)
    return dequantized(values, scale, axis=-1)


def _type_of_output(node: Node, form: Form) -> np.dtype[Any] | None:
    """Return the type of the result's integers."""
    candidates = (optional(node, form.output + 1), node.outputs[0], node.inputs[form.operands[0]])
    known = (numpy_dtype(tensor.dtype) for tensor in candidates if tensor is not None)
    return next((dtype for dtype in known if dtype is not None), None)


def _output(node: Node, form: Form, rewriter: Rewriter) -> Tensor:
    """Return the result as numbers; a QuantizeLinear makes of it what ``node`` computed."""
    integers, scale, zero = node.outputs[0], optional(node, form.output), optional(node, form.output + 1)
    if scale is None:  # a QGemm that returns numbers
        return integers
    numbers = rewriter.variable(f"{integers.name}_f", numpy_dtype(scale.dtype), integers.shape)
    if zero is None:
        zero = rewriter.constant("zero", np.zeros((), _type_of_output(node, form)))
    rewriter.insert("QuantizeLinear", [numbers, scale, zero], [integers], graph=rewriter.home(node))
    return numbers
