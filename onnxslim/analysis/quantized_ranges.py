"""The real values that quantized activations can take, read off the pairs of a QDQ model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.integer_groups import QUANTIZE, quantized_type
from onnxslim.ir import Constant, Graph, Node, array_of


@dataclass(frozen=True)
class QuantizedRange:
    """The grid of one tensor."""

    tensor: str
    low: float
    """(smallest integer - zero point) * scale; over all channels."""
    high: float
    step: float
    """The scale; of channels that have their own, the largest."""
    type: str
    """Of the integers, as numpy spells it."""
    channels: int | None
    """How many have a scale of their own; None where one is for all."""


def quantized_ranges(graph: Graph) -> Iterator[QuantizedRange]:
    """Yield the range of each activation that a QuantizeLinear with constant scale reads, once, in order."""
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op == QUANTIZE and len(node.inputs) > 1 and not isinstance(node.inputs[0], Constant):
            found = None if node.inputs[0].name in seen else _range(node)
            if found is not None:
                seen.add(found.tensor)
                yield found


def _range(node: Node) -> QuantizedRange | None:
    """Return what one QuantizeLinear can tell apart; None where that is not known before it runs."""
    dtype = quantized_type(node.outputs[0])
    scale = array_of(node.inputs[1])
    stored = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    zero_point = array_of(node.inputs[2]) if stored else np.zeros(1)
    if dtype is None or dtype.kind not in "iu" or scale is None or zero_point is None:
        return None
    if not scale.size or zero_point.size not in (1, scale.size) or not np.isfinite(scale).all():
        return None
    limits = np.iinfo(dtype)
    steps, shift = scale.astype(np.float64).ravel(), zero_point.astype(np.float64).ravel()
    low, high = ((float(end) - shift) * steps for end in (limits.min, limits.max))
    channels = scale.size if scale.size > 1 else None
    return QuantizedRange(
        node.inputs[0].name, float(low.min()), float(high.max()), float(steps.max()), dtype.name, channels
    )
