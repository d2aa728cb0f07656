"""fold-affine: what stays, what changes, and the fold over operators, groups and broadcast shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.passes.fold_affine import FoldAffine
from onnxslim.passes.infer_shapes import InferShapes

ROUNDING = 2e-6
"""Relative to an output's range: a few float32 roundings."""

PASSES = [InferShapes(), FoldAffine()]
CONV = {"w": (4, 3, 3, 3)}


@pytest.mark.parametrize(
    ("body", "weights", "why"),
    [
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,6,6] z, float[1,4,6,6] y) { y = Conv(x, w) z = Mul(y, s) }",
            {**CONV, "s": (4, 1, 1)},
            "used before",
            id="the layer's output is returned",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,6,6] z) { y = Conv(x, w) z = Mul(y, s) }",
            {**CONV, "s": (6, 1)},
            "not one value per channel",
            id="a constant by row",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,6,6] z) { y = Conv(x, w) z = Add(y, s) }",
            {**CONV, "s": (6,)},
            "not one value per channel",
            id="a vector is added along the last axis",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,6,6] z) { y = Conv(x, w) z = Mul(y, s) }",
            {"w": (1, 3, 3, 3), "s": (4, 1, 1)},
            "not one value per channel",
            id="one channel is broadcast to four",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,1,4,6,6] z) { y = Conv(x, w) z = Mul(y, s) }",
            {**CONV, "s": (1, 1, 1, 1, 1)},
            "not one value per channel",
            id="the rank grows",
        ),
        pytest.param(
            "g (float[2,3,8,8] x) => (float[2,4,6,6] z) { y = Conv(x, w) z = Mul(y, s) }",
            {**CONV, "s": (2, 1, 1, 1)},
            "not one value per channel",
            id="a constant by sample",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,6,6] z) { y = Conv(x, w) z = Div(s, y) }",
            {**CONV, "s": (1,)},
            "divides by the tensor",
            id="division by the layer's output",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,6,6] z) { y = Conv(x, w) z = Mul(y, s) }",
            {"w": np.full((4, 3, 3, 3), 3e38, np.float32), "s": np.array([10], np.float32)},
            "do not fit",
            id="overflow",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,8,8] z) { y = Sub(x, s) z = Conv<pads = [1,1,1,1]>(y, w) }",
            {**CONV, "s": (3, 1, 1)},
            "pads with zeros",
            id="a shift before a padded convolution",
        ),
        pytest.param(
            'g (float[1,3,8,8] x) => (float[1,4,8,8] z) { y = Sub(x, s) z = Conv<auto_pad = "SAME_UPPER">(y, w) }',
            {**CONV, "s": (3, 1, 1)},
            "pads with zeros",
            id="a shift before a convolution that pads by rule",
        ),
        pytest.param(
            "g (float[1,1,8,8] x) => (float[1,4,6,6] z) { y = Mul(x, s) z = Conv(y, w) }",
            {**CONV, "s": (3, 1, 1)},
            "not known to have the channels",
            id="one channel is broadcast to what the layer reads",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,6,6] z) { y = Mul(x, s) a = Conv(y, w) b = Conv(y, w) z = Add(a, b) }",
            {**CONV, "s": (3, 1, 1)},
            "used elsewhere",
            id="two layers read the scaled tensor",
        ),
        pytest.param(
            "g (float[3,2] x) => (float[2,4] z) { y = Mul(x, s) z = Gemm<transA = 1>(y, w) }",
            {"w": (3, 4), "s": (2,)},
            "transposed",
            id="a Gemm that transposes its input",
        ),
        pytest.param(
            "g (float[5,3] x) => (float[5,4] z) { y = MatMul(x, w) z = Add(y, s) }",
            {"w": (3, 4), "s": (4,)},
            "no bias",
            id="MatMul and Add",
        ),
    ],
)
def test_stays(check: Callable[..., Any], body: str, weights: dict[str, Any], why: str) -> None:
    done = check(body, PASSES, weights)
    assert done.edits == 0
    assert any(why in reason for reason in done.reasons), done.reasons


def test_a_residual_addition_is_nobodys_business(check: Callable[..., Any]) -> None:
    body = "g (float[1,4,8,8] x) => (float[1,4,8,8] z) { y = Conv<pads = [1,1,1,1]>(x, w) z = Add(y, x) }"
    done = check(body, PASSES, {"w": (4, 4, 3, 3)})
    assert done.edits == 0
    assert done.reasons == ()


def test_a_bias_by_row_is_no_bias_by_column(check: Callable[..., Any]) -> None:
    """A Gemm's C of shape (M, 1) has as many values as there are columns when M = N, and means something else."""
    body = "g (float[4,3] x) => (float[4,4] z) { y = Gemm(x, w, c) z = Mul(y, s) }"
    assert check(body, PASSES, {"w": (3, 4), "c": (4, 1), "s": (4,)}).edits == 0


@pytest.mark.parametrize(
    ("body", "weights", "ops"),
    [
        pytest.param(
            """g (float[N,3,8,8] x) => (float[N,4,6,6] z) {
                a = Conv(x, w) b = Mul(s, a) c = Add(b, t) d = Sub(u, c) z = Div(d, s)
            }""",
            {**CONV, "s": (1, 4, 1, 1), "t": (4, 1, 1), "u": (1,)},
            ["Conv"],
            id="a chain after Conv",
        ),
        pytest.param(
            """g (float[N,3,8,8] x) => (float[N,4,6,6] z) {
                a = Sub(x, m) b = Div(a, d) c = Conv(b, w, k) z = Mul(c, s)
            }""",
            {**CONV, "m": (1, 3, 1, 1), "d": (3, 1, 1), "k": (4,), "s": (4, 1, 1)},
            ["Conv"],
            id="normalization of the input, and a scale",
        ),
        pytest.param(
            "g (float[N,3,8,8] x) => (float[N,4,8,8] z) { y = Mul(x, s) z = Conv<pads = [1,1,1,1]>(y, w) }",
            {**CONV, "s": (3, 1, 1)},
            ["Conv"],
            id="a scale before a padded convolution",
        ),
        pytest.param(
            "g (float[N,5,3] x) => (float[N,5,4] z) { a = Mul(x, r) y = MatMul(a, w) z = Div(y, s) }",
            {"w": (3, 4), "s": (4,), "r": (3,)},
            ["MatMul"],
            id="MatMul of rank 3",
        ),
        pytest.param(
            """g (float[N,3] x) => (float[N,4] z) {
                a = Add(x, r) y = Gemm<alpha = 0.5, beta = 3.0>(a, w, c) z = Sub(s, y)
            }""",
            {"w": (3, 4), "s": (4,), "r": (3,), "c": (1,)},
            ["Gemm"],
            id="Gemm",
        ),
        pytest.param(
            "g (double[N,3] x) => (double[N,4] z) { y = Gemm(x, w) z = Mul(y, s) }",
            {"w": np.linspace(1, 2, 12).reshape(3, 4), "s": np.array([1.5, 2, 3, 4.1])},
            ["Gemm"],
            id="float64",
        ),
        pytest.param(
            """g (float[N,4,5,5] x) => (float[N,4,10,10] z) {
                a = Mul(x, r) y = ConvTranspose<group = 2, strides = [2,2]>(a, w) z = Add(y, s)
            }""",
            {"w": (4, 2, 2, 2), "s": (4, 1, 1), "r": (4, 1, 1)},
            ["ConvTranspose"],
            id="grouped ConvTranspose",
        ),
    ],
)
def test_changes(check: Callable[..., Any], body: str, weights: dict[str, Any], ops: list[str]) -> None:
    done = check(body, PASSES, weights)
    assert done.ops == ops
    assert done.difference < ROUNDING


def test_captured_in_a_subgraph(check: Callable[..., Any]) -> None:
    """A branch reads the layer's output too: it counts as a reader."""
    body = """g (float[1,3,8,8] x, bool c) => (float[1,4,6,6] z) {
        y = Conv(x, w)
        m = Mul(y, s)
        q = If (c) <then_branch = t () => (float[1,4,6,6] p) { p = Relu(y) },
                    else_branch = e () => (float[1,4,6,6] r) { r = Neg(y) }>
        z = Add(m, q)
    }"""
    done = check(body, PASSES, {**CONV, "s": (4, 1, 1)})
    assert done.edits == 0


@settings(deadline=None, max_examples=40)
@given(
    op=st.sampled_from(["Mul", "Add", "Sub", "Div"]),
    before=st.booleans(),
    constant_first=st.booleans(),
    groups=st.integers(1, 3),
    each=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    form=st.sampled_from(["scalar", "one", "channels", "four"]),
)
def test_any_operation_beside_any_convolution(
    check: Callable[..., Any],
    op: str,
    before: bool,
    constant_first: bool,
    groups: int,
    each: tuple[int, int],
    form: str,
) -> None:
    """Whatever is folded, outputs stay; only division by the tensor stays itself."""
    cin, cout = groups * each[0], groups * each[1]
    count = cin if before else cout
    shape = {"scalar": (), "one": (1,), "channels": (count, 1, 1), "four": (1, count, 1, 1)}[form]
    data, out = ("x", "y") if before else ("y", "z")
    operation = f"{out} = {op}({f's, {data}' if constant_first else f'{data}, s'})"
    layer = f"{'z' if before else 'y'} = Conv<group = {groups}>({'y' if before else 'x'}, w, b)"
    body = f"""g (float[2,{cin},5,5] x) => (float[2,{cout},4,4] z) {{
        {operation if before else layer}
        {layer if before else operation}
    }}"""
    done = check(body, PASSES, {"w": (cout, each[0], 2, 2), "b": (cout,), "s": shape})
    if op == "Div" and constant_first:
        assert done.ops == (["Div", "Conv"] if before else ["Conv", "Div"])
    else:
        assert done.ops == ["Conv"]
        assert done.difference < ROUNDING


def test_a_wrong_fold_would_be_seen(check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison notices a weight that is off by a thousandth."""
    import onnxslim.passes._layers as layers

    right = layers._scale_outputs
    monkeypatch.setattr(layers, "_scale_outputs", lambda layer, weight, scale: 1.001 * right(layer, weight, scale))
    body = "g (float[1,3,8,8] x) => (float[1,4,6,6] z) { y = Conv(x, w) z = Mul(y, s) }"
    assert check(body, PASSES, {**CONV, "s": (4, 1, 1)}).difference > 10 * ROUNDING
