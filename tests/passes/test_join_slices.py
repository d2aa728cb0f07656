"""join-slices: Slices of Slices and of Concats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.passes.infer_shapes import InferShapes
from onnxslim.passes.join_slices import JoinSlices
from onnxslim.passes.remove_dead import RemoveDead

PASSES = [InferShapes(), JoinSlices(), RemoveDead()]


def ints(**values: list[int]) -> dict[str, Any]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        pytest.param(
            "g (float[8,8] x) => (float[P,Q] z) { a = Slice(x, s, e, o) z = Slice(a, s, e, o) }",
            ints(s=[1], e=[5], o=[0]),
            id="the same axis twice",
        ),
        pytest.param(
            "g (float[8,8] x) => (float[P,Q] z) { a = Slice(x, s, e, o) z = Slice(a, s, e, n) }",
            ints(s=[1], e=[5], o=[0], n=[-2]),
            id="an axis counted from the end",
        ),
        pytest.param(
            "g (float[8,8] x, int64[1] s) => (float[P,Q] z) { a = Slice(x, s, e, o) z = Slice(a, e, f, n) }",
            ints(e=[5], f=[7], o=[0], n=[1]),
            id="a computed start",
        ),
        pytest.param(
            "g (float[2,8] x, float[3,8] y) => (float[P,Q] z) { a = Concat<axis = 0>(x, y) z = Slice(a, s, e, o) }",
            ints(s=[1], e=[5], o=[0]),
            id="across the seam of a Concat",
        ),
        pytest.param(
            "g (float[2,8] x, float[3,8] y) => (float[P,Q] z) { a = Concat<axis = 0>(x, y) z = Slice(a, s, e, o) }",
            ints(s=[0], e=[2], o=[1]),
            id="another axis than the Concat's",
        ),
    ],
)
def test_stays(check: Callable[..., Any], body: str, weights: dict[str, Any]) -> None:
    assert check(body, PASSES, weights, compare="int64" not in body).edits == 0


@pytest.mark.parametrize(
    ("body", "weights", "opset", "ops"),
    [
        pytest.param(
            "g (float[8,8] x) => (float[P,Q] z) { a = Slice(x, s, e, o) z = Slice(a, s, e, n, t) }",
            ints(s=[1], e=[7], o=[0], n=[1], t=[2]),
            17,
            ["Slice"],
            id="two axes",
        ),
        pytest.param(
            """g (float[8,8] x) => (float[P,Q] z) {
                a = Slice<starts = [1], ends = [7]>(x) z = Slice<starts = [2], ends = [9], axes = [1]>(a)
            }""",
            {},
            9,
            ["Slice"],
            id="attributes",
        ),
        pytest.param(
            """g (float[2,8] x, float[3,8] y) => (float[3,8] z) {
                a = Concat<axis = 0>(x, y) b = Slice(a, s, e, o) z = Neg(b)
            }""",
            ints(s=[-3], e=[2**31], o=[0]),
            17,
            ["Neg"],
            id="a piece of a Concat",
        ),
    ],
)
def test_changes(check: Callable[..., Any], body: str, weights: dict[str, Any], opset: int, ops: list[str]) -> None:
    done = check(body, PASSES, weights, opset)
    assert done.ops == ops
    assert done.difference == 0.0


def test_the_first_slice_stays_where_others_read_it(check: Callable[..., Any]) -> None:
    body = "g (float[8,8] x) => (float[P,Q] a, float[R,S] z) { a = Slice(x, s, e, o) z = Slice(a, s, e, n) }"
    done = check(body, PASSES, ints(s=[1], e=[7], o=[0], n=[1]))
    assert done.ops == ["Slice", "Slice"]
    assert done.difference == 0.0
