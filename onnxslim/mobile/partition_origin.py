"""Which nodes of a model as given a node of the graph stands for that onnxruntime made of it.

A node of onnxruntime's graph stands for what lies, in the model as given, between its outputs and its inputs; tensors
keep their names. A node that lies nowhere was inserted; one that is found nowhere is gone: folded, fused or removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from onnxslim.ir import Constant, Model, Node, Tensor, graph_nodes, subgraphs_of
from onnxslim.mobile.partition_units import DEQUANTIZE


def origins(given: Model, made: Model) -> dict[int, list[Node]]:
    """Return the nodes of ``given`` that each node of ``made`` stands for, by its id, the nearest to its output first.

    What is folded before anything runs stands for nothing.
    """
    if given is made:
        return {id(node): [node] for _, node in graph_nodes(given.graph)}
    nodes = [node for _, node in graph_nodes(given.graph)]
    makers = {tensor.name: node for node in nodes for tensor in node.outputs if tensor.name}
    depends = _running(given, nodes)
    running = {name: node for name, node in makers.items() if id(node) in depends}
    stored = {tuple(tensor.name for tensor in node.inputs): node for node in nodes if node.op == DEQUANTIZE}
    ours = [node for _, node in graph_nodes(made.graph)]
    stops = {tensor.name for node in ours for tensor in node.outputs}
    found: dict[int, list[Node]] = {}
    for node in ours:
        lies = _between(node, makers, running, stops)
        twin = stored.get(tuple(tensor.name for tensor in node.inputs)) if node.op == DEQUANTIZE else None
        found[id(node)] = lies or ([twin] if twin is not None else [])
    return found


def _running(given: Model, nodes: Sequence[Node]) -> set[int]:
    """Return, by id, the nodes that depend on the model's inputs: all others are folded before anything runs."""
    fed = {id(tensor) for graph in given.graphs() for tensor in graph.inputs}
    found: set[int] = set()
    for node in nodes:
        if any(id(tensor) in fed for tensor in node.inputs) or subgraphs_of(node):
            found.add(id(node))
            fed.update(id(tensor) for tensor in node.outputs)
    return found


def _between(node: Node, makers: Mapping[str, Node], running: Mapping[str, Node], stops: set[str]) -> list[Node]:
    """Return what lies between a node's outputs, whose maker counts in any case, and its inputs."""
    starts = {tensor.name for tensor in node.inputs} | stops
    found: dict[int, Node] = {}
    stack: list[str] = []
    for tensor in node.outputs:
        maker = makers.get(tensor.name) if tensor.name else None
        if maker is not None and id(maker) not in found:
            found[id(maker)] = maker
            stack += [one.name for one in _needed(maker, node)]
    while stack:
        name = stack.pop()
        maker = running.get(name)
        if maker is None or id(maker) in found or name in starts:
            continue
        found[id(maker)] = maker
        stack += [one.name for one in _needed(maker, node)]
    return list(found.values())


def _needed(given: Node, made: Node) -> list[Tensor]:
    """Return the inputs that are still computed: what the same operator now has as a constant was folded."""
    if given.op != made.op or len(given.inputs) != len(made.inputs):
        return list(given.inputs)
    return [ours for ours, theirs in zip(given.inputs, made.inputs, strict=True) if not isinstance(theirs, Constant)]


def stand_ins(given: Model, made: Model) -> tuple[dict[int, list[Node]], list[Node]]:
    """Return, by id of each node of ``given``, the nodes that stand for it; and the nodes that stand for none."""
    for_each: dict[int, list[Node]] = defaultdict(list)
    inserted = []
    found = origins(given, made)
    for _, node in graph_nodes(made.graph):
        for original in found[id(node)]:
            for_each[id(original)].append(node)
        if not found[id(node)]:
            inserted.append(node)
    return for_each, inserted
