"""What low rank would do: a planted rank is seen, errors are those of the pass, and refusals have reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from onnxslim.analysis.linear_layers import linear_layer
from onnxslim.analysis.moments import Settings
from onnxslim.analysis.second_order import collect_moments
from onnxslim.errors import PassError
from onnxslim.ir import Model, anchor_of
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import FactorLowRank, SurveyOptions, survey_ranks
from onnxslim.passes import _rank_survey as module
from onnxslim.passes._factoring import POSITIONS, problem_of
from onnxslim.passes._factors import factored
from onnxslim.passes._forms import Form, Scheme
from onnxslim.passes._rank_findings import LayerSurvey, RankSurvey
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

MODELS = Path(__file__).resolve().parents[2] / "models"
OFF = SurveyOptions(clock=Clock.OFF)
Floats = npt.NDArray[np.float32]


def planted(rank: int, shape: tuple[int, ...], seed: int = 0) -> Floats:
    """Return a weight whose matrix has a rank, and next to no noise."""
    random = np.random.default_rng(seed)
    width = int(np.prod(shape[1:]))
    product = random.standard_normal((shape[0], rank)) @ random.standard_normal((rank, width))
    noisy = product / np.sqrt(width) + 1e-4 * random.standard_normal(product.shape)
    weight: Floats = noisy.reshape(shape).astype(np.float32)
    return weight


def network(*, dynamic: bool = False) -> Model:
    """A Conv of rank 5, a depthwise Conv, two MatMuls that share a weight of rank 3, a MatMul of two inputs."""
    weights = {
        "w": planted(5, (24, 16, 3, 3)),
        "d": planted(1, (24, 1, 3, 3), 1),
        "m": planted(3, (12, 12), 2),
    }
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["wide"], pads=[1, 1, 1, 1]),
        oh.make_node("Conv", ["wide", "d"], ["deep"], group=24, pads=[1, 1, 1, 1]),
        oh.make_node("MatMul", ["deep", "m"], ["one"]),
        oh.make_node("MatMul", ["one", "m"], ["two"]),
        oh.make_node("MatMul", ["two", "one"], ["y"]),
    ]
    height = "h" if dynamic else 12
    graph = oh.make_graph(
        nodes,
        "net",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16, height, 12])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 24, height, 12])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))


def by_anchor(survey: RankSurvey) -> dict[str, LayerSurvey]:
    return {layer.anchor: layer for layer in survey.layers}


def trained(count: int = 48) -> tuple[Model, PassContext]:
    model = Model.load(MODELS / "vgg.onnx")
    samples = Samples.from_path(MODELS / "digits_calib.npz").for_inputs(model.inputs).take(count)
    return model, PassContext(samples=samples, feed=next(iter(samples)).feed)


def test_a_planted_rank_is_seen() -> None:
    layers = by_anchor(survey_ranks(network(), PassContext(), OFF))
    conv = layers["wide"]
    assert (conv.full_rank, conv.vbmf, conv.macs) == (24, 5, 24 * 16 * 9 * 144)
    assert conv.rank_99 <= 5
    kept = {point.rank: point.energy for point in conv.spectrum}
    assert kept[5] > 0.999999 > kept[4]
    assert conv.spectrum[-1].rank == 24
    assert conv.options
    assert min(option.error for option in conv.options) < 1e-5
    assert layers["one"].vbmf == 3
    assert layers["one"].also == ("two",)
    assert layers["one"].macs == 2 * 24 * 12 * 12 * 12


def test_refused_layers_have_reasons() -> None:
    survey = survey_ranks(network(), PassContext(), OFF)
    assert {each.anchor: each.reason for each in survey.refused} == {
        "deep": "each of its 24 groups has one filter: its rank is 1",
        "y": "its weight is an input or computed, not constant",
    }
    assert not survey_ranks(network(), PassContext(), SurveyOptions(("wide",), Clock.OFF)).refused


def test_without_samples_errors_are_of_weights() -> None:
    model, context = trained()
    bare = survey_ranks(model.copy(), PassContext(feed=context.feed), OFF)
    told = survey_ranks(model.copy(), context, OFF)
    assert (bare.error_of, bare.samples, told.error_of, told.samples) == ("weights", None, "output", 48)
    assert {layer.error_of for layer in bare.layers} == {"weights"}
    assert {layer.error_of for layer in told.layers} == {"output"}
    assert sum(a.rank_90 < b.rank_90 for a, b in zip(told.layers, bare.layers, strict=True)) >= 4


def test_a_shared_weight_is_judged_by_itself() -> None:
    model = network()
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 16, 12, 12)).astype(np.float32)} for i in range(4)]
    survey = survey_ranks(model, PassContext(samples=Samples.from_feeds(feeds).for_inputs(model.inputs)), OFF)
    assert survey.error_of == "output"
    assert {layer.anchor: layer.error_of for layer in survey.layers} == {"wide": "output", "one": "weights"}


@pytest.mark.parametrize("with_samples", [True, False])
def test_errors_are_those_of_the_factors(with_samples: bool) -> None:
    model, context = trained()
    if not with_samples:
        context.samples = None
    survey = survey_ranks(model, context, OFF)
    nodes = {anchor_of(node): node for node in model.graph.nodes}
    anchors = [layer.anchor for layer in survey.layers]
    settings = Settings(POSITIONS, seed=context.seed, threads=context.threads)
    moments = collect_moments(model, anchors, context.samples, None, settings) if context.samples else {}
    checked = 0
    for layer in survey.layers:
        problem = problem_of(linear_layer(nodes[layer.anchor]), moments.get(layer.anchor))
        for found in layer.options:
            made = factored(problem, Form(Scheme(found.scheme), found.rank, found.inner))
            assert found.error == pytest.approx(problem.error(made.weight) / problem.energy(), abs=2e-6, rel=1e-4)
            checked += 1
    assert checked >= 12


def test_macs_are_those_of_the_factorized_model() -> None:
    model, context = trained()
    layer = survey_ranks(model.copy(), context, OFF).layers[1]
    point = next(curve for curve in layer.curves if curve.scheme == "channel").points[2]
    plan = FactorLowRank(rank=point.rank, only=(layer.anchor,), clock=Clock.OFF).plan(model, context)
    assert plan.layers[0].macs == point.macs
    assert plan.layers[0].error == pytest.approx(point.error, abs=2e-6)


def test_curves_fall_and_options_are_the_best_of_them() -> None:
    model, context = trained()
    for layer in survey_ranks(model, context, OFF).layers:
        assert 1 <= len(layer.options) <= 3
        for curve in layer.curves:
            costs, errors = zip(*((point.macs, point.error) for point in curve.points), strict=True)
            assert list(costs) == sorted(costs)
            assert list(errors) == sorted(errors, reverse=True)
            assert costs[-1] < 1
        for option, share in zip(layer.options, (0.75, 0.5, 0.25), strict=False):
            assert option.macs is not None
            assert option.macs <= share + 0.02
            others = [p for curve in layer.curves for p in curve.points if (p.macs or 0) <= option.macs]
            assert option.error <= min(point.error for point in others)


def test_unknown_shapes_are_said_to_be_unknown() -> None:
    layer = by_anchor(survey_ranks(network(dynamic=True), PassContext(), SurveyOptions()))["wide"]
    assert (layer.macs, layer.microseconds) == (None, None)
    assert {option.macs for option in layer.options} == {None}
    assert {option.why for option in layer.options} == {"its shapes are unknown"}
    assert all(option.bytes <= 0.77 and option.time is None and option.pays is None for option in layer.options)


class Stub:
    """A clock that says that one scheme is slow, and how often it was asked."""

    asked = 0

    def __init__(self, opset: int) -> None:
        self.known = self

    def keep(self) -> None:
        """Keep nothing."""

    def share(self, layer: object, form: Form, shape: tuple[int, ...]) -> float:
        Stub.asked += 1
        return 0.99 if form.scheme is Scheme.SPATIAL else 0.1


def test_the_clock_says_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FormClock", Stub)
    monkeypatch.setattr(Stub, "asked", 0)
    model, context = trained()
    survey = survey_ranks(model, context, SurveyOptions())
    options = [option for layer in survey.layers for option in layer.options]
    assert Stub.asked == len(options) <= 3 * len(survey.layers)
    assert {option.scheme for option in options if not option.pays} == {"spatial"}
    assert all("would take 99% of its time" in str(option.why) for option in options if not option.pays)
    assert all(option.why is None for option in options if option.pays)
    assert all(layer.microseconds and layer.microseconds > 0 for layer in survey.layers)


def test_the_clock_measures() -> None:
    model, context = trained(8)
    survey = survey_ranks(model, context, SurveyOptions(("*/2/*Conv*",)))
    assert [len(layer.options) for layer in survey.layers] == [3]
    assert all(option.time and 0.05 < option.time < 20 for option in survey.layers[0].options)


def test_activations_that_are_not_finite_are_said() -> None:
    model, context = trained(1)
    shape = next(iter(context.samples or ())).feed[model.inputs[0].name].shape
    bad = Samples.from_feeds([{model.inputs[0].name: np.full(shape, np.nan, np.float32)}]).for_inputs(model.inputs)
    with pytest.raises(PassError, match="NaN or Inf"):
        survey_ranks(model, PassContext(samples=bad), OFF)


def test_a_spectrum_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPECTRUM_POINTS", 6)
    layer = by_anchor(survey_ranks(network(), PassContext(), OFF))["wide"]
    assert [point.rank for point in layer.spectrum] == [1, 2, 4, 7, 13, 24]


def test_a_layer_too_large_is_not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ESTIMATED", 100_000)
    layers = by_anchor(survey_ranks(network(), PassContext(), OFF))
    assert (layers["wide"].vbmf is None, layers["one"].vbmf) == (False, 3)
    monkeypatch.setattr(module, "ESTIMATED", 10_000)
    assert by_anchor(survey_ranks(network(), PassContext(), OFF))["wide"].vbmf is None
