"""insert-qdq{rounding=second-order}: integers fitted to what the original computes lose less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from onnxslim.analysis import infer_shapes
from onnxslim.errors import SpecError
from onnxslim.ir import Model, Rewriter, array_of
from onnxslim.passes import EXACT_PASSES, InsertQdq
from onnxslim.passes.insert_qdq import QdqPlan, Rounding
from onnxslim.pipeline import PassContext, exact_fixed_point
from onnxslim.runtime import Reading, Session, SessionConfig
from onnxslim.samples import Samples

MODELS = Path(__file__).parents[2] / "models"
FITTED = Rounding.SECOND_ORDER


def trained(name: str) -> Model:
    model = Model.load(MODELS / f"{name}.onnx")
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    infer_shapes(model)
    return model


def context(model: Model, count: int = 200) -> PassContext:
    samples = Samples.from_path(MODELS / "digits_calib.npz").for_inputs(model.inputs).take(count)
    return PassContext(samples=samples, threads=1)


def quantized(model: Model, options: InsertQdq, where: PassContext) -> Model:
    result = model.copy()
    rewriter = Rewriter(result)
    options.run(rewriter, where)
    rewriter.finish()
    onnx.checker.check_model(result.proto(), full_check=True)
    return result


def off(model: Model, other: Model) -> float:
    """Error of the outputs by the operators' definition, on samples that calibrated nothing, relative."""
    judges = Samples.from_path(MODELS / "digits_eval.npz").for_inputs(model.inputs).take(200)
    sessions = [Session(each.to_bytes(), SessionConfig(1, reading=Reading.DEFINITION)) for each in (model, other)]
    pairs = [[next(iter(session.run(sample.feed).values())) for session in sessions] for sample in judges]
    expected, found = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    return float(((found - expected) ** 2).sum() / ((expected - expected.mean()) ** 2).sum())


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet"])
def test_fitted_integers_lose_less(name: str, per_channel: bool) -> None:
    model = trained(name)
    where = context(model)
    nearest = quantized(model, InsertQdq(per_channel=per_channel, rounding=Rounding.NEAREST), where)
    fitted = quantized(model, InsertQdq(per_channel=per_channel, rounding=FITTED), where)
    limit = (1.1 if name == "mobilenet" else 0.95) if per_channel else 0.8  # mobilenet's error is that of activations
    assert off(model, fitted) < limit * off(model, nearest)
    assert [node.op for node in fitted.graph.nodes] == [node.op for node in nearest.graph.nodes]


def test_too_few_samples_round_to_the_nearest() -> None:
    """One sample has fewer patches than a fully connected layer has columns; such layers stay as they would be."""
    model = trained("vgg")
    where = context(model, 1)
    plain, fitted = (quantized(model, InsertQdq(rounding=each), where) for each in (Rounding.NEAREST, FITTED))
    last = [next(node for node in each.graph.nodes if node.op == "Gemm") for each in (plain, fitted)]
    values = [array_of(node.inputs[1].inputs[0].inputs[0]) for node in last]
    assert values[0] is not None
    assert values[1] is not None
    np.testing.assert_array_equal(values[0], values[1])


def test_a_layer_without_bias_gets_one_that_puts_the_mean_right() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    graph = oh.make_graph(
        [oh.make_node("Conv", ["x", "w"], ["h"]), oh.make_node("Relu", ["h"], ["y"])],
        "g",
        [oh.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [oh.make_tensor_value_info("y", 1, [1, 8, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    infer_shapes(model)
    feeds = [{"x": rng.uniform(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(60)]
    where = PassContext(samples=Samples.from_feeds(feeds), threads=1)
    result = quantized(model, InsertQdq(per_channel=False, rounding=FITTED), where)
    conv = next(node for node in result.graph.nodes if node.op == "Conv")
    assert len(conv.inputs) == 3
    sessions = [Session(each.to_bytes(), SessionConfig(1, reading=Reading.DEFINITION)) for each in (model, result)]
    expected, found = (np.concatenate([session.run(feed)["y"] for feed in feeds]) for session in sessions)
    assert ((found - expected) ** 2).mean() < 1e-4 * (expected**2).mean()


def test_the_same_samples_give_the_same_bytes_from_a_plan() -> None:
    model = trained("mobilenet")
    where = context(model, 60)
    options = InsertQdq(rounding=FITTED)
    plan = QdqPlan.model_validate_json(options.plan(model.copy(), where).model_dump_json())
    replayed = model.copy()
    rewriter = Rewriter(replayed)
    options.apply(rewriter, plan, where)
    rewriter.finish()
    assert replayed.to_bytes() == quantized(model, options, where).to_bytes()
    with pytest.raises(SpecError, match="--data"):
        options.apply(Rewriter(model.copy()), plan, PassContext())


def test_the_original_keeps_its_weights() -> None:
    model = trained("mobilenet")
    before = model.to_bytes()
    quantized(model, InsertQdq(rounding=FITTED), context(model, 60))
    assert model.to_bytes() == before
