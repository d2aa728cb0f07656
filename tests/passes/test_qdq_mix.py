"""Mixed precision: what is given up is what makes the noise, it is little, and the goal is reached."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxslim.ir import Model, Rewriter, anchor_of, array_of
from onnxslim.passes import InsertQdq
from onnxslim.passes._qdq_judge import Energies, energies, sure_sqnr
from onnxslim.passes._qdq_noise import NoiseModel
from onnxslim.passes._qdq_pairs import Quantizer
from onnxslim.passes._quantize import Grid, GridKind, Style
from onnxslim.passes.insert_qdq import QdqPlan, Rounding
from onnxslim.pipeline import Goals, PassContext
from onnxslim.runtime import Level, Reading, Session, SessionConfig
from onnxslim.samples import Samples
from onnxslim.targets import DEFAULT_TARGET, Target, find_target

LAYERS = 6
CHANNELS = 8
LOUD = 3
"""The layer whose weights leave one channel a thousand times as large as the others: eight bits hold only that one."""


def chain(loud: int | None = LOUD, gain: float = 1000.0) -> Model:
    """Return 1×1 convolutions in a row; behind the ``loud`` one the next undoes what makes it so."""
    names = ["x", *(f"t{i}" for i in range(LAYERS))]
    body = " ".join(f"{names[i + 1]} = Conv({names[i]}, w{i})" for i in range(LAYERS))
    inits = ", ".join(f"float[{CHANNELS},{CHANNELS},1,1] w{i}" for i in range(LAYERS))
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,{CHANNELS},4,4] x) => '
        f"(float[N,{CHANNELS},4,4] {names[-1]}) <{inits}> {{{body}}}"
    )
    random = np.random.default_rng(5)
    for i in range(LAYERS):
        weight, _ = np.linalg.qr(random.standard_normal((CHANNELS, CHANNELS)))
        scale = np.ones(CHANNELS)
        scale[0] = gain
        if loud is not None and i == loud:
            weight = scale[:, None] * weight
        if loud is not None and i == loud + 1:
            weight = weight / scale[None, :]
        values = weight.astype(np.float32).reshape(CHANNELS, CHANNELS, 1, 1)
        proto.graph.initializer.append(numpy_helper.from_array(values, f"w{i}"))
    return Model.load(proto)


def context_of(model: Model, goals: Goals = Goals(), target: Target = DEFAULT_TARGET) -> PassContext:  # noqa: B008
    values = np.random.default_rng(7).standard_normal((40, CHANNELS, 4, 4)).astype(np.float32)
    samples = Samples.from_arrays({"x": values}).for_inputs(model.inputs)
    return PassContext(samples=samples, goals=goals, target=target)


def applied(model: Model, plan: QdqPlan, context: PassContext, options: InsertQdq) -> Model:
    made = model.copy()
    rewriter = Rewriter(made)
    options.apply(rewriter, plan, context)
    rewriter.finish()
    return made


def kept_db(model: Model, made: Model, context: PassContext) -> float:
    sides = []
    for one in (model, made):
        session = Session(one.to_bytes(), SessionConfig(level=Level.NONE, reading=Reading.DEFINITION))
        sides.append(
            [session.run(sample.feed)[f"t{LAYERS - 1}"].astype(np.float64) for sample in context.samples or ()]
        )
    signal, error = np.sum([energies(*pair) for pair in zip(*sides, strict=True)], axis=0)
    return float(10 * np.log10(signal / error))


NEAREST = InsertQdq(rounding=Rounding.NEAREST)
ALL = InsertQdq(rounding=Rounding.NEAREST, min_sqnr=0.0)


def test_what_few_samples_say_is_believed_less() -> None:
    """Of the same ratio, one that all samples agree on is surer than one that a single sample decides."""
    even = [Energies(100.0, 1.0)] * 8
    lucky = [Energies(10.0, 1.0)] * 7 + [Energies(730.0, 1.0)]
    assert sure_sqnr(even) == pytest.approx(20.0)
    assert sum(one.signal for one in lucky) == sum(one.signal for one in even)
    assert sure_sqnr(lucky) < 10
    assert sure_sqnr([Energies(100.0, 1.0)]) == pytest.approx(20.0)


# ---- what stays -----------------------------------------------------------------------------------------------


def test_nothing_is_given_up_where_integers_are_enough() -> None:
    model = chain(loud=None)
    plan = NEAREST.plan(model, context_of(model))
    assert len(plan.nodes) == LAYERS
    assert not plan.refused
    assert not plan.wide


def test_nothing_is_given_up_where_nobody_asks() -> None:
    model = chain()
    context = context_of(model)
    plan = ALL.plan(model, context)
    assert len(plan.nodes) == LAYERS
    assert kept_db(model, applied(model, plan, context, ALL), context) < 10


# ---- what is given up -----------------------------------------------------------------------------------------


def test_the_loud_layer_stays_in_float_and_the_goal_is_reached() -> None:
    model = chain()
    context = context_of(model)
    plan = NEAREST.plan(model, context)
    refused = dict(plan.refused)
    assert {f"t{LOUD}", f"t{LOUD + 1}"} & set(refused)
    assert set(refused) <= {f"t{LOUD}", f"t{LOUD + 1}"}
    assert all("an output would keep" in reason for reason in refused.values())
    assert kept_db(model, applied(model, plan, context, NEAREST), context) >= 20


@pytest.mark.parametrize("goal", [25.0, 30.0, 35.0])
def test_the_goal_that_was_asked_for_is_reached(goal: float) -> None:
    model = chain()
    for options, goals in (
        (NEAREST, Goals(min_sqnr=goal)),
        (InsertQdq(rounding=Rounding.NEAREST, min_sqnr=goal), Goals()),
    ):
        context = context_of(model, goals)
        plan = options.plan(model, context)
        assert kept_db(model, applied(model, plan, context, options), context) >= goal


def test_more_is_given_up_for_more() -> None:
    model = chain()
    kept = [len(NEAREST.plan(model, context_of(model, Goals(min_sqnr=goal))).nodes) for goal in (20.0, 34.0, 45.0)]
    assert kept[0] > kept[1] > kept[2]


def test_16_bits_are_tried_first_where_the_target_computes_with_them() -> None:
    model = chain(gain=16.0)
    context = context_of(model, Goals(min_sqnr=25.0), find_target("qnn"))
    plan = NEAREST.plan(model, context)
    assert plan.wide
    assert not plan.refused
    made = applied(model, plan, context, NEAREST)
    assert made.opset == 21
    kinds = Counter(
        node.inputs[2].dtype for node in made.graph.nodes if node.op == "QuantizeLinear" and len(node.inputs) > 2
    )
    assert kinds[np.dtype(np.uint16)]
    assert kinds[np.dtype(np.uint8)]
    assert kept_db(model, made, context) >= 25
    assert NEAREST.plan(model, context_of(model, Goals(min_sqnr=25.0))).refused


# ---- a metric decides -----------------------------------------------------------------------------------------


def classifier() -> Model:
    model = chain().proto()
    for value in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_value = 1
    model.graph.output[0].name = "scores"
    model.graph.node.append(onnx.helper.make_node("Flatten", [f"t{LAYERS - 1}"], ["scores"]))
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    return Model.load(model)


def with_labels(*, right: bool) -> tuple[Model, PassContext]:
    model = classifier()
    values = np.random.default_rng(7).standard_normal((40, CHANNELS, 1, 1)).astype(np.float32)
    scores = Session(model.to_bytes(), SessionConfig()).run({"x": values})["scores"]
    labels = scores.argmax(axis=1) if right else np.full(40, CHANNELS)
    return model, PassContext(samples=Samples.from_arrays({"x": values}, labels=labels).for_inputs(model.inputs))


def test_decibels_do_not_matter_where_labels_tell_that_nothing_is_lost() -> None:
    model, context = with_labels(right=False)  # no prediction is right, so none can be lost
    assert not NEAREST.plan(model, context).refused


def test_a_metric_that_drops_gives_layers_up() -> None:
    model, context = with_labels(right=True)
    plan = NEAREST.plan(model, context)
    assert plan.refused
    assert "points on the samples" in plan.refused[0][1]


def test_an_sqnr_that_was_asked_for_must_hold_whatever_the_metric() -> None:
    model, context = with_labels(right=False)
    context.goals = Goals(min_sqnr=20.0, max_drop=0.01)
    assert NEAREST.plan(model, context).refused


# ---- noise ----------------------------------------------------------------------------------------------------


def test_noise_of_one_grid_is_what_it_does_alone() -> None:
    """The oracle: one grid at a time, in the float model, by hand."""
    model = chain(loud=None)
    context = context_of(model)
    assert context.samples is not None
    plan = ALL.plan(model, context)
    nodes = [node for node in model.graph.nodes if anchor_of(node) in plan.nodes]
    style = Style(GridKind())
    grids = Quantizer(Rewriter(model.copy()), nodes, plan.ranges, style).grids
    found = NoiseModel(model, nodes, grids, {}, 1).energies(context.samples.take(8))
    weights = [np.asarray(array_of(node.inputs[1]), np.float64)[:, :, 0, 0] for node in nodes]
    for index, unit in enumerate(found.units):
        expected = _alone(unit.name, grids[unit.name], weights, context.samples.take(8))
        assert 0.5 * expected < found.values[index, 0] < 2 * expected, unit.name
    assert found.values.sum() == pytest.approx(found.total[0], rel=0.3)


def _alone(name: str, grid: Grid, weights: list[np.ndarray], samples: Samples) -> float:
    place = 0 if name == "x" else int(name[1:]) + 1
    noise = signal = 0.0
    for sample in samples:
        value = sample.feed["x"].astype(np.float64)
        for weight in weights[:place]:
            value = np.einsum("oc,nchw->nohw", weight, value)
        steps = np.clip(np.rint(value / grid.scale) + float(grid.zero_point), 0, 255) - float(grid.zero_point)
        off = steps * float(grid.scale) - value
        for weight in weights[place:]:
            value, off = (np.einsum("oc,nchw->nohw", weight, one) for one in (value, off))
        noise, signal = noise + float((off**2).sum()), signal + float((value**2).sum())
    return noise / signal
