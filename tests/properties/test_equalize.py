"""equalize on random graphs, trained models and all architectures: whatever the scales, outputs stay.

Scales are drawn at random, channel by channel, which is far more than balancing would ask for: an operator that does
not scale as its rule says, a forgotten bias or a wrong axis shows in the outputs. Powers of two change no bit of them.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from properties.builder import Array
from properties.comparing import assert_equal, run
from properties.random_graphs import Made, Recipe, recipes
from properties.test_exact_passes import BRIEF, LONG, TRAINED, all_passes, made, optimized, trained

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.equalizable import analyze_scales
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import Equalize
from onnxslim.passes._equalize_absorb import Absorb
from onnxslim.passes._equalize_clips import Relu6
from onnxslim.passes.equalize import EqualizePlan, GroupScales, Trials
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples
from tools.gallery import ARCHITECTURES
from tools.gallery.running import feed_of

LINEAR = (
    "conv", "conv", "conv", "conv_batchnorm", "residual", "inverted_residual", "squeeze_excitation", "shared_conv",
    "conv_transpose", "gemm", "matmul", "activation", "clip", "prelu", "scale_or_shift", "arithmetic", "concat",
    "split", "slicing", "pad", "pool", "global_pool", "reduce", "head", "flatten", "reshape", "reshape_by_shape",
    "squeeze", "transpose", "resize", "depth_to_space", "gather", "expand", "superfluous", "where", "branch",
    "classifier", "classifier", "upconv_batchnorm", "scaled_conv", "twice", "layer_norm", "instance_norm", "softmax",
)  # fmt: skip
NOTHING_TO_SCALE = {"tied-weights"}
"""Architectures without a channel that could be scaled."""
DENORMAL = 1e-30
"""Smaller numbers may lose bits when they are scaled."""


def random_plan(model: Model, seed: int, *, whole: bool) -> EqualizePlan:
    """Return a plan that scales every channel that can be, by chance, and gives every Clip bounds for each channel."""
    random = np.random.default_rng(seed)
    plan = Equalize(relu6=Relu6.CAPS).plan(model, PassContext())
    groups = []
    for group in analyze_scales(model).groups:
        drawn = random.uniform(-3, 3, group.units.size)
        log2 = np.round(drawn) if whole else drawn
        groups.append(GroupScales(anchor=group.anchor, layers=group.layers, log2=tuple(log2.tolist())))
    if {anchor for anchor, _ in plan.refused} & {cap.anchor for cap in analyze_scales(model).caps}:
        assume(False)
    return plan.model_copy(update={"groups": tuple(group for group in groups if group.log2)})


def applied(proto: onnx.ModelProto, plan: EqualizePlan) -> Model:
    """Replay a plan from its JSON."""
    model = Model.load(proto)
    rewriter = Rewriter(model)
    Equalize().apply(rewriter, EqualizePlan.model_validate_json(plan.model_dump_json()), PassContext())
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    return model


def assert_same_bits(before: dict[str, Array], after: dict[str, Array]) -> None:
    assert list(before) == list(after)
    for name, values in before.items():
        other = after[name]
        assert (values.shape, values.dtype) == (other.shape, other.dtype)
        if values.dtype.kind == "f":
            tiny = np.abs(values) < DENORMAL
            np.testing.assert_array_equal(np.where(tiny, 0, values), np.where(tiny, 0, other), name)
        else:
            np.testing.assert_array_equal(values, other, name)


def check(source: Made, seed: int, *, whole: bool) -> int:
    """Scale by powers of two, or by anything; return how many channels were scaled."""
    model = Model.load(source.proto)
    infer_shapes(model)
    plan = random_plan(model, seed, whole=whole)
    scaled = applied(source.proto, plan)
    if whole:
        assert_same_bits(run(source.proto, source.feed), run(scaled, source.feed))
    else:
        assert_equal(source.proto, scaled, source.feed, "float32")
    return sum(value != 0 for group in plan.groups for value in group.log2)


def recipe_source(recipe: Recipe, *, exact_first: bool) -> Made:
    source = made(recipe)
    if exact_first:
        source = Made(optimized(source, all_passes()).proto(), source.feed, recipe)
    return source


@pytest.mark.parametrize("whole", [True, False])
def test_random_graphs(whole: bool) -> None:
    scaled: Counter[bool] = Counter()

    @settings(BRIEF, max_examples=100)
    @given(recipes(LINEAR), st.integers(0, 99), st.booleans())
    def holds(recipe: Recipe, seed: int, exact_first: bool) -> None:
        scaled[check(recipe_source(recipe, exact_first=exact_first), seed, whole=whole) > 0] += 1

    holds()
    assert scaled[True] >= 10, "hardly any random graph has channels to scale"


@pytest.mark.slow
@LONG
@given(recipes(LINEAR), st.integers(0, 99), st.booleans(), st.booleans())
def test_random_graphs_long(recipe: Recipe, seed: int, exact_first: bool, whole: bool) -> None:
    check(recipe_source(recipe, exact_first=exact_first), seed, whole=whole)


def test_what_samples_decide_is_exact_on_them() -> None:
    """The pass itself, with the model's own feed as sample: Clips open, channels below them scale, constants move."""
    done: Counter[str] = Counter()
    item = Equalize(relu6=Relu6.KEEP, absorb=Absorb.ON, trial=Trials.OFF)

    @settings(BRIEF, max_examples=60)
    @given(recipes(LINEAR))
    def holds(recipe: Recipe) -> None:
        source = recipe_source(recipe, exact_first=True)
        assume(all(np.isfinite(value).all() for value in run(source.proto, source.feed).values()))
        model = Model.load(source.proto)
        samples = Samples.from_feeds([source.feed]).for_inputs(model.inputs)
        context = PassContext(samples=samples)
        rewriter = Rewriter(model)
        item.run(rewriter, context)
        rewriter.finish()
        assert_equal(source.proto, model, source.feed, "float32")
        assert isinstance(context.recorded, EqualizePlan)
        done["scaled"] += bool(context.recorded.groups)
        done["absorbed"] += bool(context.recorded.absorbed)

    holds()
    assert min(done["scaled"], done["absorbed"]) >= 3, done


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", TRAINED)
def test_trained_models(name: str, whole: bool) -> None:
    source = trained(name)
    assert check(Made(optimized(source, all_passes()).proto(), source.feed, source.recipe), 1, whole=whole) > 20


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str) -> None:
    """As exporters write them, with constants in nodes and BatchNormalization, and after all exact passes."""
    proto = ARCHITECTURES[name]()
    source = Made(proto, feed_of(proto), Recipe(()))
    check(source, 2, whole=True)
    exact = Made(optimized(source, all_passes()).proto(), source.feed, source.recipe)
    assert (check(exact, 2, whole=False) > 0) == (name not in NOTHING_TO_SCALE)
