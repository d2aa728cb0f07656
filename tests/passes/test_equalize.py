"""equalize: what stays and why; what changes; which scales are chosen; Clips, constants, trials and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxslim.analysis import equalizable_rules as rules
from onnxslim.analysis import infer_shapes
from onnxslim.analysis.equalizable import analyze_scales
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Rewriter, array_of
from onnxslim.passes import EXACT_PASSES, PASSES, Equalize
from onnxslim.passes import _equalize as scaling
from onnxslim.passes import equalize as module
from onnxslim.passes._equalize import balanced, free
from onnxslim.passes._equalize_absorb import Absorb
from onnxslim.passes._equalize_clips import Kind, Relu6
from onnxslim.passes._equalize_trial import Trial
from onnxslim.passes.equalize import EqualizePlan, GroupScales, Scales, Trials
from onnxslim.pipeline import PassContext, format_spec, parse_spec
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.samples import Samples

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Weights = Mapping[str, Any]

TOLERANCE = 1e-5
"""Of an output's range: scales are rounded once."""
CONVS = "a = Conv(x, w, u) b = Relu(a) y = Conv(b, v)"
X = "g (float[1,3,6,6] x) => (float[n,5,h,q] y)"
WU: Weights = {"w": (4, 3, 1, 1), "u": (4,)}
BOTH: Weights = {**WU, "v": (5, 4, 1, 1)}
UNEVEN = np.array([1, 8, 1 / 16, 1], np.float32).reshape(4, 1, 1, 1)
"""By how much channels differ, where they should."""


def build(body: str, weights: Weights | None = None, opset: int = 17) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{body}')
    read = {name for node in proto.graph.node for name in node.input}
    for name, value in ((name, value) for name, value in (weights or {}).items() if name in read):
        array = np.random.default_rng(0).standard_normal(value) if isinstance(value, tuple) else np.asarray(value)
        stored = array.astype(np.float32) if array.dtype == np.float64 and isinstance(value, tuple) else array
        proto.graph.initializer.append(numpy_helper.from_array(stored, name))
    return proto


def uneven(weights: Weights, name: str = "w", factors: Array = UNEVEN) -> dict[str, Any]:
    """Return ``weights``, one of them with channels of very different sizes."""
    return {**weights, name: (np.random.default_rng(1).standard_normal(weights[name]) * factors).astype(np.float32)}


def feeds(count: int = 8, shape: Sequence[int] = (1, 3, 6, 6)) -> list[Feed]:
    random = np.random.default_rng(3)
    return [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def equalized(
    proto: onnx.ModelProto, item: Equalize | None = None, given: list[Feed] | None = None
) -> tuple[Model, EqualizePlan, Rewriter]:
    """Run the pass; without ``given`` it has no samples."""
    model = Model.load(proto)
    samples = None if given is None else Samples.from_feeds(given).for_inputs(model.inputs)
    context, rewriter = PassContext(samples=samples), Rewriter(model)
    (item or Equalize()).run(rewriter, context)
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    assert isinstance(context.recorded, EqualizePlan)
    return model, context.recorded, rewriter


def run(model: Model | onnx.ModelProto, feed: Feed) -> dict[str, Any]:
    return Session(model.proto() if isinstance(model, Model) else model, SessionConfig(level=Level.NONE)).run(feed)


def difference(before: Model | onnx.ModelProto, after: Model, given: list[Feed]) -> float:
    worst = 0.0
    for feed in given:
        for a, b in zip(run(before, feed).values(), run(after, feed).values(), strict=True):
            worst = max(worst, float(np.abs(a - b).max()) / (float(np.ptp(a)) or 1.0))
    return worst


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def constant(model: Model, anchor: str, slot: int = 1) -> Array:
    node = next(node for node in model.graph.nodes if node.outputs[0].name == anchor)
    values = array_of(node.inputs[slot])
    assert values is not None
    return values


# ---- what must stay, and why ---------------------------------------------------------------------------------------

ALONE = "g (float[1,3,6,6] x) => (float[1,4,6,6] y) { a = Conv(x, w) y = Relu(a) }"
STAYS: dict[str, tuple[str, Weights, str]] = {
    "an output of the model": (ALONE, BOTH, "a: it is an output of the model"),
    "an input of the model": (
        ALONE, BOTH, "a: nothing scales 'x', which it reads: no node makes it",
    ),
    "a returned tensor": (
        "g (float[1,3,6,6] x) => (float[1,4,6,6] a, float[1,5,6,6] y) { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }",
        BOTH, "a: it is an output of the model",
    ),
    "an activation that does not scale": (
        f"{X} {{ a = Conv(x, w) b = Softplus(a) y = Conv(b, v) }}", BOTH, "a: Softplus does not scale with its input",
    ),
    "a Gelu": (
        f"{X} {{ a = Conv(x, w) e = Erf(a) b = Mul(a, e) y = Conv(b, v) }}", BOTH, "a: Erf does not scale with its",
    ),
    "what a normalization reads": (
        f"{X} {{ a = Conv(x, w) b = LRN<size = 3>(a) y = Conv(b, v) }}", BOTH, "a: LRN does not scale with its input",
    ),
    "a shortcut from the input": (
        "g (float[1,4,6,6] x) => (float[1,5,6,6] y) { a = Conv(x, w) b = Add(a, x) y = Conv(b, v) }",
        {"w": (4, 4, 1, 1), "v": (5, 4, 1, 1)}, "a: it is joined with something that is not scaled",
    ),
    "a gate's own channels": (
        f"{X} {{ a = Conv(x, w) s = Sigmoid(a) b = Mul(x, s) y = Conv(b, v) }}",
        {"w": (3, 3, 1, 1), "v": (5, 3, 1, 1)}, "a: Sigmoid does not scale",
    ),
    "shared weights": (
        "g (float[1,4,6,6] x) => (float[1,4,6,6] y) { a = Conv(x, w) b = Conv(a, w) y = Relu(b) }",
        {"w": (4, 4, 1, 1)}, "b: its weights are shared with another node",
    ),
    "computed weights": (
        f"{X} {{ a = Conv(x, w) c = Exp(v) y = Conv(a, c) }}", BOTH, "a: the weights of Conv beside it are computed",
    ),
    "weights in float16": (
        "g (float16[1,3] x) => (float16[1,5] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        {"w": np.ones((3, 4), np.float16), "v": np.ones((4, 5), np.float16)}, "a: its weights are not finite float32 o",
    ),
    "nobody with weights reads them": (
        "g (float[1,3,6,6] x) => (int64[1,1,6,6] y) { a = Conv(x, w) b = Relu(a) c = Abs(b) y = ArgMax<axis = 1>(c) }",
        WU, "a: ArgMax does not scale with its input",
    ),
    "integers": (
        """g (float[1,3] x) => (float[1,5] y) {
            q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) a = MatMul(d, w) y = MatMul(a, v)
        }""",
        {"s": np.float32(0.1), "w": (3, 4), "v": (4, 5)}, "g: the model has integer operators already",
    ),
    "a Clip, without samples": (
        f"{X} {{ a = Conv(x, w) b = Clip(a, s, t) y = Conv(b, v) }}",
        {**BOTH, "s": np.float32(0), "t": np.float32(6)}, "b: it passes through a Clip at 6, which does not scale: wi",
    ),
    "a Clip that does not hold zero": (
        f"{X} {{ a = Conv(x, w) b = Clip(a, s) y = Conv(b, v) }}",
        {**BOTH, "s": np.float32(1)}, "a: Clip has computed bounds, or bounds that do not hold zero",
    ),
    "a layer whose input the Gemm transposes": (
        "g (float[4,3] x) => (float[6,5] y) { a = Gemm(x, w) y = Gemm<transA = 1>(a, v) }",
        {"w": (3, 6), "v": (4, 5)}, "a: Gemm transposes its input",
    ),
    "products of two activations": (
        "g (float[2,3] x) => (float[2,2] y) { a = MatMul(x, w) t = Transpose(a) y = MatMul(a, t) }",
        {"w": (3, 4)}, "a: MatMul sums over products with it; MatMul sums",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    body, weights, why = STAYS[name]
    proto = build(body, weights)
    model, plan, rewriter = equalized(proto)
    assert rewriter.edits == 0
    assert plan.groups == ()
    said = [f"{mismatch.anchor}: {mismatch.reason}" for mismatch in rewriter.skipped]
    assert any(why in line for line in said), said
    assert ops(model) == ops(Model.load(proto))


def test_layers_that_are_not_meant_stay() -> None:
    proto = build(f"{X} {{ {CONVS} }}", uneven(BOTH))
    for item in (Equalize(only=("z*",)), Equalize(exclude=("a",))):
        _, plan, rewriter = equalized(proto, item)
        assert rewriter.edits == 0
        assert ("a", "excluded by the options") in plan.refused
    assert equalized(proto, Equalize(only=("a",)))[1].groups


def test_what_is_balanced_stays() -> None:
    even: Weights = {"w": np.ones((4, 3, 1, 1), np.float32), "v": np.ones((5, 4, 1, 1), np.float32)}
    _, plan, rewriter = equalized(build(f"{X} {{ a = Conv(x, w) b = Relu(a) y = Conv(b, v) }}", even))
    assert plan.groups == ()
    assert rewriter.edits == 0


def test_a_second_run_finds_nothing_to_do() -> None:
    first, plan, _ = equalized(build(f"{X} {{ a = Conv(x, w) b = Relu(a) y = Conv(b, v) }}", uneven(BOTH)))
    assert plan.groups
    assert equalized(first.proto())[1].groups == ()


# ---- what changes: outputs stay ------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, Weights, list[str]]] = {
    "two convolutions": (f"{X} {{ {CONVS} }}", BOTH, ["a"]),
    "a depthwise convolution between": (
        f"{X} {{ a = Conv(x, w) b = Conv<group = 4, pads = [1,1,1,1]>(a, d) c = Relu(b) y = Conv(c, v) }}",
        {**BOTH, "d": (4, 1, 3, 3)}, ["a", "b"],
    ),
    "a residual block": (
        f"""{X} {{
            a = Conv(x, w) b = Relu(a) c = Conv(b, p) d = Relu(c) e = Conv(d, r) f = Add(b, e) g = Relu(f)
            y = Conv(g, v)
        }}""",
        {**BOTH, "p": (6, 4, 1, 1), "r": (4, 6, 1, 1)}, ["a", "c"],
    ),
    "branches that are joined": (
        f"{X} {{ a = Conv(x, w) b = Conv(x, p) c = Concat<axis = 1>(a, b) d = Relu(c) y = Conv(d, v) }}",
        {**WU, "p": (2, 3, 1, 1), "v": (5, 6, 1, 1)}, ["a", "b"],
    ),
    "squeeze and excitation": (
        f"""{X} {{
            a = Conv(x, w) m = GlobalAveragePool(a) c = Conv(m, p) s = Sigmoid(c) d = Mul(a, s) y = Conv(d, v)
        }}""",
        {**BOTH, "p": (4, 4, 1, 1)}, ["a"],
    ),
    "BatchNormalization between": (
        f"{X} {{ a = Conv(x, w) n = BatchNormalization(a, s, t, m, r) b = Relu(n) y = Conv(b, v) }}",
        {**BOTH, "s": (4,), "t": (4,), "m": (4,), "r": np.array([1, 2, 3, 4], np.float32)}, ["n"],
    ),
    "a flattened head": (
        "g (float[1,3,6,6] x) => (float[1,5] y) { a = Conv(x, w) f = Flatten(a) b = Relu(f) y = Gemm(b, v, u) }",
        {"w": (4, 3, 1, 1), "v": (144, 5), "u": (5,)}, ["a"],
    ),
    "a transposed convolution": (
        f"{X} {{ a = Conv(x, w) b = ConvTranspose<group = 2, strides = [2,2]>(a, p) y = Conv(b, v) }}",
        {**WU, "p": (4, 3, 2, 2), "v": (5, 6, 1, 1)}, ["a", "b"],
    ),
    "constants and Min": (
        f"{X} {{ a = Conv(x, w) b = Add(a, s) c = Min(b, t) d = Max(z, c) y = Conv(d, v) }}",
        {**BOTH, "s": (4, 1, 1), "t": np.float32(6), "z": np.float32(0)}, ["a"],
    ),
    "a product with a constant": (
        f"{X} {{ a = Conv(x, w) b = Mul(a, s) c = Relu(b) y = Conv(c, v) }}", {**BOTH, "s": (4, 1, 1)}, ["a", "b"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("scales", Scales)
@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str, scales: Scales) -> None:
    body, weights, anchors = CHANGES[name]
    proto = build(body, uneven(weights))
    for shown in (None, feeds()):
        model, plan, _ = equalized(proto, Equalize(scales=scales, trial=Trials.OFF), shown)
        assert ops(model) == ops(Model.load(proto))
        assert sorted(layer for group in plan.groups for layer in group.layers if layer in anchors) == anchors
        limit = 0.0 if scales is Scales.POWER_OF_TWO else TOLERANCE
        assert difference(proto, model, feeds()) <= limit


def test_double_weights_stay_double() -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((3, 4)) * [1, 9, 1, 1], "v": np.ones((4, 5))}
    body = "g (double[2,3] x) => (double[2,5] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    proto = build(body, weights)
    model, plan, _ = equalized(proto)
    assert plan.groups
    assert constant(model, "a").dtype == np.float64
    assert difference(proto, model, [{"x": np.ones((2, 3))}]) < 1e-14


def test_a_wrong_scale_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison notices a scale that is off by a thousandth."""
    right = scaling.rescaled

    def wrong(part: Any, logs: Any) -> Any:
        return right(part, logs * (1.001 if part.anchor == "a" else 1.0))

    proto = build(f"{X} {{ {CONVS} }}", uneven(BOTH))
    monkeypatch.setattr(module, "rescaled", wrong)
    assert difference(proto, equalized(proto)[0], feeds()) > 10 * TOLERANCE


def test_a_wrong_rule_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = build(
        f"{X} {{ a = Conv(x, w) b = Softplus(a) y = Conv(b, v) }}", uneven({"w": (4, 3, 1, 1), "v": (5, 4, 1, 1)})
    )
    assert difference(proto, equalized(proto)[0], feeds()) == 0
    monkeypatch.setitem(rules.RULES, "Softplus", rules.RULES["Relu"])
    assert difference(proto, equalized(proto)[0], feeds()) > 10 * TOLERANCE


# ---- which scales --------------------------------------------------------------------------------------------------


def test_both_sides_of_two_layers_become_equal() -> None:
    """s = √(r₁ / r₂) (Nagel et al. 2019, eq. 11), for weights alone: no bias, no samples."""
    proto = build(
        f"{X} {{ a = Conv(x, w) b = Relu(a) y = Conv(b, v) }}", uneven({"w": (4, 3, 1, 1), "v": (5, 4, 1, 1)})
    )
    before = Model.load(proto)
    model, plan, _ = equalized(proto)
    (group,) = plan.groups
    made, read = np.abs(constant(model, "a")).max((1, 2, 3)), np.abs(constant(model, "y")).max((0, 2, 3))
    np.testing.assert_allclose(made / made.max(), read / read.max(), rtol=0.02)
    old = np.abs(constant(before, "a")).max((1, 2, 3)), np.abs(constant(before, "y")).max((0, 2, 3))
    wanted = np.sqrt(old[0] / old[1])
    found = np.exp2(group.log2)
    np.testing.assert_allclose(found / found[0], wanted / wanted[0], rtol=0.02)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_what_differs_in_a_normalization_moves_into_the_weights_that_read_it(strength: float) -> None:
    """s = max|X|^α / max|W|^(1 − α) (Xiao et al. 2023, eq. 4), but for what is the same for all channels."""
    gamma = np.array([1, 30, 0.5, 1, 2, 1], np.float32)
    body = "g (float[1,8,6] x) => (float[1,8,5] y) { b = LayerNormalization(x, s, t) y = MatMul(b, v) }"
    proto = build(body, {"s": gamma, "t": (6,), "v": (6, 5)})
    given = feeds(shape=(1, 8, 6))
    item = Equalize(strength=strength, trial=Trials.OFF)
    model, plan, _ = equalized(proto, item, given)
    values = np.concatenate([run(_returning(proto, "b"), feed)["b"] for feed in given])
    largest, read = np.abs(values).max((0, 1)), np.abs(constant(Model.load(proto), "y")).max(1)
    wanted = largest**strength / read ** (1 - strength)
    found = np.exp2(plan.groups[0].log2)
    np.testing.assert_allclose(found / found[0], wanted / wanted[0], rtol=0.02)
    np.testing.assert_allclose(constant(model, "b"), gamma / found, rtol=1e-5)
    assert difference(proto, model, given) < TOLERANCE


def _returning(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    more = onnx.ModelProto()
    more.CopyFrom(proto)
    more.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return onnx.shape_inference.infer_shapes(more)


def test_samples_count_like_the_weights_that_make_a_channel() -> None:
    """A channel that is large on the samples shrinks even where its weights are like all others."""
    weights = {"w": np.array([0.1, 0.1, 0.1, 1], np.float32).reshape(4, 1, 1, 1) * np.ones((4, 3, 1, 1), np.float32),
               "v": np.ones((5, 4, 1, 1), np.float32), "u": np.array([0, 50, 0, 0], np.float32)}  # fmt: skip
    proto = build(f"{X} {{ {CONVS} }}", weights)
    _, plan, _ = equalized(proto, Equalize(trial=Trials.OFF), feeds())
    found = np.array(plan.groups[0].log2)
    assert (found[1] > found[[0, 2]] + 1).all()


def test_without_samples_biases_stand_for_values() -> None:
    """A channel whose weights are nothing, but whose bias is large, must not be enlarged."""
    weights = {"w": np.array([1, 1, 0, 1], np.float32).reshape(4, 1, 1, 1) * np.ones((4, 3, 1, 1), np.float32),
               "v": np.ones((5, 4, 1, 1), np.float32), "u": np.array([1, 1, 1, 1], np.float32)}  # fmt: skip
    _, plan, _ = equalized(build(f"{X} {{ {CONVS} }}", weights))
    assert not plan.groups
    weights["u"] = np.array([1, 1, 0, 1], np.float32)
    assert equalized(build(f"{X} {{ {CONVS} }}", weights))[1].groups


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 999), st.floats(0, 1))
def test_scales_stay_within_their_bounds_and_settle(seed: int, strength: float) -> None:
    random = np.random.default_rng(seed)
    body, weights, _ = CHANGES["a residual block"]
    drawn = {k: (random.lognormal(0, 2, v) if isinstance(v, tuple) else v) for k, v in weights.items() if k != "u"}
    model = Model.load(build(body, {k: np.float32(v) for k, v in drawn.items()}))
    infer_shapes(model)
    scales = analyze_scales(model)
    bounds = free(scales)
    units = np.arange(scales.size)
    bounds.narrow(units, random.uniform(-2, 0, scales.size), random.uniform(0, 2, scales.size))
    logs = balanced(scales, bounds, {}, strength)
    assert (bounds.low <= logs).all()
    assert (logs <= bounds.high).all()
    assert np.isfinite(logs).all()


# ---- Clips ---------------------------------------------------------------------------------------------------------

CLIP = f"{X} {{ a = Conv(x, w, u) b = Clip(a, s, t) y = Conv(b, v) }}"
SIX: Weights = {**BOTH, "s": np.float32(0), "t": np.float32(6)}
NEVER = uneven({**SIX, "t": np.float32(1e4)})
"""The bound is never reached."""
SOME = uneven(SIX)
"""It is reached in the second channel, which is eight times as large."""


def kinds(plan: EqualizePlan) -> list[Kind]:
    return [clip.kind for clip in plan.clips]


def test_a_clip_that_is_never_reached_opens() -> None:
    proto = build(CLIP, NEVER)
    for choice in (Relu6.AUTO, Relu6.KEEP):
        model, plan, _ = equalized(proto, Equalize(relu6=choice), feeds())
        assert kinds(plan) == [Kind.OPEN]
        assert ops(model) == ["Conv", "Relu", "Conv"]
        assert difference(proto, model, feeds()) < TOLERANCE


def test_a_clip_is_refused_on_request() -> None:
    _, plan, rewriter = equalized(build(CLIP, NEVER), Equalize(relu6=Relu6.REFUSE), feeds())
    assert rewriter.edits == 0
    assert ("b", "it passes through a Clip at 10000, which does not scale") in plan.refused


@pytest.mark.parametrize("scales", Scales)
def test_channels_that_stay_below_a_clip_are_scaled(scales: Scales) -> None:
    proto = build(CLIP, SOME)
    model, plan, _ = equalized(proto, Equalize(scales, relu6=Relu6.KEEP, trial=Trials.OFF), feeds())
    assert ops(model) == ["Conv", "Clip", "Conv"]
    assert any("cuts" in reason and "of 4 channels" in reason for _, reason in plan.refused)
    assert not plan.clips
    seen = np.max([run(_returning(proto, "a"), feed)["a"].max((0, 2, 3)) for feed in feeds()], axis=0)
    logs = np.array(plan.groups[0].log2)
    near = 1.5 * seen > 6
    assert near.any()
    assert not near.all()
    assert (logs[near] == 0).all()
    assert (1.5 * seen / np.exp2(logs) <= 6.001)[~near].all()
    assert scales is Scales.EXACT or (logs == np.round(logs)).all()
    assert logs.any()
    assert difference(proto, model, feeds()) < TOLERANCE


def test_caps_are_exact_whatever_is_cut() -> None:
    proto = build(CLIP, SOME)
    for scales, limit in ((Scales.EXACT, TOLERANCE), (Scales.POWER_OF_TWO, 0.0)):
        model, plan, _ = equalized(proto, Equalize(relu6=Relu6.CAPS, scales=scales))
        assert kinds(plan) == [Kind.CAPS]
        assert ops(model) == ["Conv", "Relu", "Min", "Conv"]
        wild = [{"x": 30 * feed["x"]} for feed in feeds()]
        assert difference(proto, model, wild) <= limit


def test_caps_at_both_ends() -> None:
    proto = build(CLIP, uneven({**SIX, "s": np.float32(-2)}))
    model, _, _ = equalized(proto, Equalize(relu6=Relu6.CAPS))
    assert ops(model) == ["Conv", "Max", "Min", "Conv"]
    assert difference(proto, model, feeds()) < TOLERANCE


def test_caps_need_broadcasting() -> None:
    body = f"{X} {{ a = Conv(x, w) b = Clip<min = 0.0, max = 6.0>(a) y = Conv(b, v) }}"
    _, plan, rewriter = equalized(
        build(body, uneven({"w": (4, 3, 1, 1), "v": (5, 4, 1, 1)}), 7), Equalize(relu6=Relu6.CAPS)
    )
    assert rewriter.edits == 0
    assert any("Min does not broadcast before opset 8" in reason for _, reason in plan.refused)


def test_relu_opens_what_begins_at_zero() -> None:
    item = Equalize(relu6=Relu6.RELU, trial=Trials.OFF)
    model, _, _ = equalized(build(CLIP, SOME), item)
    assert ops(model) == ["Conv", "Relu", "Conv"]
    hard = build(CLIP, uneven({**SIX, "s": np.float32(-1), "t": np.float32(1)}))
    assert ops(equalized(hard, item)[0]) == ["Conv", "Clip", "Conv"], "a hard tanh"


def test_a_clip_beside_channels_that_are_not_scaled_stays() -> None:
    """What is balanced already has nothing to open its Clip for."""
    even = {"w": np.ones((4, 3, 1, 1), np.float32), "v": np.ones((5, 4, 1, 1), np.float32),
            "u": np.zeros(4, np.float32), "s": np.float32(0), "t": np.float32(6)}  # fmt: skip
    model, plan, rewriter = equalized(build(CLIP, even), Equalize(relu6=Relu6.RELU, trial=Trials.OFF))
    assert ops(model) == ["Conv", "Clip", "Conv"]
    assert rewriter.edits == 0
    assert plan.clips == ()


# ---- trials --------------------------------------------------------------------------------------------------------


def test_what_int8_keeps_less_of_is_not_scaled() -> None:
    """With α = 1 all of it moves into the weights behind, which is too much."""
    weights = uneven(BOTH, "v", np.array([1, 1e-3, 1, 300], np.float32).reshape(1, 4, 1, 1))
    proto = build(f"{X} {{ {CONVS} }}", {**weights, "u": np.zeros(4, np.float32)})
    item = Equalize(strength=1.0)
    _, plan, rewriter = equalized(proto, item, feeds())
    tried = dict(plan.tried)
    assert tried["keep"] < tried["nothing"]
    assert rewriter.edits == 0
    assert any("int8 keeps" in reason for _, reason in plan.refused)
    assert equalized(proto, Equalize(strength=1.0, trial=Trials.OFF), feeds())[1].groups
    assert equalized(proto, item)[1].groups, "without samples nothing can be tried"


def test_what_int8_keeps_more_of_is_scaled() -> None:
    factors = np.array([1, 300, 1 / 300, 1], np.float32).reshape(4, 1, 1, 1)
    weights = uneven({**BOTH, "u": np.zeros(4, np.float32)}, factors=factors)
    weights["v"] = (np.random.default_rng(5).standard_normal((5, 4, 1, 1)) / factors.reshape(1, 4, 1, 1)).astype(
        np.float32
    )
    _, plan, _ = equalized(build(f"{X} {{ {CONVS} }}", weights), Equalize(), feeds())
    tried = dict(plan.tried)
    assert tried["keep"] > tried["nothing"] + 10
    assert plan.groups


def cut_at(bound: float) -> onnx.ModelProto:
    """All channels reach 6. One of them, rarely alive and little read, has weights that leave no step for others'."""
    random = np.random.default_rng(5)
    weights: dict[str, Any] = {**SIX, "u": np.zeros(4, np.float32), "t": np.float32(1e4)}
    weights["w"] = np.float32(
        random.standard_normal((4, 3, 1, 1)) * np.array([0.6, 60, 0.6, 0.6], np.float32).reshape(4, 1, 1, 1)
    )
    weights["v"] = np.float32(
        random.standard_normal((5, 4, 1, 1)) * np.array([1, 0.01, 1, 1], np.float32).reshape(1, 4, 1, 1)
    )
    seen = [run(_returning(build(CLIP, weights), "a"), feed)["a"].max((0, 2, 3)) for feed in feeds(64)]
    weights["u"] = np.float32(6 - np.max(seen, axis=0))
    weights["t"] = np.float32(6 * bound)
    return build(CLIP, weights)


def test_a_clip_opens_where_that_is_measured_to_help() -> None:
    model, plan, _ = equalized(cut_at(0.9999), Equalize(), feeds(64))
    tried = dict(plan.tried)
    assert set(tried) == {"nothing", "refuse", "keep", "relu"}
    assert max(tried, key=lambda name: tried[name]) == "relu"
    assert ops(model) == ["Conv", "Relu", "Conv"]
    model, plan, _ = equalized(cut_at(0.5), Equalize(), feeds(64))
    tried = dict(plan.tried)
    assert tried["relu"] < tried["nothing"]
    assert "Clip" in ops(model)


def test_a_trial_rounds_weights_and_activations() -> None:
    """Weights that lie on their grids lose nothing; what remains is what grids of activations cost."""
    random = np.random.default_rng(0)
    rows = {"w": random.integers(-127, 128, (4, 3, 1, 1)), "v": random.integers(-127, 128, (5, 4, 1, 1))}
    for values in rows.values():
        values.reshape(-1)[0] = 127
    model = Model.load(
        build(
            f"{X} {{ a = Conv(x, w) b = Relu(a) y = Conv(b, v) }}",
            {name: rows[name].astype(np.float32) for name in rows},
        )
    )
    infer_shapes(model)
    samples = Samples.from_feeds(feeds()).for_inputs(model.inputs)
    trial = Trial(model, samples, PassContext(samples=samples))
    whole = trial.sqnr(lambda _: None)
    assert 30 < whole < 60

    def spoil(rewriter: Rewriter) -> None:
        node = rewriter.model.graph.nodes[0]
        rewriter.set_input(node, 1, rewriter.constant("w", np.float32(1.01) * constant(rewriter.model, "a")))

    assert trial.sqnr(spoil) < whole
    assert trial.sqnr(lambda _: None) == whole, "the model stays as it is"


# ---- constants that move -------------------------------------------------------------------------------------------

ON = Equalize(absorb=Absorb.ON, trial=Trials.OFF)
HIGH: Weights = {**BOTH, "u": np.array([9, -9, 0, 12], np.float32), "t": (5,)}


def test_high_biases_move_on() -> None:
    body = f"{X} {{ a = Conv(x, w, u) b = Relu(a) y = Conv(b, v, t) }}"
    proto = build(body, {**HIGH, "w": np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32) / 4})
    model, plan, _ = equalized(proto, ON, feeds())
    (absorbed,) = plan.absorbed
    assert absorbed.anchor == "a"
    taken = np.array(absorbed.constants)
    assert ((taken > 1) == [True, False, False, True]).all()
    assert difference(proto, model, feeds()) < TOLERANCE
    seen = [np.max([run(_returning(p, "b"), feed)["b"].max() for feed in feeds()]) for p in (proto, model.proto())]
    assert seen[1] < seen[0] / 2
    assert difference(proto, model, [{"x": 100 * feeds(1)[0]["x"]}]) > TOLERANCE, "exact where samples tell the truth"


def test_scales_are_chosen_for_what_is_left() -> None:
    """A channel whose range is narrower without its constant needs to shrink less."""
    proto = build(f"{X} {{ {CONVS} }}", uneven(HIGH, factors=np.array([1, 1, 1, 0.05]).reshape(4, 1, 1, 1)))
    found = []
    for choice in (Absorb.ON, Absorb.OFF):
        _, plan, _ = equalized(proto, replace(ON, absorb=choice), feeds())
        log2 = plan.groups[0].log2
        found.append(log2[3] - log2[2])
    assert found[0] < found[1] - 0.5


def test_constants_move_exactly_where_nothing_lies_between() -> None:
    body = "g (float[2,3] x) => (float[2,5] y) { a = Gemm(x, w, u) y = Gemm<alpha = 0.5, beta = 3.0>(a, v, t) }"
    proto = build(body, {"w": (3, 4), "u": np.array([5, -50, 0, 20], np.float32), "v": (4, 5), "t": (5,)})
    given = feeds(shape=(2, 3))
    model, plan, _ = equalized(proto, ON, given)
    assert plan.absorbed[0].constants[1] < -40
    assert difference(proto, model, [*given, {"x": 1000 * given[0]["x"]}]) < TOLERANCE


def test_a_layer_without_bias_gets_one() -> None:
    body = """g (float[1,3,6,6] x) => (float[1,7,6,6] y) {
        a = Conv(x, w, u) b = Relu(a) c = Conv<group = 2>(b, p) d = Conv(b, v) y = Concat<axis = 1>(c, d)
    }"""
    proto = build(body, {**HIGH, "p": (2, 2, 1, 1), "w": np.ones((4, 3, 1, 1), np.float32) / 9})
    model, plan, _ = equalized(proto, ON, feeds())
    assert plan.absorbed
    assert len(next(node for node in model.graph.nodes if node.outputs[0].name == "c").inputs) == 3
    assert difference(proto, model, feeds()) < TOLERANCE


ABSORBS_NOT = {
    "zeros at the borders": ("y = Conv<pads = [1,1,1,1]>(b, v)", {"v": (5, 4, 3, 3)}, "pads with zeros"),
    "a rule that pads": ('y = Conv<auto_pad = "SAME_UPPER">(b, v)', {"v": (5, 4, 3, 3)}, "pads with zeros"),
    "a transposed convolution": ("y = ConvTranspose(b, v)", {"v": (4, 5, 1, 1)}, "pads with zeros"),
    "another reader": ("c = Conv(b, v) d = ReduceMean<axes = [1]>(b) y = Add(c, d)", {"v": (5, 4, 1, 1)}, ""),
    "a pool between": ("c = MaxPool<kernel_shape = [1,1]>(b) y = Conv(c, v)", {"v": (5, 4, 1, 1)}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSORBS_NOT)
def test_constants_stay(name: str) -> None:
    rest, weights, why = ABSORBS_NOT[name]
    proto = build(f"{X} {{ a = Conv(x, w, u) b = Relu(a) {rest} }}", {"w": (4, 3, 1, 1), "u": HIGH["u"], **weights})
    model, plan, _ = equalized(proto, ON, feeds())
    assert plan.absorbed == ()
    assert not why or any(why in reason for anchor, reason in plan.refused if anchor == "a"), plan.refused
    assert difference(proto, model, feeds()) < TOLERANCE


def test_constants_of_a_returned_tensor_stay() -> None:
    body = f"{X[:-1]}, float[1,4,6,6] b) {{ a = Conv(x, w, u) b = Relu(a) y = Conv(b, v) }}"
    proto = build(body, {**BOTH, "u": HIGH["u"]})
    model, plan, _ = equalized(proto, ON, feeds())
    assert plan.absorbed == ()
    assert difference(proto, model, feeds()) == 0


def test_constants_ask_for_samples() -> None:
    with pytest.raises(SpecError, match="needs samples"):
        equalized(build(f"{X} {{ {CONVS} }}", BOTH), Equalize(absorb=Absorb.ON))


def test_a_wrong_constant_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxslim.passes._equalize_absorb as absorbing

    right = absorbing._fold

    def wrong(node: Any, before: Any, after: Any, rewriter: Rewriter) -> None:
        right(node, type(before)(None, 1.001 * before.shift) if before.shift is not None else before, after, rewriter)

    monkeypatch.setattr(absorbing, "_fold", wrong)
    proto = build(f"{X} {{ {CONVS} }}", {**BOTH, "u": HIGH["u"]})
    assert difference(proto, equalized(proto, ON, feeds())[0], feeds()) > 10 * TOLERANCE


# ---- plans and options ---------------------------------------------------------------------------------------------


def replayed(proto: onnx.ModelProto, plan: EqualizePlan) -> Model:
    model = Model.load(proto)
    rewriter = Rewriter(model)
    Equalize().run(rewriter, PassContext(replay=plan.model_dump(mode="json")))
    rewriter.finish()
    return model


@pytest.mark.parametrize("item", [Equalize(relu6=Relu6.CAPS), Equalize(absorb=Absorb.ON, trial=Trials.OFF), Equalize()])
def test_a_plan_says_it_all(item: Equalize) -> None:
    proto = build(CLIP, {**SOME, "u": HIGH["u"]})
    model, plan, _ = equalized(proto, item, feeds())
    assert plan == EqualizePlan.model_validate_json(plan.model_dump_json())
    assert replayed(proto, plan).to_bytes() == model.to_bytes()


def test_a_plan_of_another_model_is_refused() -> None:
    proto = build(f"{X} {{ {CONVS} }}", uneven(BOTH))
    plan = equalized(proto)[1]
    (group,) = plan.groups
    for other in (group.model_copy(update={"anchor": "z"}), group.model_copy(update={"log2": group.log2[1:]})):
        with pytest.raises(PassError, match="which the model lacks"):
            replayed(proto, EqualizePlan(groups=(other,)))
    with pytest.raises(PassError, match="moves 1 constants from 'a', which the model lacks"):
        replayed(proto, EqualizePlan(groups=(), absorbed=({"anchor": "a", "constants": (1.0,)},)))  # type: ignore[arg-type]


def test_weights_that_would_not_fit_are_an_error() -> None:
    proto = build(f"{X} {{ {CONVS} }}", {**BOTH, "w": np.full((4, 3, 1, 1), 1e38, np.float32)})
    plan = EqualizePlan(groups=(GroupScales(anchor="a", layers=("a",), log2=(-9.0, 0, 0, 0)),))
    with pytest.raises(PassError, match="the scaled weights of 'a' do not fit float32"):
        replayed(proto, plan)


@pytest.mark.parametrize("options", [{"strength": 1.5}, {"strength": -0.1}, {"strength": float("nan")}, {"samples": 0}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(options))):
        Equalize(**options)


def test_options_as_text() -> None:
    text = "equalize{scales=power-of-two strength=0.7 relu6=caps absorb=on trial=off only=a*|b}"
    known = {cls.name: cls for cls in PASSES}
    (item,) = parse_spec(text, known, EXACT_PASSES)
    wanted = Equalize(Scales.POWER_OF_TWO, 0.7, Relu6.CAPS, Absorb.ON, Trials.OFF, only=("a*", "b"))
    assert item == wanted
    assert format_spec([item]) == text
