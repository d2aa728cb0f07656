"""collapse-shapes and infer-shapes: what is known of shapes, and what only seems known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.passes.collapse_shapes import CollapseShapes
from onnxslim.passes.fold_constants import FoldConstants
from onnxslim.passes.infer_shapes import InferShapes
from onnxslim.passes.remove_dead import RemoveDead

PASSES = [InferShapes(), FoldConstants(), CollapseShapes(), RemoveDead()]


def ints(**values: Any) -> dict[str, Any]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


FLATTEN = """g (float[N,2,3] x) => (float[N,6] z) {
    s = Shape(x) n = Gather(s, i) u = Unsqueeze(n, o) t = Concat<axis = 0>(u, m) z = Reshape(x, t)
}"""


@pytest.mark.parametrize(
    ("body", "weights", "ops"),
    [
        pytest.param(FLATTEN, ints(i=0, o=[0], m=[-1]), ["Reshape"], id="the flatten of every exporter"),
        pytest.param(FLATTEN, ints(i=-3, o=[0], m=[6]), ["Reshape"], id="counted from the end"),
        pytest.param(
            """g (float[N,4,2] x) => (float[2,N,2,2] z) {
                n = Shape<end = 1>(x) t = Concat<axis = 0>(a, n, a, a) z = Reshape(x, t)
            }""",
            ints(a=[2]),
            ["Reshape"],
            id="a dimension in another place becomes -1",
        ),
        pytest.param(
            """g (float[N,4,2] x) => (float[P,4] z) {
                s = Shape(x) a = Slice(s, b, e) d = Slice(s, o, b) p = Squeeze(a) m = Mul(p, p)
                r = Reshape(m, v) t = Concat<axis = 0>(v, r) q = Div(t, u) z = Reshape(x, q)
            }""",
            ints(b=[2], e=[3], o=[0], v=[-1], u=[1]),
            ["Reshape"],
            id="arithmetic with what is known",
        ),
        pytest.param(
            """g (float[N,4,2] x) => (float[P] z) {
                s = Shape(x) c = Cast<to = 6>(s) d = Cast<to = 7>(c) e = Gather(d, i) z = Expand(f, e)
            }""",
            {**ints(i=[1]), "f": np.ones(1, np.float32)},
            ["Constant"],
            id="one known dimension of an unknown shape",
        ),
        pytest.param("g (float[3,4] x) => (int64 z) { s = Size(x) z = Add(s, o) }", ints(o=1), ["Constant"], id="Size"),
        pytest.param(
            "g (float[N,M] x) => (float[P,Q,R] z) { s = Shape(x) t = Concat<axis = 0>(s, o) z = Reshape(x, t) }",
            ints(o=[1]),
            ["Reshape"],
            id="two unknown dimensions, both in place",
        ),
    ],
)
def test_changes(check: Callable[..., Any], body: str, weights: dict[str, Any], ops: list[str]) -> None:
    done = check(body, PASSES, weights)
    assert done.ops == ops
    assert done.difference == 0.0


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        pytest.param(
            "g (float[N,M] x) => (float[P,Q] z) { s = Shape(x) t = Gather(s, i) z = Reshape(x, t) }",
            ints(i=[1, 0]),
            id="two unknowns in other places",
        ),
        pytest.param(
            "g (float[N,4] x) => (float[P,Q] z) { n = Shape<end = 1>(x) t = Concat<axis = 0>(m, n) z = Reshape(x, t) }",
            ints(m=[-1]),
            id="an unknown beside a -1",
        ),
        pytest.param(
            "g (float[N,4] x) => (float[P,Q] z) { s = Shape(x) z = Expand(f, s) }",
            {"f": np.ones(1, np.float32)},
            id="an unknown dimension that is not for a Reshape",
        ),
    ],
)
def test_stays(check: Callable[..., Any], body: str, weights: dict[str, Any]) -> None:
    assert check(body, PASSES, weights).edits == 0


def test_numbers_that_do_not_fit_their_type_stay(check: Callable[..., Any]) -> None:
    """int64 arithmetic wraps around at run time; what is followed here does not."""
    body = "g (float[3] x) => (int64[1] z) { s = Shape(x) a = Mul(s, b) z = Neg(a) }"
    done = check(body, [InferShapes(), CollapseShapes()], ints(b=[2**62]))
    assert "Mul" in done.ops
    assert done.difference == 0.0


def test_a_batch_that_was_made_dynamic_by_hand(check: Callable[..., Any]) -> None:
    """The file still says 1 for an inner tensor, and the batch is 3."""
    body = """g (float[N,4] x) => (float[P,2,2] z) <float[1,4] r, int64[2] s> {
        r = Relu(x) s = Shape(r) n = Gather(s, i) t = Concat<axis = 0>(n, c) z = Reshape(r, t)
    }"""
    done = check(body, PASSES, ints(i=[0], c=[2, 2]))
    assert done.ops == ["Relu", "Reshape"]
    assert done.difference == 0.0
