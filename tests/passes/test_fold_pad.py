"""fold-pad: which padding may become a layer's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.passes.fold_pad import FoldPad
from onnxslim.passes.infer_shapes import InferShapes

PASSES = [InferShapes(), FoldPad()]
ROUNDING = 1e-6
SIDES = np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64)
CONV = {"w": (4, 3, 3, 3), "p": SIDES}


@pytest.mark.parametrize(
    ("body", "weights", "why"),
    [
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,P,Q] z) { y = Pad(x, p, v) z = Conv(y, w) }",
            {**CONV, "v": np.array(1, np.float32)},
            "pads with 1",
            id="ones",
        ),
        pytest.param(
            'g (float[1,3,8,8] x) => (float[1,4,P,Q] z) { y = Pad<mode = "reflect">(x, p) z = Conv(y, w) }',
            CONV,
            "reflect",
            id="reflection",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,P,Q] z) { y = Pad(x, p) z = Conv(y, w) }",
            {"w": (4, 4, 3, 3), "p": np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64)},
            "channel axis",
            id="a channel of zeros",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,P,Q] z) { y = Pad(x, p) z = Conv(y, w) }",
            {**CONV, "p": np.array([0, 0, -1, 0, 0, 0, 0, 0], np.int64)},
            "negative",
            id="negative pads",
        ),
        pytest.param(
            'g (float[1,3,8,8] x) => (float[1,4,P,Q] z) { y = Pad(x, p) z = Conv<auto_pad = "SAME_LOWER">(y, w) }',
            CONV,
            "SAME_LOWER",
            id="a convolution that pads by rule",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,4,P,Q] z, float[1,3,R,S] y) { y = Pad(x, p) z = Conv(y, w) }",
            CONV,
            "used elsewhere",
            id="the padded tensor is returned",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,3,P,Q] z) { y = Pad(x, p) z = MaxPool<kernel_shape = [3,3]>(y) }",
            {"p": SIDES},
            "pads with 0",
            id="zeros before MaxPool beat negative numbers",
        ),
        pytest.param(
            """g (float[1,3,8,8] x) => (float[1,3,P,Q] z) {
                y = Pad(x, p) z = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(y)
            }""",
            {"p": SIDES},
            "does not count",
            id="AveragePool that does not count its own padding",
        ),
        pytest.param(
            "g (float[1,3,8,8] x) => (float[1,3,P,Q] z) { y = Pad(x, p) z = AveragePool<kernel_shape = [2,2]>(y) }",
            {"p": SIDES},
            "as large as the kernel",
            id="pooling pads as large as the kernel",
        ),
        pytest.param(
            """g (float[1,3,8,8] x) => (float[1,3,P,Q] z) {
                y = Pad(x, p) z = AveragePool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1>(y)
            }""",
            {"p": SIDES},
            "ceil_mode",
            id="ceil_mode",
        ),
    ],
)
def test_stays(check: Callable[..., Any], body: str, weights: dict[str, Any], why: str) -> None:
    done = check(body, PASSES, weights)
    assert done.edits == 0
    assert any(why in reason for reason in done.reasons), done.reasons


def test_computed_pads_stay(check: Callable[..., Any]) -> None:
    body = "g (float[1,3,8,8] x, int64[8] p) => (float[1,4,P,Q] z) { y = Pad(x, p) z = Conv(y, w) }"
    done = check(body, PASSES, {"w": (4, 3, 3, 3)}, compare=False)  # random pads would pad channels too
    assert done.edits == 0
    assert "computed" in done.reasons[0]


@pytest.mark.parametrize(
    ("body", "weights", "opset", "ops"),
    [
        pytest.param(
            """g (float[N,3,8,8] x) => (float[N,4,P,Q] z) {
                y = Pad(x, p) z = Conv<pads = [1,0,0,2], strides = [2,1]>(y, w)
            }""",
            CONV,
            17,
            ["Conv"],
            id="both pad, unevenly",
        ),
        pytest.param(
            'g (float[N,3,8,8] x) => (float[N,4,P,Q] z) { y = Pad(x, p) z = Conv<auto_pad = "VALID">(y, w) }',
            CONV,
            17,
            ["Conv"],
            id="VALID",
        ),
        pytest.param(
            "g (float[N,3,8,8] x) => (float[N,4,P,Q] z) { y = Pad(x, p, , a) z = Conv(y, w) }",
            {"w": (4, 3, 3, 3), "p": np.array([1, 2, 0, 1], np.int64), "a": np.array([-1, 2], np.int64)},
            18,
            ["Conv"],
            id="axes, counted from the end",
        ),
        pytest.param(
            "g (float[N,3,8,8] x) => (float[N,4,P,Q] z) { y = Pad<pads = [0,0,1,2,0,0,0,1]>(x) z = Conv(y, w) }",
            {"w": (4, 3, 3, 3)},
            9,
            ["Conv"],
            id="opset 9, pads as attribute",
        ),
        pytest.param(
            "g (float[N,3,8,8] x) => (float[N,3,P,Q] z) { y = Pad(x, p) z = AveragePool<kernel_shape = [3,3]>(y) }",
            {"p": SIDES},
            17,
            ["AveragePool"],
            id="AveragePool counts the zeros",
        ),
        pytest.param(
            """g (float[N,3,8,8] x) => (float[N,3,P,Q] z) {
                r = Relu(x) y = Pad(r, p) z = MaxPool<kernel_shape = [3,3], strides = [2,2]>(y)
            }""",
            {"p": SIDES},
            17,
            ["Relu", "MaxPool"],
            id="zeros before MaxPool, after Relu",
        ),
        pytest.param(
            "g (float[N,3,8,8] x) => (float[N,3,P,Q] z) { y = Pad(x, p, v) z = MaxPool<kernel_shape = [3,3]>(y) }",
            {"p": SIDES, "v": np.array(-np.inf, np.float32)},
            17,
            ["MaxPool"],
            id="minus infinity before MaxPool",
        ),
    ],
)
def test_changes(check: Callable[..., Any], body: str, weights: dict[str, Any], opset: int, ops: list[str]) -> None:
    done = check(body, PASSES, weights, opset)
    assert done.ops == ops
    assert done.difference < ROUNDING
