"""What does not run on QNN and why, then what does: every row is a condition of its table."""

from __future__ import annotations

import pytest
from targets.texts import paired, paired_conv, rows, told

CONV = "(float[1,3,8,8] x, float[8,3,3,3] w, float[8] wb) => (float[1,8,6,6] c) { c = Conv(x, w, wb) }"

REFUSED = [
    ("a batch that is not fixed", "(float[N,3] x) => (float[N,3] c) { c = Relu(x) }",
     "the size of its input is not fixed: N×3"),
    ("an output that is not fixed", "(float[8] x, bool[8] k) => (float[n] c) { c = Compress(x, k) }", "qnn has no"),
    ("another operator", "(float[8] x) => (float[8] c) { c = Acosh(x) }", "qnn has no Acosh"),
    ("six dimensions", "(float[1,1,1,1,2,2] x) => (float[1,1,1,1,2,2] c) { c = Sigmoid(x) }",
     "its input has 6 dimensions, and it takes 0 or 1 or 2 or 3 or 4 or 5"),
    ("five dimensions", "(float[1,1,1,2,2] x) => (float[1,1,1,2,2] c) { c = Tanh(x) }", "its input has 5 dimensions"),
    ("doubles", "(double[8] x) => (double[8] c) { c = Relu(x) }", "its input is float64"),
    ("integers", "(int32[8] x) => (int32[8] c) { c = Relu(x) }", "its input is int32"),
    ("computed bounds", "(float[8] x, int64[1] a, int64[1] b) => (float[4] c) { c = Slice(x, a, b) }", "must be"),
    ("a computed axis", "(float[2,8] x, int64[1] a) => (float[2,1] c) { c = ReduceSum(x, a) }", "must be constant"),
    ("padding around", '(float[1,8] x) => (float[1,10] c) <int64[4] p = {0, 1, 0, 1}> { c = Pad<mode = "wrap">(x, p) }',
     "mode is wrap"),
    ("a matrix whose output is in float", "(uint8[1,8] x, uint8[8,4] w) => (float[1,4] c) "
     "<float s = {1}, uint8 z = {0}> { d = DequantizeLinear(x, s, z) e = DequantizeLinear(w, s, z) c = Gemm(d, e) }",
     "its inputs are integers and its output is in float"),
    ("dilation", "(float[1,3,9,9] x) => (float[1,3,5,5] c) "
     "{ c = MaxPool<kernel_shape = [3, 3], dilations = [2, 2]>(x) }",
     "dilations is 2, and it takes 1"),
    ("indices", "(float[1,3,8,8] x) => (float[1,3,7,7] c, int64[1,3,7,7] i) "
     "{ c, i = MaxPool<kernel_shape = [2, 2]>(x) }",
     "it has 2 outputs"),
    ("int16 averages", paired("c = AveragePool<kernel_shape = [2, 2]>(d)", "1,3,8,8", "1,3,7,7", "int16"),
     "int16 values, and it takes uint8 values or int8 values or uint16 values"),
    ("int8 instances", paired("c = InstanceNormalization(d, e, b)", "1,3,8,8", "1,3,8,8", "int8", weights=
                              ", int8[3] w, int32[3] wb",
                              more="e = DequantizeLinear(w, s, z) b = DequantizeLinear(wb, s)"), "int8 values"),
    ("wide weights", paired("c = Conv(d, e)", "1,3,8,8", "1,8,6,6", "int16", weights=", int16[8,3,3,3] w",
                            more="e = DequantizeLinear(w, s, z)"), "int16 data with int16 weights"),
    ("scales of a pair alone", "(float[4,8] x) => (uint8[4,8] c) <float[4] s = {1, 1, 1, 1}> "
     "{ y = Relu(x) c = QuantizeLinear<axis = 0>(y, s) }", "it belongs to no layer's pairs and has a scale for each"),
    ("an error function", "(float[8] x) => (float[8] c) { c = Erf(x) }", "it runs only within a GELU"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), rows(REFUSED))
def test_qnn_refuses(text: str, reason: str) -> None:
    verdict, why = told(text, "qnn")["c"]
    assert (verdict, reason in why) == ("refused", True), why


UNKNOWN = [
    ("of the model's opset", "(float[8] x) => (int64[8] c) { c = Einsum<equation = \"i->i\">(x) }", "was not tried"),
    ("a mode that was not tried", "(float[1,8] x) => (float[1,10] c) <int64[4] p = {0, 1, 0, 1}> "
     '{ c = Pad<mode = "other">(x, p) }', "mode is other, of which nothing is known"),
    ("shared weights", "(float[4,4] x, float[4,4] w) => (float[4,4] c) { a = Gemm(x, w) c = Gemm<transB = 1>(a, w) }",
     "other nodes read its weights too"),
    ("weights that are activations, wide", paired("c = MatMul(d, e)", "4,4", "4,4", "int16",
                                                   more="v = Relu(d) k = Constant<value = int8 {0}>() "
                                                   "u = QuantizeLinear(v, s, k) e = DequantizeLinear(u, s, k)"),
     "its weights are computed and its data is int16"),
    ("integers that were not tried", "(uint32[8] x) => (uint32[8] c) { c = Add(x, x) }", "its input is uint32"),
    ("nothing in it", "(float[0,3] x) => (float[0,3] c) { c = Relu(x) }", "its input is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), rows(UNKNOWN))
def test_qnn_leaves_open(text: str, reason: str) -> None:
    verdict, why = told(text, "qnn")["c"]
    assert (verdict, reason in why) == ("unknown", True), why


TAKEN = [
    ("a layer", CONV),
    ("in half precision", "(float16[1,3,8,8] x, float16[8,3,3,3] w) => (float16[1,8,6,6] c) { c = Conv(x, w) }"),
    ("computed weights", "(float[1,3,8,8] x, float[8,3,3,3] v) => (float[1,8,6,6] c) { c = Conv(x, v) }"),
    ("three dimensions", "(float[1,3,8,8,8] x, float[8,3,3,3,3] w) => (float[1,8,6,6,6] c) { c = Conv(x, w) }"),
    ("an activation alone", "(float[1,3] x) => (float[1,3] c) { c = HardSwish(x) }"),
    ("a scalar", "(float x) => (float c) { c = Sigmoid(x) }"),
    ("a sum", "(float[2,8] x) => (float[2,1] c) <int64[1] a = {1}> { c = ReduceSum(x, a) }"),
    ("U8S8 by channel", paired_conv("uint8", "int8", channels=True)),
    ("U8U8", paired_conv("uint8", "uint8", channels=False)),
    ("S8S8", paired_conv("int8", "int8", channels=False)),
    ("16 bits with 8", paired_conv("uint16", "int8", channels=True)),
    ("16 bits with 16", paired_conv("uint16", "int16", channels=True)),
    ("a matrix in pairs", paired("c = Gemm(d, e)", "1,8", "1,4", more="e = DequantizeLinear(w, s, z)",
                                 weights=", uint8[8,4] w")),
    ("a sum in pairs of 16 bits", paired("c = Add(d, d)", "1,8", "1,8", "uint16")),
    ("a softmax in pairs", paired("c = Softmax(d)", "1,8", "1,8")),
    ("an error function within GELU", "(float[8] x) => (float[8] g) <float k = {1.41421}, float u = {1}> "
     "{ y = Div(x, k) c = Erf(y) p = Add(c, u) g = Mul(x, p) }"),
]  # fmt: skip


@pytest.mark.parametrize("text", rows(TAKEN))
def test_qnn_takes(text: str) -> None:
    assert told(text, "qnn")["c"] == ("runs", "")


def test_qnn_leaves_the_border_to_the_cpu() -> None:
    found = told(
        "(float[1,8] x) => (float[1,8] y) <float s = {0.1}, uint8 z = {128}> "
        "{ a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = Relu(b) "
        "d = QuantizeLinear(c, s, z) y = DequantizeLinear(d, s, z) }",
        "qnn",
    )
    assert {name: verdict for name, (verdict, _) in found.items()} == {
        "a": "border", "b": "runs", "c": "runs", "d": "runs", "y": "border",
    }  # fmt: skip


def test_what_is_in_a_subgraph() -> None:
    text = """(float[8] x, bool k) => (float[8] y) { y = If (k) <
        then_branch = t () => (float[8] a) { a = Relu(x) },
        else_branch = e () => (float[8] b) { b = Tanh(x) }> }"""
    found = told(text, "qnn")
    assert {name: verdict for name, (verdict, _) in found.items()} == {"y": "unknown", "a": "unknown", "b": "unknown"}
    assert "it is in a subgraph, of which nothing is known" in found["a"][1]
    assert told(text, "xnnpack")["a"][0] == "refused"
