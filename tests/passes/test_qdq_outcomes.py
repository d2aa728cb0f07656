"""insert-qdq where samples are odd: every case ends clearly, with a model that onnxruntime runs and finite numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxslim.analysis.range_choice import RangeMethod
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import InsertQdq
from onnxslim.passes._qdq_judge import energies, sure_sqnr
from onnxslim.passes.insert_qdq import QdqPlan, Rounding
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Reading, Session, SessionConfig
from onnxslim.samples import Samples

Array = np.ndarray[Any, np.dtype[Any]]
HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,H,W] x) => (float[N,4,A,B] y) '
WEIGHTS = {"v": (4, 3, 3, 3), "w": (4, 4, 1, 1), "b": (4,)}
METHODS = [
    InsertQdq(),
    InsertQdq(rounding=Rounding.NEAREST),
    InsertQdq(ranges=RangeMethod.AUTO),
    InsertQdq(ranges=RangeMethod.PERCENTILE, rounding=Rounding.NEAREST),
]
IDS = ["fitted", "nearest", "auto", "percentile"]


def model_of(body: str, **weights: Array) -> Model:
    """Return a model with random weights v and w and bias b, but for those that are given."""
    inits = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in WEIGHTS.items())
    proto = onnx.parser.parse_model(f"{HEAD} <{inits}> {{{body}}}")
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        weights.setdefault(name, random.standard_normal(shape))
    for name, values in weights.items():
        stored = values if values.dtype.kind == "i" else values.astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(stored, name))
    return Model.load(proto)


TWO = "a = Conv<pads=[1,1,1,1]>(x, v, b) r = Relu(a) y = Conv(r, w)"


def images(count: int = 12, size: int = 8, scale: float = 1.0) -> list[Array]:
    random = np.random.default_rng(1)
    return [scale * random.standard_normal((1, 3, size, size)).astype(np.float32) for _ in range(count)]


def quantized(model: Model, feeds: list[Array], options: InsertQdq) -> tuple[Model, QdqPlan]:
    """Plan and apply; the result passes onnx's checker."""
    samples = Samples.from_feeds([{"x": array} for array in feeds]).for_inputs(model.inputs)
    context = PassContext(samples=samples, threads=1)
    plan = options.plan(model, context)
    made = model.copy()
    rewriter = Rewriter(made)
    options.apply(rewriter, plan, context)
    rewriter.finish()
    onnx.checker.check_model(made.proto(), full_check=True)
    return made, plan


def outputs(model: Model, feeds: list[Array]) -> list[Array]:
    session = Session(model.to_bytes(), SessionConfig(level=Level.ALL, reading=Reading.DEFINITION))
    return [np.asarray(session.run({"x": array})["y"], np.float64) for array in feeds]


def kept_db(model: Model, made: Model, feeds: list[Array]) -> float:
    pairs = zip(outputs(model, feeds), outputs(made, feeds), strict=True)
    return sure_sqnr([energies(*pair) for pair in pairs])


@pytest.mark.parametrize("options", METHODS, ids=IDS)
def test_one_sample(options: InsertQdq) -> None:
    model, feeds = model_of(TWO), images(1)
    made, plan = quantized(model, feeds, options)
    assert plan.nodes == ("a", "y")
    assert kept_db(model, made, feeds) > 20


@pytest.mark.parametrize("options", METHODS, ids=IDS)
def test_samples_of_different_sizes(options: InsertQdq) -> None:
    model = model_of(TWO)
    feeds = [array for size in (6, 9, 16) for array in images(4, size)]
    made, plan = quantized(model, feeds, options)
    assert plan.nodes == ("a", "y")
    assert kept_db(model, made, feeds) > 20


@pytest.mark.parametrize("options", METHODS, ids=IDS)
def test_activations_that_are_zero_on_all_samples(options: InsertQdq) -> None:
    """Their grid is one of scale 1, on which zero lies; nothing else is known of them."""
    model = model_of(TWO, b=np.full(4, -100.0))
    feeds = images()
    made, plan = quantized(model, feeds, options)
    assert plan.ranges["r"] == (0.0, 0.0)
    for ours, theirs in zip(outputs(made, feeds), outputs(model, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("options", METHODS, ids=IDS)
def test_inputs_of_nothing_but_zeros(options: InsertQdq) -> None:
    model, feeds = model_of(TWO), [np.zeros((1, 3, 8, 8), np.float32)] * 4
    made, _ = quantized(model, feeds, options)
    for ours, theirs in zip(outputs(made, feeds), outputs(model, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())


@pytest.mark.parametrize("options", METHODS, ids=IDS)
def test_denormal_activations(options: InsertQdq) -> None:
    """Numbers that have no grid in float32 become zero, not infinite or NaN."""
    model, feeds = model_of(TWO, b=np.zeros(4)), images(scale=1e-41)
    made, _ = quantized(model, feeds, options)
    for values in outputs(made, feeds):
        assert np.isfinite(values).all()
        assert np.abs(values).max() < 1e-30


@pytest.mark.parametrize("options", METHODS, ids=IDS)
def test_a_filter_of_zeros(options: InsertQdq) -> None:
    weight = np.random.default_rng(3).standard_normal(WEIGHTS["v"])
    weight[1] = 0
    model, feeds = model_of(TWO, v=weight), images()
    made, plan = quantized(model, feeds, options)
    assert plan.nodes == ("a", "y")
    assert kept_db(model, made, feeds) > 20


@pytest.mark.parametrize("options", METHODS, ids=IDS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_layer_that_makes_nan_or_inf_stays_in_float(options: InsertQdq, broken: float) -> None:
    """No range holds its result; what reads it stays too."""
    values = np.array([0, 0, 0, broken]).reshape(1, 4, 1, 1)
    model = model_of("a = Conv<pads=[1,1,1,1]>(x, v) r = Relu(a) m = Add(r, c) y = Conv(m, w)", c=values)
    _, plan = quantized(model, images(), options)
    assert "m" not in plan.ranges
    assert {anchor for anchor, _ in plan.refused} == {"m", "y"}
    assert all("NaN or Inf" in reason for _, reason in plan.refused)


@pytest.mark.parametrize("options", METHODS, ids=IDS)
def test_a_branch_that_no_sample_reaches(options: InsertQdq) -> None:
    """A tensor that is always empty has no range; the layer that makes it stays, and says why."""
    body = "a = Conv<pads=[1,1,1,1]>(x, v) n = Slice(a, lo, lo, axes) e = Conv(n, w) y = Concat<axis=0>(a, e)"
    model = model_of(body, lo=np.array([0]), axes=np.array([0]))
    made, plan = quantized(model, images(), options)
    assert plan.nodes == ("a",)
    assert "'n' is empty" in dict(plan.refused)["e"]
    assert kept_db(model, made, images()) > 20


def test_a_layer_in_a_subgraph_stays_and_says_so() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x, bool c) => (float[1,4,8,8] y) '
        "<float[4,3,3,3] v, float[4,4,1,1] w> { a = Conv<pads=[1,1,1,1]>(x, v) "
        "y = If(c) <then_branch = t () => (float[1,4,8,8] p) { p = Conv(a, w) }, "
        "else_branch = e () => (float[1,4,8,8] q) { q = Relu(a) }> }"
    )
    random = np.random.default_rng(0)
    for name in "vw":
        values = random.standard_normal(WEIGHTS[name]).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    model = Model.load(proto)
    feeds = [{"x": array, "c": np.array(True)} for array in images()]
    samples = Samples.from_feeds(feeds).for_inputs(model.inputs)
    plan = InsertQdq(min_sqnr=0.0).plan(model, PassContext(samples=samples, threads=1))
    assert plan.nodes == ("a",)
    assert dict(plan.refused) == {"p": "it lies in a subgraph"}
