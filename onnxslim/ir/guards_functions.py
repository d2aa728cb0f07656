"""Local functions: no recursion, and a bounded size once every call is replaced by its body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from onnxslim.ir.guards_tensors import Fault

MOST_INLINED = 200_000
"""Nodes that local functions may become: ten that call the next ten times each are ten thousand million."""

FunctionKey = tuple[str, str, str]
"""Domain, name and overload."""


def check_inlined(proto: onnx.ModelProto) -> None:
    """Bound what local functions become when each call is replaced by its body.

    Raises:
        Fault: they call each other in a circle, or become more than :data:`MOST_INLINED` nodes.
    """
    if not proto.functions:
        return
    bodies = {(f.domain, f.name, f.overload): list(_all_nodes(f.node)) for f in proto.functions}
    sizes: dict[FunctionKey, int] = {}
    for key in bodies:
        _measure(key, bodies, sizes)
    total = sum(sizes.get(_called(node), 1) for node in _all_nodes(proto.graph.node))
    if total > MOST_INLINED:
        raise Fault(f"its local functions become {total} nodes when they are inlined, more than {MOST_INLINED}")


def _measure(
    start: FunctionKey, bodies: dict[FunctionKey, list[onnx.NodeProto]], sizes: dict[FunctionKey, int]
) -> None:
    """Find the inlined size of ``start`` and of every function it calls."""
    open_calls: dict[FunctionKey, None] = {}
    stack = [(start, False)]
    while stack:
        key, ready = stack.pop()
        if ready:
            del open_calls[key]
            sizes[key] = sum(sizes.get(_called(node), 1) for node in bodies[key])
        elif key in open_calls:
            chain = " -> ".join(name for _, name, _ in (*open_calls, key))
            raise Fault(f"local functions call each other in a circle: {chain[-200:]}")
        elif key not in sizes:
            open_calls[key] = None
            stack.append((key, True))
            calls = dict.fromkeys(_called(node) for node in bodies[key])
            stack.extend((call, False) for call in calls if call in bodies)


def _called(node: onnx.NodeProto) -> FunctionKey:
    return node.domain, node.op_type, node.overload


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs."""
    stack = [iter(nodes)]
    while stack:
        for node in stack.pop():
            yield node
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    stack.append(iter(attribute.g.node))
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    stack.extend(iter(graph.node) for graph in attribute.graphs)
