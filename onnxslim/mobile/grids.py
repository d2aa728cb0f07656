"""Which integers a model's inputs and outputs stand for, so that an app can feed and read integers.

An input that nothing but a QuantizeLinear reads is rounded to a grid at once, and an output that a DequantizeLinear
makes has values of a grid only: real = (integer - zero point) * scale. An integer input or output has the grid of the
operator on its other side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxslim.ir import Model, Node, Tensor, array_of, attribute, consumers, is_standard, producer

GridFacts = dict[str, Any]
"""``type``, ``scale``, ``zero_point``; where there is one of each for every channel, lists, and their ``axis``."""

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def input_grids(model: Model) -> dict[str, GridFacts]:
    """Return the grid of each input that has one, by the input's name."""
    found = {tensor.name: _of_input(tensor) for tensor in model.graph.inputs}
    return {name: grid for name, grid in found.items() if grid is not None}


def output_grids(model: Model) -> dict[str, GridFacts]:
    """Return the grid of each output that has one, by the output's name."""
    made = {tensor.name: producer(tensor) for tensor in model.graph.outputs}
    found = {name: None if node is None else _of_node(node) for name, node in made.items()}
    return {name: grid for name, grid in found.items() if grid is not None}


def _of_input(tensor: Tensor) -> GridFacts | None:
    """Return the one grid of all that read ``tensor``; one reader of another kind sees what is between its values."""
    grids = [_of_node(node) if node.inputs[0] is tensor else None for node in consumers(tensor)]
    return grids[0] if grids and all(grid == grids[0] for grid in grids) else None


def _of_node(node: Node) -> GridFacts | None:
    """Return the grid of a QuantizeLinear or DequantizeLinear; None for others, and where it is computed or blocked."""
    if not is_standard(node, _QUANTIZE, _DEQUANTIZE) or attribute(node, "block_size", 0):
        return None
    scale = array_of(node.inputs[1])
    zero = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
    given = len(node.inputs) > 2 and bool(node.inputs[2].name)
    if scale is None or (given and zero is None):
        return None
    integers = _integers(node, zero)
    if integers is None:
        return None
    zeros = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
    if scale.size == 1:
        return {"type": integers, "scale": _short(scale.reshape(-1)[0]), "zero_point": int(zeros.reshape(-1)[0])}
    return {
        "type": integers,
        "scale": [_short(value) for value in scale],
        "zero_point": [int(value) for value in zeros],
        "axis": int(attribute(node, "axis", 1)),
    }


def _integers(node: Node, zero: Any) -> str | None:
    """Return the type of the integers; None where the file does not say."""
    if zero is not None:
        return str(zero.dtype)
    if node.op == _DEQUANTIZE:
        return None if node.inputs[0].dtype is None else str(np.dtype(node.inputs[0].dtype))
    return None if attribute(node, "output_dtype", 0) else "uint8"


def _short(value: Any) -> float:
    """Return the shortest decimal that is this float32."""
    return float(str(np.float32(value)))
