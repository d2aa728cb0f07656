"""What does not run on XNNPACK and why, then what does: every row is a condition of its table."""

from __future__ import annotations

import pytest
from targets.texts import paired, paired_conv, rows, told

CONV = "(float[1,3,8,8] x, float[8,3,3,3] w, float[8] wb) => (float[1,8,6,6] c) { c = Conv(x, w, wb) }"

REFUSED = [
    ("another operator", "(float[1,3,8,8] x) => (float[1,3,8,8] c) { c = Sigmoid(x) }", 17, "xnnpack has no Sigmoid"),
    (
        "an operator of another domain",
        "(float[1,8] x) => (float[1,8] c) { c = com.microsoft.Gelu(x) }",
        17,
        "xnnpack has no com.microsoft:Gelu",
    ),
    ("an old opset", CONV, 9, "the model's opset is 9, and it takes Conv of 11 and newer"),
    (
        "one dimension",
        "(float[1,3,8] x, float[8,3,3] w) => (float[1,8,6] c) { c = Conv(x, w) }",
        17,
        "its input has 3 dimensions, and it takes 4",
    ),
    (
        "three dimensions",
        "(float[1,3,8,8,8] x, float[8,3,3,3,3] w) => (float[1,8,6,6,6] c) { c = Conv(x, w) }",
        17,
        "its input has 5 dimensions, and it takes 4",
    ),
    (
        "a height that is not fixed",
        "(float[1,3,H,8] x, float[8,3,3,3] w) => (float[1,8,h,6] c) { c = Conv(x, w) }",
        17,
        "the size of its input is not fixed: 1×3×H×8",
    ),
    (
        "computed weights",
        "(float[1,3,8,8] x, float[8,3,3,3] v) => (float[1,8,6,6] c) { c = Conv(x, v) }",
        17,
        "its weights must be constant, and are an input of the model",
    ),
    (
        "weights of a node",
        "(float[1,3,8,8] x, float[8,3,3,3] v) => (float[1,8,6,6] c) { u = Relu(v) c = Conv(x, u) }",
        17,
        "its weights must be constant, and are computed by Relu",
    ),
    (
        "a computed bias",
        "(float[1,3,8,8] x, float[8,3,3,3] w, float[8] v) => (float[1,8,6,6] c) { c = Conv(x, w, v) }",
        17,
        "its bias must be constant, and is an input of the model",
    ),
    (
        "padding at the start",
        '(float[1,3,8,8] x, float[8,3,3,3] w) => (float[1,8,8,8] c) { c = Conv<auto_pad = "SAME_LOWER">(x, w) }',
        17,
        "auto_pad is SAME_LOWER, and it takes NOTSET or SAME_UPPER or VALID",
    ),
    (
        "doubles",
        "(double[1,3,8,8] x, double[8,3,3,3] w) => (double[1,8,6,6] c) { c = Conv(x, w) }",
        17,
        "its input is float64, and it takes float32",
    ),
    (
        "indices of MaxPool",
        "(float[1,3,8,8] x) => (float[1,3,4,4] c, int64[1,3,4,4] i) "
        "{ c, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }",
        17,
        "it has 2 outputs: 1 can be made",
    ),
    (
        "a ceiling",
        "(float[1,3,7,7] x) => (float[1,3,4,4] c) "
        "{ c = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x) }",
        17,
        "ceil_mode is 1, and it takes 0",
    ),
    (
        "a pool of one",
        "(float[1,3,8,8] x) => (float[1,3,4,4] c) { c = MaxPool<kernel_shape = [1, 1], strides = [2, 2]>(x) }",
        17,
        "kernel_shape is 1×1, and it takes not 1×1",
    ),
    (
        "padding that counts",
        "(float[1,3,8,8] x) => (float[1,3,8,8] c) "
        "{ c = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x) }",
        17,
        "count_include_pad is 1, and it takes 0",
    ),
    (
        "a softmax over channels",
        "(float[1,3,8,8] x) => (float[1,3,8,8] c) { c = Softmax<axis = 1>(x) }",
        17,
        "its axis is 1, not the last of 4",
    ),
    (
        "the nearest",
        "(float[1,3,8,8] x) => (float[1,3,16,16] c) <float[4] k = {1, 1, 2, 2}> { c = Resize(x, , k) }",
        17,
        "mode is nearest, and it takes linear",
    ),
    (
        "other coordinates",
        "(float[1,3,8,8] x) => (float[1,3,16,16] c) <float[4] k = {1, 1, 2, 2}> "
        '{ c = Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize">(x, , k) }',
        17,
        "coordinate_transformation_mode is tf_crop_and_resize",
    ),
    (
        "more channels",
        '(float[1,3,8,8] x) => (float[1,6,8,8] c) <float[4] k = {1, 2, 1, 1}> { c = Resize<mode = "linear">(x, , k) }',
        17,
        "it changes the number of channels",
    ),
    (
        "a third of a size",
        "(float[1,3,8,8] x) => (float[1,3,2,2] c) <float[4] k = {1, 1, 0.333, 0.333}> "
        '{ c = Resize<mode = "linear">(x, , k) }',
        17,
        "it makes the image smaller by no whole number",
    ),
    (
        "a computed size",
        '(float[1,3,8,8] x, float[4] k) => (float[1,3,h,v] c) { c = Resize<mode = "linear">(x, , k) }',
        17,
        "its scales or sizes must be constant",
    ),
    (
        "a factor",
        "(float[1,8] x, float[8,4] w, float[4] wb) => (float[1,4] c) { c = Gemm<alpha = 0.5>(x, w, wb) }",
        17,
        "alpha is 0.5, and it takes 1.0",
    ),
    (
        "one bias for all",
        "(float[1,8] x, float[8,4] w, float[1] wb) => (float[1,4] c) { c = Gemm(x, w, wb) }",
        17,
        "its bias has not one value for each of 4 columns",
    ),
    (
        "two activations",
        "(float[2,8] x, float[8,4] v) => (float[2,4] c) { c = MatMul(x, v) }",
        17,
        "its weights must be constant, and are an input of the model",
    ),
    (
        "a Relu after Add",
        "(float[1,3] x) => (float[1,3] c) { a = Add(x, x) c = Relu(a) }",
        17,
        "it runs only within Conv, MaxPool or AveragePool right before it; there is Add",
    ),
    ("a Relu first", "(float[1,3] x) => (float[1,3] c) { c = Relu(x) }", 17, "there is an input"),
    (
        "a Relu after a Conv that does not run",
        "(float[1,3,8] x, float[8,3,3] w) => (float[1,8,6] c) { a = Conv(x, w) c = Relu(a) }",
        17,
        "that Conv does not",
    ),
    (
        "bounds that are computed",
        "(float[1,3,8,8] x, float[8,3,3,3] w, float m) => (float[1,8,6,6] c) { a = Conv(x, w) c = Clip(a, m) }",
        17,
        "its bounds are computed",
    ),
    ("one of a pair", "(float[8] x) => (uint8[8] c) <float s = {1}> { c = QuantizeLinear(x, s) }", 17, "has no Qu"),
    (
        "uint8 data with int8 weights",
        paired_conv("uint8", "int8", channels=False),
        17,
        "uint8 data with int8 weights, and it takes int8 data with int8 weights for each channel or "
        "uint8 data with uint8 weights",
    ),
    ("uint8 by channel", paired_conv("uint8", "uint8", channels=True), 17, "uint8 weights for each channel"),
    ("other integers after it", paired_conv("uint8", "uint8", channels=False, out="int8"), 17, "no group"),
    (
        "Gemm in pairs",
        paired("c = Gemm(d, e)", "1,8", "1,4", more="e = DequantizeLinear(w, s, z)", weights=", uint8[8,4] w"),
        17,
        "there is no integer kernel for it",
    ),
    ("int8 averages", paired("c = AveragePool<kernel_shape = [2, 2], count_include_pad = 1>(d)", "1,3,8,8", "1,3,7,7",
                             "int8"), 17, "int8 values, and it takes uint8 values"),
    ("averages without padding", paired("c = AveragePool<kernel_shape = [2, 2]>(d)", "1,3,8,8", "1,3,7,7"), 17,
     "count_include_pad is 0, and it takes 1"),
    ("another scale after softmax", paired("c = Softmax(d)", "1,8", "1,8"), 17, "has not scale 1/256"),
    ("Add in pairs", paired("c = Add(d, d)", "1,8", "1,8"), 17, "xnnpack has no Add"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "opset", "reason"), rows(REFUSED))
def test_xnnpack_refuses(text: str, opset: int, reason: str) -> None:
    verdict, why = told(text, "xnnpack", opset)["c"]
    assert verdict == "refused"
    assert reason in why


UNKNOWN = [
    ("half precision", "(float16[1,3,8,8] x, float16[8,3,3,3] w) => (float16[1,8,6,6] c) { c = Conv(x, w) }", 17,
     "its input is float16, of which nothing is known"),
    ("a new opset", "(float[1,3,8,8] x) => (float[1,3,7,7] c) { c = AveragePool<kernel_shape = [2, 2]>(x) }", 19,
     "newer than its kernel"),
    ("a batch of matrices", "(float[2,3,8] x, float[8,4] w) => (float[2,3,4] c) { c = MatMul(x, w) }", 17,
     "its input has 3 dimensions, of which nothing is known"),
    ("no bias", "(float[1,8] x, float[8,4] w) => (float[1,4] c) { c = Gemm(x, w) }", 17, "its bias is left out"),
    ("a table as bias", "(float[8,8] x, float[8,4] w, float[8,4] wb) => (float[8,4] c) { c = Gemm(x, w, wb) }", 17,
     "its bias is no vector"),
    ("a Conv that others read", "(float[1,3,8,8] x, float[8,3,3,3] w) => (float[1,8,6,6] c, float[1,8,6,6] a) "
     "{ a = Conv(x, w) c = Relu(a) }", 17, "others read that Conv too"),
    ("QLinear of the contributors", "(uint8[1,3,8,8] x) => (uint8[1,3,7,7] c) <float s = {1}, uint8 z = {0}> "
     "{ c = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2]>(x, s, z, s, z) }", 17, "the documentation"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "opset", "reason"), rows(UNKNOWN))
def test_xnnpack_leaves_open(text: str, opset: int, reason: str) -> None:
    verdict, why = told(text, "xnnpack", opset)["c"]
    assert verdict == "unknown"
    assert reason in why


TAKEN = [
    ("a layer", CONV, 17),
    ("a layer of the oldest opset", CONV, 11),
    ("a batch that is not fixed", "(float[N,3,8,8] x, float[8,3,3,3] w) => (float[N,8,6,6] c) { c = Conv(x, w) }", 17),
    ("groups", "(float[1,8,8,8] x, float[8,1,3,3] w) => (float[1,8,6,6] c) { c = Conv<group = 8>(x, w) }", 17),
    ("padding at the end", '(float[1,3,8,8] x, float[8,3,3,3] w) => (float[1,8,8,8] c) '
     '{ c = Conv<auto_pad = "SAME_UPPER">(x, w) }', 17),
    ("a transposed layer", "(float[1,3,8,8] x, float[3,8,2,2] w) => (float[1,8,16,16] c) "
     "{ c = ConvTranspose<strides = [2, 2]>(x, w) }", 17),
    ("a pool", "(float[1,3,8,8] x) => (float[1,3,7,7] c) { c = MaxPool<kernel_shape = [2, 2]>(x) }", 17),
    ("averages", "(float[1,3,8,8] x) => (float[1,3,7,7] c) { c = AveragePool<kernel_shape = [2, 2]>(x) }", 17),
    ("a softmax", "(float[1,8] x) => (float[1,8] c) { c = Softmax(x) }", 17),
    ("an old softmax", "(float[1,8] x) => (float[1,8] c) { c = Softmax<axis = 1>(x) }", 11),
    ("twice as large", "(float[1,3,8,8] x) => (float[1,3,16,16] c) <float[4] k = {1, 1, 2, 2}> "
     '{ c = Resize<mode = "linear">(x, , k) }', 17),
    ("half as large", "(float[1,3,8,8] x) => (float[1,3,4,4] c) <float[4] k = {1, 1, 0.5, 0.5}> "
     '{ c = Resize<mode = "linear">(x, , k) }', 17),
    ("a matrix", "(float[1,8] x, float[8,4] w, float[4] wb) => (float[1,4] c) { c = Gemm(x, w, wb) }", 17),
    ("a product", "(float[2,8] x, float[8,4] w) => (float[2,4] c) { c = MatMul(x, w) }", 17),
    ("a Relu after a layer", "(float[1,3,8,8] x, float[8,3,3,3] w) => (float[1,8,6,6] c) "
     "{ a = Conv(x, w) c = Relu(a) }", 17),
    ("a Clip after a layer", "(float[1,3,8,8] x, float[8,3,3,3] w) => (float[1,8,6,6] c) "
     "<float l = {0}, float h = {6}> { a = Conv(x, w) c = Clip(a, l, h) }", 17),
    ("S8S8", paired_conv("int8", "int8", channels=False), 17),
    ("S8S8 by channel", paired_conv("int8", "int8", channels=True), 17),
    ("U8U8", paired_conv("uint8", "uint8", channels=False), 17),
    ("averages in pairs", paired("c = AveragePool<kernel_shape = [2, 2], count_include_pad = 1>(d)", "1,3,8,8",
                                 "1,3,7,7"), 17),
    ("a pool in pairs", paired("c = MaxPool<kernel_shape = [2, 2]>(d)", "1,3,8,8", "1,3,7,7", "int8"), 17),
    ("an integer layer", "(uint8[1,3,8,8] x, uint8[8,3,3,3] w) => (uint8[1,8,6,6] c) <float s = {1}, uint8 z = {0}> "
     "{ c = QLinearConv(x, s, z, w, s, z, s, z) }", 17),
]  # fmt: skip


@pytest.mark.parametrize(("text", "opset"), rows(TAKEN))
def test_xnnpack_takes(text: str, opset: int) -> None:
    assert told(text, "xnnpack", opset)["c"] == ("runs", "")
