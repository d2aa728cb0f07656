"""Topological order that disturbs as little as possible."""

from __future__ import annotations

from onnx_graphsurgeon import Graph, Node, Tensor

from onnxslim.errors import PassError
from onnxslim.ir.lookup import subgraphs_of


def sort_nodes(graph: Graph) -> list[Node]:
    """Return the nodes of ``graph`` in a valid order: theirs, each preceded by what it needs and lacks.

    Linear in nodes and edges. A node whose subgraphs capture a tensor comes after that tensor's producer.

    Raises:
        PassError: the graph has a cycle.
    """
    local = {id(node) for node in graph.nodes}
    placed: set[int] = set()
    ordered: list[Node] = []
    for root in graph.nodes:
        if all(id(n) in placed or id(n) not in local for n in _needs(root)) and id(root) not in placed:
            placed.add(id(root))  # nearly every node of nearly every graph
            ordered.append(root)
            continue
        open_nodes: set[int] = set()
        stack = [root]
        while stack:
            node = stack[-1]
            if id(node) in placed:
                stack.pop()
                continue
            missing = [n for n in _needs(node) if id(n) in local and id(n) not in placed]
            if not missing:
                placed.add(id(node))
                ordered.append(node)
                stack.pop()
                continue
            if id(node) in open_nodes and any(id(n) in open_nodes for n in missing):
                raise PassError(f"the graph has a cycle through node {node.name or node.op!r}")
            open_nodes.add(id(node))
            stack.extend(reversed(missing))
    return ordered


def _needs(node: Node) -> list[Node]:
    """Return the producers of everything ``node`` reads, through its subgraphs too."""
    read: list[Tensor] = list(node.inputs)
    stack = subgraphs_of(node)
    while stack:
        inner = stack.pop()
        read.extend(inner.outputs)
        for nested in inner.nodes:
            read.extend(nested.inputs)
            stack.extend(subgraphs_of(nested))
    return [maker for tensor in read for maker in tensor.inputs if maker is not node]
