"""merge-linear: what stays, what changes, what the numbers are, and that it undoes every form of low rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from properties.comparing import apart, run

from onnxslim.analysis.linear_layers import linear_layer
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import EXACT_PASSES, _merging
from onnxslim.passes._factors import Problem, factored
from onnxslim.passes._forms import Form, Scheme, Stage, blank, full, place, stored
from onnxslim.passes.infer_shapes import InferShapes
from onnxslim.passes.merge_linear import MergeLinear
from onnxslim.pipeline import PassContext, exact_fixed_point

ROUNDING = 2e-6
"""Relative to an output's range: a few float32 roundings."""

PASSES = [InferShapes(), MergeLinear()]
Check = Callable[..., Any]


def image(nodes: str, before: int = 4, after: int = 4, size: str = "9,8", more: str = "") -> str:
    """Return a graph over an image; its output's size is whatever it is."""
    axes = ",".join("PQR"[: size.count(",") + 1])
    return f"g (float[2,{before},{size}] x{more}) => (float[2,{after},{axes}] z) {{ {nodes} }}"


STAYS = [
    pytest.param(
        "g (float[2,4,9,8] x) => (float[2,4,P,Q] z, float[2,64,P,Q] y) { y = Conv(x, w1) z = Conv(y, w2) }",
        {"w1": (64, 4, 3, 3), "w2": (4, 64, 1, 1)},
        "used elsewhere",
        id="the tensor between is returned",
    ),
    pytest.param(
        image("y = Conv(x, w1) a = Conv(y, w2) b = GlobalMaxPool(y) c = Conv(b, w2) z = Add(a, c)"),
        {"w1": (64, 4, 3, 3), "w2": (4, 64, 1, 1)},
        "used elsewhere",
        id="the tensor between has another reader",
    ),
    pytest.param(
        image("y = Conv(x, w1) a = Conv(y, w2) s = Conv(x, w1) r = Relu(s) b = Conv(r, w2) z = Add(a, b)"),
        {"w1": (10, 4, 3, 3), "w2": (4, 10, 1, 1)},
        "stay for others",
        id="shared weights would stay beside the new one",
    ),
    pytest.param(
        image("y = Conv(x, w1) z = Conv(y, w2)"),
        {"w1": (2, 4, 3, 3), "w2": (4, 2, 1, 1)},
        "times the multiply-accumulates",
        id="a bottleneck that pays",
    ),
    pytest.param(
        "g (float[N,8] x) => (float[N,8] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w1": (8, 4), "w2": (4, 8)},
        "save nothing",
        id="a bottleneck that costs the same",
    ),
    pytest.param(
        image("y = Conv<group = 4>(x, w1) z = Conv(y, w2)"),
        {"w1": (4, 1, 3, 3), "w2": (4, 4, 1, 1)},
        "times the multiply-accumulates",
        id="a separable convolution that pays",
    ),
    pytest.param(
        image("y = Conv<strides = [2,2]>(x, w1) z = Conv<strides = [2,2]>(y, w2)", 12, 12),
        {"w1": (2, 12, 1, 1), "w2": (12, 2, 3, 3)},
        "times the multiply-accumulates",
        id="a strided bottleneck that pays",
    ),
    pytest.param(
        image("y = Conv(x, w1, b) z = Conv<pads = [1,1,1,1]>(y, w2)"),
        {"w1": (64, 4, 1, 1), "b": (64,), "w2": (4, 64, 3, 3)},
        "zeros take its place",
        id="a bias before padding",
    ),
    pytest.param(
        image("y = Conv(x, w1, b) z = Conv<pads = [1,1,1,1]>(y, w2)"),
        {"w1": (64, 4, 3, 1), "b": (64,), "w2": (4, 64, 1, 3)},
        "zeros take its place",
        id="a bias before padding along another axis",
    ),
    pytest.param(
        image("y = Conv(x, w1, b) z = Conv<auto_pad = \"SAME_UPPER\">(y, w2)"),
        {"w1": (64, 4, 1, 1), "b": (64,), "w2": (4, 64, 3, 3)},
        "zeros take its place",
        id="a bias before padding by rule",
    ),
    pytest.param(
        image("y = Conv(x, w1, b) z = ConvTranspose(y, w2)"),
        {"w1": (64, 4, 1, 1), "b": (64,), "w2": (64, 4, 3, 3)},
        "zeros take its place",
        id="a bias before a transposed convolution",
    ),
    pytest.param(
        image("y = Conv(x, w1) z = Conv(y, w2)"),
        {"w1": (64, 4, 3, 3), "w2": (4, 64, 3, 3)},
        "windows along the same axis",
        id="two windows",
    ),
    pytest.param(
        image("y = Conv(x, w1) z = Conv(y, w2)"),
        {"w1": (64, 4, 3, 2), "w2": (4, 64, 1, 2)},
        "windows along the same axis",
        id="two windows along one of the axes",
    ),
    pytest.param(
        image("y = ConvTranspose(x, w1) z = ConvTranspose<strides = [2,2]>(y, w2)"),
        {"w1": (4, 64, 3, 3), "w2": (64, 4, 1, 1)},
        "windows along the same axis",
        id="a transposed window and a stride",
    ),
    pytest.param(
        image("y = ConvTranspose<strides = [2,2]>(x, w1) z = Conv<strides = [2,2]>(y, w2)"),
        {"w1": (4, 64, 2, 2), "w2": (4, 64, 1, 1)},
        "transposed convolution",
        id="a transposed convolution and a stride",
    ),
    pytest.param(
        image("y = Conv<pads = [1,1,1,1]>(x, w1) z = Conv<pads = [0,1,0,1]>(y, w2)"),
        {"w1": (64, 4, 3, 3), "w2": (4, 64, 1, 1)},
        "pads around",
        id="padding after a window",
    ),
    pytest.param(
        image("y = Conv<auto_pad = \"SAME_LOWER\">(x, w1) z = Conv<strides = [2,2]>(y, w2)"),
        {"w1": (64, 4, 3, 3), "w2": (4, 64, 1, 1)},
        "auto_pad",
        id="padding by rule before a stride",
    ),
    pytest.param(
        image("y = Conv<strides = [2,2]>(x, w1) z = Conv<auto_pad = \"SAME_UPPER\">(y, w2)"),
        {"w1": (64, 4, 1, 1), "w2": (4, 64, 3, 3)},
        "auto_pad",
        id="padding by rule after a stride",
    ),
    pytest.param(
        image("y = Conv<auto_pad = \"SAME_UPPER\">(x, w1) z = Conv<pads = [0,1,0,1]>(y, w2)"),
        {"w1": (64, 4, 3, 1), "w2": (4, 64, 1, 3)},
        "auto_pad",
        id="one pads by rule, the other by numbers",
    ),
    pytest.param(
        image("y = Conv<group = 3>(x, w1) z = Conv<group = 2>(y, w2)", 6, 6),
        {"w1": (66, 2, 3, 3), "w2": (6, 33, 1, 1)},
        "do not nest",
        id="groups that do not nest",
    ),
    pytest.param(
        "g (float[2,4,H,W] x) => (float[2,4,P,Q] z) { y = Conv<pads = [9,9,9,9]>(x, w1) "
        "z = Conv<pads = [9,9,9,9]>(y, w2) }",
        {"w1": (64, 4, 1, 1), "w2": (4, 64, 3, 3)},
        "sizes that are not known",
        id="padding beyond the window, and sizes unknown",
    ),
    pytest.param(
        "g (float[4,8] x) => (float[8,8] z) { y = Gemm<transA = 1>(x, w1) z = Gemm(y, w2) }",
        {"w1": (4, 64), "w2": (64, 8)},
        "transposed",
        id="a transposed input",
    ),
    pytest.param(
        "g (float[8,8] x, float[8,64] w1) => (float[8,8] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w2": (64, 8)},
        "computed",
        id="a weight is an input",
    ),
    pytest.param(
        "g (float[8,8] x) => (float[8,8] z) { y = Gemm(x, w1, b) z = MatMul(y, w2) }",
        {"w1": (8, 64), "w2": (64, 8), "b": (8, 64)},
        "not one number for each channel",
        id="a bias that varies by row",
    ),
    pytest.param(
        "g (float[8,8] x) => (float[8,8] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w1": np.full((8, 64), np.nan, np.float32), "w2": (64, 8)},
        "NaN",
        id="NaN",
    ),
    pytest.param(
        "g (float[8,8] x) => (float[8,8] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w1": np.full((8, 64), 1e30, np.float32), "w2": np.full((64, 8), 1e30, np.float32)},
        "do not fit",
        id="a product that overflows",
    ),
    pytest.param(
        "g (float[8,8] x) => (float[8,8] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w1": np.full((8, 64), 1e-30, np.float32), "w2": np.full((64, 8), 1e-14, np.float32)},
        "too small",
        id="a product that vanishes",
    ),
    pytest.param(
        "g (float[8,8] x) => (float[8,8] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w1": np.eye(8, 64, dtype=np.float32) + np.eye(8, 64, 8, dtype=np.float32),
         "w2": np.vstack([np.eye(8), -(1 - 2e-4) * np.eye(8), np.zeros((48, 8))]).astype(np.float32)},
        "nearly cancel",
        id="factors that nearly cancel",
    ),
    pytest.param(
        "g (float[1,2100] x) => (float[1,2100] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w1": np.ones((2100, 2100), np.float32), "w2": np.ones((2100, 2100), np.float32)},
        "4,194,304 numbers",
        id="large weights",
    ),
    pytest.param(
        "g (float[8,8] x) => (float[8,8] z) { y = Gemm(x, w1, b1) z = Gemm(y, w2, b2) }",
        {"w1": (8, 64), "w2": np.ones((64, 8), np.float32), "b1": np.full(64, 1e4, np.float32),
         "b2": np.full(8, -64e4, np.float32)},
        "nearly cancel",
        id="biases that nearly cancel",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "why"), STAYS)
def test_stays(check: Check, body: str, weights: dict[str, Any], why: str) -> None:
    done = check(body, PASSES, weights, compare=False)
    assert done.edits == 0
    assert any(why in reason for reason in done.reasons), done.reasons


def test_float16_stays(check: Check) -> None:
    weights = {"w1": np.ones((4, 64), np.float16), "w2": np.ones((64, 4), np.float16)}
    body = "g (float16[2,4] x) => (float16[2,4] z) { y = MatMul(x, w1) z = MatMul(y, w2) }"
    done = check(body, PASSES, weights, compare=False)
    assert done.edits == 0
    assert "float16" in done.reasons[0]


def test_apart_without_a_word(check: Check) -> None:
    """An activation between two layers leaves nothing to be explained."""
    weights = {"w1": (64, 4, 3, 3), "w2": (4, 64, 1, 1)}
    assert check(image("y = Conv(x, w1) r = Relu(y) z = Conv(r, w2)"), PASSES, weights).reasons == ()


def test_matrices_after_convolutions(check: Check) -> None:
    """They act along another axis; each kind is merged by itself."""
    body = image("y = Conv(x, w1) s = Conv(y, w2) t = MatMul(s, w3) z = MatMul(t, w4)", size="9,8")
    weights = {"w1": (64, 4, 3, 3), "w2": (4, 64, 1, 1), "w3": (6, 20), "w4": (20, 6)}
    done = check(body, PASSES, weights)
    assert done.ops == ["Conv", "MatMul"]
    assert done.reasons == ()


CHANGES = [
    pytest.param(
        "g (float[N,M,8] x) => (float[N,M,8] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w1": (8, 5), "w2": (5, 8)},
        ["MatMul"],
        id="MatMul and MatMul",
    ),
    pytest.param(
        "g (float[8] x) => (float[8] z) { y = MatMul(x, w1) z = MatMul(y, w2) }",
        {"w1": (8, 5), "w2": (5, 8)},
        ["MatMul"],
        id="MatMul of a vector",
    ),
    pytest.param(
        "g (float[N,8] x) => (float[N,8] z) { y = Gemm<alpha = 0.5, beta = 2.0>(x, w1, b1) "
        "z = Gemm<alpha = -3.0, beta = 0.25, transB = 1>(y, w2, b2) }",
        {"w1": (8, 5), "w2": (8, 5), "b1": (5,), "b2": (1, 8)},
        ["Gemm"],
        id="Gemm and Gemm with alpha, beta and transB",
    ),
    pytest.param(
        "g (float[N,8] x) => (float[N,8] z) { y = Gemm<transB = 1>(x, w1, b1) z = MatMul(y, w2) }",
        {"w1": (5, 8), "w2": (5, 8), "b1": (5,)},
        ["Gemm"],
        id="Gemm and MatMul",
    ),
    pytest.param(
        "g (float[N,8] x) => (float[N,8] z) { y = MatMul(x, w1) z = Gemm<transB = 1>(y, w2, b2) }",
        {"w1": (8, 5), "w2": (8, 5), "b2": (1,)},
        ["Gemm"],
        id="MatMul and Gemm with one bias for all",
    ),
    pytest.param(
        "g (float[N,8] x) => (float[N,8] z) { y = Gemm(x, w1, b1) z = Gemm(y, w2, b2) }",
        {"w1": (8, 4), "w2": (4, 8), "b1": (4,), "b2": (8,)},
        ["Gemm"],
        id="the same work and one bias less",
    ),
    pytest.param(
        image("y = Conv<pads = [1,0,0,1], strides = [2,1], dilations = [1,2]>(x, w1, b1) z = Conv(y, w2, b2)"),
        {"w1": (8, 4, 3, 2), "w2": (4, 8, 1, 1), "b1": (8,), "b2": (4,)},
        ["Conv"],
        id="Conv and 1x1",
    ),
    pytest.param(
        image("y = Conv(x, w1, b1) z = Conv<strides = [2,3]>(y, w2)"),
        {"w1": (8, 4, 3, 2), "w2": (4, 8, 1, 1), "b1": (8,)},
        ["Conv"],
        id="Conv and a strided 1x1, which throws most of it away",
    ),
    pytest.param(
        image("y = Conv<strides = [3,2]>(x, w1) z = Conv<pads = [1,1,1,2], strides = [1,2], dilations = [2,1]>(y, w2)"),
        {"w1": (40, 4, 1, 1), "w2": (4, 40, 2, 3)},
        ["Conv"],
        id="a strided 1x1 and a padded, dilated Conv",
    ),
    pytest.param(
        image("y = Conv(x, w1, b1) z = Conv(y, w2, b2)"),
        {"w1": (8, 4, 1, 1), "w2": (4, 8, 3, 3), "b1": (8,), "b2": (4,)},
        ["Conv"],
        id="1x1 and Conv, biases and no padding",
    ),
    pytest.param(
        image("y = Conv(x, w1, b1) z = Conv<pads = [1,1,1,1]>(y, w2, b2)"),
        {"w1": (8, 4, 1, 1), "w2": (4, 8, 3, 3), "b1": np.zeros(8, np.float32), "b2": (4,)},
        ["Conv"],
        id="1x1 and a padded Conv, a bias of zeros",
    ),
    pytest.param(
        image("y = Conv<pads = [1,0,1,0], strides = [2,1]>(x, w1) "
              "z = Conv<pads = [0,2,0,1], dilations = [1,2]>(y, w2, b)"),
        {"w1": (24, 4, 3, 1), "w2": (4, 24, 1, 3), "b": (4,)},
        ["Conv"],
        id="windows along different axes",
    ),
    pytest.param(
        image("y = Conv<auto_pad = \"SAME_LOWER\", strides = [2,1]>(x, w1) "
              "z = Conv<auto_pad = \"SAME_LOWER\", strides = [1,2]>(y, w2)"),
        {"w1": (24, 4, 4, 1), "w2": (4, 24, 1, 4)},
        ["Conv"],
        id="windows along different axes, padded by rule",
    ),
    pytest.param(
        image("y = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2]>(x, w1, b) z = Conv<auto_pad = \"VALID\">(y, w2)"),
        {"w1": (24, 4, 3, 3), "w2": (4, 24, 1, 1), "b": (24,)},
        ["Conv"],
        id="padded by rule, and 1x1",
    ),
    pytest.param(
        image("y = Conv<group = 2, pads = [1,1,1,1]>(x, w1, b1) z = Conv<group = 2>(y, w2, b2)"),
        {"w1": (16, 2, 3, 3), "w2": (4, 8, 1, 1), "b1": (16,), "b2": (4,)},
        ["Conv"],
        id="grouped and grouped",
    ),
    pytest.param(
        image("y = Conv<group = 4, pads = [1,1,1,1]>(x, w1, b1) z = Conv(y, w2, b2)"),
        {"w1": (36, 1, 3, 3), "w2": (4, 36, 1, 1), "b1": (36,), "b2": (4,)},
        ["Conv"],
        id="depthwise with all filters, and 1x1",
    ),
    pytest.param(
        image("y = Conv(x, w1) z = Conv<group = 36, pads = [1,1,1,1]>(y, w2, b2)", before=1, after=36),
        {"w1": (36, 1, 1, 1), "w2": (36, 1, 3, 3), "b2": (36,)},
        ["Conv"],
        id="1x1 of one channel, and depthwise",
    ),
    pytest.param(
        image("y = ConvTranspose<strides = [2,3], pads = [1,0,0,1], output_padding = [1,2], group = 2>(x, w1, b1) "
              "z = Conv<group = 2>(y, w2, b2)"),
        {"w1": (4, 16, 3, 4), "w2": (4, 16, 1, 1), "b1": (32,), "b2": (4,)},
        ["ConvTranspose"],
        id="ConvTranspose and 1x1",
    ),
    pytest.param(
        image("y = Conv(x, w1) z = ConvTranspose<strides = [2,2], pads = [1,0,0,1], group = 2>(y, w2, b2)"),
        {"w1": (16, 4, 1, 1), "w2": (16, 2, 3, 3), "b2": (4,)},
        ["ConvTranspose"],
        id="1x1 and ConvTranspose",
    ),
    pytest.param(
        image("y = ConvTranspose<strides = [2,1]>(x, w1) z = ConvTranspose<strides = [1,3]>(y, w2, b2)"),
        {"w1": (4, 24, 3, 1), "w2": (24, 4, 1, 3), "b2": (4,)},
        ["ConvTranspose"],
        id="ConvTransposes along different axes",
    ),
    pytest.param(
        image("y = ConvTranspose(x, w1, b1) z = ConvTranspose(y, w2, b2)"),
        {"w1": (4, 8, 1, 1), "w2": (8, 4, 1, 1), "b1": (8,), "b2": (4,)},
        ["Conv"],
        id="ConvTransposes that only mix channels",
    ),
    pytest.param(
        image("y = Conv<pads = [2,1]>(x, w1) z = Conv(y, w2)", size="17"),
        {"w1": (16, 4, 5), "w2": (4, 16, 1)},
        ["Conv"],
        id="one axis",
    ),
    pytest.param(
        image("y = Conv<pads = [1,0,0,1,0,0]>(x, w1) z = Conv<strides = [1,2,1]>(y, w2)", size="5,6,7"),
        {"w1": (64, 4, 3, 1, 2), "w2": (4, 64, 1, 3, 1)},
        ["Conv"],
        id="three axes",
    ),
    pytest.param(
        "g (float[N,4,H,W] x) => (float[N,4,P,Q] z) { y = Conv<strides = [2,2]>(x, w1, b1) z = Conv(y, w2) }",
        {"w1": (8, 4, 3, 3), "w2": (4, 8, 1, 1), "b1": (8,)},
        ["Conv"],
        id="sizes unknown",
    ),
    pytest.param(
        image("y = Conv(x, w1) s = Conv<pads = [2,2,2,2]>(y, w2) z = Conv(s, w3)"),
        {"w1": (4, 4, 1, 1), "w2": (4, 4, 3, 3), "w3": (4, 4, 1, 1)},
        ["Conv"],
        id="three",
    ),
    pytest.param(
        image("y = Conv(x, w1) r = Conv(y, w2) a = Relu(x) s = Conv(a, w1) t = Conv(s, w2) z = Add(r, t)"),
        {"w1": (64, 4, 3, 3), "w2": (4, 64, 1, 1)},
        ["Conv", "Relu", "Conv", "Add"],
        id="two rows that share their weights",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "ops"), CHANGES)
def test_changes(check: Check, body: str, weights: dict[str, Any], ops: list[str]) -> None:
    done = check(body, PASSES, weights)
    assert done.ops == ops
    assert done.difference < ROUNDING


def test_shared_weights_share_the_result(check: Check) -> None:
    weights = {"w1": (64, 4, 3, 3), "w2": (4, 64, 1, 1)}
    body = image("y = Conv(x, w1) r = Conv(y, w2) a = Relu(x) s = Conv(a, w1) t = Conv(s, w2) z = Add(r, t)")
    first, second = (node for node in check(body, PASSES, weights).model.graph.nodes if node.op == "Conv")
    assert first.inputs[1] is second.inputs[1]


def test_three_where_no_two_pay(check: Check) -> None:
    """A stride in the middle makes the first pair dearer and keeps the last pair from paying; all three pay."""
    body = image("y = Conv(x, w1) s = Conv(y, w2) z = Conv(s, w3)", 8, 8)
    weights = {"w1": (20, 8, 1, 1), "w2": (20, 20, 3, 3), "w3": (8, 20, 1, 1)}
    whole = {"w1": (3, 8, 1, 1), "w2": (3, 3, 3, 3), "w3": (8, 3, 1, 1)}
    assert check(body, PASSES, weights).ops == ["Conv"]
    assert check(body, PASSES, whole).ops == ["Conv", "Conv", "Conv"]


@pytest.mark.parametrize("rank", [2, 3])
def test_only_the_pair_that_pays(check: Check, rank: int) -> None:
    """Of three layers, those two become one that are cheaper so; the bottleneck stays."""
    body = "g (float[N,32] x) => (float[N,32] z) { y = MatMul(x, w1) s = MatMul(y, w2) z = MatMul(s, w3) }"
    done = check(body, PASSES, {"w1": (32, 8), "w2": (8, rank), "w3": (rank, 32)})
    assert [tuple(node.inputs[1].shape) for node in done.model.graph.nodes] == [(32, rank), (rank, 32)]
    assert any("times the multiply-accumulates" in reason for reason in done.reasons)


def test_long_rows(check: Check) -> None:
    """Longer than what is merged at once: the rest follows in the next round."""
    names = [f"w{index}" for index in range(12)]
    nodes = " ".join(f"t{i + 1} = MatMul(t{i}, {name})" for i, name in enumerate(names))
    body = f"g (float[N,6] t0) => (float[N,6] t12) {{ {nodes} }}"
    done = check(body, PASSES, dict.fromkeys(names, (6, 6)))
    assert done.ops == ["MatMul"]
    assert done.difference < 10 * ROUNDING


def test_a_weight_read_twice_in_a_row(check: Check) -> None:
    """W·W is one matrix where nobody else reads W."""
    body = "g (float[N,6] x) => (float[N,6] z) { y = MatMul(x, w) z = MatMul(y, w) }"
    assert check(body, PASSES, {"w": (6, 6)}).ops == ["MatMul"]


def test_old_opset(check: Check) -> None:
    """Before opset 11 a Gemm's bias is not optional."""
    body = "g (float[N,8] x) => (float[N,8] z) { y = MatMul(x, w1) z = Gemm(y, w2, b2) }"
    done = check(body, PASSES, {"w1": (8, 8), "w2": (8, 8), "b2": np.zeros(1, np.float32)}, 9)
    assert done.ops == ["Gemm"]
    assert len(done.model.graph.nodes[0].inputs) == 3


def test_subgraphs(check: Check) -> None:
    """Rows inside a branch are merged; one that begins outside is used elsewhere."""
    body = """g (float[N,8] x, bool c) => (float[N,8] z) {
        y = MatMul(x, w1)
        z = If(c) <
            then_branch = t () => (float[N,8] p) { p = MatMul(y, w2) },
            else_branch = e () => (float[N,8] q) { r = MatMul(x, w3) q = MatMul(r, w4) }
        >
    }"""
    done = check(body, PASSES, {"w1": (8, 8), "w2": (8, 8), "w3": (8, 8), "w4": (8, 8)})
    assert done.ops == ["MatMul", "If"]
    branches = done.model.graph.nodes[1].attrs
    assert [len(branches[name].nodes) for name in ("then_branch", "else_branch")] == [1, 1]
    assert any("used elsewhere" in reason for reason in done.reasons)


# ---- a wrong rewrite would be seen -----------------------------------------------------------------------------------


def test_a_forgotten_bias_would_be_seen(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_merging, "_moved", lambda bias, weight: np.zeros(weight.shape[0] * weight.shape[1]))
    body, weights = image("y = Conv(x, w1, b1) z = Conv(y, w2)"), {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1)}
    assert check(body, PASSES, weights).difference > 100 * ROUNDING


def test_a_forgotten_border_would_be_seen(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_merging.Axis, "pads", False)
    body = image("y = Conv(x, w1, b1) z = Conv<pads = [1,1,1,1]>(y, w2)")
    weights = {"w1": (8, 4, 1, 1), "b1": (8,), "w2": (4, 8, 3, 3)}
    done = check(body, PASSES, weights)
    assert done.ops == ["Conv"]
    assert done.difference > 100 * ROUNDING


# ---- low rank undone -------------------------------------------------------------------------------------------------

CONV = "g (float[2,6,9,8] x) => (float[2,5,P,Q] z) { z = Conv<pads = [1,2,1,0], strides = [2,1]>(x, w, b) }"
LAYERS = {
    "conv": (CONV, {"w": (5, 6, 3, 4), "b": (5,)}),
    "grouped": (
        "g (float[2,6,9,8] x) => (float[2,8,P,Q] z) { z = Conv<group = 2>(x, w, b) }",
        {"w": (8, 3, 3, 3), "b": (8,)},
    ),
    "transposed": (
        "g (float[2,6,9,8] x) => (float[2,5,P,Q] z) { z = ConvTranspose<strides = [2,2]>(x, w, b) }",
        {"w": (6, 5, 3, 3), "b": (5,)},
    ),
    "gemm": (
        "g (float[N,9] x) => (float[N,7] z) { z = Gemm<alpha = 0.5, transB = 1>(x, w, b) }",
        {"w": (7, 9), "b": (7,)},
    ),
    "matmul": ("g (float[N,M,9] x) => (float[N,M,7] z) { z = MatMul(x, w) }", {"w": (9, 7)}),
}


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        *((kind, Scheme.CHANNEL) for kind in LAYERS),
        ("conv", Scheme.SPATIAL),
        ("conv", Scheme.TUCKER),
        ("transposed", Scheme.TUCKER),
        ("conv", Scheme.SEPARABLE),
    ],
)
def test_undoes_low_rank(check: Check, kind: str, scheme: Scheme) -> None:
    """At full rank every form costs more than the layer, and becomes that layer again."""
    body, weights = LAYERS[kind]
    model = check(body, InferShapes(), weights).model
    layer = linear_layer(model.graph.nodes[0])
    original = layer.matrix()
    before, product = model.copy(), _factorize(model, full(layer, scheme))
    assert len(model.graph.nodes) > 1
    assert exact_fixed_point(model, PASSES) > 0
    assert [node.op for node in model.graph.nodes] == [node.op for node in before.graph.nodes]
    (node,) = model.graph.nodes
    assert node.name == before.graph.nodes[0].name
    merged = linear_layer(node).matrix()
    for expected in (product, original):
        assert np.abs(merged - expected).max() < 1e-6 * np.abs(expected).max()


def test_undoes_cp(check: Check) -> None:
    """Stages of noise: the best ones of a random layer nearly cancel each other at full rank."""
    body, weights = LAYERS["conv"]
    model = check(body, InferShapes(), weights).model
    layer = linear_layer(model.graph.nodes[0])
    form = full(layer, Scheme.CP)
    _place(model, form, blank(layer, form, np.random.default_rng(0)))
    before = model.proto()
    exact_fixed_point(model, PASSES)
    (node,) = model.graph.nodes
    assert tuple(node.inputs[1].shape) == (5, 6, 3, 4)
    feed = {"x": np.random.default_rng(1).standard_normal((2, 6, 9, 8)).astype(np.float32)}
    assert max(apart(run(before, feed), run(model, feed)).values()) < ROUNDING


def _factorize(model: Model, form: Form) -> npt.NDArray[np.float64]:
    """Put ``form`` in the place of the model's only layer; return the matrix that its stages are together."""
    layer = linear_layer(model.graph.nodes[0])
    made = factored(Problem(layer, layer.matrix(), None), form)
    _place(model, form, made.stages)
    return made.weight


def _place(model: Model, form: Form, stages: Sequence[Stage]) -> None:
    layer, rewriter = linear_layer(model.graph.nodes[0]), Rewriter(model)
    place(layer, form, stages, stored(layer, stages, rewriter), rewriter)
    rewriter.finish()


def test_a_pair_that_pays_stays_a_pair(check: Check) -> None:
    body, weights = LAYERS["conv"]
    model = check(body, InferShapes(), weights).model
    _factorize(model, Form(Scheme.CHANNEL, 2))
    assert exact_fixed_point(model, [cls() for cls in EXACT_PASSES]) == 0


def test_twice_is_once(check: Check) -> None:
    body = image("y = Conv(x, w1, b1) s = Conv(y, w2) r = Relu(s) t = Conv(r, w3) z = Conv(t, w4)")
    weights = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1), "w3": (1, 4, 1, 1), "w4": (4, 1, 3, 3)}
    passes = [cls() for cls in EXACT_PASSES]
    done = check(body, passes, weights)
    assert done.ops == ["Conv", "Relu", "Conv", "Conv"]
    data = done.model.to_bytes()
    again = Model.load(data)
    assert exact_fixed_point(again, passes) == 0
    assert again.to_bytes() == data


def test_weights(check: Check) -> None:
    """By hand: the product of two matrices, and what the first bias becomes."""
    weights = {name: np.arange(size, dtype=np.float32).reshape(shape) - 3 for name, size, shape in
               [("w1", 9, (3, 3)), ("b1", 3, (3,)), ("w2", 6, (3, 2)), ("b2", 2, (2,))]}  # fmt: skip
    body = "g (float[N,3] x) => (float[N,2] z) { y = Gemm(x, w1, b1) z = Gemm(y, w2, b2) }"
    layer = linear_layer(check(body, PASSES, weights).model.graph.nodes[0])
    assert np.array_equal(layer.matrix()[0].T, weights["w1"] @ weights["w2"])
    assert np.array_equal(layer.bias(), weights["b1"] @ weights["w2"] + weights["b2"])


def test_reasons_reach_the_rewriter() -> None:
    """The refusal is known by the second layer's output."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,8] x) => (float[N,8] z) '
        "{ y = MatMul(x, w1) z = MatMul(y, w2) }"
    )
    for name, shape in (("w1", (8, 2)), ("w2", (2, 8))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    rewriter = Rewriter(Model.load(proto))
    MergeLinear().run(rewriter, PassContext())
    (found,) = rewriter.skipped
    assert (found.rule, found.anchor) == ("merge-linear", "z")
    assert found.reason == "one layer would take 2 times the multiply-accumulates of both"
