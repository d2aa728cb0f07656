"""factor-low-rank before a ReLU: targets that it does not tell from the original's, and what fitting to them wins."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxslim.analysis.rectified import Guess
from onnxslim.ir import Model, Rewriter
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import FactorLowRank
from onnxslim.passes.factor_low_rank import LowRankPlan, Refine
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Session
from onnxslim.samples import Samples

Array = npt.NDArray[Any]
INPUTS, OUTPUTS, RANK = 24, 32, 4


def relu(values: Array) -> Array:
    return np.maximum(values, 0.0)


@given(seed=st.integers(0, 10_000), groups=st.integers(1, 3), each=st.integers(1, 4), width=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_fit_to_the_targets_bounds_what_is_lost_behind_the_relu(
    seed: int, groups: int, each: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    guess = Guess(rng.normal(size=(groups, each, width)), rng.normal(size=groups * each))
    rows, wanted = rng.normal(size=(groups * width, 7)), rng.normal(size=(groups * each, 7))
    target = guess.rectified(wanted, rows)
    np.testing.assert_array_equal(relu(target), relu(wanted))
    made = np.stack([guess.weight[o // each, o % each] @ rows[o // each * width :][:width] for o in range(len(wanted))])
    both = (wanted <= 0) & (made + guess.bias[:, None] <= 0)
    np.testing.assert_allclose(target[both], (made + guess.bias[:, None])[both])
    anything = rng.normal(size=wanted.shape)
    assert ((relu(wanted) - relu(anything)) ** 2 <= (target - anything) ** 2 + 1e-12).all()


def rectified(last: str = "Relu") -> Model:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(INPUTS, OUTPUTS)), rng.normal(size=OUTPUTS) - 1.0
    graph = oh.make_graph(
        [oh.make_node("Gemm", ["x", "w", "b"], ["h"]), oh.make_node(last, ["h"], ["y"])],
        "g",
        [oh.make_tensor_value_info("x", 1, [1, INPUTS])],
        [oh.make_tensor_value_info("y", 1, [1, OUTPUTS])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in (("w", weight), ("b", bias))],
    )
    return Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))


def lost(model: Model, refine: Refine) -> tuple[float, LowRankPlan]:
    """Return what is lost behind the ReLU on the samples that fitted, relative."""
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, INPUTS)).astype(np.float32)} for _ in range(500)]
    context = PassContext(samples=Samples.from_feeds(feeds))
    changed = model.copy()
    rewriter = Rewriter(changed)
    options = FactorLowRank(rank=RANK, clock=Clock.OFF, refine=refine, samples=500)
    plan = options.plan(changed, context)
    options.apply(rewriter, plan, context)
    rewriter.finish()
    onnx.checker.check_model(changed.to_bytes())
    before, after = (Session(each.to_bytes()) for each in (model, changed))
    pairs = [(before.run(feed)["y"], after.run(feed)["y"]) for feed in feeds[:300]]
    return float(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a**2).sum() for a, _ in pairs)), plan


def test_fitting_to_what_a_relu_leaves_loses_less_of_it() -> None:
    plainly, plan = lost(rectified(), Refine.OFF)
    refined, other = lost(rectified(), Refine.RELU)
    assert refined < 0.95 * plainly
    assert plan.fit is not None
    assert other.fit is not None
    assert (plan.fit.refinements, other.fit.refinements) == (0, 2)


def test_nothing_changes_where_no_relu_follows() -> None:
    plainly, _ = lost(rectified("Tanh"), Refine.OFF)
    refined, _ = lost(rectified("Tanh"), Refine.RELU)
    assert refined == plainly
