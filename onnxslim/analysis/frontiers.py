"""Models cut down to what leads to some tensors, and the places where a model can be cut in two."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from onnxslim.analysis.shapes import infer_shapes
from onnxslim.errors import PassError
from onnxslim.ir import Constant, Model, Node, Tensor, Variable, numpy_dtype

Array = npt.NDArray[Any]
Values = dict[str, Array]


@dataclass(frozen=True)
class Frontier:
    """Tensors from which everything after a place in the model can be computed, for all samples."""

    names: tuple[str, ...]
    digest: bytes
    """Of everything that leads to them."""
    batches: list[Values] = field(default_factory=list, compare=False)


def part_of(model: Model, names: Sequence[str], stops: Values) -> Model:
    """Return a copy of ``model`` cut down to what leads to tensors ``names``, which are its outputs.

    Args:
        stops: computed tensors that become inputs, with an example each: the first axis stays free.

    Raises:
        PassError: the model has no tensor of one of the names.
    """
    part = model.copy()
    graph = part.graph
    made = {tensor.name: (node, tensor) for node in graph.nodes for tensor in node.outputs if tensor.name}
    missing = next((name for name in names if name not in made), None)
    if missing is not None:
        raise PassError(f"no node of the model computes {missing!r}")
    needed, read = _ancestors(names, made, stops)
    outputs = [made[name][1] for name in names]
    starts = [made[name][1] for name in stops if name in read and name in made]  # inputs are inputs already
    dropped = [node for node in graph.nodes if id(node) not in needed]
    graph.nodes = [node for node in graph.nodes if id(node) in needed]
    for node in dropped:
        node.inputs.clear()
        node.outputs.clear()
    for tensor in starts:
        example = stops[tensor.name]
        tensor.dtype, tensor.shape = example.dtype, [None, *example.shape[1:]]
    free = {spec.name for spec in part.inputs}
    graph.inputs = [t for t in graph.inputs if t.name in read or t.name not in free] + starts
    graph.outputs = outputs
    return part


def _ancestors(
    names: Sequence[str], made: dict[str, tuple[Node, Tensor]], stops: Iterable[str]
) -> tuple[set[int], set[str]]:
    """Return the nodes, by identity, that lead to ``names``, and the names of all tensors that they read."""
    needed: set[int] = set()
    read: set[str] = set()
    stopped = set(stops)
    stack = [made[name][0] for name in names]
    while stack:
        node = stack.pop()
        if id(node) in needed:
            continue
        needed.add(id(node))
        for name in _reads(node):
            read.add(name)
            if name in made and name not in stopped:
                stack.append(made[name][0])
    return needed, read


def _reads(node: Node) -> list[str]:
    """Return the names of what ``node`` and its subgraphs read."""
    tensors = list(node.inputs)
    for graph in node.subgraphs(recursive=True) if node.attrs else ():
        tensors += [*graph.outputs, *(tensor for inner in graph.nodes for tensor in inner.inputs)]
    return [tensor.name for tensor in tensors if tensor.name and not isinstance(tensor, Constant)]


# ---- frontiers -------------------------------------------------------------------------------------------------------


def frontier_before(model: Model, position: int, shapes: dict[str, tuple[int, ...]], room: int) -> tuple[str, ...]:
    """Return the floating-point tensors that cross from before some node to it and after it.

    That node is the one at ``position``, or the nearest before it where what crosses takes ``room`` bytes at most for
    one sample. Other tensors that cross, such as shapes, are left to be computed again; so are constants' offspring.

    Args:
        shapes: of all tensors, for one sample.

    Returns:
        Names; none where nothing fits.
    """
    known = model.copy()
    infer_shapes(known)
    spans = _spans(known, shapes)
    for place in range(position, 0, -1):
        crossing = {name: size for name, (born, last, size) in spans.items() if born < place <= last}
        if sum(crossing.values()) <= room:
            return tuple(crossing)
    return ()


def _spans(model: Model, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, int, int]]:
    """Return where each floating-point tensor is made (−1: an input) and last read, and its bytes."""
    spans: dict[str, tuple[int, int, int]] = {}
    inputs = [(-1, tensor) for tensor in model.graph.inputs]
    for born, tensor in (*inputs, *((i, t) for i, node in enumerate(model.graph.nodes) for t in node.outputs)):
        dtype = numpy_dtype(tensor.dtype) if isinstance(tensor, Variable) else None
        shape = shapes.get(tensor.name)
        if dtype is not None and dtype.kind == "f" and shape:
            spans[tensor.name] = (born, -1, dtype.itemsize * math.prod(shape))
    for index, node in enumerate(model.graph.nodes):
        for name in _reads(node):
            if name in spans:
                born, _, size = spans[name]
                spans[name] = (born, index, size)
    return spans


def is_current(model: Model, frontier: Frontier) -> bool:
    """Whether what leads to ``frontier`` is in ``model`` what it was when the frontier was set."""
    made = {tensor.name for node in model.graph.nodes for tensor in node.outputs}
    made.update(spec.name for spec in model.inputs)
    return made.issuperset(frontier.names) and digest_of(model, frontier.names) == frontier.digest


def digest_of(model: Model, names: Sequence[str]) -> bytes:
    """Return a digest of everything that leads to tensors ``names``."""
    made = {tensor.name: (node, tensor) for node in model.graph.nodes for tensor in node.outputs if tensor.name}
    needed, _ = _ancestors([name for name in names if name in made], made, ())
    part = model.extract([node for node in model.graph.nodes if id(node) in needed], names)
    return hashlib.blake2b(part.SerializeToString(deterministic=True)).digest()
