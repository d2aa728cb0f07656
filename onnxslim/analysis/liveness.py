"""Bytes of activations that are held while each node runs, and which tensors they are where it is most.

Told from the graph alone, by the rules of onnxruntime's planner (core/framework/allocation_planner.cc):

1. A tensor is held from the node that writes it to the last one that reads it.
2. Inputs of the model are the caller's and held all along; its outputs are held to the end.
3. Constants, and what is computed of constants alone, are no activations. But weights that are stored in few bits and
   read by a float kernel are expanded anew in every inference, and count while they are read.
4. Reshape and its like write nothing: they are another view. Activations write over an input that nobody reads any
   more, which is also what fusing them with the layer before comes to; so does what becomes part of a convolution,
   and padding before one is no tensor.
5. Within a group of integers (:mod:`integer_groups`) there are no floats: what is held is the integers. A layer that
   computes in float between pairs holds floats, whatever the file says around it.

Not counted: workspace of kernels (im2col, packing, accumulators), which is returned within the node; copies that change
layouts on x86; what the tensors of subgraphs hold; fragmentation, and what an arena keeps. Counted although onnxruntime
may fuse it away: chains that become one operator, such as GELU or a normalization.

A session holds as much, to the byte, in networks of one path and in most of those with residual blocks. Where there are
many branches it can be more: onnxruntime takes them in an order of its own, and keeps a buffer that it means to use
again for a tensor of the same shape. In the networks of tools/gallery that is up to 1.7 times as much, mostly none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.integer_groups import DEQUANTIZE, integer_groups, is_stored, quantized_type
from onnxslim.ir import (
    Constant,
    Graph,
    Node,
    Tensor,
    anchor_of,
    graph_nodes,
    is_standard,
    numpy_dtype,
    producer,
    subgraphs_of,
)

Shapes = Mapping[str, tuple[int, ...]]

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
_IN_PLACE = frozenset({
    "Clip", "Elu", "HardSigmoid", "LeakyRelu", "LogSoftmax", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus",
    "Softsign", "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Operators whose kernels write over their input; a test asks onnxruntime."""
_ABSORBED = frozenset({"Add", "BatchNormalization", "Mul"})
"""Operators that become part of the convolution before them, where all else that they read is constant."""
_GATES = frozenset({"Sigmoid"})
"""Operators that become one with a Mul of their own input and output."""
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_IN_STEPS = frozenset({"HardSwish"})
"""Operators without a kernel, which onnxruntime spells out: with a tensor of their own size between the steps."""
_RANDOM = frozenset({"RandomNormal", "RandomUniform"})


@dataclass(frozen=True)
class HeldTensor:
    """A tensor that is held, with its bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Peak:
    """Where most is held: the node, known by its first output, and what is held there, the largest first."""

    anchor: str
    bytes: int
    tensors: tuple[HeldTensor, ...]


@dataclass(frozen=True)
class Liveness:
    """What is held along the network."""

    live: Mapping[int, int | None]
    """Bytes by id of each node of the main graph; None while a tensor of unknown size is held."""
    peak: Peak | None
    """None where any is unknown."""


def liveness(graph: Graph, shapes: Shapes) -> Liveness:
    """Return what is held while each node of the main graph runs, in the order of the file."""
    live: dict[int, int | None] = {}
    best: Node | None = None
    for node, total in _Walk(graph, shapes).steps():
        live[id(node)] = total
        if best is None or (total or 0) > (live[id(best)] or 0):
            best = node
    if best is None or None in live.values():
        return Liveness(live, None)
    walk = _Walk(graph, shapes)
    total = next(total for node, total in walk.steps() if node is best)
    return Liveness(live, Peak(anchor_of(best), total or 0, walk.tensors()))


class _Walk:
    """One walk along the nodes. Tensors are keys by id; several are one buffer where one is a view of another."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph = graph
        self.shapes = shapes
        self.groups = integer_groups(graph)
        self.folded = _folded(graph)
        self.reads = {id(node): list(self._reads(node)) for node in graph.nodes}
        self.readers = Counter(id(tensor) for read in self.reads.values() for tensor in read)
        self.ends = {id(tensor) for tensor in graph.outputs}
        self.buffer: dict[int, int] = {}
        self.left: Counter[int] = Counter()
        """Reads to come, by buffer; what the caller owns is never done."""
        self.held: dict[int, tuple[str, int | None]] = {}
        self.known = self.unknown = 0
        """Bytes of what is held, and how many tensors of unknown size."""

    def steps(self) -> Iterator[tuple[Node, int | None]]:
        """Yield each node with the bytes that are held while it runs."""
        for tensor in self.graph.inputs:
            self._hold(tensor, kept=True)
        for node in self.graph.nodes:
            written = list(self._writes(node))
            for tensor in written:
                self._place(node, tensor)
            yield node, self._total(node)
            self._release(node, written)

    def tensors(self) -> tuple[HeldTensor, ...]:
        """Return what is held now, the largest first."""
        held = sorted((HeldTensor(name, size or 0) for name, size in self.held.values()), key=lambda one: -one.bytes)
        return tuple(one for one in held if one.bytes)

    def _total(self, node: Node) -> int | None:
        between = [self._bytes(tensor) for tensor in node.outputs if is_standard(node) and node.op in _IN_STEPS]
        return None if self.unknown or None in between else self.known + sum(size or 0 for size in between)

    # ---- what a node really touches ----------------------------------------------------------------------

    def _reads(self, node: Node) -> Iterator[Tensor]:
        """Yield each activation that ``node`` reads, once."""
        if id(node) in self.groups.absorbed or (node.op == DEQUANTIZE and not self._is_expanded(node)):
            return
        inner = [tensor for graph in subgraphs_of(node) for _, n in graph_nodes(graph) for tensor in n.inputs]
        seen: set[int] = set()
        for tensor in (*node.inputs, *inner):
            source = self.groups.source(tensor, node)
            stored = isinstance(source, Constant) or source.is_empty() or id(source) in self.folded
            if not stored and id(source) not in seen:
                seen.add(id(source))
                yield source

    def _writes(self, node: Node) -> Iterator[Tensor]:
        if id(node) in self.groups.written:
            yield from self.groups.written[id(node)]
        elif _is_gate(node):
            return
        elif id(node) not in self.groups.absorbed and not (node.op == DEQUANTIZE and not self._is_expanded(node)):
            yield from (tensor for tensor in node.outputs if not tensor.is_empty() and id(tensor) not in self.folded)

    def _is_expanded(self, node: Node) -> bool:
        """Whether the floats of a DequantizeLinear are ever held: where a float kernel, or the caller, reads them."""
        made = node.outputs[0]
        if any(made is tensor for tensor in self.graph.outputs):
            return True
        if is_stored(node) and node.attrs.get("block_size") and all(one.op == "MatMul" for one in made.outputs):
            return False  # becomes MatMulNBits
        return any(id(reader) not in self.groups.written for reader in made.outputs)

    # ---- buffers -----------------------------------------------------------------------------------------

    def _place(self, node: Node, tensor: Tensor) -> None:
        """Give an output a buffer: one that a tensor before it has, or its own."""
        reads = [one for one in self.reads[id(node)] if id(one) in self.buffer]
        own = id(tensor) in self.ends
        if is_standard(node) and reads and not own:
            if node.op in _VIEWS or self._is_padding(node):
                return self._share(tensor, reads[0])
            before = next((one for one in reads if self._is_done(node, one, tensor)), None)
            if before is not None:
                return self._share(tensor, before)
        return self._hold(tensor, kept=own)

    def _is_done(self, node: Node, before: Tensor, after: Tensor) -> bool:
        """Whether ``node``, the last to read ``before``, may write ``after`` over it."""
        if id(node) in self.groups.written or self.left[self.buffer[id(before)]] != 1:
            return False
        if node.op not in _IN_PLACE and not (node.op in _ABSORBED and self._is_behind_conv(node, before)):
            return False
        size = self._bytes(after)
        return size is not None and size == self._bytes(before)

    def _is_padding(self, node: Node) -> bool:
        """Whether ``node`` pads with constants what a Conv alone reads, and so becomes part of it."""
        if node.op != "Pad" or node.attrs.get("mode", "constant") != "constant":
            return False
        readers = node.outputs[0].outputs
        return len(readers) == 1 and readers[0].op == "Conv" and len(self.reads[id(node)]) == 1

    def _is_behind_conv(self, node: Node, before: Tensor) -> bool:
        maker = producer(before)
        return maker is not None and maker.op in _CONVOLUTIONS and len(self.reads[id(node)]) == 1

    def _hold(self, tensor: Tensor, *, kept: bool) -> None:
        key = id(tensor)
        self.buffer[key] = key
        size = self._bytes(tensor)
        self.held[key] = tensor.name, size
        self.known, self.unknown = self.known + (size or 0), self.unknown + (size is None)
        self.left[key] = self.readers[key] + kept

    def _share(self, tensor: Tensor, before: Tensor) -> None:
        key = self.buffer[id(tensor)] = self.buffer[id(before)]
        self.left[key] += self.readers[id(tensor)]

    def _release(self, node: Node, written: list[Tensor]) -> None:
        touched = [self.buffer[id(tensor)] for tensor in self.reads[id(node)] if id(tensor) in self.buffer]
        self.left.subtract(touched)
        for key in {*touched, *(self.buffer[id(tensor)] for tensor in written)}:
            if self.left[key] <= 0 and key in self.held:
                _, size = self.held.pop(key)
                self.known, self.unknown = self.known - (size or 0), self.unknown - (size is None)

    def _bytes(self, tensor: Tensor) -> int | None:
        shape = self.shapes.get(tensor.name)
        dtype = numpy_dtype(tensor.dtype) or quantized_type(tensor) or np.dtype(np.float32)
        return None if shape is None else math.prod(shape) * max(dtype.itemsize, 1)


def _is_gate(node: Node) -> bool:
    """Whether ``node`` is the first half of x * sigmoid(x)."""
    readers = node.outputs[0].outputs if node.op in _GATES else []
    return len(readers) == 1 and readers[0].op == "Mul" and any(one is node.inputs[0] for one in readers[0].inputs)


def _folded(graph: Graph) -> set[int]:
    """Return the ids of tensors that are computed of constants alone, once, when the model is loaded."""
    found: set[int] = set()
    for node in graph.nodes:
        if is_stored(node) or node.op in _RANDOM or any(True for _ in subgraphs_of(node)):
            continue
        if all(isinstance(one, Constant) or one.is_empty() or id(one) in found for one in node.inputs):
            found.update(id(tensor) for tensor in node.outputs)
    return found
