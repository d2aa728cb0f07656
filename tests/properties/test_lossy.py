"""Every lossy pass on random graphs, alone and in a row: valid, loadable, finite, of the same shapes, with reasons."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from properties.builder import Array
from properties.comparing import run
from properties.random_graphs import Made, Recipe, recipes
from properties.test_exact_passes import BRIEF, LONG, TRAINED, all_passes, made, trained

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.errors import PassError
from onnxslim.ir import Model, Rewriter
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import FactorLowRank, InsertQdq, PruneFilters
from onnxslim.passes.factor_low_rank import Estimate, SchemeChoice
from onnxslim.pipeline import Costs, Pass, PassContext, exact_fixed_point
from onnxslim.runtime import Level, Reading, RuntimeRefusal, Session, SessionConfig
from onnxslim.samples import Samples

fraction = st.floats(0, 1)
schemes, clocks = st.sampled_from(SchemeChoice), st.sampled_from(Clock)
PRUNE = st.one_of(st.builds(PruneFilters, ratio=fraction), st.builds(PruneFilters, macs=fraction))
FACTOR = st.one_of(
    *(
        st.builds(FactorLowRank, **{name: fraction}, scheme=schemes, clock=clocks)
        for name in ("ratio", "energy", "macs", "bytes")
    ),
    st.builds(FactorLowRank, rank=st.integers(1, 4), scheme=schemes, clock=clocks),
    st.builds(FactorLowRank, estimate=st.just(Estimate.VBMF), scheme=schemes, clock=clocks),
)
QDQ = st.builds(InsertQdq, per_channel=st.booleans())
TYPES = ("float32", "float32", "float32", "float64", "float16")


def context_of(model: Model, feed: dict[str, Array]) -> PassContext:
    cost = model_cost(model, concrete_shapes(model, feed))
    samples = Samples.from_feeds([feed]).for_inputs(model.inputs)
    return PassContext(samples=samples, feed=feed, baseline=Costs(cost.bytes, cost.params, cost.macs))


def apply(model: Model, item: Pass, context: PassContext) -> bool:
    """Run one pass; return whether it went through. A goal out of reach leaves no trace but its reason."""
    before = model.copy()
    rewriter = Rewriter(model)
    try:
        item.run(rewriter, context)
    except PassError as error:
        if not any(known in str(error) for known in ("out of reach", "cannot be counted", "cannot be converted")):
            raise
        model.restore(before)
        return False
    rewriter.finish()
    assert all(mismatch.reason and mismatch.anchor for mismatch in rewriter.skipped)
    assert rewriter.edits or [n.op for n in model.graph.nodes] == [n.op for n in before.graph.nodes]
    return True


def runnable(recipe: Recipe) -> Made:
    """Return a model that onnxruntime runs: it moves a Transpose behind a linear Resize, and then refuses that."""
    source = made(recipe)
    try:
        Session(source.proto.SerializeToString()).run(source.feed)
    except RuntimeRefusal:
        reject()
    return source


def check(source: Made, items: list[Pass], *, exact_first: bool) -> None:
    """Whatever a lossy pass loses, it loses no output, no shape, and no number to NaN."""
    model = Model.load(source.proto)
    context = context_of(model, source.feed)
    if exact_first:
        exact_fixed_point(model, all_passes())
    for item in items:
        apply(model, item, context)
        onnx.checker.check_model(model.proto(), full_check=True)
    expected = run(source.proto, source.feed)
    for config in (SessionConfig(level=Level.NONE), SessionConfig(reading=Reading.DEFINITION), SessionConfig()):
        found = Session(model.to_bytes(), config).run(source.feed)
        assert list(found) == list(expected)
        for name, values in found.items():
            assert values.shape == expected[name].shape, name
            assert values.dtype == expected[name].dtype, name
            assert np.isfinite(values[np.isfinite(expected[name])]).all(), f"{name} became NaN or Inf"


@pytest.mark.parametrize("kind", [PRUNE, FACTOR, QDQ], ids=["prune", "factor", "qdq"])
def test_one_pass(kind: st.SearchStrategy[Pass]) -> None:
    @BRIEF
    @given(recipes(dtypes=TYPES), kind, st.booleans())
    def holds(recipe: Recipe, item: Pass, exact_first: bool) -> None:
        check(runnable(recipe), [item], exact_first=exact_first)

    holds()


@BRIEF
@given(recipes(dtypes=TYPES), PRUNE, FACTOR, QDQ, st.booleans())
def test_all_three_in_a_row(recipe: Recipe, prune: Pass, factor: Pass, qdq: Pass, exact_first: bool) -> None:
    check(runnable(recipe), [prune, factor, qdq], exact_first=exact_first)


@pytest.mark.slow
@LONG
@given(recipes(dtypes=TYPES), PRUNE, FACTOR, QDQ, st.booleans())
def test_all_three_in_a_row_long(recipe: Recipe, prune: Pass, factor: Pass, qdq: Pass, exact_first: bool) -> None:
    check(runnable(recipe), [prune, factor, qdq], exact_first=exact_first)


@pytest.mark.parametrize("name", TRAINED)
def test_all_three_on_trained_models(name: str) -> None:
    items: list[Pass] = [PruneFilters(ratio=0.3), FactorLowRank(energy=0.9), InsertQdq()]
    check(trained(name), items, exact_first=True)
