"""Which weights are stored in few bits, and along which axes their scales lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim.ir import (
    Constant,
    Model,
    Node,
    Rewriter,
    anchor_of,
    consumers,
    graph_nodes,
    is_standard,
    numpy_dtype,
    producer,
)

LARGEST = {np.dtype(np.float32): 1e37, np.dtype(np.float16): 3e4}
"""Types of weights, and the largest number of each: beyond it, levels times scale might not be finite."""
_POSITIONS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Gather": (0,),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip
"""Operators with weights, and which of their inputs those are; of Gather, the table it looks into."""


@dataclass(frozen=True)
class Candidate:
    """A weight that can be stored in few bits."""

    weight: Constant
    axes: tuple[int, ...]
    """Of the output channels, or of the rows of a table."""
    readers: tuple[Node, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers."""
        dtype = numpy_dtype(self.weight.dtype)
        assert dtype is not None  # noqa: S101  (or it would be no candidate)
        return dtype

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(map(int, self.weight.shape))

    @property
    def scales(self) -> int:
        """How many scales it gets."""
        return math.prod(int(self.weight.shape[axis]) for axis in self.axes)


@dataclass(frozen=True)
class Weights:
    """What a model has, by the weight's name, in order; and (anchor, reason) of what stays."""

    found: dict[str, Candidate]
    refused: list[tuple[str, str]]


def weights_of(model: Model) -> Weights:
    """Return every weight that can be stored in few bits, whatever its size and values."""
    rewriter = Rewriter(model)
    weights = Weights({}, [])
    seen: set[int] = set()
    for graph, node in graph_nodes(model.graph):
        positions = _POSITIONS.get(node.op, ()) if is_standard(node) else ()
        for position in positions:
            tensor = node.inputs[position] if position < len(node.inputs) else None
            if tensor is None or id(tensor) in seen or not (isinstance(tensor, Constant) or _is_weight(node, position)):
                continue
            seen.add(id(tensor))
            reason = "it lies in a subgraph" if graph is not model.graph else _why_not(tensor, rewriter)
            if reason is not None:
                weights.refused.append((anchor_of(node), reason))
            elif isinstance(tensor, Constant):
                readers = tuple(consumers(tensor))
                weights.found[tensor.name] = Candidate(tensor, _axes(node, position, tensor), readers)
    return weights


def _is_weight(node: Node, position: int) -> bool:
    """Whether what is not constant there is a weight nonetheless, so that its user may ask why it stays.

    What comes out of DequantizeLinear has few bits already.
    """
    tensor = node.inputs[position]
    maker = producer(tensor)
    few = maker is not None and is_standard(maker, "DequantizeLinear")
    return node.op in ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN") and bool(tensor.name) and not few


def _why_not(tensor: object, rewriter: Rewriter) -> str | None:
    if not isinstance(tensor, Constant):
        return "its weight is computed, or given by the caller"
    if numpy_dtype(tensor.dtype) not in LARGEST:
        return "its weight is not float32 or float16"
    if rewriter.is_output(tensor):
        return "the model returns its weight"
    for reader in consumers(tensor):
        if rewriter.home(reader) is not rewriter.model.graph:
            return "a subgraph reads its weight too"
        positions = _POSITIONS.get(reader.op, ()) if is_standard(reader) else ()
        if any(read is tensor and place not in positions for place, read in enumerate(reader.inputs)):
            return f"{reader.op} at {anchor_of(reader)!r} reads its weight too, and not as one"
    return None


def _axes(node: Node, position: int, weight: Constant) -> tuple[int, ...]:
    """Return the axes, ascending, along which each index is an output channel of ``node``."""
    rank = len(weight.shape)
    return tuple(axis for axis in _channel_axes(node, position, weight, rank) if 0 <= axis < rank)


def _channel_axes(node: Node, position: int, weight: Constant, rank: int) -> tuple[int, ...]:
    if node.op in ("LSTM", "GRU", "RNN"):
        return (0, 1)
    if node.op == "ConvTranspose":
        return (0,) if _is_depthwise(node, weight) else (1,)
    if node.op == "Gemm":
        across = bool(node.attrs.get("transA")) if position == 0 else not node.attrs.get("transB")
        return (1,) if across else (0,)
    if node.op == "MatMul":
        return () if rank < 2 else (*range(rank - 2), rank - 1 if position == 1 else rank - 2)
    return (int(node.attrs.get("axis", 0)) % max(rank, 1),) if node.op == "Gather" else (0,)


def _is_depthwise(node: Node, weight: Constant) -> bool:
    """Whether each group of a ConvTranspose has one output channel: then its weights lie along the first axis."""
    return int(node.attrs.get("group", 1)) > 1 and [int(size) for size in weight.shape[1:2]] == [1]
