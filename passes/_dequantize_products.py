"""Products of integers that dynamic quantization and weight-only formats compute: what they multiply, in numbers.

1. MatMulInteger or ConvInteger, Cast, Mul by the product of both scales: what onnxruntime's quantize_dynamic writes.
2. com.microsoft's DynamicQuantizeMatMul and MatMulIntegerToFloat, which onnxruntime fuses those into.
3. com.microsoft's DynamicQuantizeLSTM.
4. com.microsoft's MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Node, Rewriter, Tensor, array_of, attribute, dims_of, is_standard, producer
from onnxslim.passes._block_packing import unpacked
from onnxslim.passes._dequantize_operators import MICROSOFT
from onnxslim.passes._dequantize_pairs import Grid, Pairs, dead_after, root_of
from onnxslim.passes._dequantize_values import dequantized, optional, plain_name
from onnxslim.passes._layers import per_channel

Array = npt.NDArray[Any]

_FLOAT32 = 1
"""ONNX's number."""
_MISFIT = "its weights, scales or zero points are computed, or do not fit each other"


def is_product(node: Node) -> bool:
    """Whether ``node`` is one of the numbered operators."""
    if is_standard(node):
        return node.op in ("MatMulInteger", "ConvInteger")
    return node.domain == MICROSOFT and node.op in _CONTRIBUTED


def rewrite(node: Node, rewriter: Rewriter, pairs: Pairs) -> str | None:
    """Put an operator on numbers in the place of ``node`` and of what scales its result.

    Returns:
        Why it was not done, None when it was.
    """
    if is_standard(node):
        return _integer_product(node, rewriter, pairs)
    if node.op == "DynamicQuantizeMatMul":  # 2
        weight = _weight(node, 1, optional(node, 2), optional(node, 3))
        return _multiply(node, node.inputs[0], weight, optional(node, 4), rewriter)
    if node.op == "MatMulIntegerToFloat":  # 2
        data = pairs.floating(node.inputs[0], Grid(node.inputs[2], optional(node, 4)))
        weight = _weight(node, 1, node.inputs[3], optional(node, 5))
        return pairs.reason if data is None else _multiply(node, data, weight, optional(node, 6), rewriter)
    if node.op == "DynamicQuantizeLSTM":
        return _recurrent(node, rewriter)
    return _multiply(node, node.inputs[0], _narrow_weight(node), optional(node, 5), rewriter)


_CONTRIBUTED = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "MatMulNBits")


def _multiply(node: Node, data: Tensor, weight: Array | None, bias: Tensor | None, rewriter: Rewriter) -> str | None:
    if weight is None:
        return _MISFIT
    constant = rewriter.constant(plain_name(node.inputs[1].name), weight)
    graph, (output,) = rewriter.home(node), node.outputs
    product = output if bias is None else rewriter.variable(f"{output.name}_product", weight.dtype, output.shape)
    rewriter.insert("MatMul", [data, constant], [product], name=node.name, graph=graph)
    if bias is not None:
        rewriter.insert("Add", [product, bias], [output], graph=graph)
    dead_after(rewriter, [node])
    return None


def _weight(node: Node, index: int, scale: Tensor | None, zero: Tensor | None) -> Array | None:
    """Return the constant right operand in numbers, None where anything about it is computed."""
    values, factors, offset = (array_of(tensor) for tensor in (node.inputs[index], scale, zero))
    if values is None or factors is None or (zero is not None and offset is None):
        return None
    return dequantized(values, factors, offset, axis=-1)


# ---- 1: a product, a Cast and a Mul --------------------------------------------------------------------------


def _integer_product(node: Node, rewriter: Rewriter, pairs: Pairs) -> str | None:
    scaled = _scaled(node, rewriter)
    if scaled is None:
        return "its result is used otherwise than cast to float32 and scaled"
    scales = _factors(scaled)
    data = _numbers(node, 0, scales, pairs)
    if data is None:
        return "its left operand is not quantized dynamically, or scaled by something else"
    right: Tensor | None
    if isinstance(node.inputs[1], Constant):
        right = _scaled_weight(node, data, scales, rewriter)
    else:
        right = None if len(scales) != 1 else _numbers(node, 1, scales, pairs)
    if right is None:
        return _MISFIT
    op = node.op.removesuffix("Integer")
    graph, name = rewriter.home(scaled), node.name.removesuffix("_quant")
    rewriter.insert(op, [data, right], list(scaled.outputs), node.attrs, name=name, graph=graph)
    dead_after(rewriter, [scaled])
    return None


def _scaled(node: Node, rewriter: Rewriter) -> Node | None:
    """Return the Mul that alone reads the Cast that alone reads the product."""
    current = node
    for op in ("Cast", "Mul"):
        (tensor,) = current.outputs
        if not rewriter.is_private(tensor) or not is_standard(tensor.outputs[0], op):
            return None
        current = tensor.outputs[0]
        if op == "Cast" and attribute(current, "to") != _FLOAT32:
            return None
    return current


def _factors(scaled: Node) -> list[Tensor]:
    """Return what the cast product is multiplied by: one tensor, or the two that a Mul makes it of."""
    other = scaled.inputs[1]
    maker = producer(other)
    if maker is not None and is_standard(maker, "Cast"):  # the product itself
        other = scaled.inputs[0]
        maker = producer(other)
    return list(maker.inputs) if maker is not None and is_standard(maker, "Mul") else [other]


def _numbers(node: Node, index: int, scales: list[Tensor], pairs: Pairs) -> Tensor | None:
    """Return what an operand was before it was quantized, and take its scale out of ``scales``."""
    root = root_of(node.inputs[index])
    if root is None or not is_standard(root, "DynamicQuantizeLinear"):
        return None
    scale = root.outputs[1]
    if all(tensor is not scale for tensor in scales):
        return None
    scales.pop(next(i for i, tensor in enumerate(scales) if tensor is scale))
    return pairs.floating(node.inputs[index], Grid(scale, optional(node, index + 2)))


def _scaled_weight(node: Node, data: Tensor, scales: Sequence[Tensor], rewriter: Rewriter) -> Constant | None:
    """Return a constant right operand in numbers, times the one scale that is left, if any."""
    values, zero = array_of(node.inputs[1]), array_of(optional(node, 3))
    rest = array_of(scales[0]) if scales else np.ones(1, np.float32)
    if values is None or rest is None or len(scales) > 1 or (zero is None and optional(node, 3) is not None):
        return None
    axis = 0 if node.op == "ConvInteger" else values.ndim - 1
    rank = values.ndim if node.op == "ConvInteger" else len(dims_of(data) or (1,))
    vector = per_channel(rest, rank, 1 if node.op == "ConvInteger" else rank - 1, values.shape[axis])
    numbers = None if vector is None else dequantized(values, vector.astype(np.float32), zero, axis)
    return None if numbers is None else rewriter.constant(plain_name(node.inputs[1].name), numbers)


# ---- 3 and 4: weights in layouts of their own ----------------------------------------------------------------


def _recurrent(node: Node, rewriter: Rewriter) -> str | None:
    """Turn DynamicQuantizeLSTM, whose weights are (directions, inputs, 4·hidden), into LSTM, whose are transposed."""
    weights = [_gates(node, 1, 8), _gates(node, 2, 10)]
    if any(weight is None for weight in weights):
        return _MISFIT
    constants = [
        rewriter.constant(plain_name(node.inputs[index].name), weight)
        for index, weight in zip((1, 2), weights, strict=True)
        if weight is not None
    ]
    inputs = [node.inputs[0], *constants, *node.inputs[3:8]]
    while not inputs[-1].name:
        inputs.pop()
    rewriter.insert("LSTM", inputs, list(node.outputs), node.attrs, name=node.name, graph=rewriter.home(node))
    dead_after(rewriter, [node])
    return None


def _gates(node: Node, index: int, scale_index: int) -> Array | None:
    """Return the weights of all gates in numbers, of shape (directions, 4·hidden, inputs)."""
    parts = [array_of(optional(node, i)) for i in (index, scale_index, scale_index + 1)]
    if any(part is None for part in parts):
        return None
    values, scale, zero = (part for part in parts if part is not None)
    spread = [part.reshape(part.shape[0], 1, -1) for part in (scale, zero) if part.ndim]
    if values.ndim != 3 or len(spread) < 2 or any(part.shape[2] not in (1, values.shape[2]) for part in spread):
        return None
    numbers = (values.astype(np.int32) - spread[1].astype(np.int32)).astype(np.float32) * spread[0]
    return np.ascontiguousarray(numbers.transpose(0, 2, 1))


def _narrow_weight(node: Node) -> Array | None:
    """Return a MatMulNBits' weight in numbers, of shape (K, N)."""
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 0))
    rows, columns = int(attribute(node, "K", 0)), int(attribute(node, "N", 0))
    data, scales = array_of(node.inputs[1]), array_of(node.inputs[2])
    prepacked = attribute(node, "weight_prepacked", 0) or optional(node, 4) is not None
    if bits not in (2, 4, 8) or block < 1 or data is None or scales is None or prepacked:
        return None
    blocks = -(-rows // block)
    if data.size != columns * blocks * block * bits // 8 or scales.size != columns * blocks:
        return None
    zero = _narrow_zero(optional(node, 3), bits, (columns, blocks))
    if zero is None:
        return None
    integers = unpacked(data.reshape(columns, blocks, -1), bits, block).reshape(columns, -1)[:, :rows]
    steps, offset = (np.repeat(part.reshape(columns, blocks), block, axis=1)[:, :rows] for part in (scales, zero))
    numbers = (integers.astype(np.float32) - offset.astype(np.float32)) * steps.astype(np.float32)
    return np.ascontiguousarray(numbers.T.astype(scales.dtype))


def _narrow_zero(tensor: Tensor | None, bits: int, shape: tuple[int, int]) -> Array | None:
    """Return zero points of shape (N, blocks): half of the range unless given, packed or as numbers."""
    if tensor is None:
        return np.full(shape, 2 ** (bits - 1), np.uint8)
    values = array_of(tensor)
    if values is None:
        return None
    if values.dtype != np.uint8:
        return values.reshape(shape) if values.size == shape[0] * shape[1] else None
    fits = values.size == shape[0] * -(-shape[1] * bits // 8)
    return unpacked(values.reshape(shape[0], -1), bits, shape[1]) if fits else None
