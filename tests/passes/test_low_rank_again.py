"""factor-low-rank and merge-linear together: what was factorized comes back, stays, or gets another rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from onnxslim.analysis import infer_shapes
from onnxslim.ir import Model, Rewriter
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import EXACT_PASSES, FactorLowRank
from onnxslim.passes.factor_low_rank import SchemeChoice
from onnxslim.passes.merge_linear import MergeLinear
from onnxslim.pipeline import Pass, PassContext, exact_fixed_point
from onnxslim.runtime import Level, Session, SessionConfig

Array = npt.NDArray[Any]
CHANNELS = 24


def model_of(rank: int) -> Model:
    """Two convolutions with a ReLU between, whose weights have this rank by channels."""
    rng = np.random.default_rng(0)
    shape = (CHANNELS, CHANNELS * 9)
    weights = [rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1])) / shape[1] for _ in range(2)]
    graph = oh.make_graph(
        [
            oh.make_node("Conv", ["x", "w0", "b0"], ["h"], pads=[1, 1, 1, 1]),
            oh.make_node("Relu", ["h"], ["a"]),
            oh.make_node("Conv", ["a", "w1", "b1"], ["y"], strides=[2, 2]),
        ],
        "g",
        [oh.make_tensor_value_info("x", 1, [1, CHANNELS, 9, 9])],
        [oh.make_tensor_value_info("y", 1, [1, CHANNELS, 4, 4])],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in (
                ("w0", weights[0].reshape(CHANNELS, CHANNELS, 3, 3)),
                ("w1", weights[1].reshape(CHANNELS, CHANNELS, 3, 3)),
                ("b0", rng.normal(size=CHANNELS)),
                ("b1", rng.normal(size=CHANNELS)),
            )
        ],
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    infer_shapes(model)
    return model


def after(model: Model, *passes: Pass) -> Model:
    changed = model.copy()
    feed = {"x": np.zeros((1, CHANNELS, 9, 9), np.float32)}
    for item in passes:
        rewriter = Rewriter(changed)
        item.run(rewriter, PassContext(feed=feed))
        rewriter.finish()
        infer_shapes(changed)
    return changed


def kinds(model: Model) -> list[tuple[str, int]]:
    """Return every node, and how many channels it makes where it is a convolution."""
    return [(node.op, int(node.inputs[1].shape[0]) if node.op == "Conv" else 0) for node in model.graph.nodes]


def run(model: Model) -> Array:
    session = Session(model.to_bytes(), SessionConfig(1, Level.NONE))
    feed = {"x": np.random.default_rng(1).normal(size=(1, CHANNELS, 9, 9)).astype(np.float32)}
    return np.asarray(session.run(feed)["y"])


@pytest.mark.parametrize("scheme", [SchemeChoice.CHANNEL, SchemeChoice.SPATIAL, SchemeChoice.TUCKER])
def test_a_factorization_that_is_worth_nothing_comes_back(scheme: SchemeChoice) -> None:
    """Forms of a rank that costs more than the layer, made by hand, are merged into the layer again."""
    model = model_of(CHANNELS)
    options = FactorLowRank(ratio=0.0, scheme=scheme, clock=Clock.OFF)
    plan = options.plan(model, PassContext())
    assert not plan.layers
    forced = FactorLowRank(rank=1, scheme=scheme, clock=Clock.OFF).plan(model, PassContext())
    whole = [
        layer.model_copy(update={"rank": layer.full_rank, "inner": None if layer.inner is None else CHANNELS})
        for layer in forced.layers
    ]
    split = model.copy()
    rewriter = Rewriter(split)
    options.apply(rewriter, forced.model_copy(update={"layers": tuple(whole)}), PassContext())
    rewriter.finish()
    infer_shapes(split)
    assert len(kinds(split)) > 3
    merged = after(split, MergeLinear())
    assert kinds(merged) == kinds(model)
    np.testing.assert_allclose(run(merged), run(model), atol=1e-4 * np.abs(run(model)).max())


def test_a_factorization_that_pays_stays() -> None:
    thin = after(model_of(4), FactorLowRank(rank=4, clock=Clock.OFF))
    assert kinds(thin) == [("Conv", 4), ("Conv", CHANNELS), ("Relu", 0), ("Conv", 4), ("Conv", CHANNELS)]
    assert exact_fixed_point(thin.copy(), [cls() for cls in EXACT_PASSES]) == 0


def test_an_old_bottleneck_gets_another_rank() -> None:
    """Made with twelve channels where four are enough: factorized again and merged, two layers of four are left."""
    old = after(model_of(4), FactorLowRank(rank=12, clock=Clock.OFF))
    assert [channels for _, channels in kinds(old)] == [12, CHANNELS, 0, 12, CHANNELS]
    new = after(old, FactorLowRank(rank=4, clock=Clock.OFF), MergeLinear())
    assert kinds(new) == [("Conv", 4), ("Conv", CHANNELS), ("Relu", 0), ("Conv", 4), ("Conv", CHANNELS)]
    np.testing.assert_allclose(run(new), run(model_of(4)), atol=1e-4 * np.abs(run(old)).max())


def test_the_same_again_changes_nothing() -> None:
    options = FactorLowRank(rank=4, clock=Clock.OFF)
    once = after(model_of(4), options, MergeLinear())
    twice = after(once, options, MergeLinear())
    assert kinds(twice) == kinds(once)
