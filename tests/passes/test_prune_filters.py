"""prune-filters against its oracle: the original in which every consumer's weights for the cut channels are zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from gallery import GALLERY, Builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxslim.analysis import concrete_shapes, infer_shapes, model_cost
from onnxslim.analysis.channels import analyze_channels
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Constant, Model, Rewriter, array_of
from onnxslim.passes import PruneCriterion, PruneFilters
from onnxslim.passes._ranking import Ranking, needs_samples, weakest
from onnxslim.passes.prune_filters import PrunePlan
from onnxslim.pipeline import Costs, PassContext
from onnxslim.runtime import Level, Session, SessionConfig

MODELS = Path(__file__).resolve().parents[2] / "models"
TOLERANCE = 1e-5


def run(model: Model, feed: dict[str, Any]) -> np.ndarray[Any, Any]:
    outputs = Session(model.to_bytes(), SessionConfig(level=Level.NONE)).run(feed)
    return np.concatenate([np.asarray(value).reshape(-1) for value in outputs.values()])


def feed_of(model: Model) -> dict[str, Any]:
    (spec,) = model.inputs
    shape = [dim if isinstance(dim, int) else 2 for dim in spec.shape or ()]
    return {spec.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


def prune(model: Model, options: PruneFilters, plan: PrunePlan | None = None) -> tuple[Model, PrunePlan]:
    pruned = model.copy()
    cost = model_cost(model, concrete_shapes(model))
    context = PassContext(baseline=Costs(cost.bytes, cost.params, cost.macs))
    rewriter = Rewriter(pruned)
    plan = options.plan(pruned, context) if plan is None else plan
    options.apply(rewriter, plan, context)
    rewriter.finish()
    onnx.checker.check_model(pruned.proto(), full_check=True)
    return pruned, plan


def zero_consumers(model: Model, plan: PrunePlan) -> Model:
    """Return ``model`` with the weights that read cut channels set to zero, nothing removed."""
    zeroed = model.copy()
    infer_shapes(zeroed)
    cuts = {cut.anchor: cut.remove for cut in plan.cuts}
    rewriter = Rewriter(zeroed)
    for group in analyze_channels(zeroed).groups:
        for layer in group.readers if group.anchor in cuts else ():
            slot = layer.node.inputs.index(layer.dimension.tensor)
            weight = array_of(layer.node.inputs[slot])
            assert weight is not None
            values = np.moveaxis(weight.copy(), layer.dimension.axis, 0)
            values[np.isin(group.units[layer.dimension.key], cuts[group.anchor])] = 0
            new = np.moveaxis(values, 0, layer.dimension.axis)
            rewriter.set_input(layer.node, slot, rewriter.constant("zeroed", new))
    rewriter.finish()
    return zeroed


def check_oracle(model: Model, options: PruneFilters) -> PrunePlan:
    infer_shapes(model)
    pruned, plan = prune(model, options)
    feed = feed_of(model)
    expected = run(zero_consumers(model, plan), feed)
    np.testing.assert_allclose(run(pruned, feed), expected, rtol=0, atol=TOLERANCE * max(float(np.ptp(expected)), 1e-3))
    return plan


@pytest.mark.parametrize("name", GALLERY)
def test_the_oracle_holds_on_the_gallery(name: str) -> None:
    plan = check_oracle(GALLERY[name](Builder()), PruneFilters(ratio=0.4))
    assert plan.cuts


@pytest.mark.parametrize("name", ["vgg", "nin", "inception", "resnet", "mobilenet"])
def test_the_oracle_holds_on_trained_models(name: str) -> None:
    plan = check_oracle(Model.load(MODELS / f"{name}.onnx"), PruneFilters(ratio=0.3))
    assert len(plan.cuts) >= 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(GALLERY)),
    ratio=st.floats(0, 1),
    criterion=st.sampled_from([each for each in PruneCriterion if not needs_samples(each)]),
    multiple=st.integers(1, 4),
    channels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_oracle_holds_everywhere(
    name: str, ratio: float, criterion: PruneCriterion, multiple: int, channels: int, seed: int
) -> None:
    model = GALLERY[name](Builder(channels, 16, seed))
    plan = check_oracle(model, PruneFilters(ratio=ratio, criterion=criterion, multiple=multiple))
    assert all(cut.size - len(cut.remove) >= 1 for cut in plan.cuts)


def test_a_trunk_whose_shortcut_pads_channels_is_cut() -> None:
    plan = check_oracle(GALLERY["padded-shortcut"](Builder()), PruneFilters(ratio=0.5))
    assert [cut.size for cut in plan.cuts] == [12, 10]


# ---- what stays, and why -----------------------------------------------------------------------------------------


def two_convs(b: Builder, between: Any = None) -> Model:
    x = b.relu(b.conv("x", 8))
    x = between(b, x) if between else x
    return b.build(b.conv(x, 2, 1))


def softmax(b: Builder, x: str) -> str:
    return b.op("Softmax", x, axis=1)


def shuffled(b: Builder, x: str) -> str:
    x = b.op("Reshape", x, b.constant([0, 2, 4, 16, 16], np.int64))
    x = b.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return b.op("Reshape", x, b.constant([0, 8, 16, 16], np.int64))


def grouped(b: Builder, x: str) -> str:
    return b.conv(x, 8, 3, 1, 2)


def test_what_mixes_channels_stays() -> None:
    model = two_convs(Builder(), softmax)
    pruned, plan = prune(model, PruneFilters(ratio=0.5))
    assert plan.cuts == ()
    assert any("Softmax mixes it" in why for _, why in plan.refused)
    assert pruned.to_bytes() == model.to_bytes()


@pytest.mark.parametrize(("between", "kept"), [(shuffled, [2]), (grouped, [2, 2])])
def test_channels_that_are_coupled_go_together(between: Any, kept: list[int]) -> None:
    plan = check_oracle(two_convs(Builder(), between), PruneFilters(ratio=0.5))
    assert [cut.size - len(cut.remove) for cut in plan.cuts] == kept


def test_upsample_of_an_old_file_carries_channels() -> None:
    b = Builder()
    x = b.op("Upsample", b.relu(b.conv("x", 8)), scales=[1.0, 1.0, 2.0, 2.0])
    output = oh.make_tensor_value_info(b.conv(x, 2, 1), 1, ["n", 2, 32, 32])
    graph = oh.make_graph(b.nodes, "g", [b.input], [output], b.weights)
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 8)], ir_version=8)
    assert check_oracle(Model.load(proto), PruneFilters(ratio=0.5)).cuts


def test_a_graph_output_stays() -> None:
    b = Builder()
    x = b.relu(b.conv("x", 8))
    _, plan = prune(b.build(x, b.conv(x, 2, 1)), PruneFilters(ratio=0.5))
    assert plan.cuts == ()


def test_a_weight_that_something_else_reads_stays() -> None:
    b = Builder()
    x = b.relu(b.conv("x", 8))
    b.nodes.append(onnx.helper.make_node("ReduceSum", [b.weights[0].name], ["weight_sum"], keepdims=0))
    _, plan = prune(b.build(b.conv(x, 2, 1), "weight_sum"), PruneFilters(ratio=0.5))
    assert plan.cuts == ()


# ---- choices -----------------------------------------------------------------------------------------------------


def test_the_smallest_filters_go() -> None:
    model = two_convs(Builder())
    weight = model.graph.nodes[0].inputs[1]
    assert isinstance(weight, Constant)
    scaled = weight.values * np.array([5, 1, 7, 2, 9, 8, 3, 6], np.float32).reshape(-1, 1, 1, 1)
    norms = np.abs(scaled).sum((1, 2, 3))
    rewriter = Rewriter(model)
    rewriter.set_input(model.graph.nodes[0], 1, rewriter.constant("w", scaled))
    rewriter.finish()
    _, plan = prune(model, PruneFilters(ratio=0.25))
    assert set(plan.cuts[0].remove) == set(np.argsort(norms)[:2].tolist())


@pytest.mark.parametrize(
    ("size", "ratio", "multiple", "kept"),
    [
        (10, 0.3, 1, 7),
        (10, 0.0, 1, 10),
        (10, 1.0, 1, 1),
        (10, 0.31, 1, 6),
        (16, 0.3, 8, 16),
        (16, 0.5, 8, 8),
        (3, 0.9, 8, 3),
    ],
)
def test_how_many_stay(size: int, ratio: float, multiple: int, kept: int) -> None:
    model = GALLERY["vgg"](Builder())
    infer_shapes(model)
    group = replace(analyze_channels(model).groups[0], strata=(np.arange(size),), held=np.zeros(size, bool), size=size)
    ranking = Ranking(group, np.arange(size), np.ones(size))
    assert size - len(weakest(ranking, [ratio], multiple)) == kept


@pytest.mark.parametrize("goal", [0.8, 0.5, 0.3])
def test_a_goal_is_met_and_not_overshot(goal: float) -> None:
    model = Model.load(MODELS / "vgg.onnx")
    was = model_cost(model, concrete_shapes(model))
    for options, count in (
        (PruneFilters(macs=goal, multiple=1), "macs"),
        (PruneFilters(bytes=goal, multiple=1), "bytes"),
    ):
        pruned, _ = prune(model, options)
        now = model_cost(pruned, concrete_shapes(pruned))
        assert goal - 0.08 <= getattr(now, count) / getattr(was, count) <= goal


def test_a_goal_that_is_met_already_changes_nothing() -> None:
    model = Model.load(MODELS / "vgg.onnx")
    pruned, plan = prune(model, PruneFilters(macs=1.0))
    assert plan.cuts == ()
    assert pruned.to_bytes() == model.to_bytes()


@pytest.mark.parametrize("options", [PruneFilters(macs=0.0), PruneFilters(bytes=0.001)])
def test_a_goal_out_of_reach_fails_with_what_can_be_reached(options: PruneFilters) -> None:
    with pytest.raises(PassError, match=r"out of reach: the narrowest layers leave 0\.\d+ of the original"):
        prune(Model.load(MODELS / "vgg.onnx"), options)


def test_only_and_exclude_choose_layers() -> None:
    model = GALLERY["vgg"](Builder())
    first = model.graph.nodes[0].outputs[0].name
    assert [cut.anchor for cut in prune(model, PruneFilters(ratio=0.5, only=(first,)))[1].cuts] == [first]
    assert first not in [cut.anchor for cut in prune(model, PruneFilters(ratio=0.5, exclude=("conv*",)))[1].cuts]


def test_a_plan_replays_and_an_edited_one_is_obeyed() -> None:
    model = GALLERY["resnet"](Builder())
    pruned, plan = prune(model, PruneFilters(ratio=0.5))
    again, _ = prune(model, PruneFilters(ratio=0.5), PrunePlan.model_validate_json(plan.model_dump_json()))
    assert again.to_bytes() == pruned.to_bytes()
    edited = plan.model_copy(update={"cuts": plan.cuts[:1]})
    assert prune(model, PruneFilters(ratio=0.5), edited)[0].to_bytes() != pruned.to_bytes()


def test_a_plan_of_another_model_is_refused() -> None:
    _, plan = prune(GALLERY["resnet"](Builder()), PruneFilters(ratio=0.5))
    with pytest.raises(PassError, match="does not fit"):
        prune(GALLERY["decoder"](Builder()), PruneFilters(ratio=0.5), plan)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({}, "exactly one"),
        ({"ratio": 0.5, "macs": 0.5}, "exactly one"),
        ({"ratio": 1.5}, "between 0 and 1"),
        ({"ratio": 0.5, "multiple": 0}, "multiple"),
    ],
)
def test_bad_options(options: dict[str, Any], fragment: str) -> None:
    with pytest.raises(SpecError, match=fragment):
        PruneFilters(**options)
