"""Partitions: what runs in one go, where they begin and end, and what must hold of them whatever the graph."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from targets.texts import network, rows

from onnxslim.ir import Graph, Model, Node, anchor_of
from onnxslim.mobile.partition_units import Unit, split_units
from onnxslim.mobile.partitioning import LONELY, Partition, partition
from onnxslim.targets.pairs import GROUPS


def split(text: str, refused: Collection[str], lonely: Collection[str] = ()) -> list[Partition]:
    """Return the partitions of a model in which everything runs but what is named."""
    return parts(network(text), refused, lonely)


def parts(model: Model, refused: Collection[str], lonely: Collection[str] = ()) -> list[Partition]:
    units = split_units(model, GROUPS)
    taken = [id(unit.node) for unit in units if anchor_of(unit.node) not in refused]
    return partition(model.graph, units, taken, lonely)


def told(found: list[Partition]) -> list[str]:
    return [" ".join(anchor_of(node) for node in one.nodes) for one in found]


CHAIN = "(float[8] x) => (float[8] d) { a = Relu(x) b = Sigmoid(a) c = Relu(b) d = Tanh(c) }"
FORK = "(float[8] x) => (float[8] d) { a = Relu(x) b = Sigmoid(a) c = Tanh(a) d = Add(b, c) }"
TWO = """(float[8] x) => (float[8] c, float[8] f)
    { a = Relu(x) b = Sigmoid(a) c = Relu(b) d = Tanh(x) e = Erf(d) f = Relu(e) }"""
PARTS = [
    ("nothing", CHAIN, "abcd", []),
    ("everything", CHAIN, "", ["a b c d"]),
    ("the beginning", CHAIN, "d", ["a b c"]),
    ("the end", CHAIN, "a", ["b c d"]),
    ("two islands", CHAIN, "b", ["a", "c d"]),
    ("around one branch", FORK, "c", ["a b", "d"]),
    ("both branches", FORK, "a", ["b c d"]),
    ("two networks wait together", TWO, "be", ["a d", "c f"]),
    ("one of two networks", TWO, "b", ["a d e f", "c"]),
]


@pytest.mark.parametrize(("text", "refused", "expected"), rows(PARTS))
def test_partitions_by_hand(text: str, refused: str, expected: list[str]) -> None:
    found = told(split(text, refused))
    assert [" ".join(sorted(one.split())) for one in found] == expected


def test_what_crosses() -> None:
    text = """(float[1,8] x, float[8,4] w) => (float[1,4] e, float[1,8] a)
    { a = Relu(x) b = Erf(a) c = Add(b, a) d = MatMul(c, w) e = Relu(d) }"""
    first, second = split(text, "b")
    assert ([t.name for t in first.enters], [t.name for t in first.leaves]) == (["x"], ["a"])
    assert ([t.name for t in second.enters], [t.name for t in second.leaves]) == (["b", "a"], ["e"])


def test_a_pair_alone_is_no_partition() -> None:
    text = """(float[8] x) => (float[8] c) <float s = {1}, uint8 z = {0}>
    { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) b = Erf(d) c = Relu(b) }"""
    assert told(split(text, ["q", "b"])) == ["d", "c"]
    assert told(split(text, ["q", "b"], LONELY)) == ["c"]
    assert told(split(text, ["b"], LONELY)) == ["q d", "c"]


def test_a_subgraph_reads_from_outside() -> None:
    """An If waits for what its branches read."""
    text = """(float[8] x, bool k) => (float[8] y)
    { a = Relu(x) b = Erf(a) y = If (k) <
        then_branch = t () => (float[8] u) { u = Relu(b) }, else_branch = e () => (float[8] v) { v = Tanh(a) }> }"""
    model = network(text)
    units = [unit for unit in split_units(model, GROUPS) if not unit.nested]
    taken = [id(unit.node) for unit in units if anchor_of(unit.node) != "b"]
    assert told(partition(model.graph, units, taken)) == ["a", "y"]


OPS = ("Relu", "Add", "Sigmoid")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(OPS), st.integers(0, 99), st.integers(0, 99), st.booleans()), min_size=1, max_size=18
    )
)
def test_whatever_the_graph(steps: list[tuple[str, int, int, bool]]) -> None:
    names, lines = ["x"], []
    for index, (op, first, second, _) in enumerate(steps):
        inputs = [names[first % len(names)], names[second % len(names)]][: 2 if op == "Add" else 1]
        lines.append(f"t{index} = {op}({', '.join(inputs)})")
        names.append(f"t{index}")
    outputs = ", ".join(f"float[8] {name}" for name in names[1:])
    model = network(f"(float[8] x) => ({outputs}) {{ {' '.join(lines)} }}")
    refused = [f"t{index}" for index, step in enumerate(steps) if not step[3]]
    found = parts(model, refused)
    inside = [anchor_of(node) for one in found for node in one.nodes]
    assert sorted(inside) == sorted(set(names[1:]) - set(refused)), "each that runs is in exactly one"
    assert_runnable(model.graph, found)


def assert_runnable(graph: Graph, found: list[Partition]) -> None:
    """Assert that partitions are convex and in order: as one step each, with the rest, the graph can still run."""
    owner = {id(node): index for index, one in enumerate(found) for node in one.nodes}
    rest = [[node] for node in graph.nodes if id(node) not in owner]
    steps = [*rest, *(list(one.nodes) for one in found)]
    known = {id(tensor) for tensor in graph.inputs}
    finished: list[int] = []
    while len(finished) < len(steps):
        ready = [index for index, step in enumerate(steps) if index not in finished and _can_run(step, known)]
        assert ready, "partitions wait for each other"
        index = ready[0]
        finished.append(index)
        known |= {id(tensor) for node in steps[index] for tensor in node.outputs}
    islands = [index for index in finished if index >= len(rest)]
    assert islands == sorted(islands)


def _can_run(step: list[Node], known: set[int]) -> bool:
    made = {id(tensor) for node in step for tensor in node.outputs}
    needed = {id(tensor) for node in step for tensor in node.inputs if tensor.inputs}
    return needed - made <= known


def test_units_stay_whole() -> None:
    text = """(uint8[1,8] x) => (uint8[1,8] q) <float s = {1}, uint8 z = {0}>
    { d = DequantizeLinear(x, s, z) a = Sigmoid(d) p = QuantizeLinear(a, s, z)
      e = DequantizeLinear(p, s, z) b = Tanh(e) q = QuantizeLinear(b, s, z) }"""
    assert told(split(text, ["b"])) == ["d a p"]
    units: list[Unit] = split_units(network(text), GROUPS)
    assert [unit.is_group for unit in units] == [True, True]
