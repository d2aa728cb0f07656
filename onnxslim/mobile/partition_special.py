"""What a target accepts that takes more than a table of values; each check names its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from onnxslim.ir import (
    Constant,
    Node,
    Tensor,
    array_of,
    attribute,
    dims_of,
    is_standard,
    only_consumer,
    producer,
)
from onnxslim.mobile.partition_units import Unit, is_stored, kind_of
from onnxslim.targets.conditions import Check

Answer = tuple[bool | None, str]
_FINE: Answer = (True, "")


def _last_axis(unit: Unit, version: int | None) -> Answer:
    """From opset 13 on the axis of a softmax is one dimension; before, all from it on (onnx, Softmax)."""
    if version is None or version < 13:
        return _FINE
    dims = dims_of(unit.node.inputs[0])
    axis = int(attribute(unit.node, "axis", -1))
    if dims is None:
        return None, "nobody knows how many dimensions its input has"
    return _FINE if axis in (-1, len(dims) - 1) else (False, f"its axis is {axis}, not the last of {len(dims)}")


def _softmax_scale(unit: Unit, version: int | None) -> Answer:
    """XNNPACK's softmax makes 1/256: onnxruntime core/providers/xnnpack/math/softmax.cc."""
    quantize = unit.after[0]
    scale, zero = array_of(quantize.inputs[1]), _zero_point(unit)
    if scale is None or zero is None:
        return False, "the scale after it is computed"
    fine = abs(float(scale.reshape(-1)[0]) - 1 / 256) <= 1e-4 and zero == 0
    return _FINE if fine else (False, "the pair after it has not scale 1/256 and zero point 0")


def _zero_point(unit: Unit) -> int | None:
    quantize = unit.after[0]
    if len(quantize.inputs) < 3 or quantize.inputs[2].is_empty():
        return 0
    values = array_of(quantize.inputs[2])
    return None if values is None else int(values.reshape(-1)[0])


def _gemm_bias(unit: Unit, version: int | None) -> Answer:
    """A bias whose first dimension is one of the weights': onnxruntime core/providers/xnnpack/math/gemm.cc.

    That is more than XNNPACK computes rightly, so only a vector with one value for each column is accepted.
    """
    bias, weights = unit.behind(2), unit.behind(1)
    if bias is None or weights is None:
        return _FINE
    shape, table = dims_of(bias), dims_of(weights)
    if shape is None or table is None or len(table) != 2:
        return None, "the shape of its bias is not known"
    columns = table[0 if attribute(unit.node, "transB", 0) else 1]
    if shape == (columns,):
        return _FINE
    if not shape or shape[0] not in table:
        return False, f"its bias has not one value for each of {columns} columns"
    return None, "its bias is no vector, of which nothing is known"


def _bilinear(unit: Unit, version: int | None) -> Answer:
    """Source: onnxruntime core/providers/xnnpack/tensor/resize.cc."""
    data = dims_of(unit.node.inputs[0])
    if data is None or len(data) != 4:
        return None, "the shape of its input is not known"
    first = 1 if version is not None and version < 11 else 2
    scales, sizes = _values(unit, first), None if first == 1 else _values(unit, 3)
    if scales is None and sizes is None:
        return False, "its scales or sizes must be constant"
    return _channels(data, scales, sizes) or _shrinks(data, scales) or _coordinates(unit, version) or _FINE


def _values(unit: Unit, index: int) -> npt.NDArray[Any] | None:
    tensor: Tensor | None = unit.behind(index)
    values = array_of(tensor) if isinstance(tensor, Constant) else None
    return values if values is not None and values.size == 4 else None


def _channels(data: tuple[Any, ...], scales: npt.NDArray[Any] | None, sizes: npt.NDArray[Any] | None) -> Answer | None:
    changed = (scales is not None and float(scales[1]) != 1.0) or (sizes is not None and int(sizes[1]) != data[1])
    return (False, "it changes the number of channels") if changed else None


def _shrinks(data: tuple[Any, ...], scales: npt.NDArray[Any] | None) -> Answer | None:
    """What is made smaller must be divided without a rest."""
    if scales is None or (scales[2] >= 1 and scales[3] >= 1):
        return None
    if not all(isinstance(size, int) for size in data[2:]):
        return None, "it makes an image smaller whose size is not fixed"
    steps = [float(1 / scale) for scale in scales[2:]]
    whole = all(step == int(step) and size % int(step) == 0 for step, size in zip(steps, data[2:], strict=True))
    return None if whole else (False, "it makes the image smaller by no whole number")


def _coordinates(unit: Unit, version: int | None) -> Answer | None:
    if version is not None and version < 11:
        return None
    mode = _text(unit.node, "coordinate_transformation_mode", "half_pixel")
    if mode in ("asymmetric", "half_pixel", "align_corners"):
        return None
    if mode != "pytorch_half_pixel":
        return False, f"coordinate_transformation_mode is {mode}"
    made = dims_of(unit.node.outputs[0])
    known = made is not None and len(made) == 4 and all(isinstance(size, int) and size > 1 for size in made[2:])
    return None if known else (False, "coordinate_transformation_mode is pytorch_half_pixel and its size not above 1")


def _quantized_output(unit: Unit, version: int | None) -> Answer:
    """Tried: a layer with quantized inputs and a float output is not built."""
    return _FINE if unit.after or not unit.is_group else (False, "its inputs are integers and its output is in float")


def _scalar_pair(unit: Unit, version: int | None) -> Answer:
    """A pair on its own has one scale: builder/opbuilder/simple_op_builder.cc, and tried, with constants too."""
    node = unit.node
    if not all(is_stored(tensor) for tensor in node.inputs[1:] if not tensor.is_empty()):
        return False, "its scale or zero point is computed"
    scale = node.inputs[1]
    sizes = [dim for dim in dims_of(scale) or () if dim != 1]
    return (False, "it belongs to no layer's pairs and has a scale for each channel") if sizes else _FINE


_ROUNDED = (("half_pixel", "floor"), ("asymmetric", "floor"), ("align_corners", "round_prefer_ceil"))
"""What QNN's Resize to the nearest takes in other than 4 dimensions."""


def _nearest(unit: Unit, version: int | None) -> Answer:
    """Tried, and builder/opbuilder/resize_op_builder.cc: what rounds to the nearest, by dimensions."""
    node = unit.node
    if _text(node, "mode", "nearest") != "nearest":
        return _FINE
    dims = dims_of(node.inputs[0])
    place = _text(node, "coordinate_transformation_mode", "half_pixel" if version != 10 else "asymmetric")
    rounds = _text(node, "nearest_mode", "round_prefer_floor" if version != 10 else "floor")
    told = f"it rounds {rounds} with {place}"
    if dims is not None and len(dims) == 4:
        refused = place == "asymmetric" and rounds in ("round_prefer_floor", "ceil")
        return (False, f"{told}, which is not taken") if refused else _FINE
    return _FINE if (place, rounds) in _ROUNDED else (False, f"{told}, which is taken in 4 dimensions only")


def _text(node: Node, name: str, default: str) -> str:
    value = attribute(node, name, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _matmul_ranks(unit: Unit, version: int | None) -> Answer:
    """Tried: MatMul of five dimensions with a constant of two is not taken."""
    data, weights = unit.behind(0), unit.behind(1)
    known = [dims_of(tensor) for tensor in (data, weights) if tensor is not None]
    if len(known) != 2 or known[0] is None or known[1] is None:
        return _FINE
    refused = len(known[0]) == 5 and len(known[1]) == 2 and weights is not None and is_stored(weights)
    return (False, "it multiplies 5 dimensions by constant weights of 2") if refused else _FINE


def _narrow_product(unit: Unit, version: int | None) -> Answer:
    """Tried: weights that are activations themselves are taken with 8 bits, MatMul's with uint16 too."""
    weights, data = unit.behind(1), kind_of(unit.behind(0))
    if weights is None or is_stored(weights):
        return _FINE
    taken = ("uint8", "int8", "uint16") if unit.node.op == "MatMul" else ("uint8", "int8")
    return (
        _FINE
        if data in taken
        else (None, f"its weights are computed and its data is {data}, of which nothing is known")
    )


def _own_weights(unit: Unit, version: int | None) -> Answer:
    """Seen: of two Gemm that read one constant, one plain and one transposed, the second is not taken."""
    weights = unit.behind(1)
    shared = isinstance(weights, Constant) and len({id(reader) for reader in weights.outputs}) > 1
    return (None, "other nodes read its weights too, of which nothing is known") if shared else _FINE


def _gelu_erf(unit: Unit, version: int | None) -> Answer:
    """Between Div or Mul and Add and Mul: builder/qnn_node_group/gelu_fusion.cc; tried in float, where it is taken."""
    maker = producer(unit.node.inputs[0])
    after = only_consumer(unit.node.outputs[0])
    last = None if after is None else only_consumer(after.outputs[0])
    known = maker is not None and is_standard(maker, "Div", "Mul") and after is not None and is_standard(after, "Add")
    if known and last is not None and is_standard(last, "Mul"):
        return _FINE
    return False, "it runs only within a GELU in float"


SPECIAL: Mapping[Check, Callable[[Unit, int | None], Answer]] = {
    Check.LAST_AXIS: _last_axis,
    Check.BILINEAR: _bilinear,
    Check.GEMM_BIAS: _gemm_bias,
    Check.SOFTMAX_SCALE: _softmax_scale,
    Check.QUANTIZED_OUTPUT: _quantized_output,
    Check.SCALAR_PAIR: _scalar_pair,
    Check.NEAREST: _nearest,
    Check.MATMUL_RANKS: _matmul_ranks,
    Check.NARROW_PRODUCT: _narrow_product,
    Check.OWN_WEIGHTS: _own_weights,
    Check.GELU_ERF: _gelu_erf,
}
"""By check: takes a unit and the version of its operator's definition."""
