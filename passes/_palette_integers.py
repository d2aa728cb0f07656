"""Integer weights that need fewer bits than they are stored in: what a quantizer that was asked for few bits leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Constant, Model, Node, Rewriter, array_of, consumers, is_standard, numpy_dtype
from onnxslim.passes._palette import MOST_BITS
from onnxslim.passes._palette_graph import stored_bytes

TYPES = (np.dtype(np.int8), np.dtype(np.uint8))


@dataclass(frozen=True)
class IntegerWeight:
    """A constant of 8 bits that nothing but DequantizeLinear reads."""

    tensor: Constant
    layers: tuple[Node, ...]
    """What reads the weight behind DequantizeLinear."""
    bits: int
    """That its numbers take, from the smallest to the largest."""

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(map(int, self.tensor.shape))

    @property
    def pays(self) -> bool:
        """Whether packing it makes the file smaller."""
        return self.bits < MOST_BITS and stored_bytes(self.elements, 0, self.bits) < self.elements


def integer_weights(model: Model) -> dict[str, IntegerWeight]:
    """Return the integer weights of ``model`` by name, in order."""
    rewriter = Rewriter(model)
    found: dict[str, IntegerWeight] = {}
    for node in model.graph.nodes:
        tensor = node.inputs[0] if is_standard(node, "DequantizeLinear") else None
        if not isinstance(tensor, Constant) or tensor.name in found or not _is_weight(tensor, rewriter):
            continue
        values = array_of(tensor)
        if values is None or not values.size:
            continue
        bits = max(int(int(values.max()) - int(values.min())).bit_length(), 1)
        layers = [layer for pair in consumers(tensor) for layer in consumers(pair.outputs[0])]
        found[tensor.name] = IntegerWeight(tensor, tuple(layers), bits)
    return found


def _is_weight(tensor: Constant, rewriter: Rewriter) -> bool:
    if numpy_dtype(tensor.dtype) not in TYPES or rewriter.is_output(tensor):
        return False
    readers = consumers(tensor)
    return all(
        is_standard(reader, "DequantizeLinear")
        and rewriter.home(reader) is rewriter.model.graph
        and all(other is not tensor for other in reader.inputs[1:])
        for reader in readers
    )
