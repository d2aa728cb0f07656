"""factor-low-rank: what must stay as it is, what becomes two layers, which ranks goals lead to, and exactness."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.analysis.linear_layers import linear_layer
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Node, Rewriter, array_of
from onnxslim.passes._factors import Problem, errors, factored
from onnxslim.passes._forms import (
    Form,
    Scheme,
    elements,
    full,
    full_rank,
    macs,
    misfit,
    own_macs,
    positions_of,
)
from onnxslim.passes._ranks import AS_IT_IS, Option, Tried, estimated, minded, spend
from onnxslim.passes.factor_low_rank import FactorLowRank, LayerRank, LowRankPlan, SchemeChoice
from onnxslim.pipeline import Costs, PassContext, format_pass, parse_spec
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.targets import find_target

Array = npt.NDArray[Any]
FULL_RANK_TOLERANCE = 1e-5
"""Relative to the output's range."""


# ---- building and running ------------------------------------------------------------------------------------


def low_rank(shape: tuple[int, ...], rank: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """A weight whose unfolding has exactly this rank."""
    rng = np.random.default_rng(seed)
    columns = int(np.prod(shape[1:]))
    return (rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, columns))).reshape(shape).astype(dtype)


def spread(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> Array:
    """A weight of full rank whose singular values fall slowly."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def build(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    weights: dict[str, Array],
    *,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
) -> Model:
    some = next(iter(weights.values()))
    kind = oh.np_dtype_to_tensor_dtype(some.dtype)
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [oh.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)
    return Model.load(onnx.shape_inference.infer_shapes(proto))


def dense(weight: Array, **attributes: Any) -> Model:
    """A Gemm called fc, with a bias."""
    width, out = weight.shape[::-1] if attributes.get("transB") else weight.shape
    node = oh.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc", **attributes)
    return build([node], {"x": [2, width]}, {"w": weight, "b": spread((out,), 1, weight.dtype)})


def conv(weight: Array, size: int = 9, groups: int = 1, **attributes: Any) -> Model:
    """A Conv called conv, with a bias."""
    node = oh.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", group=groups, **attributes)
    shape: list[int | str] = [1, weight.shape[1] * groups, *(size for _ in weight.shape[2:])]
    return build([node], {"x": shape}, {"w": weight, "b": spread((weight.shape[0],), 1, weight.dtype)})


def context_of(model: Model, **changes: Any) -> PassContext:
    cost = model_cost(model, concrete_shapes(model))
    return PassContext(baseline=Costs(cost.bytes, cost.params, cost.macs), **changes)


def factor(model: Model, options: FactorLowRank, context: PassContext | None = None) -> Rewriter:
    """Run the pass on ``model``, check the result, and return the rewriter."""
    rewriter = Rewriter(model)
    options.run(rewriter, context or context_of(model))
    rewriter.finish()
    onnx.checker.check_model(model.to_bytes(), full_check=True)
    return rewriter


def run(model: Model, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feed = {}
    for spec in model.inputs:
        assert spec.shape is not None
        assert spec.dtype is not None
        feed[spec.name] = rng.normal(size=[d if isinstance(d, int) else 3 for d in spec.shape]).astype(spec.dtype)
    return Session(model.to_bytes(), SessionConfig(level=Level.NONE)).run(feed)


def error_of(before: dict[str, Array], after: dict[str, Array]) -> float:
    """Largest difference relative to the output's range, or to 1 where it is smaller."""
    errors = []
    for name, expected in before.items():
        difference = np.abs(expected.astype(np.float64) - after[name].astype(np.float64)).max(initial=0)
        errors.append(difference / max(float(np.ptp(expected.astype(np.float64))), 1.0))
    return float(max(errors))


def macs_of(model: Model) -> int:
    macs = model_cost(model, concrete_shapes(model)).macs
    assert macs is not None
    return macs


def nodes_of(model: Model) -> list[Node]:
    return list(model.graph.nodes)


# ---- what must stay ------------------------------------------------------------------------------------------


def nan(shape: tuple[int, ...]) -> Array:
    weight = spread(shape)
    weight.flat[3] = np.nan
    return weight


def matmul(left: str, right: str, inputs: dict[str, list[int | str]], weights: dict[str, Array]) -> Model:
    return build([oh.make_node("MatMul", [left, right], ["y"])], inputs, weights)


def computed_weight() -> Model:
    nodes = [oh.make_node("Neg", ["v"], ["w"]), oh.make_node("MatMul", ["x", "w"], ["y"])]
    return build(nodes, {"x": [2, 8], "v": [8, 8]}, {"unused": spread((1,))})


def in_a_subgraph() -> Model:
    weight = numpy_helper.from_array(low_rank((8, 8), 1), "w")
    inner = oh.make_node("MatMul", ["x", "w"], ["t"])
    outer = oh.make_node("Identity", ["x"], ["e"])
    branches = [
        oh.make_graph([node], "branch", [], [oh.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8])])
        for node, name in ((inner, "t"), (outer, "e"))
    ]
    node = oh.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    graph = oh.make_graph(
        [node],
        "g",
        [
            oh.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8]),
            oh.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])],
        [weight],
    )
    return Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))


HALF = FactorLowRank(ratio=0.75)
STAYS = [
    ("depthwise", conv(low_rank((8, 1, 3, 3), 1), groups=8), HALF, "each of its 8 groups has one filter"),
    ("one output channel", conv(spread((1, 8, 3, 3))), HALF, "rank 1 is not below its full rank 1: nothing to gain"),
    ("one column", dense(spread((8, 1))), HALF, "rank 1 is not below its full rank 1: nothing to gain"),
    ("NaN", dense(nan((8, 8))), HALF, "its weight holds NaN or Inf"),
    ("Inf", dense(np.full((8, 8), np.inf, np.float32)), HALF, "its weight holds NaN or Inf"),
    ("transposed input", dense(low_rank((2, 2), 1), transA=1), HALF, "it transposes its input"),
    ("weight is an input", matmul("x", "v", {"x": [2, 8], "v": [8, 8]}, {"u": spread((1,))}), HALF, "computed"),
    ("weight is computed", computed_weight(), HALF, "computed"),
    ("weights in a batch", matmul("x", "w", {"x": [2, 5, 8]}, {"w": spread((2, 8, 8))}), HALF, "3 dimensions"),
    ("integers", matmul("x", "w", {"x": [2, 8]}, {"w": np.ones((8, 8), np.int32)}), HALF, "its weight is int32"),
    ("constant on the left", matmul("w", "x", {"x": [8, 8]}, {"w": low_rank((8, 8), 1)}), HALF, "computed"),
    ("subgraph", in_a_subgraph(), HALF, "it lies in a subgraph"),
    ("scales by nothing", dense(low_rank((8, 8), 1), alpha=0.0), HALF, "its alpha is 0"),
    ("no window", dense(low_rank((8, 8), 1)), FactorLowRank(rank=1, scheme=SchemeChoice.SPATIAL), "is for windows"),
    ("beyond full rank", dense(spread((8, 8))), FactorLowRank(rank=9), "rank 9 is not below its full rank 8"),
    ("at full rank", dense(spread((8, 8))), FactorLowRank(rank=8), "rank 8 is not below its full rank 8"),
    ("too small", dense(spread((2, 2))), HALF, "rank 1 of 2 would not make it cheaper: none would"),
    ("costs more", dense(spread((8, 8))), FactorLowRank(rank=5), "rank 5 of 8 would not make it cheaper: 3 would"),
    ("costs the same", dense(spread((8, 8))), FactorLowRank(rank=4), "rank 4 of 8 would not make it cheaper: 3 would"),
    ("rounded up too far", dense(low_rank((8, 8), 1)), FactorLowRank(energy=0.9, multiple=8), "nothing to gain"),
    ("not among only", dense(low_rank((8, 8), 1)), FactorLowRank(rank=1, only=("conv*",)), "excluded by the options"),
    ("excluded by name", dense(low_rank((8, 8), 1)), FactorLowRank(rank=1, exclude=("f?",)), "excluded"),
    ("excluded by tensor", dense(low_rank((8, 8), 1)), FactorLowRank(rank=1, exclude=("y",)), "excluded"),
]


@pytest.mark.parametrize(("model", "options", "reason"), [row[1:] for row in STAYS], ids=[row[0] for row in STAYS])
def test_stays(model: Model, options: FactorLowRank, reason: str) -> None:
    before = model.to_bytes()
    rewriter = Rewriter(model)
    options.run(rewriter, PassContext())
    rewriter.finish()
    assert rewriter.edits == 0
    assert model.to_bytes() == before
    (refusal,) = rewriter.skipped
    assert refusal.rule == "factor-low-rank"
    assert refusal.anchor == ("t" if "subgraph" in reason else "y")
    assert reason in refusal.reason


# ---- what becomes two ----------------------------------------------------------------------------------------


def test_gemm_keeps_alpha_beta_and_bias_on_the_second() -> None:
    model = dense(low_rank((24, 16), 3), alpha=0.5, beta=2.0)
    before = run(model)
    factor(model, FactorLowRank(rank=3))
    first, second = nodes_of(model)
    assert (first.op, second.op) == ("Gemm", "Gemm")
    assert first.attrs == {}
    assert second.attrs == {"alpha": 0.5, "beta": 2.0}
    assert [t.name for t in second.inputs[2:]] == ["b"]
    assert len(first.inputs) == 2
    assert error_of(before, run(model)) < FULL_RANK_TOLERANCE


def test_gemm_of_a_transposed_weight_keeps_it_transposed() -> None:
    model = dense(low_rank((16, 24), 3), transB=1)
    before = run(model)
    factor(model, FactorLowRank(rank=3))
    first, second = nodes_of(model)
    assert first.inputs[1].shape == (3, 24)
    assert second.inputs[1].shape == (16, 3)
    assert first.attrs == second.attrs == {"transB": 1}
    assert error_of(before, run(model)) < FULL_RANK_TOLERANCE


def test_gemm_gets_a_bias_of_zero_where_the_operator_set_demands_one() -> None:
    node = oh.make_node("Gemm", ["x", "w", "b"], ["y"])
    model = build([node], {"x": [2, 24]}, {"w": low_rank((24, 16), 3), "b": spread((16,))}, opset=9)
    before = run(model)
    factor(model, FactorLowRank(rank=3))
    assert len(nodes_of(model)[0].inputs) == 3
    assert error_of(before, run(model)) < FULL_RANK_TOLERANCE


@pytest.mark.parametrize("shape", [[16], [5, 16], [2, 3, 5, 16]])
def test_matmul_of_any_left_rank(shape: list[int | str]) -> None:
    model = matmul("x", "w", {"x": shape}, {"w": low_rank((16, 24), 3)})
    before = run(model)
    factor(model, FactorLowRank(rank=3))
    assert [node.op for node in nodes_of(model)] == ["MatMul", "MatMul"]
    assert nodes_of(model)[0].outputs[0].shape == [*shape[:-1], 3]
    assert error_of(before, run(model)) < FULL_RANK_TOLERANCE


def test_conv_becomes_a_window_and_a_pointwise_with_the_bias() -> None:
    model = conv(low_rank((16, 8, 3, 5), 4), strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 3])
    before, macs = run(model), macs_of(model)
    factor(model, FactorLowRank(rank=4))
    first, second = nodes_of(model)
    assert first.inputs[1].shape == (4, 8, 3, 5)
    assert second.inputs[1].shape == (16, 4, 1, 1)
    assert first.attrs == {"group": 1, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 0, 3]}
    assert second.attrs == {"kernel_shape": [1, 1]}
    assert len(first.inputs) == 2
    assert second.inputs[2].name == "b"
    assert macs_of(model) * 16 * 8 * 15 == macs * 4 * (16 + 8 * 15)
    assert error_of(before, run(model)) < FULL_RANK_TOLERANCE


def test_names_and_shapes() -> None:
    model = conv(low_rank((16, 8, 3, 3), 4))
    factor(model, FactorLowRank(rank=4))
    first, second = nodes_of(model)
    assert second.name == "conv"
    assert second.outputs[0].name == "y"
    assert first.name.startswith("conv")
    assert first.name != "conv"
    assert first.outputs[0].shape == [1, 4, 7, 7]
    assert first.outputs[0].dtype == np.float32
    unnamed = matmul("x", "w", {"x": [2, 16]}, {"w": low_rank((16, 16), 2)})
    factor(unnamed, FactorLowRank(rank=2))
    assert nodes_of(unnamed)[0].name.startswith("y")


def test_a_shared_weight_is_factorized_once() -> None:
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"]),
        oh.make_node("Relu", ["a"], ["r"]),
        oh.make_node("Gemm", ["r", "w"], ["y"], transB=1),
    ]
    model = build(nodes, {"x": [2, 16]}, {"w": low_rank((16, 16), 3)})
    before = run(model)
    factor(model, FactorLowRank(energy=0.999999))
    constants = {id(n.inputs[1]) for n in model.graph.nodes if n.op != "Relu"}
    assert len(nodes_of(model)) == 5
    assert len(constants) == 2
    assert model.weight_bytes() == 4 * 3 * 32
    assert error_of(before, run(model)) < FULL_RANK_TOLERANCE


def test_a_weight_of_zeros_gets_rank_one() -> None:
    model = dense(np.zeros((8, 8), np.float32))
    before = run(model)
    factor(model, FactorLowRank(energy=0.5))
    assert nodes_of(model)[0].inputs[1].shape == (8, 1)
    assert error_of(before, run(model)) == 0


def test_the_lowest_rank_is_one() -> None:
    model = dense(spread((8, 8)))
    factor(model, FactorLowRank(ratio=1.0))
    assert nodes_of(model)[0].inputs[1].shape == (8, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 5e-3), (np.float64, 1e-12)])
def test_factors_have_the_weights_type(dtype: Any, tolerance: float) -> None:
    model = dense(low_rank((24, 16), 3, dtype=dtype))
    before = run(model)
    factor(model, FactorLowRank(rank=3))
    assert {node.inputs[1].dtype for node in model.graph.nodes} == {np.dtype(dtype)}
    assert error_of(before, run(model)) < tolerance


def test_truncation_is_the_best_and_balanced() -> None:
    """The error is the root of the dropped squared singular values, and each factor holds half the rest."""
    weight = spread((24, 16))
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    model = dense(weight)
    factor(model, FactorLowRank(rank=5))
    left, right = (array_of(node.inputs[1]) for node in nodes_of(model))
    assert left is not None
    assert right is not None
    np.testing.assert_allclose(np.linalg.norm(weight - left @ right), np.sqrt((values[5:] ** 2).sum()), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(left, compute_uv=False), np.sqrt(values[:5]), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(right, compute_uv=False), np.sqrt(values[:5]), rtol=1e-5)


# ---- full rank loses nothing ---------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn, axes: tuple[int, int] = (1, 3), least: int = 1) -> Model:
    dims = draw(st.integers(*axes))
    kernel = [draw(st.integers(least, 3)) for _ in range(dims)]
    attributes: dict[str, Any] = {
        "strides": [draw(st.integers(1, 2)) for _ in range(dims)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(dims)],
    }
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * dims)]
    else:
        attributes["auto_pad"] = padding
        attributes["dilations"] = [1] * dims  # onnxruntime's SAME ignores them
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    groups = draw(st.sampled_from([1, 1, 2]))
    shape = (draw(st.integers(2, 4)) * groups, draw(st.integers(1, 6)), *kernel)
    return conv(spread(shape, draw(st.integers(0, 99))), size=7, groups=groups, **attributes)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Model:
    dims = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    strides = [draw(st.integers(1, 2)) for _ in range(dims)]
    groups = draw(st.sampled_from([1, 1, 2]))
    attributes: dict[str, Any] = {
        "strides": strides,
        "dilations": [draw(st.integers(1, 2)) for _ in range(dims)],
        "pads": [draw(st.integers(0, 1)) for _ in range(2 * dims)],
        "output_padding": [draw(st.integers(0, stride - 1)) for stride in strides],
        "group": groups,
    }
    shape = (draw(st.integers(1, 3)) * groups, draw(st.integers(2, 4)), *kernel)
    node = oh.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)
    weights = {"w": spread(shape, draw(st.integers(0, 99))), "b": spread((shape[1] * groups,))}
    return build([node], {"x": [1, shape[0], *[6] * dims]}, weights)


@st.composite
def products(draw: st.DrawFn) -> Model:
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    weight = spread(shape, draw(st.integers(0, 99)))
    if draw(st.booleans()):
        return dense(
            weight, alpha=draw(st.sampled_from([-1.5, 0.01, 1.0, 3.0])), beta=0.5, transB=draw(st.integers(0, 1))
        )
    return matmul("x", "w", {"x": [*draw(st.sampled_from([[], [4], [2, 3]])), shape[0]]}, {"w": weight})


STAGES = {Scheme.CHANNEL: 2, Scheme.SPATIAL: 2, Scheme.TUCKER: 3, Scheme.SEPARABLE: 2, Scheme.CP: 4}
windows = convolutions((2, 2), 2)
kinds_with_window = st.one_of(windows, convolutions())
layers_of_all_kinds = st.one_of(windows, convolutions(), transposed_convolutions(), products())


def in_form(model: Model, form: Form) -> Model:
    """Return the model of one layer with the layer in a form."""
    result = model.copy()
    most = full(linear_layer(result.graph.nodes[-1]), form.scheme)
    layer = LayerRank(anchor="y", scheme=form.scheme.value, rank=form.rank, full_rank=most.rank, inner=form.inner)
    rewriter = Rewriter(result)
    FactorLowRank(energy=1.0).apply(rewriter, LowRankPlan(layers=(layer,)), PassContext())
    rewriter.finish()
    onnx.checker.check_model(result.to_bytes(), full_check=True)
    assert len(result.graph.nodes) == STAGES[form.scheme]
    return result


@pytest.mark.parametrize("scheme", [scheme for scheme in Scheme if scheme is not Scheme.CP])
def test_full_rank_reproduces_the_original(scheme: Scheme) -> None:
    tried = 0
    kinds = {Scheme.SPATIAL: windows, Scheme.SEPARABLE: kinds_with_window}.get(scheme, layers_of_all_kinds)

    @settings(max_examples=80, deadline=None)
    @given(model=kinds)
    def holds(model: Model) -> None:
        nonlocal tried
        layer = linear_layer(model.graph.nodes[-1])
        if misfit(layer, scheme) is None:
            tried += 1
            assert error_of(run(model), run(in_form(model, full(layer, scheme)))) < FULL_RANK_TOLERANCE

    holds()
    assert tried > 5, "hardly any layer had this form"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), stride=st.integers(1, 2), dilation=st.integers(1, 2), rank=st.integers(1, 3))
def test_cp_finds_a_tensor_of_its_rank(seed: int, stride: int, dilation: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    factors = [np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in (6, 5, 3, 3)]
    weight = np.einsum("or,ir,hr,wr->oihw", *factors).astype(np.float32)
    model = conv(weight, size=9, strides=[stride, 1], dilations=[1, dilation], pads=[1, 0, 2, 1])
    assert error_of(run(model), run(in_form(model, Form(Scheme.CP, rank)))) < 1e-4


@settings(max_examples=60, deadline=None)
@given(model=layers_of_all_kinds, data=st.data())
def test_what_a_form_costs_is_what_is_counted(model: Model, data: st.DataObject) -> None:
    """Multiply-accumulates and weights foretold are those of the model that comes of it."""
    layer = linear_layer(model.graph.nodes[-1])
    scheme = data.draw(st.sampled_from([scheme for scheme in Scheme if misfit(layer, scheme) is None]))
    most = full(layer, scheme)
    inner = None if most.inner is None else data.draw(st.integers(1, most.inner))
    form = Form(scheme, data.draw(st.integers(1, min(most.rank, 4))), inner)
    shapes = concrete_shapes(model)
    where = positions_of(layer, (shapes["x"], shapes["y"]))
    result = in_form(model, form)
    assert macs(layer, form, where) == macs_of(result)
    assert own_macs(layer, where) == macs_of(model)
    held = {id(node.inputs[1]): node.inputs[1] for node in result.graph.nodes}
    assert elements(layer, form) == sum(int(np.prod(weight.shape)) for weight in held.values())


@settings(max_examples=40, deadline=None)
@given(model=layers_of_all_kinds, data=st.data())
def test_errors_foretold_are_those_of_the_factors(model: Model, data: st.DataObject) -> None:
    """In a random metric, for every form, and more rank is never worse."""
    layer = linear_layer(model.graph.nodes[-1])
    scheme = data.draw(st.sampled_from([s for s in Scheme if s is not Scheme.CP and misfit(layer, s) is None]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mixing = rng.standard_normal((layer.groups, 2 * layer.width, layer.width))
    metric = mixing.swapaxes(1, 2) @ mixing if data.draw(st.booleans()) else None
    problem = Problem(layer, layer.matrix(), metric)
    ranks = sorted({1, max(1, full_rank(layer, scheme) // 2), full_rank(layer, scheme)})
    found = list(errors(problem, scheme, ranks))
    for form, error in found:
        actual = problem.error(factored(problem, form).weight)
        assert abs(error - actual) <= 1e-6 * problem.energy() + 1e-9
    by_inner = {form.inner: [e for f, e in found if f.inner == form.inner] for form, _ in found}
    assert all(np.diff(values).max(initial=-1) <= 1e-6 * problem.energy() for values in by_inner.values())


# ---- ranks ---------------------------------------------------------------------------------------------------


def diagonal(values: list[float]) -> Array:
    return np.diag(np.array(values, np.float32))


def rank_of(options: FactorLowRank, weight: Array) -> int:
    """The rank that the plan gives, or refuses at, for one dense layer."""
    plan = options.plan(dense(weight), PassContext())
    return plan.layers[0].rank if plan.layers else int(plan.refused[0][1].split()[1])


FALLING = [8.0, 4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]  # squares: 64 16 4 4 1 1 1 1, together 92
RANKS = [
    (FactorLowRank(energy=0.5), 1),
    (FactorLowRank(energy=64 / 92 - 1e-9), 1),
    (FactorLowRank(energy=64 / 92 + 1e-9), 2),
    (FactorLowRank(energy=0.9), 3),
    (FactorLowRank(energy=0.0), 1),
    (FactorLowRank(energy=1.0), 8),
    (FactorLowRank(ratio=0.5), 5),
    (FactorLowRank(ratio=0.61), 3),
    (FactorLowRank(ratio=0.7), 3),
    (FactorLowRank(ratio=0.99), 1),
    (FactorLowRank(ratio=0.0), 10),
    (FactorLowRank(rank=2), 2),
    (FactorLowRank(energy=0.9, multiple=4), 4),
    (FactorLowRank(energy=0.5, multiple=16), 10),
]


@pytest.mark.parametrize(("options", "rank"), RANKS)
def test_rank(options: FactorLowRank, rank: int) -> None:
    assert rank_of(options, diagonal(FALLING)) == rank


def test_a_ratio_is_not_betrayed_by_binary_fractions() -> None:
    assert rank_of(FactorLowRank(ratio=0.07), np.eye(100, dtype=np.float32)) == 93


def two_layers(size: int = 64) -> Model:
    """One layer that compresses well and one that does not, each size x size."""
    nodes = [
        oh.make_node("MatMul", ["x", "good"], ["a"]),
        oh.make_node("Relu", ["a"], ["r"]),
        oh.make_node("MatMul", ["r", "bad"], ["y"]),
    ]
    good = low_rank((size, size), 4) + 0.01 * spread((size, size), 5)
    return build(nodes, {"x": [3, size]}, {"good": good.astype(np.float32), "bad": spread((size, size), 2)})


def cost_of(model: Model, goal: str) -> int:
    return macs_of(model) if goal == "macs" else model.weight_bytes()


def goal_of(name: str, fraction: float) -> FactorLowRank:
    return FactorLowRank(macs=fraction, multiple=1) if name == "macs" else FactorLowRank(bytes=fraction, multiple=1)


@pytest.mark.parametrize("goal", ["macs", "bytes"])
@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.3])
def test_a_goal_is_met_by_the_highest_energy(goal: str, fraction: float) -> None:
    model = two_layers()
    context = context_of(model)
    options = goal_of(goal, fraction)
    plan = options.plan(model, context)
    allowed = fraction * cost_of(model, goal)
    trial = model.copy()
    factor(trial, options, context)
    assert cost_of(trial, goal) <= allowed
    ranks = {layer.anchor: layer.rank for layer in plan.layers}
    assert ranks["a"] < ranks.get("y", 64)  # what compresses well is compressed first
    richer = [layer.model_copy(update={"rank": layer.rank + 1}) for layer in plan.layers]
    trial = model.copy()
    rewriter = Rewriter(trial)
    options.apply(rewriter, LowRankPlan(layers=tuple(richer)), context)
    rewriter.finish()
    if fraction < 0.6:  # both layers are cut, so one more rank for each is beyond the goal
        assert cost_of(trial, goal) > allowed


@st.composite
def offers(draw: st.DrawFn) -> list[list[Option]]:
    """A few layers, each with a few forms that save and lose."""
    layers = []
    for index in range(draw(st.integers(1, 4))):
        pairs = draw(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=4))
        layers.append([Option(Form(Scheme.CHANNEL, 10 * index + i), *map(float, p)) for i, p in enumerate(pairs, 1)])
    return layers


@settings(max_examples=300, deadline=None)
@given(layers=offers(), wanted=st.integers(0, 40))
def test_a_budget_is_spent_where_it_costs_least(layers: list[list[Option]], wanted: int) -> None:
    """Against all combinations: met when it can be, not far from the best, and with nothing to give back."""
    every = list(itertools.product(*([AS_IT_IS, *options] for options in layers)))
    able = [each for each in every if sum(option.saved for option in each) >= wanted]
    found = spend(layers, wanted)
    assert (found is None) == (not able)
    if found is None:
        return
    saved = sum(option.saved for option in found)
    assert saved >= wanted
    least = min(sum(option.loss for option in each) for each in able)
    largest = max((option.loss for options in layers for option in options), default=0.0)
    assert sum(option.loss for option in found) <= least + largest
    for index, options in enumerate(layers):
        for milder in (*options, AS_IT_IS):
            enough = saved - found[index].saved + milder.saved >= wanted
            assert not (enough and milder.loss < found[index].loss)


@given(
    losses=st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 99),
    between=st.floats(0.0, 1.0),
)
def test_what_was_tried_out_is_believed(losses: list[float], seed: int, between: float) -> None:
    """A form that was tried loses what was measured, one between two something between, one beyond in proportion."""
    measured = np.random.default_rng(seed).uniform(1e-9, 1, len(losses))
    tried = [Tried(loss, float(each)) for loss, each in zip(losses, measured, strict=True)]
    for each in tried:
        assert minded(each.loss, tried) == pytest.approx(each.measured, rel=1e-6)
    low, high = min(tried, key=lambda each: each.loss), max(tried, key=lambda each: each.loss)
    assert minded(low.loss / 7, tried) == pytest.approx(low.measured / 7, rel=1e-6)
    assert minded(high.loss * 7, tried) == pytest.approx(high.measured * 7, rel=1e-6)
    pair = sorted(tried, key=lambda each: each.loss)[:2]
    middle = minded(pair[0].loss ** (1 - between) * pair[-1].loss ** between, tried)
    ends = sorted(each.measured for each in pair)
    assert ends[0] * (1 - 1e-6) <= middle <= ends[-1] * (1 + 1e-6)
    assert minded(0.3, []) == 0.3


@pytest.mark.parametrize("rank", [3, 8, 20])
def test_the_rank_of_a_noisy_matrix_is_estimated(rank: int) -> None:
    rng = np.random.default_rng(rank)
    signal = rng.standard_normal((64, rank)) @ rng.standard_normal((rank, 100))
    assert estimated(signal + 0.3 * rng.standard_normal((64, 100))) == rank
    assert estimated(np.zeros((4, 4))) == 1


def test_a_goal_is_a_fraction_of_the_original() -> None:
    model = two_layers()
    context = context_of(model)
    factor(model, FactorLowRank(macs=0.5), context)
    again = factor(model, FactorLowRank(macs=0.5), context)
    assert again.edits == 0
    assert again.skipped == []


@pytest.mark.parametrize(("target", "multiple"), [("arm-cpu", 8), ("qnn", 32)])
def test_goals_round_to_the_targets_multiple(target: str, multiple: int) -> None:
    model = two_layers(160)
    plan = FactorLowRank(macs=0.9).plan(model, context_of(model, target=find_target(target)))
    assert {layer.rank % multiple for layer in plan.layers} == {0}
    options = FactorLowRank(macs=0.9, multiple=3)
    assert {layer.rank % 3 for layer in options.plan(model, context_of(model)).layers} == {0}


@pytest.mark.parametrize("options", [FactorLowRank(macs=0.01), FactorLowRank(bytes=0.0)])
def test_a_goal_out_of_reach_fails_with_what_can_be_reached(options: FactorLowRank) -> None:
    model = two_layers()
    with pytest.raises(PassError, match=r"out of reach: the lowest ranks leave 0\.250"):
        options.plan(model, context_of(model))


def test_bytes_spare_a_weight_that_somebody_else_reads() -> None:
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"]),
        oh.make_node("Add", ["a", "w"], ["s"]),
        oh.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    weights = {"w": low_rank((32, 32), 2), "v": low_rank((32, 32), 2)}
    model = build(nodes, {"x": [32, 32]}, weights)
    plan = FactorLowRank(bytes=0.75, multiple=1).plan(model, context_of(model))
    assert [layer.anchor for layer in plan.layers] == ["y"]
    assert plan.refused == (("a", "its weight has other readers, so no bytes would go"),)
    assert len(FactorLowRank(macs=0.75, multiple=1).plan(model, context_of(model)).layers) == 2


# ---- plans ---------------------------------------------------------------------------------------------------


def test_a_plan_survives_json_and_replays_without_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_layers()
    original = model.copy()
    context = context_of(model)
    factor(model, FactorLowRank(energy=0.9), context)
    assert context.recorded is not None
    replayed = LowRankPlan.model_validate_json(context.recorded.model_dump_json())
    assert replayed == context.recorded
    first = replayed.layers[0]
    assert (first.anchor, first.scheme, first.rank, first.full_rank) == ("a", "channel", 4, 64)
    assert first.error is not None
    assert 0 < first.error < 0.1
    monkeypatch.setattr(FactorLowRank, "plan", None)
    factor(original, FactorLowRank(energy=0.9), PassContext(replay=replayed.model_dump(mode="json")))
    assert original.to_bytes() == model.to_bytes()


def test_a_plan_may_be_edited() -> None:
    model = two_layers()
    edited = LowRankPlan(
        layers=(LayerRank(anchor="y", scheme="channel", rank=7, full_rank=64),), refused=(("a", "mine"),)
    )
    rewriter = factor(model, FactorLowRank(energy=0.9), PassContext(replay=edited.model_dump()))
    assert [node.outputs[0].shape for node in nodes_of(model)] == [[3, 64], [3, 64], [3, 7], [3, 64]]
    assert [(m.anchor, m.reason) for m in rewriter.skipped] == [("a", "mine")]


MISFITS = [
    (LayerRank(anchor="nowhere", scheme="channel", rank=1, full_rank=64), "'nowhere': no such layer"),
    (LayerRank(anchor="r", scheme="channel", rank=1, full_rank=64), "'r': no such layer"),
    (LayerRank(anchor="y", scheme="magic", rank=1, full_rank=64), "unknown scheme 'magic'"),
    (LayerRank(anchor="y", scheme="channel", rank=0, full_rank=64), "rank 0 of 64"),
    (LayerRank(anchor="y", scheme="channel", rank=65, full_rank=64), "rank 65 of 64"),
    (LayerRank(anchor="y", scheme="channel", rank=3, full_rank=32), "its full rank is 64"),
]


@pytest.mark.parametrize(("layer", "reason"), MISFITS)
def test_a_plan_that_does_not_fit_changes_nothing(layer: LayerRank, reason: str) -> None:
    model = two_layers()
    rewriter = Rewriter(model)
    fits = LayerRank(anchor="a", scheme="channel", rank=4, full_rank=64)
    with pytest.raises(PassError, match=r"does not fit the model") as caught:
        FactorLowRank(rank=1).apply(rewriter, LowRankPlan(layers=(fits, layer)), PassContext())
    assert reason in str(caught.value)
    assert rewriter.edits == 0


def test_a_plan_for_a_layer_that_cannot_be_factorized_is_refused() -> None:
    layer = LayerRank(anchor="y", scheme="channel", rank=1, full_rank=8)
    with pytest.raises(PassError, match="each of its 8 groups has one filter"):
        FactorLowRank(rank=1).apply(
            Rewriter(conv(spread((8, 1, 3, 3)), groups=8)), LowRankPlan(layers=(layer,)), PassContext()
        )


def test_the_original_keeps_its_weights() -> None:
    """Copies share weights: factorizing one must not touch the other."""
    model = two_layers()
    before = run(model)
    factor(model.copy(), FactorLowRank(rank=1), context_of(model))
    assert error_of(before, run(model)) == 0


# ---- options -------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "got none: give exactly one"),
    ({"ratio": 0.5, "macs": 0.5}, "got ratio and macs: give exactly one"),
    ({"energy": 1.5}, "option 'energy' of factor-low-rank is 1.5"),
    ({"ratio": -0.1}, "option 'ratio' of factor-low-rank is -0.1"),
    ({"macs": float("nan")}, "option 'macs' of factor-low-rank is nan"),
    ({"rank": 0}, "option 'rank' of factor-low-rank is 0: give 1 or more"),
    ({"rank": 4, "multiple": 0}, "option 'multiple' of factor-low-rank is 0: give 1 or more"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        FactorLowRank(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_spec_round_trip() -> None:
    text = "factor-low-rank{energy=0.95 multiple=4 only=conv*|fc? exclude=stem}"
    (item,) = parse_spec(text, {FactorLowRank.name: FactorLowRank}, ())
    assert item == FactorLowRank(energy=0.95, multiple=4, only=("conv*", "fc?"), exclude=("stem",))
    assert format_pass(item) == text
