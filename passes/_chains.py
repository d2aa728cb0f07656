"""Chains of affine maps right before and right after a linear layer, folded into its weights in one go.

One fold for the whole chain, because each fold rounds the weights: rounding them three times, once for every operation
of BatchNormalization → Mul → Add, was measured to move a detector's outputs three times as far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxslim.ir import Node, Rewriter, Tensor, dims_of, only_consumer, producer
from onnxslim.passes._layers import Affine, Layer, fold, input_channels, refuses_shift

Refusals = list[tuple[str, str]]
"""Anchors and reasons."""


@dataclass(frozen=True)
class Channels:
    """Where a tensor has its channels: its rank, the axis, and how many there are."""

    rank: int
    axis: int
    count: int


@dataclass(frozen=True)
class Kind:
    """Operations that a pass reads as affine maps."""

    operand: Callable[[Node], Tensor | None]
    """What the operation maps; None where it is no such operation."""
    affine: Callable[[Node, Channels], Affine | str]
    """The map per channel, or why it is none."""


def has_neighbours(node: Node, kind: Kind) -> bool:
    """Whether there is anything beside ``node`` that ``kind`` reads: a cheap question, asked first."""
    above = producer(node.inputs[0])
    below = node.outputs[0].outputs
    return (above is not None and kind.operand(above) is not None) or any(kind.operand(n) is not None for n in below)


def fold_neighbours(layer: Layer, kind: Kind, rewriter: Rewriter) -> Refusals:
    """Fold what ``kind`` can read before and after ``layer`` into it; return what stays, and why."""
    before, above, refusals = _walk_up(layer, kind, rewriter)
    after, below, more = _walk_down(layer, kind, rewriter)
    refusals += more
    if not above and not below:
        return refusals
    reason = fold(layer, before, after, rewriter)
    if reason is not None:
        return refusals + [(node.outputs[0].name, reason) for node in (*above, *below)]
    if above:
        rewriter.set_input(layer.node, 0, _operand(above[-1], kind))
    if below:
        rewriter.replace(below[-1].outputs[0], layer.node.outputs[0])
    for node in (*above, *reversed(below)):
        rewriter.remove(node)
    return refusals


def _operand(node: Node, kind: Kind) -> Tensor:
    operand = kind.operand(node)
    assert operand is not None  # noqa: S101  (walking found it)
    return operand


def _walk_up(layer: Layer, kind: Kind, rewriter: Rewriter) -> tuple[Affine, list[Node], Refusals]:
    """Return the map from the chain's first operand to the layer's input, and the chain, nearest node first."""
    total = Affine()
    nodes: list[Node] = []
    channels = Channels(layer.rank, layer.axis, input_channels(layer))
    tensor = layer.node.inputs[0]
    while True:
        node = producer(tensor)
        operand = None if node is None else kind.operand(node)
        if node is None or operand is None:
            return total, nodes, []
        step = _step_up(node, operand, layer, channels, kind, rewriter)
        if isinstance(step, str):
            return total, nodes, [(node.outputs[0].name, step)]
        total = step.then(total)
        nodes.append(node)
        tensor = operand


def _step_up(
    node: Node, operand: Tensor, layer: Layer, channels: Channels, kind: Kind, rewriter: Rewriter
) -> Affine | str:
    dims = dims_of(operand)
    if not rewriter.is_private(node.outputs[0]):
        return "its result is used elsewhere too"
    if layer.node.attrs.get("transA"):
        return "the Gemm reads its input transposed"
    if dims is None or len(dims) != channels.rank or dims[channels.axis] != channels.count:
        return "its operand is not known to have the channels that the layer reads"
    affine = kind.affine(node, channels)
    if not isinstance(affine, str) and affine.shift is not None and affine.shift.any():
        return refuses_shift(layer, before=True) or affine
    return affine


def _walk_down(layer: Layer, kind: Kind, rewriter: Rewriter) -> tuple[Affine, list[Node], Refusals]:
    """Return the map from the layer's output to the chain's last result, and the chain, nearest node first."""
    total = Affine()
    nodes: list[Node] = []
    channels = Channels(layer.rank, layer.axis, layer.channels)
    tensor = layer.node.outputs[0]
    while True:
        readers = {id(node): node for node in tensor.outputs if kind.operand(node) is tensor}
        node = only_consumer(tensor)
        if node is None or not readers or not rewriter.is_private(tensor):
            reason = "the layer's output is used before this operation too"
            return total, nodes, [(reader.outputs[0].name, reason) for reader in readers.values()]
        affine = kind.affine(node, channels)
        if not isinstance(affine, str) and affine.shift is not None:
            affine = refuses_shift(layer, before=False) or affine
        if isinstance(affine, str):
            return total, nodes, [(node.outputs[0].name, affine)]
        total = total.then(affine)
        nodes.append(node)
        tensor = node.outputs[0]
