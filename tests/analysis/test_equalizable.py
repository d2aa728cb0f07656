"""Scales of channels: which operators hand them on and how, what holds them at 1, and why."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.channel_peaks import observe_peaks
from onnxslim.analysis.equalizable import Equalizable, Flow, analyze_scales
from onnxslim.analysis.equalizable_moves import reshaped
from onnxslim.ir import Model, Variable
from onnxslim.samples import Samples

Weights = dict[str, Any]
W = (4, 3, 1, 1)
V = (5, 4, 1, 1)


def build(body: str, weights: Weights, opset: int = 17) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{body}')
    for name, value in weights.items():
        array = np.random.default_rng(0).standard_normal(value) if isinstance(value, tuple) else np.asarray(value)
        stored = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(numpy_helper.from_array(stored, name))
    onnx.checker.check_model(proto)
    return Model.load(proto)


def analyzed(body: str, weights: Weights, opset: int = 17) -> Equalizable:
    model = build(body, weights, opset)
    infer_shapes(model)
    return analyze_scales(model)


def between(middle: str, weights: Weights, opset: int = 17) -> Equalizable:
    """Analyze a Conv that makes ``a`` of four channels, and one that reads ``b``."""
    body = f"""g (float[1,3,6,6] x, float[1,4,6,6] o) => (float[n,5,h,w] y) {{
        a = Conv(x, w)
        {middle}
        y = Conv(b, v)
    }}"""
    return analyzed(body, {"w": W, "v": V, **weights}, opset)


def makers_of(scales: Equalizable) -> list[tuple[str, ...]]:
    """Return the layers of every group that has scales."""
    return [group.layers for group in scales.groups if group.units.size]


def reasons(scales: Equalizable, anchor: str = "a") -> str:
    return next("; ".join(group.reasons) for group in scales.groups if group.anchor == anchor)


# ---- what hands scales on ------------------------------------------------------------------------------------------

ONE = {"s": np.float32(2)}
PADS = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
SAME = [
    ("b = Relu(a)", {}),
    ("b = LeakyRelu(a)", {}),
    ("b = PRelu(a, s)", {"s": (4, 1, 1)}),
    ("b = Abs(a)", {}),
    ("b = Neg(a)", {}),
    ("b = Identity(a)", {}),
    ("b = Dropout(a)", {}),
    ("b = Clip(a, s)", {"s": np.float32(0)}),
    ("b = MaxPool<kernel_shape = [2,2]>(a)", {}),
    ("b = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(a)", {}),
    ("b = GlobalAveragePool(a)", {}),
    ("b = GlobalMaxPool(a)", {}),
    ("b = ReduceMean<axes = [2,3]>(a)", {}),
    ("b = ReduceMax<axes = [-1]>(a)", {}),
    ("b = ReduceL2<axes = [2]>(a)", {}),
    ("c = ReduceL1<axes = [3], keepdims = 0>(a) b = Unsqueeze(c, s)", {"s": np.array([-1])}),
    ("b = Resize(a, , s)", {"s": np.array([1, 1, 2, 2], np.float32)}),
    ("b = Mul(a, s)", ONE),
    ("b = Mul(s, a)", ONE),
    ("b = Div(a, s)", {"s": (4, 1, 1)}),
    ("b = Add(a, s)", {"s": (4, 1, 1)}),
    ("b = Sub(s, a)", ONE),
    ("b = Max(a, s)", ONE),
    ("b = Sum(a, s, a)", ONE),
    ("b = Mean(a, a)", {}),
    ("t = Sigmoid(o) b = Mul(a, t)", {}),
    ("t = Sigmoid(o) b = Mul(t, a)", {}),
    ("b = Div(a, o)", {}),
    ("b = Pad(a, p)", PADS),
    ('b = Pad<mode = "reflect">(a, p)', PADS),
    ("c = Transpose<perm = [0,2,3,1]>(a) b = Transpose<perm = [0,3,1,2]>(c)", {}),
    ("c = Reshape(a, s) b = Reshape(c, t)", {"s": np.array([1, 2, 2, 36]), "t": np.array([1, 4, 6, 6])}),
    ("c, d = Split<axis = 2>(a) b = Concat<axis = 3>(c, d)", {}),
    ("c, d = Split<axis = 1>(a) b = Concat<axis = 1>(c, d)", {}),
    ("b = Slice(a, s, t, u)", {"s": np.array([1]), "t": np.array([5]), "u": np.array([3])}),
    ("b = Expand(a, s)", {"s": np.array([2, 1, 6, 6])}),
    ("m = Greater(o, s) b = Where(m, a, a)", ONE),
    ("t = Shape(a) b = Reshape(a, t)", {}),
]


@pytest.mark.parametrize(("middle", "weights"), [pytest.param(*case, id=case[0]) for case in SAME])
def test_channels_keep_their_scales(middle: str, weights: Weights) -> None:
    scales = between(middle, weights)
    assert scales.size == 4
    np.testing.assert_array_equal(scales.weights[-1].into.reshape(-1), range(4))


def into_of(middle: str, channels: int, weights: Weights) -> list[int]:
    """Return the units of what a Conv reads that comes after ``middle``, in channels."""
    body = f"""g (float[1,3,6,6] x, float[1,4,6,6] o) => (float[n,5,h,w] y) {{
        a = Conv(x, w)
        {middle}
        y = Conv(b, v)
    }}"""
    found = analyzed(body, {"w": W, "v": (5, channels, 1, 1), **weights})
    into = found.weights[-1].into.reshape(-1)
    return [int(unit) for unit in np.broadcast_to(into, (channels,))]


def test_channels_are_moved_one_by_one() -> None:
    picked = {"s": np.array([-1, 0, 0])}
    assert into_of("b = Gather<axis = 1>(a, s)", 3, picked) == [3, 0, 0]
    back = {"s": np.array([3]), "t": np.array([-9]), "u": np.array([1]), "d": np.array([-2])}
    assert into_of("b = Slice(a, s, t, u, d)", 2, back) == [3, 1]
    assert into_of("c = Concat<axis = 1>(o, a) b = Identity(c)", 8, {}) == [-1] * 4 + [0, 1, 2, 3]


def test_channels_of_a_block_share_a_scale_or_repeat_theirs() -> None:
    assert into_of("b = SpaceToDepth<blocksize = 2>(a)", 16, {}) == [0, 1, 2, 3] * 4
    assert into_of('b = DepthToSpace<blocksize = 2, mode = "CRD">(a)', 1, {}) == [0]
    twice = "c = Concat<axis = 1>(a, a) b = DepthToSpace<blocksize = 2>(c)"
    assert into_of(twice, 2, {}) == [0, 1]  # 0 and 2 make the first channel, 1 and 3 the second
    side = 'c = Concat<axis = 1>(a, a) b = DepthToSpace<blocksize = 2, mode = "CRD">(c)'
    assert into_of(side, 2, {}) == [0, 0]  # all four make each


def test_padded_channels_have_scales_of_their_own() -> None:
    """Zeros may be scaled by anything: they take the scale of what they are added to."""
    assert into_of("b = Pad(a, p)", 7, {"p": np.array([0, 2, 0, 0, 0, 1, 0, 0])}) == [4, 5, 0, 1, 2, 3, 6]
    body = """g (float[1,3,6,6] x) => (float[1,5,6,6] y) {
        a = Conv(x, w)
        c = Pad(a, p)
        d = Conv(x, u)
        e = Add(c, d)
        y = Conv(e, v)
    }"""
    weights = {"w": W, "u": (6, 3, 1, 1), "v": (5, 6, 1, 1), "p": np.array([0, 1, 0, 0, 0, 1, 0, 0])}
    scales = analyzed(body, weights)
    assert scales.size == 6
    assert makers_of(scales) == [("a", "d")], "both layers make the same sums"


def test_a_flattened_channel_is_all_its_pixels() -> None:
    body = """g (float[n,3,2,2] x) => (float[n,5] y) {
        a = Conv(x, w)
        b = Flatten(a)
        y = Gemm<transB = 1>(b, v)
    }"""
    scales = analyzed(body, {"w": W, "v": (5, 16)})
    np.testing.assert_array_equal(scales.weights[-1].into.reshape(-1), np.repeat(range(4), 4))


def test_attention_mixes_tokens_and_keeps_the_channels_of_values() -> None:
    """A·(V / s) = (A·V) / s: values make channels that the next layer reads; queries and keys do not."""
    body = """g (float[n,5,6] x, float[n,2,5,5] p) => (float[n,5,3] y) {
        v = MatMul(x, w)
        h = Reshape(v, s)
        t = Transpose<perm = [0,2,1,3]>(h)
        m = MatMul(p, t)
        b = Transpose<perm = [0,2,1,3]>(m)
        c = Reshape(b, r)
        y = MatMul(c, u)
    }"""
    shapes = {"s": np.array([0, 5, 2, 4]), "r": np.array([0, 5, 8])}
    scales = analyzed(body, {"w": (6, 8), "u": (8, 3), **shapes})
    assert scales.size == 8
    np.testing.assert_array_equal(scales.weights[-1].into.reshape(-1), range(8))
    scales = analyzed(
        body.replace("MatMul(p, t)", "MatMul(t, q)"), {"w": (6, 8), "u": (8, 3), "q": (2, 4, 4), **shapes}
    )
    assert scales.size == 0
    assert "MatMul sums over products with it" in reasons(scales, "v")


def test_scales_that_a_reshape_spreads_need_not_vary() -> None:
    """GroupNormalization as it was written before there was an operator: its groups are made of whole channels."""
    body = """g (float[n,3,6,6] x) => (float[n,5,6,6] y) {
        a = Reshape(x, r)
        b = InstanceNormalization(a, s, t)
        c = Reshape(b, q)
        d = Mul(c, f)
        y = Conv(d, v)
    }"""
    shapes = {"r": np.array([0, 3, -1]), "q": np.array([0, 6, 3, 6])}
    given = {"s": (3,), "t": (3,), "f": (6, 1, 1), "v": (5, 6, 1, 1)}
    scales = analyzed(body, {**shapes, **given})
    product, last = scales.weights
    assert len(set(last.into.reshape(-1).tolist())) == 6
    np.testing.assert_array_equal(product.into.reshape(-1), np.repeat(product.into.reshape(-1)[::2], 2))


def test_groups_of_a_convolution_read_their_own_channels() -> None:
    body = """g (float[1,3,6,6] x) => (float[1,5,h,w] y) {
        a = Conv(x, w)
        b = Conv<group = 2>(a, v)
        c = ConvTranspose<group = 2>(b, t)
        y = Conv(c, u)
    }"""
    scales = analyzed(body, {"w": W, "v": (6, 2, 1, 1), "t": (6, 2, 2, 2), "u": (5, 4, 1, 1)})
    _, grouped, transposed, last = scales.weights
    np.testing.assert_array_equal(grouped.into.reshape(6, 2), [[0, 1]] * 3 + [[2, 3]] * 3)
    np.testing.assert_array_equal(transposed.into.reshape(-1), range(4, 10))
    np.testing.assert_array_equal(transposed.out.reshape(6, 2), [[10, 11]] * 3 + [[12, 13]] * 3)
    np.testing.assert_array_equal(last.into.reshape(-1), range(10, 14))


# ---- what makes channels -------------------------------------------------------------------------------------------

G, B = {"s": (6,)}, {"t": (6,)}
MAKERS = [
    ("b = LayerNormalization<axis = -1>(x, s, t)", {**G, **B}, 17),
    ("b = LayerNormalization<axis = 2>(x, s)", G, 17),
    ("b = RMSNormalization(x, s)", G, 23),
    ("m = ReduceMean<axes = [2]>(x) d = Sub(x, m) c = Mul(d, s) b = Add(c, t)", {**G, **B}, 17),
    ("b = Mul(s, x)", {"s": (1, 6)}, 17),
    ("b = MatMul(x, s)", {"s": (6, 6)}, 17),
    ("c = MatMul(x, s) b = Add(t, c)", {"s": (6, 6), **B}, 17),
]


@pytest.mark.parametrize(("middle", "weights", "opset"), [pytest.param(*case, id=case[0]) for case in MAKERS])
def test_what_makes_channels_of_a_sequence(middle: str, weights: Weights, opset: int) -> None:
    body = f"g (float[1,5,6] x) => (float[1,5,3] y) {{ {middle} y = MatMul(b, v) }}"
    scales = analyzed(body, {**weights, "v": (6, 3)}, opset)
    assert len(makers_of(scales)) == 1
    into = next(part.into for part in scales.weights if part.anchor == "y")
    np.testing.assert_array_equal(into.reshape(-1), range(6))
    divided = [part for part in scales.parameters if (part.out >= 0).any()]
    assert len(divided) == len(weights), "all that makes the channels is divided"


@pytest.mark.parametrize(
    ("middle", "opset"),
    [
        ("InstanceNormalization(x, s, t)", 17),
        ("GroupNormalization<num_groups = 2>(x, s, t)", 21),
        ("BatchNormalization(x, s, t, m, r)", 15),
        ("Mul(x, s)", 17),
    ],
)
def test_what_makes_channels_of_an_image(middle: str, opset: int) -> None:
    shape = (4, 1, 1) if middle.startswith("Mul") else (4,)
    body = f"g (float[1,4,6,6] x) => (float[1,5,6,6] y) {{ b = {middle} y = Conv(b, v) }}"
    given = {"s": shape, "t": shape, "m": shape, "r": np.ones(4, np.float32), "v": V}
    scales = analyzed(
        body, {name: value for name, value in given.items() if name == "v" or f", {name}" in middle}, opset
    )
    np.testing.assert_array_equal(scales.weights[-1].into.reshape(-1), range(4))


# ---- what holds scales at 1, and why -------------------------------------------------------------------------------

HELD: list[tuple[str, Weights, str]] = [
    ("b = Sigmoid(a)", {}, "Sigmoid does not scale with its input"),
    ("b = HardSwish(a)", {}, "HardSwish does not scale with its input"),
    ("b = com.microsoft.QuickGelu(a)", {}, "com.microsoft:QuickGelu does not scale"),
    ("b = InstanceNormalization(a, s, t)", {"s": (4,), "t": (4,)}, "InstanceNormalization does not scale"),
    ("t = Sigmoid(a) b = Mul(a, t)", {}, "Sigmoid does not scale"),
    ("b = Mul(a, a)", {}, "takes it for a factor"),
    ("b = Div(s, a)", ONE, "Div takes it for a factor"),
    ("b = Add(a, o)", {}, "joined with something that is not scaled"),
    ("b = Max(a, o)", {}, "joined with something that is not scaled"),
    ("b = Clip(a, s)", ONE, "bounds that do not hold zero"),
    ("t = ReduceMax(o) b = Clip(a, t)", {}, "Clip has computed bounds"),
    ("b = Softmax<axis = 1>(a)", {}, "Softmax does not scale"),
    ("c = ReduceMean<axes = [1]>(a) b = Expand(c, s)", {"s": np.array([1, 4, 6, 6])}, "ReduceMean runs over its"),
    ("c = Transpose<perm = [0,2,1,3]>(a) d = MaxPool<kernel_shape = [1,2]>(c) "
     "b = Transpose<perm = [0,2,1,3]>(d)", {}, "scales would vary within the window of MaxPool"),
    ("b = Resize(a, , s)", {"s": np.array([1, 2, 1, 1], np.float32)}, "Resize mixes its channels"),
    ("b = Pad(a, p, s)", {**PADS, **ONE}, "adds something other than zeros"),
    ('b = Pad<mode = "edge">(a, s)', {"s": np.array([0, 1, 0, 0, 0, 0, 0, 0])}, "Pad repeats its channels"),
    ("m = Greater(a, s) b = Where(m, o, o)", ONE, "Greater does not scale"),
    ("m = Greater(o, s) b = Where(m, a, s)", ONE, "Where puts constants between its channels"),
    ("b = Add(a, s)", {"s": np.array(np.inf, np.float32)}, "not finite float32"),
    ("c = Cast<to = 11>(a) b = Cast<to = 1>(c)", {}, "Cast does not scale"),
    ("i = Cast<to = 7>(q) b = Gather<axis = 1>(a, i)", {"q": np.ones(4, np.float32)}, "by computed indices"),
]  # fmt: skip


@pytest.mark.parametrize(("middle", "weights", "why"), [pytest.param(*case, id=case[0]) for case in HELD])
def test_channels_stay(middle: str, weights: Weights, why: str) -> None:
    scales = between(middle, weights)
    assert all((part.out < 0).all() for part in scales.weights if part.anchor == "a")
    assert why in reasons(scales)


def test_a_parameter_that_is_computed_from_channels_stays() -> None:
    """The value that a Pad adds, made from scaled channels, must not be scaled."""
    body = """g (float[1,3,6,6] x) => (float[1,3,8,8] y) {
        a = Conv(x, w)
        r = ReduceMax<keepdims = 0>(a)
        y = Pad(x, p, r)
    }"""
    scales = analyzed(body, {"w": (1, 3, 1, 1), **PADS})
    assert scales.size == 0
    assert "Pad takes it for a parameter" in reasons(scales)


@pytest.mark.parametrize(
    ("body", "weights", "why"),
    [
        ("a = Conv(x, w) y = Relu(a)", {"w": W}, "an output of the model"),
        ("a = Conv(x, w) b = Conv(x, w) c = Add(a, b) y = Conv(c, v)", {"w": W, "v": V}, None),
        ("a = Conv(x, w) b = Sigmoid(x) c = ReduceMean(b) d = Mul(c, v) y = Conv(a, d)", {"w": W, "v": V}, "computed"),
        ("a = Conv(x, w) y = Conv(a, v)", {"w": W, "v": np.full(V, np.nan, np.float32)}, "not finite"),
        ("a = Conv(x, w, b) c = Relu(a) y = Conv(c, v)", {"w": W, "v": V, "b": np.full(4, np.inf, np.float32)}, "bias"),
    ],
)
def test_layers_stay(body: str, weights: Weights, why: str | None) -> None:
    scales = analyzed(f"g (float[1,3,6,6] x) => (float[n,m,6,6] y) {{ {body} }}", weights)
    assert scales.size == 0
    if why is not None:
        assert why in reasons(scales)


def test_shared_weights_make_no_channels_and_hold_what_they_read() -> None:
    body = """g (float[1,4,6,6] x) => (float[1,5,6,6] y) {
        a = Conv(x, w) b = Conv(a, t) c = Conv(b, t) y = Conv(c, v)
    }"""
    scales = analyzed(body, {"w": (4, 4, 1, 1), "t": (4, 4, 1, 1), "v": V})
    assert scales.size == 0
    assert "shared with another node" in reasons(scales)
    assert [anchor for anchor, reason in scales.left if reason == "its weights are shared with another node"] == [
        "b",
        "c",
    ]


def test_what_a_subgraph_reads_stays() -> None:
    body = """g (float[1,3,6,6] x, bool c) => (float[1,4,6,6] z, float[1,5,6,6] y) {
        a = Conv(x, w)
        y = Conv(a, v)
        z = If (c) <then_branch = t () => (float[1,4,6,6] p) { p = Relu(a) },
                    else_branch = e () => (float[1,4,6,6] r) { r = Neg(a) }>
    }"""
    scales = analyzed(body, {"w": W, "v": V})
    assert scales.size == 0
    assert "a subgraph reads it" in reasons(scales)


def test_a_reason_is_told_of_all_that_share_the_scale() -> None:
    """The second layer is held because its sum with the first one's is: it says why as well."""
    body = """g (float[1,3,6,6] x) => (float[1,4,6,6] y) {
        a = Conv(x, w) b = Conv(x, v) c = Add(a, b) y = Sigmoid(c)
    }"""
    scales = analyzed(body, {"w": W, "v": W})
    assert [group.units.size for group in scales.groups] == [0, 0]
    assert "Sigmoid" in reasons(scales, "a")
    assert "Sigmoid" in reasons(scales, "b")


def test_layers_that_read_what_nothing_scales_are_named() -> None:
    body = """g (float[1,3,6,6] x) => (float[1,5,6,6] y) {
        a = Conv(x, w) b = Softplus(a) y = Conv(b, v)
    }"""
    found = dict(analyzed(body, {"w": W, "v": V}).left)
    assert found["a"] == "nothing scales 'x', which it reads: no node makes it"
    assert found["y"] == "nothing scales 'b', which it reads: Softplus makes it"


def test_clips_are_named_with_their_bounds() -> None:
    scales = between("b = Clip(a, s, t)", {"s": np.float32(0), "t": np.float32(6)})
    (cap,) = scales.caps
    assert (cap.anchor, cap.low, cap.high) == ("b", 0.0, 6.0)
    np.testing.assert_array_equal(cap.labels.reshape(-1), range(4))
    scales = between("b = Clip(a, s, t)", {"s": np.float32(0), "t": np.float32(np.nan)})
    assert scales.size == 0
    assert not scales.caps


def test_an_unknown_rank_holds() -> None:
    body = """g (float[1,3,6,6] x, int64[r] s) => (float[n,5] y) {
        a = Conv(x, w) b = Reshape(a, s) c = Relu(b) y = Gemm(c, v)
    }"""
    scales = analyzed(body, {"w": W, "v": (4, 5)})
    assert scales.size == 0
    assert "unknown size" in reasons(scales)


def test_no_scale_is_lost_where_a_tensor_has_another_shape_than_its_labels() -> None:
    flow = Flow()
    labels = flow.fresh(4)
    flow.give(Variable("t", np.float32, [1, 5]), labels.reshape(1, 4))
    units, why = flow.solved()
    assert (units == -1).all()
    assert "size" in why.of(labels)[0]


# ---- Reshape, against numpy ----------------------------------------------------------------------------------------


@st.composite
def reshapes(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Two shapes of as many elements, and which axes of the first scales vary along."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=6))

    def grouped() -> tuple[int, ...]:
        cuts = sorted(draw(st.lists(st.integers(0, len(factors)), max_size=4)))
        return tuple(math.prod(factors[a:b]) for a, b in zip([0, *cuts], [*cuts, len(factors)], strict=True))

    before, after = grouped(), grouped()
    return before, after, tuple(draw(st.sampled_from([1, size])) for size in before)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(reshapes())
def test_reshaped_labels_are_those_that_numpy_reshapes(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> None:
    before, after, shape = case
    labels = np.arange(1, math.prod(shape) + 1).reshape(shape)
    found = reshaped(labels, before, after)
    assert found is not None
    np.testing.assert_array_equal(np.broadcast_to(found, after), np.broadcast_to(labels, before).reshape(after))


@pytest.mark.parametrize(
    ("before", "after", "axis", "kept"),
    [
        (("n", 4, 6), ("n", 24), 1, True),
        ((None, 4, 6), (None, 24), 1, True),
        (("n", 4, "h", "w"), ("n", 4, None), 1, True),
        (("n", 4, "h"), (None, 4), 1, False),
        (("n", 4, "h", "w"), ("n", None), 1, False),
        ((2, 4), (4, 2), 1, True),
        (("n", 4), (4, "n"), 1, False),
        ((0, 4), (4, 0), 1, False),
    ],
)
def test_unknown_sizes(before: Any, after: Any, axis: int, kept: bool) -> None:
    labels = np.arange(1, 5).reshape([4 if i == axis else 1 for i in range(len(before))])
    assert (reshaped(labels, before, after) is not None) == kept


# ---- extremes of channels ------------------------------------------------------------------------------------------


def test_peaks_are_those_of_all_samples() -> None:
    body = "g (float[n,3,4] x) => (float[n,3,4] y, float[n,m] z) { a = Abs(x) b = Neg(a) y = Exp(b) z = Flatten(a) }"
    model = build(body, {})
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((2, 3, 4)).astype(np.float32)} for _ in range(5)]
    samples = Samples.from_feeds(feeds).for_inputs(model.inputs)
    found = observe_peaks(model, {"a": (1, 3, 1), "b": (1, 1, 4), "z": (1, 1, 1)}, samples, 1)
    whole = np.abs(np.concatenate([feed["x"] for feed in feeds]))
    np.testing.assert_array_equal(found["a"].high.reshape(-1), whole.max((0, 2)))
    np.testing.assert_array_equal(found["a"].low.reshape(-1), whole.min((0, 2)))
    np.testing.assert_array_equal(found["b"].largest.reshape(-1), whole.max((0, 1)))
    assert "z" not in found, "of another rank"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_tensor_that_is_ever_not_finite_has_no_peaks(bad: float) -> None:
    model = build("g (float[n,3] x) => (float[n,3] y) { a = Neg(x) y = Neg(a) }", {})
    feeds = [{"x": np.ones((1, 3), np.float32)}, {"x": np.full((1, 3), bad, np.float32)}]
    samples = Samples.from_feeds(feeds).for_inputs(model.inputs)
    assert observe_peaks(model, {"a": (1, 3)}, samples, 1) == {}
