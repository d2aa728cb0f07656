"""Which layers are stored in blocks, in which form, and why others are not."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from onnxslim.analysis.linear_layers import linear_layer, refusal
from onnxslim.errors import PassError
from onnxslim.ir import (
    Constant,
    Model,
    Node,
    anchor_of,
    array_of,
    consumers,
    graph_nodes,
    is_standard,
    numpy_dtype,
    producer,
    selects,
)
from onnxslim.passes._block_grid import GridStyle

FLOAT32 = np.dtype(np.float32)
LARGEST = 1e37
"""Weights beyond it are left: levels times scale might not be finite."""
BLOCKS = (256, 128, 64, 32, 16)
"""Those that all of onnxruntime's kernels take."""
_OPS = ("MatMul", "Gemm", "Conv", "ConvTranspose")


class Form(enum.Enum):
    """How a layer in blocks is written."""

    NBITS = "matmul-nbits"
    QDQ = "qdq"

    @property
    def bits(self) -> tuple[int, ...]:
        """How many a weight can have; standard integers of 2 bits would take opset 25."""
        return (2, 4, 8) if self is Form.NBITS else (4, 8)


class Stored(BaseModel):
    """How one layer's weight is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Form
    bits: int
    block: int
    symmetric: bool

    @model_validator(mode="after")
    def _fits(self) -> Stored:
        if self.bits not in self.form.bits:
            known = " or ".join(map(str, self.form.bits))
            raise ValueError(f"bits are {self.bits}, and form {self.form.value} has {known}")
        if self.block not in BLOCKS:
            raise ValueError(f"block is {self.block}, no power of two from {BLOCKS[-1]} to {BLOCKS[0]}")
        return self

    @property
    def style(self) -> GridStyle:
        """What its blocks look like; only onnxruntime's own operator is sure to take scales below zero."""
        signed = self.symmetric and self.form is Form.NBITS
        return GridStyle(self.bits, self.block, self.symmetric, signed)

    def fitted_to(self, width: int) -> Stored:
        """Return the same with the block, no longer, that takes the fewest bytes for rows of ``width`` weights.

        The last block of a row is filled up: 192 weights take less in blocks of 64 than of 128.
        """
        fitting = (size for size in BLOCKS if size <= self.block and (size < 2 * width or size == BLOCKS[-1]))
        candidates = [self.model_copy(update={"block": size}) for size in fitting]
        return min(candidates, key=lambda candidate: candidate.bytes_of(1, width))

    def bytes_of(self, outputs: int, width: int) -> int:
        """Return what a weight of that many outputs and inputs takes."""
        blocks = self.style.count(width)
        rows = blocks * self.block if self.form is Form.NBITS else width
        zeros = 0 if self.symmetric else outputs * -(-blocks * self.bits // 8)
        return -(-outputs * rows * self.bits // 8) + 4 * outputs * blocks + zeros


@dataclass(frozen=True)
class Wanted:
    """Which layers a user wants in blocks, and how."""

    stored: Stored
    min_size: int
    only: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass
class Choice:
    """How each layer is stored, by its anchor, in order; the layers; and (anchor, reason) of what stays."""

    stored: dict[str, Stored] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def drop_shared(self, model: Model) -> None:
        """Refuse layers whose weight would stay as it is too."""
        returned = {id(tensor) for graph in model.graphs() for tensor in graph.outputs}
        reasons = {anchor: self._why_shared(anchor, returned) for anchor in self.nodes}
        for anchor, reason in reasons.items():
            if reason is not None:
                del self.nodes[anchor], self.stored[anchor]
                self.refused.append((anchor, reason))

    def _why_shared(self, anchor: str, returned: set[int]) -> str | None:
        weight = self.nodes[anchor].inputs[1]
        if id(weight) in returned:
            return "the model returns its weight"
        for reader in consumers(weight):
            other = anchor_of(reader)
            if self.nodes.get(other) is not reader:
                return f"{reader.op} at {other!r} reads its weight too, which would stay beside its blocks"
        return None


def choose(model: Model, wanted: Wanted) -> Choice:
    """Return what is stored in blocks."""
    choice = Choice()
    for graph, node in graph_nodes(model.graph):
        if not is_standard(node, *_OPS):
            continue
        reason = "it lies in a subgraph" if graph is not model.graph else None
        if reason is None and not selects(node, wanted.only, wanted.exclude):
            reason = "excluded by the options"
        reason = reason or _why_not(node, wanted.stored) or _why_not_smaller(node, wanted)
        if reason is None:
            choice.nodes[anchor_of(node)] = node
            choice.stored[anchor_of(node)] = wanted.stored.fitted_to(linear_layer(node).width)
        else:
            choice.refused.append((anchor_of(node), reason))
    choice.drop_shared(model)
    return choice


def planned(model: Model, stored: Mapping[str, Stored]) -> dict[str, Node]:
    """Return the layers that a plan names, by anchor, in order.

    Raises:
        PassError: the model has no such layer, or it cannot be stored so.
    """
    nodes = {anchor_of(node): node for node in model.graph.nodes if is_standard(node, *_OPS)}
    for anchor, how in stored.items():
        reason = _why_not(nodes[anchor], how) if anchor in nodes else "there is no such layer"
        if reason is not None:
            raise PassError(f"the plan does not fit the model: {anchor!r} cannot be stored in blocks: {reason}")
    return {anchor: node for anchor, node in nodes.items() if anchor in stored}


def _why_not(node: Node, stored: Stored) -> str | None:
    """Return why the weight of ``node`` cannot be stored so, None when it can."""
    if node.op.startswith("Conv"):
        return f"{node.op} has no kernel for blocks: they would become floats in every inference (palettize is for it)"
    weight = node.inputs[1]
    if not isinstance(weight, Constant):
        return "its weight is computed, or given by the caller"
    if isinstance(node.inputs[0], Constant):
        return "its input is constant"
    if numpy_dtype(weight.dtype) != FLOAT32:
        return f"its weight is {numpy_dtype(weight.dtype)}, not float32"
    if len(weight.shape) != 2:
        return f"its weight has {len(weight.shape)} dimensions, not 2"
    if _is_integer(node):
        return "it is computed in integers already"
    return refusal(node) or _why_not_values(node) or _why_not_one_block(node, stored)


def _is_integer(node: Node) -> bool:
    """Whether onnxruntime makes an integer kernel of ``node`` and the pairs around it."""
    maker = producer(node.inputs[0])
    before = maker is not None and maker.op == "DequantizeLinear"
    return before or any(reader.op == "QuantizeLinear" for reader in consumers(node.outputs[0]))


def _why_not_values(node: Node) -> str | None:
    factors = (float(node.attrs.get(name, 1.0)) if node.op == "Gemm" else 1.0 for name in ("alpha", "beta"))
    for what, tensor, factor in zip(("weight", "bias"), node.inputs[1:], factors, strict=False):
        values = array_of(tensor)
        if values is None:
            continue
        if not np.isfinite(values).all():
            return f"its {what} has NaN or Inf"
        if float(np.abs(values).max(initial=0)) * abs(factor) > LARGEST:
            return f"its {what} has numbers beyond {LARGEST:g}"
    return None


def _why_not_one_block(node: Node, stored: Stored) -> str | None:
    layer = linear_layer(node)
    single = layer.channels * stored.style.count(layer.width) == 1 and stored.form is Form.QDQ
    return "onnxruntime takes the scale of a single block for one of all, and refuses the block" if single else None


def _why_not_smaller(node: Node, wanted: Wanted) -> str | None:
    """Return why storing the weight in blocks is not worth it, None when it is."""
    layer = linear_layer(node)
    elements = layer.width * layer.channels
    if elements < wanted.min_size:
        return f"its weight has {elements} elements, fewer than min-size ({wanted.min_size})"
    taken = wanted.stored.fitted_to(layer.width).bytes_of(layer.channels, layer.width)
    return "its weight would not be smaller" if taken >= FLOAT32.itemsize * elements else None
