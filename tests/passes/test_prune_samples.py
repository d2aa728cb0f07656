"""prune-filters with samples: choices, repair and budgets, on small trained networks and on networks made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.helper as oh
import pytest
from gallery import GALLERY, Builder

import onnxslim
from onnxslim.analysis import concrete_shapes, infer_shapes, model_cost
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Rewriter, array_of
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import PruneCriterion, PruneFilters, _evidence, _repair
from onnxslim.passes.prune_filters import PrunePlan, Repair
from onnxslim.pipeline import Costs, PassContext
from onnxslim.runtime import Session
from onnxslim.samples import Samples

MODELS = Path(__file__).resolve().parents[2] / "models"


def context(model: Model, count: int = 256, data: Samples | None = None) -> PassContext:
    samples = data or Samples.from_path(MODELS / "digits_calib.npz").for_inputs(model.inputs).take(count)
    cost = model_cost(model, concrete_shapes(model))
    feed = next(iter(samples)).feed
    return PassContext(samples=samples, feed=feed, baseline=Costs(cost.bytes, cost.params, cost.macs))


def trained(name: str) -> Model:
    model = Model.load(MODELS / f"{name}.onnx")
    infer_shapes(model)
    return model


def pruned(model: Model, options: PruneFilters, where: PassContext) -> tuple[Model, PrunePlan, Rewriter]:
    plan = options.plan(model, where)
    result = model.copy()
    rewriter = Rewriter(result)
    options.apply(rewriter, PrunePlan.model_validate_json(plan.model_dump_json()), where)
    rewriter.finish()
    return result, plan, rewriter


def accuracy(model: Model) -> float:
    samples = Samples.from_path(MODELS / "digits_eval.npz").for_inputs(model.inputs)
    session = Session(model.to_bytes())
    hits = [int(np.argmax(next(iter(session.run(s.feed).values())))) == s.label for s in samples]
    return 100 * float(np.mean(hits))


def share(model: Model, of: Model) -> float:
    macs = [model_cost(each, concrete_shapes(each)).macs or 0 for each in (model, of)]
    return macs[0] / macs[1]


# ---- what repair and criteria win ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet", "inception"])
def test_repair_keeps_most_of_what_a_cut_loses(name: str) -> None:
    model = trained(name)
    where = context(model)
    base = accuracy(model)
    cut = accuracy(pruned(model, PruneFilters(ratio=0.4, criterion=PruneCriterion.L1, repair=Repair.OFF), where)[0])
    repaired = accuracy(pruned(model, PruneFilters(ratio=0.4), where)[0])
    assert base - cut > 10, "the cut must hurt, or there is nothing to repair"
    assert base - repaired < (base - cut) / 4


def test_a_repaired_layer_gives_what_the_original_gave_where_channels_were_copies() -> None:
    b = Builder(channels=4)
    weight = b.random.standard_normal((4, 4, 1, 1)).astype(np.float32)
    twice = b.constant(np.concatenate([weight, weight]))
    x = b.op("Relu", b.op("Conv", "x", twice, width=8))
    model = b.build(b.conv(x, 3, 3))
    infer_shapes(model)
    data = Samples.from_arrays({"x": np.random.default_rng(0).standard_normal((64, 4, 16, 16)).astype(np.float32)})
    where = context(model, data=data.for_inputs(model.inputs))
    result, plan, _ = pruned(model, PruneFilters(ratio=0.5), where)
    assert [len(cut.remove) for cut in plan.cuts] == [4]
    assert len({unit % 4 for unit in plan.cuts[0].remove}) == 4, "of each pair of copies one goes"
    feed = {"x": np.random.default_rng(1).standard_normal((1, 4, 16, 16)).astype(np.float32)}
    expected, actual = (next(iter(Session(m.to_bytes()).run(feed).values())) for m in (model, result))
    np.testing.assert_allclose(actual, expected, atol=5e-3 * float(np.ptp(expected)))


@pytest.mark.parametrize("criterion", PruneCriterion)
def test_every_criterion_works_or_says_why_not(criterion: PruneCriterion) -> None:
    model = trained("resnet")
    _, plan, _ = pruned(model, PruneFilters(ratio=0.25, criterion=criterion, samples=32), context(model))
    assert plan.cuts or all(reason for _, reason in plan.refused)
    assert plan.cuts or criterion is PruneCriterion.BN_SCALE


@pytest.mark.parametrize("criterion", [PruneCriterion.OBS, PruneCriterion.WANDA, PruneCriterion.ZEROS])
def test_a_criterion_that_needs_samples_says_so(criterion: PruneCriterion) -> None:
    with pytest.raises(SpecError, match="--data"):
        PruneFilters(ratio=0.5, criterion=criterion).plan(trained("vgg"), PassContext())


def test_without_a_clock_the_seed_and_the_samples_decide_alone() -> None:
    model = trained("inception")
    first, second = (pruned(model, PruneFilters(macs=0.7, clock=Clock.OFF), context(model, 64)) for _ in range(2))
    assert first[1] == second[1]
    assert first[0].to_bytes() == second[0].to_bytes()


# ---- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg", "resnet", "inception"])
@pytest.mark.parametrize("goal", [0.8, 0.5])
def test_a_budget_is_met_and_not_overshot(name: str, goal: float) -> None:
    model = trained(name)
    result, plan, _ = pruned(model, PruneFilters(macs=goal, multiple=2, samples=64), context(model))
    assert goal - 0.06 <= share(result, model) <= goal
    assert all(cut.sensitivity is not None and cut.sensitivity >= 0 for cut in plan.cuts)


def test_what_the_outputs_mind_is_spared() -> None:
    """Two branches alike but for how much the output weighs them: the heavy one keeps more."""
    b = Builder(channels=3)
    heavy, light = (b.relu(b.conv("x", 16)) for _ in range(2))
    left = b.op("Mul", b.conv(heavy, 4), b.constant(np.array(10.0)))
    right = b.op("Mul", b.conv(light, 4), b.constant(np.array(0.1)))
    model = b.build(b.op("Add", left, right))
    infer_shapes(model)
    data = Samples.from_arrays({"x": np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32)})
    where = context(model, data=data.for_inputs(model.inputs))
    _, plan, _ = pruned(model, PruneFilters(macs=0.6, multiple=1), where)
    gone = {cut.anchor: len(cut.remove) for cut in plan.cuts}
    assert gone.get(model.graph.nodes[2].outputs[0].name, 0) > 2 * gone.get(model.graph.nodes[0].outputs[0].name, 0)


def test_a_budget_out_of_reach_fails_with_what_can_be_reached() -> None:
    model = trained("vgg")
    with pytest.raises(PassError, match=r"out of reach: the narrowest layers leave 0\.\d+"):
        PruneFilters(macs=0.001, samples=16).plan(model, context(model))


# ---- layer by layer --------------------------------------------------------------------------------------------------


def test_ratios_layer_by_layer() -> None:
    model = GALLERY["vgg"](Builder())
    infer_shapes(model)
    anchors = [node.outputs[0].name for node in model.graph.nodes if node.op == "Conv"]
    options = PruneFilters(layers=(f"{anchors[0]}=0.5", f"{anchors[1]}=0.25", "*=0"))
    plan = options.plan(model, PassContext())
    assert {cut.anchor: len(cut.remove) / cut.size for cut in plan.cuts} == {anchors[0]: 0.5, anchors[1]: 0.25}


@pytest.mark.parametrize("text", ["conv1", "conv1=", "=0.5", "conv1=1.5", "conv1=half"])
def test_ratios_that_cannot_be_read(text: str) -> None:
    with pytest.raises(SpecError, match="PATTERN=RATIO"):
        PruneFilters(layers=(text,))


@pytest.mark.parametrize("where", ["only", "exclude", "layers"])
def test_a_name_that_no_layer_has_is_refused(where: str) -> None:
    given: dict[str, Any] = {"layers": ("conv9=0.5",)} if where == "layers" else {where: ("conv9",), "ratio": 0.5}
    with pytest.raises(SpecError, match="no layer with filters is called 'conv9'"):
        PruneFilters(**given).plan(trained("vgg"), PassContext())


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_nothing_and_all_but_one(ratio: float) -> None:
    model = trained("resnet")
    _, plan, _ = pruned(model, PruneFilters(ratio=ratio, samples=32), context(model))
    infer_shapes(model)
    assert bool(plan.cuts) == (ratio == 1.0)
    assert (plan.repair is None) == (ratio == 0.0)
    assert all(cut.size - len(cut.remove) >= 1 for cut in plan.cuts)


def test_a_layer_with_one_filter_stays() -> None:
    b = Builder(channels=3)
    model = b.build(b.conv(b.relu(b.conv("x", 1)), 4))
    infer_shapes(model)
    plan = PruneFilters(ratio=0.5).plan(model, PassContext())
    assert plan.cuts == ()
    assert any("one channel" in reason for _, reason in plan.refused)


# ---- samples that do not do ------------------------------------------------------------------------------------------


def test_too_few_samples_leave_layers_as_they_are_and_say_how_many_it_takes() -> None:
    model = trained("vgg")
    _, plan, rewriter = pruned(model, PruneFilters(ratio=0.5, samples=2), context(model))
    assert plan.repair is not None
    reasons = [m.reason for m in rewriter.skipped if "too few" in m.reason]
    assert any(int(reason.rsplit(" ", 1)[1]) > 2 for reason in reasons)


def test_activations_that_are_not_finite_fail_the_pass() -> None:
    b = Builder(channels=3)
    x = b.op("Log", b.relu(b.conv("x", 8)))
    model = b.build(b.conv(x, 2))
    infer_shapes(model)
    data = Samples.from_arrays({"x": -np.ones((4, 3, 16, 16), np.float32)})
    with pytest.raises(PassError, match=r"NaN or Inf|not finite"):
        PruneFilters(ratio=0.5).plan(model, context(model, data=data.for_inputs(model.inputs)))


def test_replaying_a_plan_that_repairs_asks_for_samples() -> None:
    model = trained("vgg")
    plan = PruneFilters(ratio=0.5).plan(model, context(model, 64))
    with pytest.raises(SpecError, match="--data"):
        PruneFilters(ratio=0.5).apply(Rewriter(model.copy()), plan, PassContext())


def test_a_bias_appears_where_there_was_none() -> None:
    b = Builder(channels=3)
    model = b.build(b.conv(b.relu(b.conv("x", 8, bias=False)), 4, bias=False))
    infer_shapes(model)
    data = Samples.from_arrays({"x": np.random.default_rng(0).random((16, 3, 16, 16)).astype(np.float32)})
    result, _, _ = pruned(model, PruneFilters(ratio=0.5), context(model, data=data.for_inputs(model.inputs)))
    last = result.graph.nodes[-1]
    assert len(last.inputs) == 3
    assert np.abs(array_of(last.inputs[2])).max() > 0  # type: ignore[arg-type]


def test_the_whole_command_prunes_repairs_and_replays(tmp_path: Path) -> None:
    data = Samples.from_path(MODELS / "digits_calib.npz").take(96)
    evaluation = Samples.from_path(MODELS / "digits_eval.npz").take(200)
    both: dict[str, Any] = {"data": data, "eval_data": evaluation, "bench": False}
    result = onnxslim.optimize(MODELS / "mobilenet.onnx", passes="prune-filters{macs=0.7 multiple=4}", **both)
    validation = result.report.validation
    assert validation is not None
    assert validation.metric is not None
    assert validation.metric.drop < 0.05
    result.plan.save(tmp_path / "plan.json")
    again = onnxslim.optimize(MODELS / "mobilenet.onnx", plan=tmp_path / "plan.json", **both)
    assert again.model.to_bytes() == result.model.to_bytes()


# ---- layers too large for one matrix ---------------------------------------------------------------------------------


def wide(channels: int = 16) -> Model:
    b = Builder(channels=3, size=8)
    x = b.relu(b.conv("x", channels))
    return b.build(b.gemm(b.op("Flatten", x), channels * 64, 5))


def test_a_layer_too_large_for_one_matrix_is_refitted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide()
    infer_shapes(model)
    data = Samples.from_arrays({"x": np.random.default_rng(0).random((900, 3, 8, 8)).astype(np.float32)})
    where = context(model, data=data.for_inputs(model.inputs))
    options = PruneFilters(ratio=0.5, samples=900)
    bare = pruned(model, PruneFilters(ratio=0.5, samples=900, repair=Repair.OFF), where)[0]
    for module in (_repair, _evidence):
        monkeypatch.setattr(module, "MATRIX_BYTES", 8 * 200**2)
    parts, plan, rewriter = pruned(model, options, where)
    assert plan.cuts
    assert not rewriter.skipped or all("output" in m.reason for m in rewriter.skipped)

    def error(candidate: Model) -> float:
        feeds = [{"x": np.random.default_rng(i).random((1, 3, 8, 8)).astype(np.float32)} for i in range(900, 960)]
        runs = [[next(iter(Session(m.to_bytes()).run(f).values())) for f in feeds] for m in (model, candidate)]
        return float(np.mean([((a - b) ** 2).sum() for a, b in zip(*runs, strict=True)]))

    assert error(parts) < 0.5 * error(bare)


def test_a_file_whose_weights_are_inputs_too_is_repaired() -> None:
    """IR version 3: parts of the model, which begin at inner tensors, keep those as inputs."""
    b = Builder(channels=3)
    proto = b.build(b.conv(b.relu(b.conv(b.relu(b.conv("x", 8)), 8)), 4)).proto()
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    proto.graph.input.extend(oh.make_tensor_value_info(w.name, 1, list(w.dims)) for w in proto.graph.initializer)
    model = Model.load(proto)
    infer_shapes(model)
    data = Samples.from_arrays({"x": np.random.default_rng(0).random((32, 3, 16, 16)).astype(np.float32)})
    result, plan, _ = pruned(model, PruneFilters(ratio=0.3), context(model, data=data.for_inputs(model.inputs)))
    assert plan.repair is not None
    assert Session(result.to_bytes()).run({"x": np.zeros((1, 3, 16, 16), np.float32)})
