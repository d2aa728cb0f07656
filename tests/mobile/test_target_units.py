"""Which nodes a provider is asked about together: layers with the pairs around them, and why not."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from targets.texts import network, paired, paired_conv, rows

from onnxslim.ir import anchor_of, graph_nodes
from onnxslim.mobile.partition_units import Unit, split_units
from onnxslim.targets.pairs import GROUPS, QNN_GROUPS

WITHIN = "{ d = DequantizeLinear(x, s, z) %s q = QuantizeLinear(c, s, z) }"


def unit_of(text: str, anchor: str = "c", opset: int = 17) -> Unit:
    return next(unit for unit in split_units(network(text, opset), GROUPS) if anchor_of(unit.node) == anchor)


ALONE = [
    (
        "its output is the model's",
        "(uint8[1,8] x) => (float[1,8] c) <float s = {1}, uint8 z = {0}> "
        "{ d = DequantizeLinear(x, s, z) c = Sigmoid(d) }",
        "its output 'c' is the model's own, in float",
    ),
    (
        "someone reads it in float",
        "(uint8[1,8] x) => (uint8[1,8] q, float[1,8] y) <float s = {1}, uint8 z = {0}> "
        "{ d = DequantizeLinear(x, s, z) c = Sigmoid(d) q = QuantizeLinear(c, s, z) y = Neg(c) }",
        "Neg reads its output in float",
    ),
    (
        "one input has no pair",
        "(uint8[1,8] x, float[1,8] v) => (uint8[1,8] q) <float s = {1}, uint8 z = {0}> "
        + WITHIN % "c = Add(d, v)",
        "DequantizeLinear is before 1 of its inputs, not 2: 'v' has none",
    ),
    ("other integers after it", paired("c = Sigmoid(d)", "1,8", "1,8", "uint8", out="int8"), "uint8"),
    ("an operator that is never taken so", paired("c = Erf(d)", "1,8", "1,8"), "Erf is never taken together with"),
    (
        "another activation between",
        paired_conv("uint8", "uint8", channels=False, after="c = Sigmoid(t)"),
        "Sigmoid reads its output in float",
    ),
    (
        "a Relu within a wider range",
        paired_conv("uint8", "uint8", channels=False, after="c = Relu(t)"),
        "the range of the pair after it is wider than Relu",
    ),
    (
        "pairs of another grid around what only moves",
        "(uint8[1,8] x) => (uint8[8] q) <float s = {1}, float r = {2}, uint8 z = {0}, int64[1] n = {8}> "
        "{ d = DequantizeLinear(x, s, z) c = Reshape(d, n) q = QuantizeLinear(c, r, z) }",
        "differ",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), rows(ALONE))
def test_what_is_no_group(text: str, reason: str) -> None:
    unit = unit_of(text, "t" if "t = Conv" in text else "c")
    assert not unit.is_group
    assert unit.alone is not None
    assert reason in unit.alone


def names(unit: Unit) -> list[str]:
    return [anchor_of(node) for node in unit.nodes]


def test_a_layer_goes_with_its_pairs() -> None:
    assert names(unit_of(paired_conv("uint8", "uint8", channels=False))) == ["d", "e", "b", "c", "q"]
    assert names(unit_of(paired("c = Sigmoid(d)", "1,8", "1,8"))) == ["d", "c", "q"]


def test_a_redundant_activation_goes_with_them() -> None:
    """A Relu whose zero is the lowest value anyway, and a Clip that the range cuts off too."""
    relu = paired_conv("int8", "int8", channels=True, after="c = Relu(t)").replace("zq = {0}", "zq = {-128}")
    assert names(unit_of(relu, "t")) == ["d", "e", "b", "t", "c", "q"]
    clip = paired_conv("uint8", "uint8", channels=False, after="c = Clip(t, low, high)")
    bounds = "uint8 zq = {128}, float low = {-20}, float high = {20}"
    assert names(unit_of(clip.replace("uint8 zq = {128}", bounds), "t")) == ["d", "e", "b", "t", "c", "q"]
    narrow = clip.replace("uint8 zq = {128}", bounds.replace("{20}", "{1}"))
    assert unit_of(narrow, "t").alone == "the range of the pair after it is wider than Clip"


def test_an_index_and_a_comparison_need_no_pair_after() -> None:
    text = "(uint8[4,8] x) => (int64[4,1] c) <float s = {1}, uint8 z = {0}> { d = DequantizeLinear(x, s, z) %s }"
    assert names(unit_of(text % "c = ArgMax<axis = 1>(d)")) == ["d", "c"]
    assert names(unit_of((text % "c = Greater(d, d)").replace("int64[4,1]", "bool[4,8]"))) == ["c"]


def test_a_pair_of_two_groups_is_in_one() -> None:
    text = """(uint8[1,8] x) => (uint8[1,8] p, uint8[1,8] q) <float s = {1}, uint8 z = {0}>
    { d = DequantizeLinear(x, s, z) a = Sigmoid(d) p = QuantizeLinear(a, s, z)
      c = Tanh(d) q = QuantizeLinear(c, s, z) }"""
    assert names(unit_of(text, "a")) == ["d", "a", "p"]
    assert names(unit_of(text, "c")) == ["c", "q"]
    assert unit_of(text, "c").is_group, "onnxruntime copies the pair"


def test_versions_that_are_not_taken() -> None:
    pool = paired("c = MaxPool<kernel_shape = [2, 2]>(d)", "1,3,8,8", "1,3,7,7")
    assert unit_of(pool, opset=17).is_group
    assert unit_of(pool, opset=11).alone == "this version of MaxPool is not taken together with pairs"


def test_a_provider_may_take_more() -> None:
    text = paired("c = HardSigmoid(d)", "1,8", "1,8")
    assert not unit_of(text).is_group
    own = [unit for unit in split_units(network(text), QNN_GROUPS) if unit.is_group]
    assert [names(unit) for unit in own] == [["d", "c", "q"]]


STEPS = st.sampled_from(
    ["Sigmoid(%s)", "Add(%s, %s)", "Relu(%s)", "QuantizeLinear(%s, s, z)", "DequantizeLinear(%s, s, z)"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(STEPS, st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=14))
def test_every_node_is_in_one_unit(steps: list[tuple[str, int, int]]) -> None:
    """Whatever the graph: float steps read what is in float, pairs what they can."""
    floats: list[str] = ["x"]
    integers: list[str] = []
    lines: list[str] = []
    for index, (step, first, second) in enumerate(steps):
        pool = integers if step.startswith("Deq") else floats
        if not pool:
            continue
        picked = tuple(pool[number % len(pool)] for number in (first, second)[: step.count("%s")])
        lines.append(f"t{index} = {step % picked}")
        (integers if step.startswith("Quant") else floats).append(f"t{index}")
    if not lines:
        return
    last = lines[-1].split()[0]
    kind = "uint8" if last in integers else "float"
    model = network(
        f"(float[1,8] x) => ({kind}[1,8] {last}) <float s = {{1}}, uint8 z = {{0}}> {{ {' '.join(lines)} }}"
    )
    counts = Counter(id(node) for unit in split_units(model, GROUPS) for node in unit.nodes)
    assert counts == Counter(id(node) for _, node in graph_nodes(model.graph))
