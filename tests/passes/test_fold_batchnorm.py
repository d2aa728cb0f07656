"""fold-batchnorm: what stays, what changes, and the fold over groups, kernels and both sides of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.passes.fold_batchnorm import FoldBatchNorm
from onnxslim.passes.infer_shapes import InferShapes

ROUNDING = 2e-6
"""Relative to an output's range: a few float32 roundings."""

PASSES = [InferShapes(), FoldBatchNorm()]
NORM = {"g": (4,), "b": (4,), "m": (4,), "v": np.array([0.5, 1.0, 2.0, 3.0], np.float32)}
CONV = {"w": (4, 3, 3, 3), **NORM}


@pytest.mark.parametrize(
    ("body", "weights", "why"),
    [
        pytest.param(
            """g (float[1,3,8,8] x) => (float[1,4,6,6] z, float[1,4,6,6] y) {
                y = Conv(x, w)
                z = BatchNormalization(y, g, b, m, v)
            }""",
            CONV,
            "used before",
            id="the convolution's output is returned",
        ),
        pytest.param(
            """g (float[1,3,8,8] x) => (float[1,4,6,6] z) {
                y = Conv(x, w)
                n = BatchNormalization(y, g, b, m, v)
                z = Add(n, y)
            }""",
            CONV,
            "used before",
            id="the convolution's output has another reader",
        ),
        pytest.param(
            """g (float[1,3,8,8] x, float[4] s) => (float[1,4,6,6] z) {
                y = Conv(x, w)
                z = BatchNormalization(y, s, b, m, v)
            }""",
            CONV,
            "computed",
            id="its scale is an input",
        ),
        pytest.param(
            """g (float[1,3,8,8] x, float[4,3,3,3] k) => (float[1,4,6,6] z) {
                y = Conv(x, k)
                z = BatchNormalization(y, g, b, m, v)
            }""",
            NORM,
            "no layer",
            id="the weight is an input",
        ),
        pytest.param(
            """g (float[1,3,8,8] x) => (float[1,4,6,6] z) {
                y = Conv(x, w)
                r = Relu(y)
                z = BatchNormalization(r, g, b, m, v)
            }""",
            CONV,
            "no layer",
            id="an activation lies between",
        ),
        pytest.param(
            """g (float[1,3,8,8] x) => (float[1,4,6,6] z) {
                y = Conv(x, w)
                z = BatchNormalization(y, g, b, m, v)
            }""",
            {**CONV, "g": np.full(4, 3e38, np.float32), "v": np.full(4, 1e-9, np.float32)},
            "do not fit",
            id="the folded weights overflow",
        ),
        pytest.param(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] z) {
                y = BatchNormalization(x, g, b, m, v)
                z = Conv<pads = [1,1,1,1]>(y, w)
            }""",
            {**NORM, "w": (4, 4, 3, 3)},
            "pads with zeros",
            id="a padded convolution after it",
        ),
        pytest.param(
            """g (float[1,4,8,8] x) => (float[1,4,16,16] z) {
                y = BatchNormalization(x, g, b, m, v)
                z = ConvTranspose<strides = [2,2]>(y, w)
            }""",
            {**NORM, "w": (4, 4, 2, 2)},
            "pads with zeros",
            id="a transposed convolution after it",
        ),
    ],
)
def test_stays(check: Callable[..., Any], body: str, weights: dict[str, Any], why: str) -> None:
    done = check(body, PASSES, weights)
    assert done.edits == 0
    assert any(why in reason for reason in done.reasons), done.reasons


@pytest.mark.parametrize(
    ("opset", "attributes"), [pytest.param(15, "<training_mode = 1>", id="mode"), pytest.param(13, "", id="outputs")]
)
def test_training_stays(check: Callable[..., Any], opset: int, attributes: str) -> None:
    """It normalizes by the batch; before opset 14 its further outputs say so, read or not. onnxruntime runs neither."""
    outputs = "z, mean, var" if opset == 15 else "z, mean, var, s, t"
    body = f"""g (float[2,3,8,8] x) => (float[2,4,6,6] z) {{
        y = Conv(x, w)
        {outputs} = BatchNormalization{attributes}(y, g, b, m, v)
    }}"""
    done = check(body, FoldBatchNorm(), CONV, opset, compare=False)
    assert done.edits == 0
    assert "training" in done.reasons[0]


def test_float16_stays(check: Callable[..., Any]) -> None:
    """Rounding float16 weights once more moves outputs by more than an exact rewrite may."""
    half = {name: np.ones(4, np.float16) for name in "gbmv"}
    body = """g (float16[1,3,8,8] x) => (float16[1,4,6,6] z) {
        y = Conv(x, w)
        z = BatchNormalization(y, g, b, m, v)
    }"""
    done = check(body, PASSES, {"w": np.ones((4, 3, 3, 3), np.float16), **half}, compare=False)
    assert done.edits == 0
    assert "float16" in done.reasons[0]


@pytest.mark.parametrize(
    ("body", "weights", "ops"),
    [
        pytest.param(
            """g (float[N,3,8,8] x) => (float[N,4,6,6] z) {
                y = Conv(x, w)
                z = BatchNormalization<epsilon = 0.1>(y, g, b, m, v)
            }""",
            CONV,
            ["Conv"],
            id="Conv without bias",
        ),
        pytest.param(
            """g (float[N,3,8,8] x) => (float[N,4,6,6] z) {
                y = Conv(x, w, c)
                n = BatchNormalization(y, g, b, m, v)
                z = BatchNormalization(n, g, b, m, v)
            }""",
            {**CONV, "c": (4,)},
            ["Conv"],
            id="Conv with bias and two normalizations",
        ),
        pytest.param(
            """g (float[N,3] x) => (float[N,4] z) {
                y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, c)
                z = BatchNormalization(y, g, b, m, v)
            }""",
            {**NORM, "w": (4, 3), "c": (1, 4)},
            ["Gemm"],
            id="Gemm with alpha and beta",
        ),
        pytest.param(
            """g (float[N,4] x) => (float[N,5] z) {
                y = BatchNormalization(x, g, b, m, v)
                z = Gemm<alpha = 0.5, beta = 2.0>(y, w, c)
            }""",
            {**NORM, "w": (4, 5), "c": (5,)},
            ["Gemm"],
            id="Gemm after it",
        ),
        pytest.param(
            """g (float[N,4,8,8] x) => (float[N,6,6,6] z) {
                y = BatchNormalization(x, g, b, m, v)
                z = Conv<group = 2>(y, w)
            }""",
            {**NORM, "w": (6, 2, 3, 3)},
            ["Conv"],
            id="grouped Conv after it, unpadded",
        ),
        pytest.param(
            """g (float[N,3,8,8] x) => (float[N,4,8,8] z) {
                y = Conv<pads = [1,1,1,1]>(x, w)
                n = BatchNormalization(y, g, b, m, v)
                q = Conv<pads = [1,1,1,1]>(x, w)
                z = Add(n, q)
            }""",
            CONV,
            ["Conv", "Conv", "Add"],
            id="a weight shared with another layer",
        ),
    ],
)
def test_changes(check: Callable[..., Any], body: str, weights: dict[str, Any], ops: list[str]) -> None:
    done = check(body, PASSES, weights)
    assert done.ops == ops
    assert done.difference < ROUNDING


def test_a_wrong_fold_would_be_seen(check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison notices an epsilon that is forgotten."""
    import onnxslim.passes.fold_batchnorm as module
    from onnxslim.passes._chains import Kind

    def forgetful(node: Any, channels: Any) -> Any:
        node.attrs["epsilon"] = 0.0
        return module._affine(node, channels)

    monkeypatch.setattr(module, "_NORMALIZATION", Kind(module._operand, forgetful))
    body = """g (float[1,3,8,8] x) => (float[1,4,6,6] z) {
        y = Conv(x, w)
        z = BatchNormalization<epsilon = 0.001>(y, g, b, m, v)
    }"""
    assert check(body, PASSES, CONV).difference > 10 * ROUNDING


@settings(deadline=None, max_examples=30)
@given(
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    groups=st.integers(1, 3),
    each=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    kernel=st.sampled_from([(1,), (3,), (1, 1), (3, 2)]),
    bias=st.booleans(),
)
def test_any_convolution(
    check: Callable[..., Any], op: str, groups: int, each: tuple[int, int], kernel: tuple[int, ...], bias: bool
) -> None:
    """Groups, depth multipliers, ranks and weight layouts."""
    cin, cout = groups * each[0], groups * each[1]
    shape = (cout, each[0], *kernel) if op == "Conv" else (cin, each[1], *kernel)
    weights: dict[str, Any] = {"w": shape, "g": (cout,), "b": (cout,), "m": (cout,)}
    weights["v"] = np.linspace(0.1, 3, cout, dtype=np.float32)
    if bias:
        weights["c"] = (cout,)
    size, rest = ",".join("5" for _ in kernel), ",".join("PQ"[: len(kernel)])
    body = f"""g (float[2,{cin},{size}] x) => (float[2,{cout},{rest}] z) {{
        y = {op}<group = {groups}>({"x, w, c" if bias else "x, w"})
        z = BatchNormalization(y, g, b, m, v)
    }}"""
    done = check(body, PASSES, weights)
    assert done.ops == [op]
    assert done.difference < ROUNDING
