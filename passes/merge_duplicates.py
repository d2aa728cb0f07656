"""merge-duplicates: the same constant is stored once, and the same thing is computed once.

Given   two constants of equal type, shape and bytes → Result: one, read by all
Given   two nodes with the same operator, attributes and inputs → Result: one, whose outputs all read. The operands of
Add, Mul and other commutative operators may be the other way round.

Left alone: random operators and a Dropout that trains (each draws anew), operators outside the standard (nothing is
known of them), nodes with subgraphs, constants that subgraphs hold, strings, and twins that are both returned by name.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Graph, Node, Rewriter, array_of, constant_bytes
from onnxslim.passes._determinism import is_deterministic
from onnxslim.pipeline import Effect, Pass, PassContext

_COMMUTATIVE = {"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}

SMALL = 4096
"""Constants up to this many bytes are compared by their bytes; larger ones by a few elements, then by a digest."""


@dataclass(frozen=True)
class MergeDuplicates(Pass):
    """Store equal constants once and compute equal nodes once."""

    name = "merge-duplicates"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Constants first, so that nodes that read equal constants become equal."""
        _merge_constants(rewriter.model.graph, rewriter)
        for graph in list(rewriter.model.graphs()):
            _merge_nodes(graph, rewriter)


def _merge_constants(graph: Graph, rewriter: Rewriter) -> None:
    """Group by type and shape first: weights that stand alone in their group are not even read."""
    groups: dict[tuple[str, tuple[int, ...]], list[Constant]] = {}
    for constant in _constants(graph):
        groups.setdefault((str(constant.dtype), tuple(constant.shape)), []).append(constant)
    for group in groups.values():
        first: dict[bytes, Constant] = {}
        for constant in _alike(group):
            kept = first.setdefault(_digest(constant), constant)
            if kept is not constant and not rewriter.is_output(constant):
                rewriter.replace(constant, kept)


def _alike(group: list[Constant]) -> list[Constant]:
    """Return the constants of equal type and shape that some other one may equal."""
    if len(group) < 2 or constant_bytes(group[0]) <= SMALL:
        return group if len(group) > 1 else []
    edges = [_edges(constant) for constant in group]
    count = Counter(edges)
    return [constant for constant, edge in zip(group, edges, strict=True) if count[edge] > 1]


def _constants(graph: Graph) -> Iterator[Constant]:
    """Yield each constant that a node of ``graph`` itself reads, once."""
    seen: set[int] = set()
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, Constant) and id(tensor) not in seen and tensor.dtype != object:
                seen.add(id(tensor))
                yield tensor


def _edges(constant: Constant) -> bytes:
    """Return the first and last elements, which tell most constants apart without reading the rest."""
    flat = _values(constant).reshape(-1)
    return flat[:8].tobytes() + flat[-8:].tobytes()


def _values(constant: Constant) -> npt.NDArray[Any]:
    """Return the values, which are not kept in memory for having been compared."""
    values = array_of(constant)
    assert values is not None  # noqa: S101  (it is a constant)
    return values


def _digest(constant: Constant) -> bytes:
    data = np.ascontiguousarray(_values(constant)).reshape(-1).view(np.uint8).data
    return bytes(data) if len(data) <= SMALL else hashlib.blake2b(data, digest_size=16).digest()


def _merge_nodes(graph: Graph, rewriter: Rewriter) -> None:
    first: dict[tuple[Any, ...], Node] = {}
    for node in list(graph.nodes):
        key = _key(node) if rewriter.alive(node) else None
        if key is None:
            continue
        kept = first.setdefault(key, node)
        if kept is not node and _replaceable(kept, node, rewriter):
            for mine, theirs in zip(list(node.outputs), list(kept.outputs), strict=True):
                rewriter.replace(mine, theirs)
            rewriter.remove(node)


def _replaceable(kept: Node, node: Node, rewriter: Rewriter) -> bool:
    """Whether no pair of outputs has two names that graphs return."""
    return not any(
        rewriter.is_output(a) and rewriter.is_output(b) for a, b in zip(kept.outputs, node.outputs, strict=True)
    )


def _key(node: Node) -> tuple[Any, ...] | None:
    """Return what makes two nodes compute the same, None for nodes that may never be merged."""
    if not node.inputs or not is_deterministic(node):
        return None
    attrs = []
    for name, value in sorted(node.attrs.items()):
        if isinstance(value, Constant) and value.dtype != object:
            attrs.append((name, f"{value.dtype}{value.shape}{_digest(value).hex()}"))
        elif isinstance(value, (int, float, str, list)):
            attrs.append((name, repr(value)))
        else:
            return None  # something rare
    inputs = [id(tensor) if tensor.name else 0 for tensor in node.inputs]
    if node.op in _COMMUTATIVE:
        inputs.sort()
    return node.op, tuple(attrs), tuple(inputs), tuple(bool(tensor.name) for tensor in node.outputs)
