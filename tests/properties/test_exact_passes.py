"""Exact passes on random graphs and on trained models: equal outputs alone, together and in any order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from properties.comparing import TOLERANCE, assert_equal, run
from properties.random_graphs import Made, Recipe, build, recipes

from onnxslim.ir import Model
from onnxslim.passes import EXACT_PASSES
from onnxslim.pipeline import Pass, exact_fixed_point
from onnxslim.runtime import RuntimeRefusal

MODELS = Path(__file__).resolve().parents[2] / "models"
TRAINED = ("inception", "mobilenet", "nin", "resnet", "vgg")
BRIEF = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)
LONG = settings(BRIEF, max_examples=3000)
ALL_TYPES = ("float32", "float32", "float32", "float64", "float16")


def made(recipe: Recipe) -> Made:
    """Build, and leave out what onnxruntime has no kernel for."""
    result = build(recipe)
    try:
        run(result.proto, result.feed)
    except RuntimeRefusal:
        assume(False)
    return result


def trained(name: str) -> Made:
    proto = onnx.load(MODELS / f"{name}.onnx")
    (spec,) = Model.load(proto).inputs
    shape = [dim if isinstance(dim, int) else 2 for dim in spec.shape or ()]
    feed = {spec.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    return Made(proto, feed, Recipe(()))


def optimized(source: Made, passes: list[Pass]) -> Model:
    model = Model.load(source.proto)
    exact_fixed_point(model, passes)
    onnx.checker.check_model(model.proto(), full_check=True)
    return model


def check(source: Made, passes: list[Pass]) -> None:
    """Equal outputs; the same bytes again, from the same model and from its own file, without one edit."""
    model = optimized(source, passes)
    assert_equal(source.proto, model, source.feed, source.recipe.dtype)
    data = model.to_bytes()
    assert exact_fixed_point(model, passes) == 0
    assert model.to_bytes() == data
    reloaded = Model.load(data)
    assert exact_fixed_point(reloaded, passes) == 0, "a second run edits what the first one left"
    assert reloaded.to_bytes() == data
    assert optimized(source, passes).to_bytes() == data, "the same input gives other bytes"


def all_passes() -> list[Pass]:
    return [cls() for cls in EXACT_PASSES]


# ---- one pass ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", EXACT_PASSES)
def test_one_pass(cls: type[Pass]) -> None:
    @settings(BRIEF, max_examples=25)
    @given(recipes(dtypes=ALL_TYPES))
    def holds(recipe: Recipe) -> None:
        check(made(recipe), [cls()])

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("cls", EXACT_PASSES)
def test_one_pass_long(cls: type[Pass]) -> None:
    @settings(LONG)
    @given(recipes(dtypes=ALL_TYPES))
    def holds(recipe: Recipe) -> None:
        check(made(recipe), [cls()])

    holds()


@pytest.mark.parametrize("name", TRAINED)
def test_one_pass_on_trained_models(name: str) -> None:
    source = trained(name)
    for cls in EXACT_PASSES:
        assert_equal(source.proto, optimized(source, [cls()]), source.feed, "float32")


# ---- all passes --------------------------------------------------------------------------------------------------


@settings(BRIEF, max_examples=150)
@given(recipes(dtypes=ALL_TYPES))
def test_all_passes(recipe: Recipe) -> None:
    check(made(recipe), all_passes())


@pytest.mark.slow
@LONG
@given(recipes(dtypes=ALL_TYPES))
def test_all_passes_long(recipe: Recipe) -> None:
    check(made(recipe), all_passes())


@pytest.mark.parametrize("name", TRAINED)
def test_all_passes_on_trained_models(name: str) -> None:
    check(trained(name), all_passes())


def in_any_order(recipe: Recipe, order: list[Pass]) -> None:
    source = made(recipe)
    assert_equal(source.proto, optimized(source, order), source.feed, recipe.dtype)


@BRIEF
@given(recipes(), st.permutations(all_passes()))
def test_any_order(recipe: Recipe, order: list[Pass]) -> None:
    in_any_order(recipe, order)


@pytest.mark.slow
@LONG
@given(recipes(dtypes=ALL_TYPES), st.permutations(all_passes()))
def test_any_order_long(recipe: Recipe, order: list[Pass]) -> None:
    in_any_order(recipe, order)


@settings(BRIEF, max_examples=5)
@given(st.sampled_from(TRAINED), st.permutations(all_passes()))
def test_any_order_on_trained_models(name: str, order: list[Pass]) -> None:
    source = trained(name)
    assert_equal(source.proto, optimized(source, order), source.feed, "float32")


# ---- the graphs themselves ---------------------------------------------------------------------------------------


@BRIEF
@given(recipes(dtypes=ALL_TYPES))
def test_random_graphs_are_valid_and_small(recipe: Recipe) -> None:
    source = build(recipe)
    onnx.checker.check_model(source.proto, full_check=True)
    assert len(source.proto.graph.node) < 150  # Constant nodes count too
    assert build(dataclasses.replace(recipe)).proto.SerializeToString() == source.proto.SerializeToString()
    assert set(TOLERANCE) >= {recipe.dtype}
