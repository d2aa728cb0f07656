"""dequantize: weights to the bit, operators within a step of their grids, and what has no form on numbers stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper as oh
import onnx.parser
import pytest
from gallery import GALLERY, Builder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnxruntime import quantization

from onnxslim.ir import Model, Rewriter
from onnxslim.passes import EXACT_PASSES
from onnxslim.passes._block_packing import packed, unpacked
from onnxslim.passes._dequantize_pairs import Saturation
from onnxslim.passes._dequantize_values import limits
from onnxslim.passes.dequantize import Dequantize
from onnxslim.passes.insert_qdq import InsertQdq, Rounding
from onnxslim.pipeline import PassContext, exact_fixed_point
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.samples import Samples

Array = np.ndarray[Any, Any]

LEAST_SQNR = 30.0
"""Decibels that 8-bit weights keep on networks of random weights."""


def build(body: str, weights: Mapping[str, Any] | None = None, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{body}')
    stored = {name: np.asarray(value) for name, value in (weights or {}).items()}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    return proto


def dequantize(source: onnx.ModelProto | Model, saturation: Saturation = Saturation.RELU) -> tuple[Model, Rewriter]:
    model = source.copy() if isinstance(source, Model) else Model.load(source)
    rewriter = Rewriter(model)
    Dequantize(saturation=saturation).run(rewriter, PassContext())
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    return model, rewriter


def run(model: Model | onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    proto = model.proto() if isinstance(model, Model) else model
    return [np.asarray(v) for v in Session(proto, SessionConfig(level=Level.NONE)).run(feed).values()]


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def sqnr(reference: Array, candidate: Array) -> float:
    wide = reference.astype(np.float64)
    error = float(((wide - candidate) ** 2).sum())
    return 200.0 if error == 0 else 10 * float(np.log10(float((wide**2).sum()) / error))


def f32(*values: float) -> Array:
    return np.array(values if len(values) > 1 else values[0], np.float32)


def u8(*values: int) -> Array:
    return np.array(values if len(values) > 1 else values[0], np.uint8)


# ---- weights, to the bit -----------------------------------------------------------------------------------------

KINDS = ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int32")


@st.composite
def stored_weights(draw: st.DrawFn) -> tuple[Array, Array, Array | None, int, int]:
    """Integers, scales, zero points, axis and block, as DequantizeLinear takes them."""
    kind = draw(st.sampled_from(KINDS))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    axis, block = draw(st.integers(0, len(shape) - 1)), draw(st.sampled_from((0, 0, 1, 2, 3, 16)))
    spread: tuple[int, ...] = draw(st.sampled_from(((), (shape[axis],))))
    if block:
        spread = (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
        assume(np.prod(spread) > 1)  # onnxruntime takes it for one scale for all, and refuses the block
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    low, high = limits(dtype) or (0, 0)
    values = random.integers(low, high, shape, np.int64, endpoint=True).astype(dtype)
    scale = random.uniform(1e-4, 2, spread).astype(draw(st.sampled_from((np.float32, np.float32, np.float16))))
    zero = None
    if kind != "int32" and draw(st.booleans()):
        zero = random.integers(low, high, spread, np.int64, endpoint=True).astype(dtype)
    return values, scale, zero, axis, block


def weight_model(stored: tuple[Array, Array, Array | None, int, int]) -> onnx.ModelProto:
    values, scale, zero, axis, block = stored
    arrays = {"w": values, "s": scale, **({} if zero is None else {"z": zero})}
    kind = oh.np_dtype_to_tensor_dtype(scale.dtype)
    attributes: dict[str, Any] = {"axis": axis, **({"block_size": block} if block else {})}
    graph = oh.make_graph(
        [oh.make_node("DequantizeLinear", list(arrays), ["d"], **attributes), oh.make_node("Neg", ["d"], ["y"])],
        "g",
        [],
        [oh.make_tensor_value_info("y", kind, list(values.shape))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)


@settings(max_examples=200, deadline=None)
@given(stored_weights())
def test_weights_are_what_onnxruntime_makes_of_them(stored: tuple[Array, Array, Array | None, int, int]) -> None:
    proto = weight_model(stored)
    model, _ = dequantize(proto)
    assert ops(model) == ["Neg"]
    (weight,) = (numpy_helper.to_array(tensor) for tensor in model.proto().graph.initializer)
    (expected,) = run(proto, {})
    assert weight.dtype == expected.dtype
    np.testing.assert_array_equal(-weight, expected)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from((2, 4, 8)), st.integers(1, 40), st.integers(0, 1000))
def test_packing_is_undone(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, count)).astype(np.uint8)
    data = packed(values, bits)
    assert data.shape == (3, -(-count * bits // 8))
    np.testing.assert_array_equal(unpacked(data, bits, count), values)
    lowest = [int(row[0]) & (2**bits - 1) for row in data]
    assert lowest == [int(value) for value in values[:, 0]]


# ---- operators, within a step of their grids ---------------------------------------------------------------------

X, Y = {"xs": f32(0.05), "xz": u8(120)}, {"ys": f32(0.2), "yz": u8(100)}
# more than 7 bits overflow in kernels for x86
W = {"w": np.random.default_rng(1).integers(-63, 64, (4, 3, 3, 3)).astype(np.int8), "wz": np.zeros(4, np.int8)}
M = {"w": np.random.default_rng(2).integers(0, 255, (6, 4)).astype(np.uint8)}
IMAGE, MATRIX = "uint8[1,3,6,6] x", "uint8[2,6] x"
C = "y = com.microsoft"
G = {"w": M["w"].reshape(6, 4).repeat(2, 1)[:, :6], "ws": f32(0.02), "wz": u8(99)}
OPERATORS = {
    "QLinearConv": (
        f"g ({IMAGE}) => (uint8[1,4,4,4] y) {{ y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b) }}",
        {**X, **Y, **W, "ws": f32(0.01, 0.02, 0.005, 0.003), "b": np.array([90, -500, 4000, 0], np.int32)},
        ["DequantizeLinear", "Conv", "QuantizeLinear"],
    ),
    "QLinearMatMul": (
        f"g ({MATRIX}) => (uint8[2,4] y) {{ y = QLinearMatMul(x, xs, xz, w, ws, wz, ys, yz) }}",
        {**X, **Y, **M, "ws": f32(0.01, 0.02, 0.005, 0.003), "wz": u8(128, 0, 255, 3)},
        ["DequantizeLinear", "MatMul", "QuantizeLinear"],
    ),
    "QGemm": (
        f"g ({MATRIX}) => (uint8[2,6] y) {{ {C}.QGemm<transB = 1, alpha = 0.5>(x, xs, xz, w, ws, wz, b, ys, yz) }}",
        {**X, **Y, **G, "b": np.arange(-300, 300, 100).astype(np.int32)},
        ["DequantizeLinear", "Gemm", "QuantizeLinear"],
    ),
    "QLinearAdd": (
        f"g ({MATRIX}, uint8[6] v) => (uint8[2,6] y) {{ {C}.QLinearAdd(x, xs, xz, v, vs, vz, ys, yz) }}",
        {**X, **Y, "vs": f32(0.1), "vz": u8(3)},
        ["DequantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear"],
    ),
    "QLinearMul": (
        f"g ({MATRIX}) => (uint8[2,6] y) {{ {C}.QLinearMul(x, xs, xz, v, vs, vz, ys, yz) }}",
        {**X, **Y, "vs": f32(0.1), "vz": u8(0), "v": u8(1, 9, 4, 3, 7, 2)},
        ["DequantizeLinear", "Mul", "QuantizeLinear"],
    ),
    "QLinearSigmoid": (
        f"g ({MATRIX}) => (uint8[2,6] y) {{ {C}.QLinearSigmoid(x, xs, xz, ys, yz) }}",
        {**X, "ys": f32(1 / 256), "yz": u8(0)},
        ["DequantizeLinear", "Sigmoid", "QuantizeLinear"],
    ),
    "QLinearLeakyRelu": (
        f"g ({MATRIX}) => (uint8[2,6] y) {{ {C}.QLinearLeakyRelu<alpha = 0.2>(x, xs, xz, ys, yz) }}",
        {**X, **Y},
        ["DequantizeLinear", "LeakyRelu", "QuantizeLinear"],
    ),
    "QLinearSoftmax": (
        f"g ({MATRIX}) => (uint8[2,6] y) {{ {C}.QLinearSoftmax<axis = -1, opset = 13>(x, xs, xz, ys, yz) }}",
        {**X, "ys": f32(1 / 256), "yz": u8(0)},
        ["DequantizeLinear", "Softmax", "QuantizeLinear"],
    ),
    "QLinearAveragePool": (
        f"g ({IMAGE}) => (uint8[1,3,3,3] y) {{ {C}.QLinearAveragePool"
        "<kernel_shape = [2,2], strides = [2,2]>(x, xs, xz, xs, yz) }",
        {**X, **Y},
        ["DequantizeLinear", "AveragePool", "QuantizeLinear"],
    ),
    "QLinearGlobalAveragePool": (
        f"g ({IMAGE}) => (uint8[1,3,1,1] y) {{ {C}.QLinearGlobalAveragePool(x, xs, xz, ys, yz) }}",
        {**X, "ys": f32(0.01), "yz": u8(128)},
        ["DequantizeLinear", "GlobalAveragePool", "QuantizeLinear"],
    ),
    "QLinearConcat": (
        f"g ({MATRIX}) => (uint8[2,9] y) {{ {C}.QLinearConcat<axis = 1>(ys, yz, x, xs, xz, v, vs, vz) }}",
        {**X, **Y, "vs": f32(0.1), "vz": u8(3), "v": M["w"][:2, :3]},
        ["DequantizeLinear", "Concat", "QuantizeLinear"],
    ),
    "QLinearWhere": (
        f"g ({MATRIX}, bool[6] c) => (uint8[2,6] y) {{ {C}.QLinearWhere(c, x, xs, xz, v, vs, vz, ys, yz) }}",
        {**X, **Y, "vs": f32(0.1), "vz": u8(3), "v": u8(7)},
        ["DequantizeLinear", "Where", "QuantizeLinear"],
    ),
    "QLinearConv of com.microsoft": (
        f"g ({IMAGE}) => (uint8[1,4,3,3] y) {{ {C}.QLinearConv<pads = [1,1,1,1], strides = [2,2]>"
        "(x, xs, xz, w, ws, wz, ys, yz) }",
        {**X, **Y, **W, "wz": np.zeros((), np.int8), "ws": f32(0.01)},
        ["DequantizeLinear", "Conv", "QuantizeLinear"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_integers(name: str) -> None:
    """Fed and returning integers, the two differ where one of them rounds a tie the other way: by one step."""
    body, weights, expected = OPERATORS[name]
    proto = build(body, weights)
    model, rewriter = dequantize(proto)
    assert ops(model) == expected
    assert any("fed these integers" in mismatch.reason for mismatch in rewriter.skipped)
    random = np.random.default_rng(5)
    for _ in range(5):
        feed = {
            value.name: random.integers(0, 256, [d.dim_value for d in value.type.tensor_type.shape.dim]).astype(
                bool if value.type.tensor_type.elem_type == TensorProto.BOOL else np.uint8
            )
            for value in proto.graph.input
        }
        (before,), (after,) = run(proto, feed), run(model, feed)
        assert before.dtype == after.dtype == np.uint8
        assert len(np.unique(before)) > 2, "a test that tests nothing"
        assert np.abs(before.astype(int) - after.astype(int)).max() <= 1


def test_a_product_that_returns_numbers() -> None:
    body = f"g ({MATRIX}) => (float[2,4] y) {{ {C}.QGemm(x, xs, xz, w, ws, wz) }}"
    proto = build(body, {**X, **M, "ws": f32(0.01, 0.02, 0.005, 0.003), "wz": u8(128, 0, 255, 3)})
    model, _ = dequantize(proto)
    assert ops(model) == ["DequantizeLinear", "Gemm"]
    feed = {"x": np.random.default_rng(3).integers(0, 256, (2, 6)).astype(np.uint8)}
    np.testing.assert_allclose(run(model, feed)[0], run(proto, feed)[0], rtol=1e-5, atol=1e-5)


# ---- what must stay, and why -------------------------------------------------------------------------------------

PAIR = "g (float[2,6] x) => (float[2,6] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, u) }"
STAYS = {
    "two scales": (PAIR, {"s": f32(0.1), "t": f32(0.2), "z": u8(3), "u": u8(3)}, "scale it was quantized by"),
    "two zero points": (PAIR, {"s": f32(0.1), "t": f32(0.1), "z": u8(3), "u": u8(4)}, "scale it was quantized by"),
    "the model is fed integers": (
        "g (uint8[2,6] x) => (float[2,6] y) { y = DequantizeLinear(x, s) }", {"s": f32(0.1)}, "fed these integers",
    ),
    "the model returns integers": (
        "g (float[2,6] x) => (uint8[2,6] y) { y = QuantizeLinear(x, s) }", {"s": f32(0.1)}, "not known here",
    ),
    "integers that are calculated with": (
        "g (float[2,6] x) => (float[2,6] y) { q = QuantizeLinear(x, s) r = BitShift<direction = \"LEFT\">(q, n) "
        "y = DequantizeLinear(r, s) }",
        {"s": f32(0.1), "n": u8(1)},
        "BitShift computes",
    ),
    "a computed scale": (
        "g (float[2,6] x, float s) => (float[6,4] y) { d = DequantizeLinear(w, s) y = Identity(d) }",
        M,
        "scale or zero point is computed",
    ),
    "rows of several scales are reshaped": (
        "g (float[2,6] x) => (float[6,2] y) { q = QuantizeLinear<axis = 0>(x, s, z) r = Reshape(q, n) "
        "y = DequantizeLinear<axis = 1>(r, s, z) }",
        {"s": f32(0.1, 0.2), "z": u8(0, 0), "n": np.array([6, 2])},
        "several scales",
    ),
    "channels last": (
        "g (uint8[1,6,6,3] x) => (uint8[1,1,1,3] y) "
        "{ y = com.microsoft.QLinearGlobalAveragePool<channels_last = 1>(x, xs, xz, ys, yz) }",
        {**X, **Y},
        "channels are last",
    ),
    "a Softmax over all that follows": (
        f"g ({MATRIX}) => (uint8[2,6] y) {{ {C}.QLinearSoftmax<axis = 1, opset = 12>(x, xs, xz, ys, yz) }}",
        {**X, **Y},
        "another opset",
    ),
    "scales per row": (
        f"g ({MATRIX}) => (uint8[2,4] y) {{ y = QLinearMatMul(x, s, z, w, ws, wz, ys, yz) }}",
        {**Y, **M, "s": f32(0.1, 0.2), "z": u8(1, 2), "ws": f32(0.1), "wz": u8(9)},
        "do not fit what they scale",
    ),
    "a product that stays whole": (
        f"g ({MATRIX}) => (int32[2,4] y) {{ y = MatMulInteger(x, w) }}", M, "otherwise than cast to float32",
    ),
    "a product of static integers": (
        f"g ({MATRIX}) => (float[2,4] y) {{ p = MatMulInteger(x, w) c = Cast<to = 1>(p) y = Mul(c, s) }}",
        {**M, "s": f32(0.1)},
        "not quantized dynamically",
    ),
    "a table of blocks": (
        "g (int64[2] x) => (float[2,32] y) { y = com.microsoft.GatherBlockQuantized<block_size = 16>(w, x, s) }",
        {"w": np.zeros((5, 32), ml_dtypes.int4), "s": np.ones((5, 2), np.float32)},
        "not known here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    body, weights, why = STAYS[name]
    proto = build(body, weights, ir=10)
    model, rewriter = dequantize(proto)
    assert ops(model) == [node.op_type for node in proto.graph.node]
    assert [why in mismatch.reason for mismatch in rewriter.skipped].count(True) >= 1, rewriter.skipped
    assert all(mismatch.reason and mismatch.anchor for mismatch in rewriter.skipped)


def test_what_lies_in_a_function_stays() -> None:
    proto = build("g (float[2] x) => (float[2] y) { y = mine.round(x, s) }", {"s": f32(0.1)})
    proto.opset_import.append(oh.make_opsetid("mine", 1))
    pair = [oh.make_node("QuantizeLinear", ["a", "b"], ["q"]), oh.make_node("DequantizeLinear", ["q", "b"], ["c"])]
    proto.functions.append(oh.make_function("mine", "round", ["a", "b"], ["c"], pair, [oh.make_opsetid("", 17)]))
    _, rewriter = dequantize(proto)
    assert "inline it first" in rewriter.skipped[0].reason


# ---- what changes ------------------------------------------------------------------------------------------------

GRID = {"s": f32(0.1), "z": u8(3)}
HALF = {"s": f32(0.1), "z": u8(0)}
SIX = {"s": f32(6 / 255), "z": u8(0)}
CHANGES = [
    (PAIR, {**GRID, "t": f32(0.1), "u": u8(3)}, ["Identity"], "a pair of the whole graph"),
    (
        "g (float[2,6] x) => (float[2,6] y) { n = Neg(x) q = QuantizeLinear(n, s, z) y = DequantizeLinear(q, s, z) }",
        GRID, ["Neg"], "what computed the numbers computes the output",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { n = Neg(x) q = QuantizeLinear(n, s, z) y = DequantizeLinear(q, s, z) }",
        HALF, ["Neg", "Relu"], "a Relu that the grid had swallowed",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { n = Neg(x) q = QuantizeLinear(n, s, z) y = DequantizeLinear(q, s, z) }",
        SIX, ["Neg", "Clip"], "a Clip that the grid had swallowed",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { n = Relu(x) q = QuantizeLinear(n, s, z) y = DequantizeLinear(q, s, z) }",
        HALF, ["Relu"], "a Relu that is still there",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { e = Exp(x) a = Add(e, e) p = Pad(a, n) q = QuantizeLinear(p, s, z) "
        "y = DequantizeLinear(q, s, z) }",
        {**HALF, "n": np.zeros(4, np.int64)}, ["Exp", "Add", "Pad"], "a sum of what is never negative",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { f = Flatten(x) q = QuantizeLinear(f, s, z) "
        "y = DequantizeLinear(q, s, z) }",
        HALF, ["Flatten"], "what the model is fed has no Relu",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { n = Neg(x) q = QuantizeLinear(n, s) d = DequantizeLinear(q, s, z) "
        "e = DequantizeLinear(q, s) y = Sub(d, e) }",
        {"s": f32(0.1), "z": u8(0)}, ["Neg", "Relu", "Sub"], "two readers, one with a zero point left out, one Relu",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { n = Neg(x) q = com.microsoft.QuantizeLinear(n, s, z) "
        "y = com.microsoft.DequantizeLinear(q, s, z) }",
        {"s": f32(0.1), "z": np.array(7, np.int16)}, ["Neg"], "onnxruntime's own operators, 16 bits",
    ),
    (
        "g (float[2,6] x) => (float[12] y) { n = Neg(x) q = QuantizeLinear(n, s, z) r = Reshape(q, n1) "
        "t = Concat<axis = 0>(r, w) u = Slice(t, a, b) y = DequantizeLinear(u, s, z) }",
        {**GRID, "n1": np.array([-1]), "w": u8(1, 2), "a": np.array([1]), "b": np.array([13])},
        ["Neg", "Reshape", "Concat", "Slice"], "numbers move instead of integers, a constant among them",
    ),
    (
        "g (float[2,6] x) => (float[2,3] y, float[2,3] v) { n = Neg(x) q = QuantizeLinear(n, s, z) "
        "a, b = Split<axis = 1>(q) y = DequantizeLinear(a, s, z) v = DequantizeLinear(b, s, z) }",
        GRID, ["Neg", "Split"], "one Split for both halves",
    ),
    (
        "g (float[2,6] x) => (float[2,8] y) { n = Neg(x) q = QuantizeLinear(n, s, z) p = Pad(q, n1) "
        "y = DequantizeLinear(p, s, z) }",
        {**GRID, "n1": np.array([0, 1, 0, 1])}, ["Neg", "Pad"], "0 among integers is no 0 among numbers",
    ),
    (
        "g (int64[2] x) => (float[2,4] y) { q = Gather(w, x) y = DequantizeLinear(q, s, z) }",
        {**M, **GRID}, ["Gather"], "a table of embeddings",
    ),
    ("g () => (float[6,4] y) { y = DequantizeLinear(w, s, z) }", {**M, **GRID}, ["Constant"], "a weight is returned"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "expected"), [pytest.param(b, w, o, id=i) for b, w, o, i in CHANGES])
def test_changes(body: str, weights: dict[str, Any], expected: list[str]) -> None:
    """Within the grid, one rounding to a half of its step is all that goes."""
    proto = build(body, weights)
    model, rewriter = dequantize(proto)
    assert ops(model) == expected
    assert not rewriter.skipped
    step = float(weights["s"])
    x = np.random.default_rng(0).uniform(0.0, 200 * step, (2, 6)).astype(np.float32)
    fed = {"Neg": -x, "Exp": np.log(x / 2), "Gather": np.array([1, 4])}
    feed = {value.name: next((fed[op] for op in fed if op in expected), x) for value in proto.graph.input}
    for one, other in zip(run(proto, feed), run(model, feed), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=0.501 * step)


def test_inside_a_branch() -> None:
    """The pair's halves lie in two graphs, and the branch returns what it dequantizes."""
    proto = build(
        """g (float[4] x, bool c) => (float[4] y) {
            n = Neg(x) q = QuantizeLinear(n, s, z)
            y = If(c) <
                then_branch = t () => (float[4] a) { a = DequantizeLinear(q, s, z) },
                else_branch = e () => (float[4] b) { r = DequantizeLinear(q, s, z) b = Mul(r, r) }
            >
        }""",
        GRID,
    )
    model, rewriter = dequantize(proto)
    assert not rewriter.skipped
    assert ops(model) == ["Neg", "If"]
    x = -f32(0.3, 1.2, 0.1, 9.0)
    for choice in (True, False):
        feed = {"x": x, "c": np.array(choice)}
        np.testing.assert_allclose(run(model, feed)[0], run(proto, feed)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("saturation", "expected"),
    [(Saturation.RELU, [0.0, 1.0, 40.0]), (Saturation.KEEP, [0.0, 1.0, 25.5]), (Saturation.DROP, [-1.0, 1.0, 40.0])],
)
@pytest.mark.parametrize("opset", [10, 17])
def test_ends_of_grids(saturation: Saturation, expected: list[float], opset: int) -> None:
    body = "g (float[3] x) => (float[3] y) { n = Neg(x) q = QuantizeLinear(n, s, z) y = DequantizeLinear(q, s, z) }"
    model, _ = dequantize(build(body, HALF, opset), saturation)
    np.testing.assert_allclose(run(model, {"x": f32(1.0, -1.0, -40.0)})[0], expected, rtol=1e-6)


# ---- dynamic and weight-only -------------------------------------------------------------------------------------


def quantized_by_onnxruntime(model: Model, folder: Path, kind: str, samples: Array) -> Model:
    source, target = folder / "float.onnx", folder / f"{kind}.onnx"
    model.save(source)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self.feeds = iter({"x": samples[i : i + 1]} for i in range(len(samples)))

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    if kind == "dynamic":
        quantization.quantize_dynamic(source, target, per_channel=True)
    else:
        form = quantization.QuantFormat.QDQ if kind == "qdq" else quantization.QuantFormat.QOperator
        types = {"weight_type": quantization.QuantType.QInt8, "activation_type": quantization.QuantType.QUInt8}
        quantization.quantize_static(source, target, Reader(), quant_format=form, per_channel=True, **types)
    return Model.load(target)


def network(name: str) -> tuple[Model, Array]:
    model = GALLERY[name](Builder())
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    return model, np.random.default_rng(1).standard_normal((6, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("kind", ["qdq", "qoperator", "dynamic"])
@pytest.mark.parametrize("name", ["vgg", "resnet", "inception", "mobilenet", "squeeze-excitation", "channels-last"])
def test_what_onnxruntime_quantizes(tmp_path: Path, name: str, kind: str) -> None:
    """The original's operators come back, with the Relus that quantizing swallowed, and outputs near its own."""
    model, samples = network(name)
    integer = quantized_by_onnxruntime(model, tmp_path, kind, samples)
    result, rewriter = dequantize(integer)
    assert not rewriter.skipped
    if kind == "dynamic":  # Gemm became MatMul and Add, and biases are added behind
        assert not {op for op in ops(result) if "Quantize" in op or "Integer" in op}
        assert Counter(ops(result))["Conv"] == Counter(ops(model))["Conv"]
    else:
        assert Counter(ops(result)) == Counter(ops(model))
    feed = {"x": samples[:1]}
    assert sqnr(run(model, feed)[0], run(result, feed)[0]) > LEAST_SQNR


def with_rounded_weights(model: Model, integer: Model) -> onnx.ModelProto:
    """Return the original with each weight as onnxruntime dequantizes it in the integer model."""
    proto, stored = model.proto(), integer.proto()
    made = {node.output[0]: node for node in stored.graph.node}
    for before, after in zip(
        (n for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")),
        (n for n in stored.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")),
        strict=True,
    ):
        for name, replaced in zip(before.input[1:], after.input[1:], strict=True):
            part = onnx.ModelProto()
            part.CopyFrom(stored)
            del part.graph.node[:], part.graph.input[:], part.graph.output[:]
            part.graph.node.append(made[replaced])
            part.graph.output.append(oh.make_empty_tensor_value_info(replaced))
            tensor = next(t for t in proto.graph.initializer if t.name == name)
            tensor.CopyFrom(numpy_helper.from_array(run(part, {})[0], name))
    return proto


def insert_qdq(model: Model, samples: Array) -> Model:
    integer = model.copy()
    rewriter = Rewriter(integer)
    given = Samples.from_arrays({"x": samples}).for_inputs(model.inputs)
    InsertQdq(rounding=Rounding.NEAREST).run(rewriter, PassContext(samples=given, threads=1))
    rewriter.finish()
    return integer


@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet"])
def test_insert_qdq_is_undone(name: str) -> None:
    """What remains is the original with rounded weights, to the bit."""
    model, samples = network(name)
    integer = insert_qdq(model, samples)
    result, rewriter = dequantize(integer)
    assert not rewriter.skipped
    assert ops(result) == ops(model)
    feed = {"x": samples[:1]}
    np.testing.assert_array_equal(run(result, feed)[0], run(with_rounded_weights(model, integer), feed)[0])


@pytest.mark.parametrize("kind", ["qdq", "qoperator"])
def test_what_is_dequantized_can_be_quantized(tmp_path: Path, kind: str) -> None:
    model, samples = network("resnet")
    integer = quantized_by_onnxruntime(model, tmp_path, kind, samples)
    result, _ = dequantize(integer)
    again = insert_qdq(result, samples)
    assert Counter(ops(again)) == Counter(ops(insert_qdq(model, samples)))
    feed = {"x": samples[:1]}
    assert sqnr(run(model, feed)[0], run(again, feed)[0]) > LEAST_SQNR


def test_a_second_time_finds_nothing() -> None:
    model, samples = network("inception")
    once, _ = dequantize(insert_qdq(model, samples))
    twice, rewriter = dequantize(once)
    assert rewriter.edits == 0
    assert twice.to_bytes() == once.to_bytes()


DYNAMIC = "g (float[2,6] x) => (float[2,4] y) {{ q, s, z = DynamicQuantizeLinear(x) {} }}"
BY_COLUMN = {**M, "ws": f32(0.01, 0.02, 0.005, 0.003), "wz": u8(128, 0, 255, 3)}


@pytest.mark.parametrize(
    ("body", "weights", "expected"),
    [
        ("p = MatMulInteger(q, w, z, wz) c = Cast<to = 1>(p) m = Mul(s, ws) y = Mul(c, m)", BY_COLUMN, ["MatMul"]),
        ("p = MatMulInteger(q, w, z, wz) c = Cast<to = 1>(p) m = Mul(ws, s) y = Mul(m, c)", BY_COLUMN, ["MatMul"]),
        ("p = MatMulInteger(q, w, z) c = Cast<to = 1>(p) y = Mul(c, s)", M, ["MatMul"]),
        (
            "r = Reshape(q, n) p = MatMulInteger(r, w, z) c = Cast<to = 1>(p) y = Mul(c, s)",
            {**M, "n": np.array([2, 6])},
            ["Reshape", "MatMul"],
        ),
        ("d = DequantizeLinear(q, s, z) y = MatMul(d, f)", {"f": M["w"].astype(np.float32)}, ["MatMul"]),
        ("y = com.microsoft.MatMulIntegerToFloat(q, w, s, ws, z, wz)", BY_COLUMN, ["MatMul"]),
        (
            "y = com.microsoft.MatMulIntegerToFloat(q, w, s, ws, z, , b)",
            {**M, "ws": f32(0.01), "b": f32(1, 2, 3, 4)},
            ["MatMul", "Add"],
        ),
        ("d = DequantizeLinear(q, s, z) y = com.microsoft.DynamicQuantizeMatMul(d, w, ws, wz)", BY_COLUMN, ["MatMul"]),
    ],
)
def test_dynamic_products(body: str, weights: dict[str, Any], expected: list[str]) -> None:
    """On whole numbers with a range of 255, DynamicQuantizeLinear rounds nothing."""
    proto = build(DYNAMIC.format(body), weights)
    model, rewriter = dequantize(proto)
    assert not rewriter.skipped
    assert ops(model) == expected
    x = np.random.default_rng(4).integers(-100, 156, (2, 6)).astype(np.float32)
    x[0, :2] = -100, 155
    np.testing.assert_allclose(run(model, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-5, atol=1e-3)


def test_a_product_of_two_activations() -> None:
    body = """g (float[2,6] x, float[6,3] v) => (float[2,3] y) {
        q, s, z = DynamicQuantizeLinear(x) r, t, u = DynamicQuantizeLinear(v)
        p = MatMulInteger(q, r, z, u) c = Cast<to = 1>(p) m = Mul(s, t) y = Mul(c, m)
    }"""
    model, rewriter = dequantize(build(body))
    assert not rewriter.skipped
    assert ops(model) == ["MatMul"]


def test_recurrent_layers(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    weights = {"w": (2, 20, 7), "r": (2, 20, 5), "b": (2, 40)}
    stored = {name: random.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    body = """g (float[3,1,7] x) => (float[3,2,1,5] y, float[2,1,5] h) {
        y, h = LSTM<hidden_size = 5, direction = "bidirectional">(x, w, r, b)
    }"""
    proto = build(body, stored)
    onnx.save(proto, tmp_path / "f.onnx")
    quantization.quantize_dynamic(tmp_path / "f.onnx", tmp_path / "q.onnx", op_types_to_quantize=["LSTM"])
    integer = Model.load(tmp_path / "q.onnx")
    assert "DynamicQuantizeLSTM" in ops(integer)
    model, rewriter = dequantize(integer)
    assert not rewriter.skipped
    assert ops(model) == ["LSTM"]
    feed = {"x": random.standard_normal((3, 1, 7)).astype(np.float32)}
    for before, after in zip(run(proto, feed), run(model, feed), strict=True):
        assert sqnr(before, after) > LEAST_SQNR


@pytest.mark.parametrize(("bits", "zero"), [(4, "none"), (4, "packed"), (4, "numbers"), (8, "none"), (8, "packed")])
@pytest.mark.parametrize("rows", [64, 40])
def test_weight_only(bits: int, zero: str, rows: int) -> None:
    """Against onnxruntime's kernel, asked to compute in float32."""
    random = np.random.default_rng(bits)
    columns, block = 5, 32
    blocks = -(-rows // block)
    stored = {
        "w": random.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8),
        "s": random.uniform(0.01, 0.1, (columns, blocks)).astype(np.float32),
        "b": random.standard_normal(columns).astype(np.float32),
    }
    if zero == "packed":
        stored["z"] = packed(random.integers(0, 2**bits, (columns, blocks)).astype(np.uint8), bits)
    elif zero == "numbers":
        stored["z"] = random.uniform(0, 2**bits, (columns, blocks)).astype(np.float32)
    inputs = f"x, w, s, {'' if zero == 'none' else 'z'}, , b"
    body = f"g (float[3,{rows}] x) => (float[3,{columns}] y) {{ {C}.MatMulNBits<K = {rows}, N = {columns}, "
    proto = build(f"{body} bits = {bits}, block_size = {block}>({inputs}) }}", stored)
    model, rewriter = dequantize(proto)
    assert not rewriter.skipped
    assert ops(model) == ["MatMul", "Add"]
    feed = {"x": random.standard_normal((3, rows)).astype(np.float32)}
    expected = run(proto, feed)[0]
    np.testing.assert_allclose(run(model, feed)[0], expected, rtol=0, atol=1e-5 * float(np.ptp(expected)))
