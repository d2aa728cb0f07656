"""Low rank on the gallery: at full rank every form of every layer gives the original, at half rank models still run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.recurrent_inputs import linear_part
from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import FactorLowRank
from onnxslim.passes._eligible import eligible
from onnxslim.passes._forms import Scheme, full, misfit
from onnxslim.passes.factor_low_rank import LayerRank, LowRankPlan
from onnxslim.pipeline import PassContext
from tools.gallery import ARCHITECTURES
from tools.gallery.running import apart, feed_of, run

TOLERANCE = 1e-5
EXACT_FORMS = [scheme for scheme in Scheme if scheme is not Scheme.CP]


def layer_rank(node: Node, turn: int) -> LayerRank:
    """Return a form of full rank for a layer: the next that it has, from turn to turn."""
    layer = linear_part(node)
    able = [scheme for scheme in EXACT_FORMS if misfit(layer, scheme) is None]
    scheme = able[turn % len(able)]
    form = full(layer, scheme)
    return LayerRank(anchor=anchor_of(node), scheme=scheme.value, rank=form.rank, full_rank=form.rank, inner=form.inner)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_full_rank_gives_the_original(name: str) -> None:
    proto = ARCHITECTURES[name]()
    feed = feed_of(proto)
    expected = run(proto, feed)
    for turn in range(len(EXACT_FORMS)):
        model = Model.load(proto)
        infer_shapes(model)
        shared, _ = eligible(model, (), (), spare_others=False)
        decided = [layer_rank(nodes[0], turn + at) for at, nodes in enumerate(shared)]
        layers = [
            layer.model_copy(update={"anchor": anchor_of(node)})
            for layer, nodes in zip(decided, shared, strict=True)
            for node in nodes
        ]
        assert layers, "no layer can be factorized"
        rewriter = Rewriter(model)
        FactorLowRank(ratio=0.0).apply(rewriter, LowRankPlan(layers=tuple(layers)), PassContext())
        rewriter.finish()
        onnx.checker.check_model(model.proto(), full_check=True)
        assert rewriter.edits > 0
        assert apart(expected, run(model, feed)) <= TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_rank_runs(name: str) -> None:
    proto = ARCHITECTURES[name]()
    feed = feed_of(proto)
    model = Model.load(proto)
    rewriter = Rewriter(model)
    FactorLowRank(ratio=0.7, clock=Clock.OFF).run(rewriter, PassContext(feed=feed))
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    expected, found = run(proto, feed), run(model, feed)
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert np.isfinite(found[key]).all()
