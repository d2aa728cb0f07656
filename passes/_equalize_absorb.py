"""Constant parts of channels move from the layer that makes them into the bias of those that read them.

Given   y = W₂·relu(x) + b₂   with x = W₁·p + b₁ and x ≥ c
Result  the same y, with  b₁ − c  and  b₂ + W₂·c        for relu(x) = relu(x − c) + c there

The range of the channel is narrower by c, and with it the step of the grid that all channels share (Nagel et al. 2019,
§4.1.3 "Absorbing high biases"; there c is three standard deviations below the mean of a BatchNormalization, here what
the samples stay above, with a margin). Where nothing lies between the layers, c is the middle of the channel's range,
and the outputs stay whatever x is.

Left alone: a channel that another operator reads or a graph returns; a layer behind that pads with zeros, which are no
constant at the borders, or has no bias (MatMul); a Clip between, which would cut elsewhere.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis.channel_peaks import Peaks
from onnxslim.errors import PassError
from onnxslim.ir import Node, Rewriter, Tensor, anchor_of, consumers, is_standard
from onnxslim.passes._equalize import Floats
from onnxslim.passes._layers import Affine, fold, input_channels, layer_of, refuses_shift

MARGIN = 0.25
"""How far below what samples show a channel may fall elsewhere, as a fraction of its range."""
LEAST = 0.05
"""Of a channel's range that a constant must save."""


class Absorb(enum.Enum):
    """Whether constants move."""

    OFF = "off"
    ON = "on"


class Absorbed(BaseModel):
    """What is taken from each output channel of one layer, known by its output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    constants: tuple[float, ...]


@dataclass(frozen=True)
class Link:
    """A layer, the tensors that hold its channels, and all that read them."""

    node: Node
    tensors: tuple[Tensor, ...]
    """The layer's output and, behind a Relu, the Relu's."""
    readers: tuple[Node, ...]
    shape: tuple[int, ...]
    """Of one value for each channel, to be broadcast against ``tensors``."""
    reason: str | None
    """Why nothing can move."""

    @property
    def anchor(self) -> str:
        """The layer's output."""
        return anchor_of(self.node)

    def constants(self, peaks: Mapping[str, Peaks]) -> Floats:
        """Return what can be taken from each channel. Shape (channels,)."""
        seen = peaks[self.tensors[0].name]
        low, high = seen.low.reshape(-1), seen.high.reshape(-1)
        linear = len(self.tensors) == 1
        found = (low + high) / 2 if linear else np.maximum(low - MARGIN * (high - low), 0.0)
        extent = np.maximum(high, 0.0) - np.minimum(low, 0.0)
        return np.where(np.abs(found) > LEAST * extent, found, 0.0)


def links(rewriter: Rewriter) -> Iterator[Link]:
    """Yield the layers of the main graph between which nothing but a Relu lies, in order."""
    for node in rewriter.model.graph.nodes:
        layer = layer_of(node)
        if layer is None or refuses_shift(layer, before=False):
            continue
        tensors = [node.outputs[0]]
        readers = consumers(tensors[0])
        if len(readers) == 1 and is_standard(readers[0], "Relu"):
            tensors.append(readers[0].outputs[0])
            readers = consumers(tensors[1])
        if not readers or any(rewriter.is_output(tensor) for tensor in tensors):
            continue
        if all(_reads(reader, tensors[-1], layer.channels, rewriter) for reader in readers):
            shape = (1, layer.channels, *(1,) * (layer.rank - 2))
            yield Link(node, tuple(tensors), tuple(readers), shape, _why_not(readers))


def _reads(node: Node, tensor: Tensor, channels: int, rewriter: Rewriter) -> bool:
    """Whether ``node`` is a layer that reads the channels of ``tensor``, and nothing else of it."""
    layer = layer_of(node)
    if layer is None or rewriter.home(node) is not rewriter.model.graph or node.attrs.get("transA"):
        return False
    alone = node.inputs[0] is tensor and all(other is not tensor for other in node.inputs[1:])
    return alone and input_channels(layer) == channels and layer.axis == 1


def _why_not(readers: list[Node]) -> str | None:
    layers = [layer for layer in map(layer_of, readers) if layer is not None]
    return next(filter(None, (refuses_shift(layer, before=True) for layer in layers)), None)


def shifted(link: Link, constants: Floats, peaks: Mapping[str, Peaks]) -> dict[str, Peaks]:
    """Return the extremes of the link's tensors when ``constants`` are taken from them."""
    off = constants.reshape(link.shape)
    own = {tensor.name: peaks[tensor.name] for tensor in link.tensors if tensor.name in peaks}
    return {name: Peaks(seen.low - off, seen.high - off) for name, seen in own.items()}


def absorb(rewriter: Rewriter, absorbed: tuple[Absorbed, ...]) -> None:
    """Move constants.

    Raises:
        PassError: the model has no such layers, or a bias does not fit its type.
    """
    known = {link.anchor: link for link in links(rewriter)} if absorbed else {}
    for one in absorbed:
        link = known.get(one.anchor)
        if link is None or link.reason is not None or link.shape[1] != len(one.constants):
            raise PassError(f"the plan moves {len(one.constants)} constants from {one.anchor!r}, which the model lacks")
        constants = np.array(one.constants)
        _fold(link.node, Affine(), Affine(None, -constants), rewriter)
        for reader in link.readers:
            _fold(reader, Affine(None, constants), Affine(), rewriter)


def _fold(node: Node, before: Affine, after: Affine, rewriter: Rewriter) -> None:
    layer = layer_of(node)
    reason = "it is no layer any more" if layer is None else fold(layer, before, after, rewriter)
    if reason is not None:
        raise PassError(f"no constant can be moved at {anchor_of(node)!r}: {reason}")
