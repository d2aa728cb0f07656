"""factor-low-rank at full rank loses nothing: layers of every kind, shape and spelling, alone and in random graphs."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.comparing import assert_equal
from properties.random_graphs import Made, Recipe, recipes
from properties.test_exact_passes import BRIEF, LONG, TRAINED, made, trained

from onnxslim.analysis.linear_layers import linear_layer, refusal
from onnxslim.ir import Model, Rewriter, anchor_of, graph_nodes
from onnxslim.passes import FactorLowRank
from onnxslim.passes._forms import Scheme, full_rank
from onnxslim.passes.factor_low_rank import LayerRank, LowRankPlan
from onnxslim.pipeline import PassContext

LAYERS = ("conv", "conv_batchnorm", "shared_conv", "residual", "gemm", "matmul", "classifier", "attention")


def at_full_rank(model: Model) -> LowRankPlan:
    """Return the plan that splits every layer the pass can split, losing nothing.

    A layer is known to be one that can be split by the reason for which ``ratio=0`` leaves it alone.
    """
    plan = FactorLowRank(ratio=0).plan(model, PassContext())
    able = [anchor for anchor, reason in plan.refused if "nothing to gain" in reason]
    nodes = {anchor_of(node): node for _, node in graph_nodes(model.graph) if refusal(node) is None}
    layers = []
    for anchor in able:
        rank = full_rank(linear_layer(nodes[anchor]), Scheme.CHANNEL)
        layers.append(LayerRank(anchor=anchor, scheme="channel", rank=rank, full_rank=rank))
    return LowRankPlan(layers=tuple(layers))


def check(source: Made) -> int:
    model = Model.load(source.proto)
    plan = at_full_rank(model)
    rewriter = Rewriter(model)
    FactorLowRank(ratio=0).apply(rewriter, LowRankPlan.model_validate_json(plan.model_dump_json()), PassContext())
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    assert_equal(source.proto, model, source.feed, source.recipe.dtype)
    assert len(model.graph.nodes) == len(Model.load(source.proto).graph.nodes) + len(plan.layers)
    return len(plan.layers)


@settings(BRIEF, max_examples=150)
@given(recipes(LAYERS, most=1))
def test_one_layer(recipe: Recipe) -> None:
    check(made(recipe))


def test_random_graphs() -> None:
    split: Counter[bool] = Counter()

    @BRIEF
    @given(recipes(dtypes=("float32", "float32", "float64")))
    def holds(recipe: Recipe) -> None:
        split[check(made(recipe)) > 0] += 1

    holds()
    assert split[True] >= 4, "hardly any random graph has layers to split"


@pytest.mark.slow
@LONG
@given(st.one_of(recipes(LAYERS, most=3), recipes(dtypes=("float32", "float64"))))
def test_random_graphs_long(recipe: Recipe) -> None:
    check(made(recipe))


@pytest.mark.parametrize("name", TRAINED)
def test_trained_models(name: str) -> None:
    assert check(trained(name)) > 3
