"""float16: what takes it computes in it, Casts stand where it begins and ends, and what it cannot hold stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest
from gallery import GALLERY, Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper
from properties.comparing import apart
from properties.random_graphs import Made, Recipe, recipes
from properties.test_exact_passes import BRIEF, LONG, TRAINED, made, trained

from onnxslim.ir import Model, Rewriter
from onnxslim.passes._float16_casts import SMALLEST, rounded
from onnxslim.passes._float16_choice import LARGEST
from onnxslim.passes.float16 import Float16, Float16Plan
from onnxslim.passes.insert_qdq import InsertQdq, Rounding
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.samples import Samples

Array = np.ndarray[Any, Any]

TOLERANCE = 2e-2
"""Of an output's range."""
AMPLIFIED = 30.0
"""How many times what rounding weights and inputs alone does, where the graph amplifies that."""


def build(body: str, weights: Mapping[str, Any] | None = None, opset: int = 17) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{body}')
    for name, value in (weights or {}).items():
        array = np.random.default_rng(0).standard_normal(value) if isinstance(value, tuple) else np.asarray(value)
        stored = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(numpy_helper.from_array(stored, name))
    return proto


def halve(
    source: onnx.ModelProto | Model, feed: dict[str, Array] | None = None, item: Float16 | None = None
) -> tuple[Model, Rewriter]:
    model = source.copy() if isinstance(source, Model) else Model.load(source)
    samples = None if feed is None else Samples.from_feeds([feed]).for_inputs(model.inputs)
    rewriter = Rewriter(model)
    (item or Float16()).run(rewriter, PassContext(samples=samples))
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    return model, rewriter


def run(model: Model | onnx.ModelProto, feed: dict[str, Array], level: Level = Level.NONE) -> dict[str, Any]:
    return Session(model.proto() if isinstance(model, Model) else model, SessionConfig(level=level)).run(feed)


def literally(model: Model, feed: dict[str, Array]) -> Array:
    """Return the output as onnx's own evaluator computes it, in float16: onnxruntime would not on this CPU."""
    with np.errstate(over="ignore", invalid="ignore"):
        (output,) = onnx.reference.ReferenceEvaluator(model.proto()).run(None, feed)
        return np.asarray(output)


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def stored_types(model: Model) -> set[str]:
    return {tensor.name for tensor in model.proto().graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}


# ---- rounding ----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32)))
def test_rounding(values: Array) -> None:
    half = rounded(values)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half == 0, values == 0)
    np.testing.assert_array_equal(np.isfinite(half), np.isfinite(values))
    np.testing.assert_array_equal(np.signbit(half[~np.isnan(values)]), np.signbit(values[~np.isnan(values)]))
    within = (np.abs(values) <= LARGEST) & (np.abs(values) >= SMALLEST)
    np.testing.assert_array_equal(half[within], values[within].astype(np.float16))
    beyond = np.isfinite(values) & (np.abs(values) > LARGEST)
    np.testing.assert_array_equal(np.abs(half[beyond]), np.float16(LARGEST))


# ---- what must stay, and why -------------------------------------------------------------------------------------

X = "g (float[2,6] x) => (float[2,6] y)"
STAYS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "an operator whose schema knows no float16": (
        f"{X} {{ y = Celu(x) }}", {}, 17, "Celu of opset 17 does not take float16",
    ),
    "an operator of another domain": (f"{X} {{ y = com.microsoft.QuickGelu(x) }}", {}, 17, "is unknown"),
    "a sum that grows": (f"{X} {{ y = CumSum(x, a) }}", {"a": np.array(1)}, 17, "left exact"),
    "a weight that float16 does not hold": (f"{X} {{ y = Mul(x, w) }}", {"w": np.float32(1e6)}, 17, "exceeds float16"),
    "one in a Constant node": (
        f"{X} {{ w = Constant<value = float {{1000000.0}}>() y = Mul(x, w) }}", {}, 17, "exceeds float16",
    ),
    "a range, before opset 27": (
        "g (float a, float b, float c) => (float[n] y) { y = Range(a, b, c) }", {}, 17, "does not take float16",
    ),
    "a branch": (
        """g (float[2] x, bool c) => (float[2] y) { y = If(c) <
            then_branch = t () => (float[2] a) { a = Exp(x) }, else_branch = e () => (float[2] b) { b = Neg(x) }
        > }""",
        {}, 17, "it lies in a subgraph",
    ),
    "boxes": (
        "g (float[1,n,4] x, float[1,1,n] s) => (int64[m,3] y) { y = NonMaxSuppression(x, s, k, t) }",
        {"k": np.array([3]), "t": np.array([0.5], np.float32)}, 17, "NonMaxSuppression of opset 17 does not take",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    body, weights, opset, why = STAYS[name]
    proto = build(body, weights, opset)
    model, rewriter = halve(proto)
    assert "Cast" not in ops(model)
    assert not stored_types(model)
    assert any(why in mismatch.reason for mismatch in rewriter.skipped), rewriter.skipped


SILENT = [
    (f"{X} {{ a = Celu(x) b = Transpose(a) c = Reshape(b, s) y = Celu(c) }}", {"s": np.array([2, 6])}, "moved only"),
    (f"{X} {{ a = Celu(x) y = Celu(a) }}", {}, "nothing"),
    ("g (float[2,6] x) => (bool[2,6] y) { a = Celu(x) y = Greater(a, w) }", {"w": np.float32(0.5)}, "a comparison"),
    ("g (float[2,6] x) => (int64[2] y) { y = Shape(x) }", {}, "a shape"),
    ("g (float[2,6] x) => (int32[2,6] y) { y = Cast<to = 6>(x) }", {}, "a Cast to integers"),
    ("g (int64[2] s) => (float[n,m] y) { y = ConstantOfShape(s) }", {}, "a type of its own"),
    ("g (float[2] x) => (seq(float[2]) y) { y = SequenceConstruct(x, x) }", {}, "a sequence"),
    ("g (double[2] x) => (double[2] y) { y = Exp(x) }", {}, "float64"),
    ("g (float16[2] x) => (float16[2] y) { y = Exp(x) }", {}, "float16 already"),
]


@pytest.mark.parametrize(("body", "weights"), [pytest.param(b, w, id=i) for b, w, i in SILENT])
def test_gains_nothing(body: str, weights: dict[str, Any]) -> None:
    proto = build(body, weights)
    model, rewriter = halve(proto)
    assert rewriter.edits == 0
    assert ops(model) == [node.op_type for node in proto.graph.node]


def test_layers_that_run_as_integers_stay() -> None:
    """A Cast between a DequantizeLinear and its layer would undo the integer kernel; what is excluded becomes half."""
    model = GALLERY["vgg"](Builder())
    samples = Samples.from_arrays({"x": np.random.default_rng(1).standard_normal((4, 3, 16, 16)).astype(np.float32)})
    rewriter = Rewriter(model)
    last = [node.name for node in model.graph.nodes if node.op == "Gemm"][-1]
    quantize = InsertQdq(rounding=Rounding.NEAREST, exclude=(last,))
    quantize.run(rewriter, PassContext(samples=samples.for_inputs(model.inputs), threads=1))
    rewriter.finish()
    before = ops(model)
    mixed, rewriter = halve(model)
    assert sum("integers" in mismatch.reason for mismatch in rewriter.skipped) == 3
    found = ops(mixed)
    assert [op for op in found if op != "Cast"] == before
    assert found.count("Cast") == 2
    assert len(stored_types(mixed)) == 2


def test_excluded_layers_stay() -> None:
    proto = build(f"{X} {{ a = Exp(x) b = Neg(a) y = Exp(b) }}")
    model, rewriter = halve(proto, item=Float16(exclude=("b",)))
    assert ops(model) == ["Cast", "Exp", "Cast", "Neg", "Cast", "Exp", "Cast"]
    assert [(mismatch.anchor, mismatch.reason) for mismatch in rewriter.skipped] == [("b", "excluded by the options")]
    model, _ = halve(proto, item=Float16(only=("b",)))
    assert ops(model) == ["Exp", "Cast", "Neg", "Cast", "Exp"]


# ---- what changes ------------------------------------------------------------------------------------------------

CHANGES = [
    (f"{X} {{ y = Gemm(x, w, b) }}", {"w": (6, 6), "b": (6,)}, 17, ["Cast", "Gemm", "Cast"], "a layer"),
    (f"{X} {{ a = Exp(x) b = Neg(x) y = Add(a, b) }}", {}, 17, ["Cast", "Exp", "Neg", "Add", "Cast"], "one for two"),
    (
        "g (float[2,6] x) => (float[2,6] y, float[2,6] a) { a = Exp(x) y = Neg(a) }",
        {}, 17, ["Cast", "Exp", "Neg", "Cast", "Cast"], "an output that is read inside too",
    ),
    (
        f"{X} {{ c = Constant<value = float {{2.0}}>() a = Mul(x, c) y = Add(a, c) }}",
        {}, 17, ["Cast", "Mul", "Add", "Cast"], "a Constant node of two readers",
    ),
    (
        f"{X} {{ a = Celu(x) b = Mul(a, w) c = Celu(b) y = Mul(c, w) }}",
        {"w": (6,)}, 17, ["Celu", "Cast", "Mul", "Cast", "Celu", "Cast", "Mul", "Cast"], "in and out",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { a = Exp(x) b = Celu(a) c = Celu(a) y = Sub(b, c) }",
        {}, 17, ["Cast", "Exp", "Cast", "Celu", "Celu", "Cast", "Cast", "Sub", "Cast"], "one Cast back for two",
    ),
    (
        "g (int32[2] x) => (float[2] y) { a = Cast<to = 1>(x) y = Exp(a) }",
        {}, 17, ["Cast", "Exp", "Cast"], "a Cast to float32 becomes one to float16",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y) { a = Exp(x) y = Clip(a, l, h) }",
        {"l": np.float32(-3.4e38), "h": np.float32(6)}, 17, ["Cast", "Exp", "Clip", "Cast"],
        "bounds go as far as they can",
    ),
    (
        "g (float[1,2,4,4] x) => (float[1,2,8,8] y) { a = Exp(x) y = Resize<mode = \"nearest\">(a, , s) }",
        {"s": np.array([1, 1, 2, 2], np.float32)}, 17, ["Cast", "Exp", "Resize", "Cast"], "scales stay float32",
    ),
    (
        "g (float[1,2,4,4] x) => (float[1,2,8,8] y) { a = Exp(x) y = Upsample(a, s) }",
        {"s": np.array([1, 1, 2, 2], np.float32)}, 9, ["Cast", "Exp", "Upsample", "Cast"], "scales as input, opset 9",
    ),
    (
        "g (float[2,6] x) => (float[2,6] y, int64[2] s) { a = Exp(x) s = Shape(a) y = Neg(a) }",
        {}, 17, ["Cast", "Exp", "Shape", "Neg", "Cast"], "a shape has no type",
    ),
    (
        "g (float[2,6] x) => (bool[2,6] y) { a = Exp(x) y = Greater(a, w) }",
        {"w": np.float32(0.5)}, 17, ["Cast", "Exp", "Greater"], "a comparison of float16",
    ),
    (
        "g (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = BatchNormalization(x, s, b, m, v) }",
        {"s": (3,), "b": (3,), "m": (3,), "v": np.ones(3, np.float32)}, 17, ["Cast", "BatchNormalization", "Cast"],
        "several types of parameters",
    ),
    (
        """g (float[2] x, bool c) => (float[2] y) { a = Exp(x) b = If(c) <
            then_branch = t () => (float[2] d) { d = Add(a, w) }, else_branch = e () => (float[2] f) { f = Neg(a) }
        > y = Mul(b, w) }""",
        {"w": (2,)}, 17, ["Cast", "Exp", "Cast", "If", "Cast", "Mul", "Cast"], "branches capture float32",
    ),
]  # fmt: skip


def feed_of(proto: onnx.ModelProto) -> dict[str, Array]:
    random = np.random.default_rng(3)
    feed: dict[str, Array] = {}
    for value in proto.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        feed[value.name] = np.asarray(random.normal(size=shape)).astype(dtype)
    return feed


@pytest.mark.parametrize(
    ("body", "weights", "opset", "expected"), [pytest.param(b, w, v, o, id=i) for b, w, v, o, i in CHANGES]
)
def test_changes(body: str, weights: dict[str, Any], opset: int, expected: list[str]) -> None:
    proto = build(body, weights, opset)
    model, _ = halve(proto)
    assert ops(model) == expected
    feed = feed_of(proto)
    before, after = run(proto, feed), run(model, feed)
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    assert max(apart(before, after).values()) < TOLERANCE


def test_whole_numbers_stay_as_they_are() -> None:
    """All sums of this network are whole and below 2048, where float16 is exact: so are the outputs."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.integers(-2, 3, (4, 3, 3, 3)),
        "b": random.integers(-9, 10, 4),
        "v": random.integers(-1, 2, (4, 5)),
    }
    body = """g (float[2,3,6,6] x) => (float[2,4,4,5] y) {
        c = Conv(x, w, b) r = Relu(c) t = Transpose<perm = [0,2,3,1]>(r) y = MatMul(t, v)
    }"""
    proto = build(body, {name: value.astype(np.float32) for name, value in weights.items()})
    model, _ = halve(proto)
    assert len(stored_types(model)) == 3
    feed = {"x": random.integers(-4, 5, (2, 3, 6, 6)).astype(np.float32)}
    for level in (Level.NONE, Level.ALL):
        np.testing.assert_array_equal(run(model, feed, level)["y"], run(proto, feed)["y"])


def test_numbers_are_rounded_in_between() -> None:
    """The oracle: numpy's float16, operator by operator."""
    proto = build(f"{X} {{ a = Mul(x, w) y = Sub(a, v) }}", {"w": (6,), "v": (6,)})
    model, _ = halve(proto)
    feed = feed_of(proto)
    w, v = (numpy_helper.to_array(tensor).astype(np.float16) for tensor in proto.graph.initializer)
    product = (feed["x"].astype(np.float16).astype(np.float32) * w.astype(np.float32)).astype(np.float16)
    expected = (product.astype(np.float32) - v.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(literally(model, feed), expected.astype(np.float32))


@pytest.mark.parametrize("seen", [False, True])
def test_samples_show_what_is_too_large(seen: bool) -> None:
    proto = build(f"{X} {{ a = Exp(x) s = Mul(a, a) d = Div(s, a) y = Sqrt(d) }}")
    feed = {"x": np.full((2, 6), 8.0, np.float32)}  # e⁸ fits, its square does not
    model, rewriter = halve(proto, feed if seen else None)
    if not seen:
        assert not np.isfinite(literally(model, feed)).any()
        return
    np.testing.assert_allclose(literally(model, feed), run(proto, feed)["y"], rtol=2e-3)
    assert [mismatch.anchor for mismatch in rewriter.skipped] == ["s", "d"]
    assert "'s' exceeds float16's 65504 on the samples" in rewriter.skipped[0].reason
    assert ops(model) == ["Cast", "Exp", "Cast", "Mul", "Div", "Cast", "Sqrt", "Cast"]


def test_a_plan_replays_without_samples_to_the_same_bytes() -> None:
    model = GALLERY["mobilenet"](Builder())
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    samples = Samples.from_feeds([feed]).for_inputs(model.inputs)
    plan = Float16().plan(model.copy(), PassContext(samples=samples))
    replayed = model.copy()
    rewriter = Rewriter(replayed)
    Float16().apply(rewriter, Float16Plan.model_validate_json(plan.model_dump_json()), PassContext())
    rewriter.finish()
    assert replayed.to_bytes() == halve(model, feed)[0].to_bytes()


def test_a_second_time_finds_nothing() -> None:
    once, _ = halve(GALLERY["inception"](Builder()))
    twice, rewriter = halve(once)
    assert rewriter.edits == 0
    assert twice.to_bytes() == once.to_bytes()


@pytest.mark.parametrize("name", sorted(GALLERY))
def test_half_the_bytes(name: str) -> None:
    model = GALLERY[name](Builder())
    half, _ = halve(model)
    assert model.weight_bytes() / 2 <= half.weight_bytes() < 0.52 * model.weight_bytes() + 64
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    assert max(apart(run(model, feed), run(half, feed)).values()) < TOLERANCE


# ---- random graphs -----------------------------------------------------------------------------------------------


def coarse(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its weights rounded to float16, everything else as it was."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(rounded(array).astype(np.float32), tensor.name))
    return result


def check(source: Made) -> None:
    """Valid and near; where the graph amplifies a rounding, within some times what rounding at its ends does."""
    model, rewriter = halve(source.proto, source.feed)
    assert all(mismatch.reason and mismatch.anchor for mismatch in rewriter.skipped)
    before, after = run(source.proto, source.feed), run(model, source.feed)
    feed = {n: rounded(a).astype(np.float32) if a.dtype == np.float32 else a for n, a in source.feed.items()}
    amplified = apart(before, run(coarse(source.proto), feed))
    for name, value in apart(before, after).items():
        integers = before[name].dtype.kind != "f"
        assert integers or value <= max(TOLERANCE, AMPLIFIED * amplified[name]), f"{name} is off by {value:.2g}"


@BRIEF
@given(recipes())
def test_random_graphs(recipe: Recipe) -> None:
    check(made(recipe))


@pytest.mark.slow
@LONG
@given(recipes())
def test_random_graphs_long(recipe: Recipe) -> None:
    check(made(recipe))


@pytest.mark.parametrize("name", TRAINED)
def test_trained_models(name: str) -> None:
    check(trained(name))


def test_a_text_detector(zoo: Path) -> None:
    """Its variances exceed float16: without a look at them, outputs are NaN."""
    proto = onnx.load(zoo / "ppocrv4_det.onnx")
    model, rewriter = halve(proto)
    assert any("exceeds" in mismatch.reason for mismatch in rewriter.skipped)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)}
    assert max(apart(run(proto, feed), run(model, feed)).values()) < 0.1
