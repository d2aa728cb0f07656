"""prune-filters on random graphs against its oracle, which knows nothing of groups.

Every weight of the pruned model must be a part of the original's. The original in which the weights that read what is
missing are zero must give the same outputs: see ``tools.gallery.oracle``.
"""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.comparing import assert_equal
from properties.random_graphs import Made, Recipe, recipes
from properties.test_exact_passes import BRIEF, LONG, TRAINED, all_passes, made, optimized, trained

from onnxslim.ir import Model, Rewriter
from onnxslim.passes import PruneCriterion, PruneFilters
from onnxslim.passes._ranking import needs_samples
from onnxslim.passes.prune_filters import PrunePlan
from onnxslim.pipeline import PassContext
from tools.gallery.oracle import zeroed

WITHOUT_SAMPLES = [criterion for criterion in PruneCriterion if not needs_samples(criterion)]
options = st.builds(
    PruneFilters, ratio=st.floats(0.05, 1), criterion=st.sampled_from(WITHOUT_SAMPLES), multiple=st.integers(1, 4)
)
PRUNABLE = (
    "conv", "conv_batchnorm", "residual", "inverted_residual", "squeeze_excitation", "conv_transpose", "matmul", "gemm",
    "activation", "clip", "prelu", "scale_or_shift", "arithmetic", "concat", "split", "slicing", "pad", "pool",
    "global_pool", "reduce", "head", "flatten", "reshape", "reshape_by_shape", "squeeze", "transpose", "resize",
    "depth_to_space", "gather", "expand", "superfluous", "where", "branch", "layer_norm", "instance_norm", "softmax",
    "conv", "conv", "conv_batchnorm", "conv_batchnorm", "conv_transpose", "flatten", "classifier", "classifier",
    "upconv_batchnorm",
)  # fmt: skip


def prune(model: Model, item: PruneFilters) -> tuple[Model, PrunePlan]:
    """Prune, replaying the plan from its JSON, and check what every result must hold."""
    before = model.to_bytes()
    plan = item.plan(model, PassContext())
    pruned = Model.load(before)
    rewriter = Rewriter(pruned)
    item.apply(rewriter, PrunePlan.model_validate_json(plan.model_dump_json()), PassContext())
    rewriter.finish()
    onnx.checker.check_model(pruned.proto(), full_check=True)
    assert all(reason for _, reason in plan.refused)
    assert {mismatch.anchor for mismatch in rewriter.skipped} == {anchor for anchor, _ in plan.refused}
    assert all(0 < len(cut.remove) < cut.size for cut in plan.cuts)
    assert plan.cuts or pruned.to_bytes() == before
    return pruned, plan


def check(source: Made, item: PruneFilters) -> int:
    original = Model.load(source.proto)
    pruned, plan = prune(original, item)
    expected, layers = zeroed(source.proto, pruned.proto())
    assert layers or not plan.cuts
    assert_equal(expected, pruned, source.feed, source.recipe.dtype)
    return len(layers)


def check_recipe(recipe: Recipe, item: PruneFilters, *, exact_first: bool) -> int:
    source = made(recipe)
    if exact_first:
        source = Made(optimized(source, all_passes()).proto(), source.feed, recipe)
    return check(source, item)


def test_random_graphs() -> None:
    cut: Counter[bool] = Counter()

    @settings(BRIEF, max_examples=120)
    @given(recipes(PRUNABLE), options, st.booleans())
    def holds(recipe: Recipe, item: PruneFilters, exact_first: bool) -> None:
        cut[check_recipe(recipe, item, exact_first=exact_first) > 0] += 1

    holds()
    assert cut[True] >= 3, "hardly any random graph has channels to cut"


@pytest.mark.slow
@LONG
@given(recipes(PRUNABLE), options, st.booleans())
def test_random_graphs_long(recipe: Recipe, item: PruneFilters, exact_first: bool) -> None:
    check_recipe(recipe, item, exact_first=exact_first)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_models(name: str) -> None:
    assert check(trained(name), PruneFilters(ratio=0.4)) > 3
