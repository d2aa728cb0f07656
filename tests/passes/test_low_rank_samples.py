"""factor-low-rank with samples: what fitting wins, budgets over all forms, and what the clock refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

import onnxslim
from onnxslim.analysis import concrete_shapes, infer_shapes, model_cost
from onnxslim.errors import PassError
from onnxslim.ir import Model, Rewriter
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import FactorLowRank, _form_clock, _rank_choice
from onnxslim.passes.factor_low_rank import Estimate, LowRankPlan, SchemeChoice
from onnxslim.pipeline import Costs, PassContext
from onnxslim.runtime import Session
from onnxslim.samples import Samples

MODELS = Path(__file__).resolve().parents[2] / "models"
OFF = Clock.OFF


def context(model: Model, count: int = 64, data: Samples | None = None) -> PassContext:
    samples = data or Samples.from_path(MODELS / "digits_calib.npz").for_inputs(model.inputs).take(count)
    cost = model_cost(model, concrete_shapes(model))
    feed = next(iter(samples)).feed
    return PassContext(samples=samples, feed=feed, baseline=Costs(cost.bytes, cost.params, cost.macs))


def trained(name: str) -> Model:
    model = onnxslim.optimize(MODELS / f"{name}.onnx", passes="exact", bench=False).model
    infer_shapes(model)
    return model


def factored(model: Model, options: FactorLowRank, where: PassContext) -> tuple[Model, LowRankPlan]:
    plan = options.plan(model, where)
    result = model.copy()
    rewriter = Rewriter(result)
    options.apply(rewriter, LowRankPlan.model_validate_json(plan.model_dump_json()), where)
    rewriter.finish()
    onnx.checker.check_model(result.to_bytes(), full_check=True)
    return result, plan


def off(model: Model, other: Model) -> float:
    """Error of the outputs on samples that fitted nothing, relative."""
    samples = Samples.from_path(MODELS / "digits_eval.npz").for_inputs(model.inputs).take(100)
    sessions = [Session(each.to_bytes()) for each in (model, other)]
    pairs = [[next(iter(session.run(sample.feed).values())) for session in sessions] for sample in samples]
    expected, found = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    return float(((found - expected) ** 2).sum() / ((expected - expected.mean()) ** 2).sum())


def macs(model: Model) -> int:
    return model_cost(model, concrete_shapes(model)).macs or 0


# ---- what fitting wins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg", "inception"])
@pytest.mark.parametrize("scheme", [each for each in SchemeChoice if each is not SchemeChoice.AUTO])
def test_fitted_factors_lose_less_than_those_of_the_weights(name: str, scheme: SchemeChoice) -> None:
    model = trained(name)
    where = context(model)
    ratio = 0.7 if scheme is SchemeChoice.CP else 0.5
    options = FactorLowRank(ratio=ratio, scheme=scheme, clock=OFF)
    plan = options.plan(model, where)
    assert len(plan.layers) >= 2
    results = []
    for fit in (plan.fit, None):
        result = model.copy()
        rewriter = Rewriter(result)
        options.apply(rewriter, plan.model_copy(update={"fit": fit}), where)
        rewriter.finish()
        results.append(off(model, result))
    assert results[0] < 0.8 * results[1]


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_a_budget_is_met_and_better_spent_than_evenly(name: str) -> None:
    model = trained(name)
    where = context(model)
    result, plan = factored(model, FactorLowRank(macs=0.7, multiple=2, clock=OFF), where)
    assert macs(result) <= 0.7 * macs(model)
    assert all(layer.error is not None and layer.macs is not None and layer.macs < 1 for layer in plan.layers)
    for ratio in (0.2, 0.35, 0.5, 0.65, 0.8):
        even, _ = factored(model, FactorLowRank(ratio=float(ratio), clock=OFF), where)
        if macs(even) <= 0.7 * macs(model):
            assert off(model, result) < off(model, even)
            return
    pytest.fail("no ratio met the goal")


@pytest.mark.parametrize("name", ["vgg", "inception"])
def test_what_is_foretold_is_what_the_outputs_lose(name: str) -> None:
    """Each chosen layer factorized alone, on samples that neither fitted nor looked."""
    model = trained(name)
    where = context(model)
    options = FactorLowRank(macs=0.5, multiple=2, clock=OFF)
    plan = options.plan(model, where)
    ratios = []
    for layer in plan.layers:
        alone = model.copy()
        rewriter = Rewriter(alone)
        options.apply(rewriter, plan.model_copy(update={"layers": (layer,)}), where)
        rewriter.finish()
        ratios.append((layer.error or 0.0) / off(model, alone))
    assert len(ratios) >= 3
    assert 0.5 < np.median(ratios) < 2.0
    assert max(ratios) < 6.0
    assert min(ratios) > 1 / 6


def test_bytes_are_taken_where_they_are() -> None:
    model = trained("vgg")
    where = context(model)
    result, _ = factored(model, FactorLowRank(bytes=0.5, multiple=1), where)
    assert model_cost(result, {}).bytes <= 0.5 * model_cost(model, {}).bytes


def test_ranks_can_be_estimated() -> None:
    model = trained("vgg")
    plan = FactorLowRank(estimate=Estimate.VBMF, clock=OFF).plan(model, context(model))
    assert plan.layers
    assert all(1 <= layer.rank < layer.full_rank for layer in plan.layers)


def test_activations_that_are_not_finite_fail_the_pass() -> None:
    model = trained("vgg")
    shape = next(iter(context(model, 1).samples or ())).feed[model.inputs[0].name].shape
    bad = Samples.from_feeds([{model.inputs[0].name: np.full(shape, np.nan, np.float32)}]).for_inputs(model.inputs)
    with pytest.raises(PassError, match="NaN or Inf"):
        FactorLowRank(ratio=0.5, clock=OFF).plan(model, context(model, data=bad))


# ---- the clock -------------------------------------------------------------------------------------------------------


def clock(monkeypatch: pytest.MonkeyPatch, share: Any, wholes: Sequence[float] = (0.1,)) -> list[Any]:
    """Let all forms take ``share(layer, form)`` of a layer's time, and whole models ``wholes`` of theirs, one after the
    other; return what was asked about layers.
    """
    asked: list[Any] = []
    left = list(wholes)

    def measured(self: _form_clock.FormClock, layer: Any, form: Any, shape: Any) -> float:
        asked.append((layer.anchor, form))
        return float(share(layer, form))

    def of_whole(*_: Any) -> list[float]:
        return [1.0, left.pop(0) if len(left) > 1 else left[0]]

    monkeypatch.setattr(_form_clock.FormClock, "_measured", measured)
    monkeypatch.setattr(_rank_choice, "time_shares", of_whole)
    return asked


def test_what_is_not_faster_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, lambda layer, form: 1.1)
    model = trained("vgg")
    plan = FactorLowRank(ratio=0.75).plan(model, context(model))
    assert plan.layers == ()
    reasons = [reason for _, reason in plan.refused]
    assert any("would take 110% of its time for" in reason for reason in reasons)


def test_what_cannot_be_timed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_form_clock.FormClock, "_measured", lambda *_: None)
    model = trained("vgg")
    plan = FactorLowRank(ratio=0.75).plan(model, context(model))
    assert plan.layers == ()
    assert any("cannot be timed" in reason for _, reason in plan.refused)
    with pytest.raises(PassError, match=r"leave 1\.000 .* cannot be timed"):
        FactorLowRank(macs=0.8).plan(model, context(model))


def test_a_budget_goes_where_the_clock_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("vgg")
    where = context(model)
    first = FactorLowRank(macs=0.8, multiple=2, clock=OFF).plan(model, where).layers[0].anchor
    clock(monkeypatch, lambda layer, form: 2.0 if layer.anchor == first else 0.1)
    result, plan = factored(model, FactorLowRank(macs=0.8, multiple=2), where)
    assert first not in {layer.anchor for layer in plan.layers}
    assert "would take 200%" in dict(plan.refused)[first]
    assert macs(result) <= 0.8 * macs(model)
    assert all(layer.time == 0.1 for layer in plan.layers)


def test_a_goal_that_the_clock_puts_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, lambda layer, form: 1.5)
    model = trained("vgg")
    with pytest.raises(PassError, match=r"out of reach: the lowest ranks leave 1\.000 .* where the clock agrees"):
        FactorLowRank(macs=0.8).plan(model, context(model))


def test_each_shape_is_timed_once_and_a_plan_replays_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, lambda layer, form: 0.1)
    model = trained("resnet")
    where = context(model)
    options = FactorLowRank(ratio=0.75)
    plan = options.plan(model, where)
    shapes = {(anchor, form) for anchor, form in asked}
    assert 0 < len(shapes) == len(asked) < len(plan.layers)
    asked.clear()
    options.apply(Rewriter(model.copy()), plan, where)
    assert not asked


def test_what_was_timed_is_known_in_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, lambda layer, form: 0.1)
    model = trained("resnet")
    first = FactorLowRank(ratio=0.75).plan(model, context(model))
    assert asked
    asked.clear()
    assert FactorLowRank(ratio=0.75).plan(model, context(model)) == first
    assert not asked


def test_where_the_whole_model_is_too_slow_layers_must_promise_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that saves two thirds of what it should is refused in the second round, and the whole pays then."""
    model = trained("vgg")
    where = context(model)
    slow = FactorLowRank(ratio=0.75, clock=OFF).plan(model, where).layers[0]
    assert slow.macs is not None
    time = 1 - 0.66 * (1 - slow.macs)
    clock(monkeypatch, lambda layer, form: time if layer.anchor == slow.anchor else 0.01, wholes=(0.99, 0.1))
    plan = FactorLowRank(ratio=0.75).plan(model, where)
    assert slow.anchor not in {layer.anchor for layer in plan.layers}
    assert "too much where the whole model is to be faster" in dict(plan.refused)[slow.anchor]
    assert plan.layers
    assert plan.whole is not None
    assert plan.whole.time == 0.1
    saved = FactorLowRank(ratio=0.75, clock=OFF, exclude=(slow.anchor,))
    result, _ = factored(model, saved, where)
    assert plan.whole.macs == pytest.approx(macs(result) / macs(model), abs=1e-3)


def test_a_model_that_stays_slow_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, lambda layer, form: 0.01, wholes=(0.99,))
    model = trained("vgg")
    plan = FactorLowRank(ratio=0.75).plan(model, context(model))
    assert not plan.layers
    assert plan.whole is None
    assert any("the whole model would take 99% of its time" in reason for _, reason in plan.refused)


def test_bytes_ask_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, lambda layer, form: 9.0)
    model = trained("vgg")
    assert FactorLowRank(bytes=0.6, multiple=1).plan(model, context(model)).layers
    assert not asked


def test_a_real_clock_tells_a_real_difference() -> None:
    """A large layer at rank one is faster, whatever the machine."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((128, 128, 3, 3)).astype(np.float32), "w")
    graph = oh.make_graph(
        [oh.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "g",
        [oh.make_tensor_value_info("x", 1, [1, 128, 16, 16])],
        [oh.make_tensor_value_info("y", 1, [1, 128, 16, 16])],
        [weight],
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    where = PassContext(feed={"x": np.zeros((1, 128, 16, 16), np.float32)})
    (layer,) = FactorLowRank(rank=4).plan(model, where).layers
    assert layer.time is not None
    assert layer.time < 0.6


# ---- together with others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "passes",
    [
        "exact,prune-filters{ratio=0.2},factor-low-rank{macs=0.6 multiple=2 clock=off},insert-qdq",
        "exact,factor-low-rank{macs=0.8 multiple=2 clock=off},prune-filters{ratio=0.2}",
    ],
    ids=["prune, factorize, quantize", "factorize, prune"],
)
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_passes_follow_each_other(name: str, passes: str) -> None:
    result = onnxslim.optimize(
        MODELS / f"{name}.onnx",
        MODELS / "digits_calib.npz",
        passes=passes,
        calib_samples=32,
        eval_samples=20,
        bench=False,
    )
    kept = [record.name for record in result.report.passes if record.status.value == "kept" and record.edits]
    assert {"prune-filters", "factor-low-rank"} <= set(kept)
