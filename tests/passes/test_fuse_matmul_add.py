"""fuse-matmul-add: matrices only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onnxslim.passes.fuse_matmul_add import FuseMatmulAdd
from onnxslim.passes.infer_shapes import InferShapes

PASSES = [InferShapes(), FuseMatmulAdd()]
ROUNDING = 1e-6
WEIGHTS = {"w": (3, 4), "b": (4,)}


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        pytest.param("g (float[N,5,3] x) => (float[N,5,4] z) { y = MatMul(x, w) z = Add(y, b) }", WEIGHTS, id="rank 3"),
        pytest.param(
            "g (float[4,3] x) => (float[4,4] z) { y = MatMul(x, w) z = Add(y, b) }",
            {"w": (3, 4), "b": (4, 1)},
            id="a bias by row",
        ),
        pytest.param(
            "g (float[N,3] x) => (float[N,4] z, float[N,4] y) { y = MatMul(x, w) z = Add(y, b) }",
            WEIGHTS,
            id="the product is returned",
        ),
        pytest.param(
            "g (float[N,3] x, float[3,4] k) => (float[N,4] z) { y = MatMul(x, k) z = Add(y, b) }",
            {"b": (4,)},
            id="the weight is an input",
        ),
    ],
)
def test_stays(check: Callable[..., Any], body: str, weights: dict[str, Any]) -> None:
    assert check(body, PASSES, weights).edits == 0


@pytest.mark.parametrize("bias", [(4,), (1, 4), (1,), ()])
def test_changes(check: Callable[..., Any], bias: tuple[int, ...]) -> None:
    body = "g (float[N,3] x) => (float[N,4] z) { y = MatMul(x, w) z = Add(b, y) }"
    done = check(body, PASSES, {"w": (3, 4), "b": bias})
    assert done.ops == ["Gemm"]
    assert done.difference < ROUNDING
