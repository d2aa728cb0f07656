"""merge-duplicates: equal constants and equal calculations, and what only looks equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.passes.merge_duplicates import MergeDuplicates

PASSES = [MergeDuplicates()]


def stored(done: Any) -> int:
    return len(done.model.proto().graph.initializer)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        pytest.param("g (float[2] x) => (float[2] z) { a = Relu(x) b = Neg(x) z = Add(a, b) }", 17, id="operators"),
        pytest.param(
            "g (float[2] x) => (float[2] z) { a = Elu<alpha = 0.5>(x) b = Elu<alpha = 0.25>(x) z = Add(a, b) }",
            17,
            id="attributes",
        ),
        pytest.param(
            "g (float[2] x, float[2] y) => (float[2] z) { a = Sub(x, y) b = Sub(y, x) z = Add(a, b) }", 17, id="order"
        ),
        pytest.param("g (float[2] x) => (float[2] a, float[2] b) { a = Relu(x) b = Relu(x) }", 17, id="both returned"),
        pytest.param(
            "g (float[2] x) => (int64[1] z) { a = Shape<start = 0>(x) b = Cast<to = 1>(x) s = Shape(b) z = Add(a, s) }",
            17,
            id="other inputs",
        ),
    ],
)
def test_nodes_stay(check: Callable[..., Any], body: str, opset: int) -> None:
    assert check(body, PASSES, opset=opset).edits == 0


@pytest.mark.parametrize("op", ["RandomUniformLike(x)", "RandomNormalLike(x)", "Bernoulli(x)", "Dropout(x, r, t)"])
def test_each_draw_is_its_own(check: Callable[..., Any], op: str) -> None:
    body = f"g (float[2] x, float r, bool t) => (float[2] z) {{ a = {op} b = {op} z = Sub(a, b) }}"
    assert check(body, PASSES, compare=False).edits == 0


def test_subgraphs_and_unknown_domains_stay(check: Callable[..., Any]) -> None:
    branch = """If (c) <then_branch = t () => (float[2] p{0}) {{ p{0} = Abs(x) }},
                        else_branch = e () => (float[2] q{0}) {{ q{0} = Neg(x) }}>"""
    body = f"g (float[2] x, bool c) => (float[2] z) {{ a = {branch.format(1)} b = {branch.format(2)} z = Add(a, b) }}"
    assert check(body, PASSES).edits == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(np.zeros(2, np.float32), -np.zeros(2, np.float32), id="the sign of zero"),
        pytest.param(np.ones((1, 2), np.float32), np.ones((2,), np.float32), id="shape"),
        pytest.param(
            np.arange(5000, dtype=np.float32),
            np.arange(5000, dtype=np.float32) + (np.arange(5000) == 2500),
            id="the middle",
        ),
    ],
)
def test_constants_stay(check: Callable[..., Any], first: Any, second: Any) -> None:
    shape = "P,Q" if first.ndim == 2 else "P"
    body = f"g (float[1] x) => (float[{shape}] y, float[R] z) {{ y = Add(x, v) z = Add(x, w) }}"
    assert stored(check(body, PASSES, {"v": first, "w": second.astype(np.float32)})) == 2


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        pytest.param(
            "g (float[2] x, float[2] y) => (float[2] z) { a = Mul(x, y) b = Mul(y, x) z = Sub(a, b) }",
            ["Mul", "Sub"],
            id="commuted operands",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] z) {
                a = Neg(x) b = Neg(x) c = Exp(a) d = Exp(b) z = Sub(c, d)
            }""",
            ["Neg", "Exp", "Sub"],
            id="a chain in one sweep",
        ),
        pytest.param(
            "g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x) y = Abs(a) z = Neg(x) }",
            ["Neg", "Abs"],
            id="the twin's name is returned",
        ),
        pytest.param(
            """g (int64[1] n) => (float[P] z) {
                a = ConstantOfShape<value = float[1] {2}>(n) b = ConstantOfShape<value = float[1] {2}>(n) z = Add(a, b)
            }""",
            ["ConstantOfShape", "Add"],
            id="a tensor as attribute",
        ),
    ],
)
def test_nodes_merge(check: Callable[..., Any], body: str, ops: list[str]) -> None:
    done = check(body, PASSES, compare="int64" not in body)
    assert done.ops == ops
    assert not done.difference > 0


@pytest.mark.parametrize("size", [3, 5000])
def test_constants_merge(check: Callable[..., Any], size: int) -> None:
    """And the nodes that read them become equal."""
    weights = {"v": np.arange(size, dtype=np.float32), "w": np.arange(size, dtype=np.float32)}
    done = check(
        f"g (float[1] x) => (float[{size}] z) {{ a = Add(x, v) b = Add(x, w) z = Mul(a, b) }}", PASSES, weights
    )
    assert done.ops == ["Add", "Mul"]
    assert stored(done) == 1
    assert done.difference == 0.0


def test_a_twin_whose_outputs_are_returned_gives_them_to_the_other(check: Callable[..., Any]) -> None:
    body = """g (float[2,2] x) => (float[1,2] c, float[1,2] d, float[2,2] z) {
        a, b = Split<axis = 0>(x, s) z = Concat<axis = 0>(b, a) c, d = Split<axis = 0>(x, s) }"""
    done = check(body, PASSES, {"s": np.array([1, 1], np.int64)})
    assert sorted(done.ops) == ["Concat", "Split"]
    assert done.difference == 0
