"""Every condition of XNNPACK's table by one edit of a model that runs: nobody here can try it."""

from __future__ import annotations

import pytest
from targets.texts import paired, paired_conv, told

TRANSPOSED = "(float[1,3,8,8] x, float[3,8,2,2] w, float[8] wb) => (float[1,8,9,9] c) { c = ConvTranspose(x, w, wb) }"
INTEGER = """(uint8[1,3,8,8] x, uint8[8,3,3,3] w, int32[8] wb) => (uint8[1,8,6,6] c)
<float s = {1}, float s1 = {1}, float s2 = {1}, uint8 z = {0}, uint8 z1 = {0}, uint8 z2 = {0}>
{ c = QLinearConv(x, s, z, w, s1, z1, s2, z2, wb) }"""
POOL = "(float[1,3,8,8] x) => (float[1,3,7,7] c) { c = MaxPool<kernel_shape = [2, 2]>(x) }"
AVERAGE = POOL.replace("MaxPool", "AveragePool")
SOFTMAX = "(float[2,8] x) => (float[2,8] c) { c = Softmax<axis = -1>(x) }"
RESIZE = """(float[1,3,8,8] x) => (float[1,3,16,16] c) <float[4] k = {1, 1, 2, 2}>
{ c = Resize<mode = "linear">(x, , k) }"""
GEMM = "(float[2,8] x, float[8,4] w, float[4] wb) => (float[2,4] c) { c = Gemm(x, w, wb) }"
MATMUL = "(float[2,8] x, float[8,4] w) => (float[2,4] c) { c = MatMul(x, w) }"
BASES = {
    "ConvTranspose": TRANSPOSED, "QLinearConv": INTEGER, "MaxPool": POOL, "AveragePool": AVERAGE, "Softmax": SOFTMAX,
    "Resize": RESIZE, "Gemm": GEMM, "MatMul": MATMUL,
}  # fmt: skip

SAME_LOWER = ('auto_pad = "SAME_LOWER"', "auto_pad is SAME_LOWER")
EDITS = [
    (TRANSPOSED, "[1,3,8,8] x", "[1,3,H,8] x", "is not fixed"),
    (TRANSPOSED, "[3,8,2,2] w", "[3,8,2,2] v", "(x, w,", "(x, v,", "its weights must be constant"),
    (TRANSPOSED, "[8] wb", "[8] v", "w, wb)", "w, v)", "its bias must be constant"),
    (TRANSPOSED, "ConvTranspose(", f"ConvTranspose<{SAME_LOWER[0]}>(", SAME_LOWER[1]),
    (TRANSPOSED, "float", "double", "its input is float64"),
    (TRANSPOSED, "8,8] x, float[3,8,2,2] w", "8,8,8] x, float[3,8,2,2,2] w", "its input has 5 dimensions"),
    (TRANSPOSED, "8,8] x, float[3,8,2,2] w", "8] x, float[3,8,2] w", "its input has 3 dimensions"),
    (INTEGER, "[1,3,8,8] x", "[1,3,8,W] x", "is not fixed"),
    (INTEGER, "[8,3,3,3] w", "[8,3,3,3] v", "z, w, s1", "z, v, s1", "input 4 must be constant"),
    (INTEGER, "[8] wb", "[8] v", ", wb)", ", v)", "input 9 must be constant"),
    (INTEGER, "(uint8", "(float v, uint8", "x, s,", "x, v,", "input 2 must be constant"),
    (INTEGER, "(uint8", "(uint8 v, uint8", "s, z, w", "s, v, w", "input 3 must be constant"),
    (INTEGER, "(uint8", "(float v, uint8", "w, s1", "w, v", "input 5 must be constant"),
    (INTEGER, "(uint8", "(uint8 v, uint8", "s1, z1, s2, z2", "s1, v, s2, z2", "input 6 must be constant"),
    (INTEGER, "(uint8", "(float v, uint8", "z1, s2", "z1, v", "input 7 must be constant"),
    (INTEGER, "(uint8", "(uint8 v, uint8", "s2, z2, wb", "s2, v, wb", "input 8 must be constant"),
    (INTEGER, "QLinearConv(", f"QLinearConv<{SAME_LOWER[0]}>(", SAME_LOWER[1]),
    (INTEGER, "uint8[8,3,3,3] w", "int8[8,3,3,3] w", "uint8 z1", "int8 z1", "uint8 data with int8 weights"),
    (INTEGER, "float s1 = {1}", "float[8] s1 = {1, 1, 1, 1, 1, 1, 1, 1}", "uint8 weights for each channel"),
    (INTEGER, "8,8] x, uint8[8,3,3,3] w", "8] x, uint8[8,3,3] w", "its input has 3 dimensions"),
    (POOL, "8,8] x", "8,W] x", "is not fixed"),
    (POOL, "8,8] x", "8] x", "[2, 2]", "[2]", "its input has 3 dimensions"),
    (POOL, "[2, 2]", f"[2, 2], {SAME_LOWER[0]}", SAME_LOWER[1]),
    (POOL, "float", "double", "its input is float64"),
    (AVERAGE, "8,8] x", "H,8] x", "is not fixed"),
    (AVERAGE, "8,8] x", "8] x", "[2, 2]", "[2]", "its input has 3 dimensions"),
    (AVERAGE, "[2, 2]", f"[2, 2], {SAME_LOWER[0]}", SAME_LOWER[1]),
    (AVERAGE, "[2, 2]", "[2, 2], ceil_mode = 1", "ceil_mode is 1"),
    (AVERAGE, "[2, 2]", "[1, 1]", "kernel_shape is 1×1"),
    (AVERAGE, "float", "double", "its input is float64"),
    (SOFTMAX, "[2,8] x", "[2,W] x", "is not fixed"),
    (SOFTMAX, "float", "double", "its input is float64"),
    (SOFTMAX, "axis = -1", "axis = 0", "its axis is 0, not the last of 2"),
    (RESIZE, "[1,3,8,8] x", "[1,C,8,8] x", "is not fixed"),
    (RESIZE, "float[1", "double[1", "its input is float64"),
    (RESIZE, "8,8] x", "8] x", "float[4] k = {1, 1, 2, 2}", "float[3] k = {1, 1, 2}", "its input has 3 dimensions"),
    (RESIZE, '"linear"', '"cubic"', "mode is cubic"),
    (RESIZE, '"linear"', '"linear", antialias = 1', "antialias is 1"),
    (RESIZE, '"linear"', '"linear", exclude_outside = 1', "exclude_outside is 1"),
    (RESIZE, '"linear"', '"linear", extrapolation_value = 2.0', "extrapolation_value is 2.0"),
    (RESIZE, '"linear"', '"linear", keep_aspect_ratio_policy = "not_larger"', "keep_aspect_ratio_policy is not_larger"),
    (RESIZE, '"linear"', '"linear", axes = [0, 1, 2, 3]', "axes is 0×1×2×3"),
    (GEMM, "Gemm(", "Gemm<beta = 0.5>(", "beta is 0.5"),
    (GEMM, "[8,4] w", "[8,4] v", "x, w,", "x, v,", "its weights must be constant"),
    (GEMM, "[4] wb", "[4] v", "w, wb)", "w, v)", "its bias must be constant"),
    (GEMM, "float", "double", "its input is float64"),
    (MATMUL, "[2,8] x", "[N,8] x", "is not fixed"),
    (MATMUL, "float", "double", "its input is float64"),
    (MATMUL, "[2,8] x, float[8,4] w", "[1,2,2,8] x, float[8,4] w", "its input has 4 dimensions"),
    (MATMUL, "[2,8] x, float[8,4] w", "[2,8] x, float[2,8,4] w", "its weights have 3 dimensions"),
]  # fmt: skip


def edited(base: str, edits: tuple[str, ...]) -> str:
    """Return ``base`` with pairs of old and new text replaced."""
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in base
        base = base.replace(old, new)
    return base


@pytest.mark.parametrize("row", EDITS, ids=[f"{index}-{row[-1]}" for index, row in enumerate(EDITS)])
def test_one_edit_and_it_does_not_run(row: tuple[str, ...]) -> None:
    base, *edits, reason = row
    opset = 19 if any(word in edits[-1] for word in ("antialias", "keep_aspect", "axes")) else 17
    verdict, why = told(edited(base, tuple(edits)), "xnnpack", opset)["c"]
    assert (verdict, reason in why) == ("refused", True), why


@pytest.mark.parametrize("name", BASES)
def test_before_the_edit_it_runs(name: str) -> None:
    assert told(BASES[name], "xnnpack")["c"] == ("runs", "")


OLD = [("ConvTranspose", TRANSPOSED, 10), ("MaxPool", POOL, 10), ("AveragePool", AVERAGE, 10)]


@pytest.mark.parametrize(("name", "text", "opset"), OLD, ids=[row[0] for row in OLD])
def test_versions_without_a_kernel(name: str, text: str, opset: int) -> None:
    verdict, why = told(text, "xnnpack", opset)["c"]
    assert verdict == "refused"
    assert why.startswith(f"the model's opset is {opset}, and it takes {name} of")


def test_integers_of_what_only_looks() -> None:
    """MaxPool and Resize take both integers of 8 bits; Softmax uint8, with the scale that it makes."""
    pool = "c = MaxPool<kernel_shape = [2, 2]>(d)"
    for kind, verdict in (("int8", "runs"), ("uint8", "runs"), ("int16", "refused")):
        assert told(paired(pool, "1,3,8,8", "1,3,7,7", kind), "xnnpack")["c"][0] == verdict
    softmax = paired("c = Softmax(d)", "1,8", "1,8")
    assert told(softmax, "xnnpack")["c"][0] == "refused"
    made = softmax.replace("float s = {0.1}", "float s = {0.1}, float r = {0.00390625}, uint8 n = {0}")
    made = made.replace("(c, s, zq)", "(c, r, n)")
    assert told(made, "xnnpack")["c"] == ("runs", "")
    signed = paired("c = Softmax(d)", "1,8", "1,8", "int8").replace("{0.1}", "{0.00390625}")
    assert told(signed, "xnnpack")["c"][0] == "refused"


def test_a_transposed_layer_with_a_scale_for_each_channel_is_open() -> None:
    text = (
        paired_conv("int8", "int8", channels=True).replace("Conv(", "ConvTranspose(").replace("[8,3,3,3]", "[3,8,3,3]")
    )
    text = text.replace("axis = 0", "axis = 1").replace("1,8,6,6", "1,8,10,10")
    verdict, why = told(text, "xnnpack")["c"]
    assert (verdict, "of which nothing is known" in why) == ("unknown", True)
