"""prune-filters and the clock: what a budget saves is timed, and channels are rounded where that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.analysis import concrete_shapes, infer_shapes, model_cost
from onnxslim.ir import Model, Rewriter
from onnxslim.measure.stopwatch import Clock, Rounds, time_shares
from onnxslim.passes import PruneFilters, _budget
from onnxslim.pipeline import Costs, PassContext

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture
def where() -> tuple[Model, PassContext]:
    model = Model.load(MODELS / "vgg.onnx")
    infer_shapes(model)
    shape = tuple(int(size) if isinstance(size, int) else 1 for size in model.inputs[0].shape or ())
    cost = model_cost(model, concrete_shapes(model))
    feed = {model.inputs[0].name: np.zeros(shape, np.float32)}
    return model, PassContext(feed=feed, baseline=Costs(cost.bytes, cost.params, cost.macs))


def clocks(monkeypatch: pytest.MonkeyPatch, shares: Sequence[float]) -> list[int]:
    """Let the stopwatch say ``shares`` one after the other; return a list that grows with each look at it."""
    looks: list[int] = []

    def fake(*_: Any) -> list[float]:
        looks.append(len(looks))
        return [1.0, shares[len(looks) - 1]]

    monkeypatch.setattr(_budget, "time_shares", fake)
    return looks


def test_a_cut_that_pays_is_timed_once(where: tuple[Model, PassContext], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = clocks(monkeypatch, [0.3])
    plan = PruneFilters(macs=0.6).plan(*where)
    assert [(each.multiple, each.time) for each in plan.timed] == [(8, 0.3)]
    assert len(looks) == 1
    assert not any("time here" in reason for _, reason in plan.refused)


def test_coarser_channels_are_taken_where_they_are_faster(
    where: tuple[Model, PassContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks(monkeypatch, [0.95, 0.3])
    monkeypatch.setattr(_budget, "_loss", lambda *_: 1.0)
    plan = PruneFilters(macs=0.6).plan(*where)
    assert [each.chosen for each in plan.timed] == [False, True]
    assert [each.multiple for each in plan.timed] == [8, 16]
    model, context = where
    trial = model.copy()
    rewriter = Rewriter(trial)
    PruneFilters(macs=0.6).apply(rewriter, plan, context)
    rewriter.finish()
    widths = [node.inputs[1].shape[0] for node in trial.graph.nodes if node.op == "Conv"]
    assert all(width % 16 == 0 for width in widths)


def test_not_where_the_outputs_would_mind(where: tuple[Model, PassContext], monkeypatch: pytest.MonkeyPatch) -> None:
    clocks(monkeypatch, [0.95, 0.3])
    losses = iter([1.0, 1.2])
    monkeypatch.setattr(_budget, "_loss", lambda *_: next(losses))
    monkeypatch.setattr(_budget, "COARSEST", 16)
    assert [each.chosen for each in PruneFilters(macs=0.6).plan(*where).timed] == [True, False]


def test_where_nothing_pays_the_plan_says_so(where: tuple[Model, PassContext], monkeypatch: pytest.MonkeyPatch) -> None:
    clocks(monkeypatch, [0.95, 0.97, 0.99])
    plan = PruneFilters(macs=0.6).plan(*where)
    assert plan.timed[0].time == 0.95
    assert any(
        "take 95% of the time here, in multiples of 8 channels; 97% in multiples of 16" in reason
        for _, reason in plan.refused
    )


@pytest.mark.parametrize(
    "options",
    [
        lambda: PruneFilters(macs=0.6, clock=Clock.OFF),
        lambda: PruneFilters(bytes=0.6),
        lambda: PruneFilters(ratio=0.4),
        lambda: PruneFilters(macs=1.0),
    ],
    ids=["off", "bytes", "ratio", "nothing to save"],
)
def test_no_clock_where_time_was_not_asked_for(
    options: Callable[[], PruneFilters], where: tuple[Model, PassContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = clocks(monkeypatch, [])
    assert options().plan(*where).timed == ()
    assert not looks


def test_a_multiple_that_was_given_stays(where: tuple[Model, PassContext], monkeypatch: pytest.MonkeyPatch) -> None:
    clocks(monkeypatch, [0.99])
    plan = PruneFilters(macs=0.6, multiple=4).plan(*where)
    assert [each.multiple for each in plan.timed] == [4]


def test_replaying_a_plan_measures_nothing(where: tuple[Model, PassContext], monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = where
    plan = PruneFilters(macs=0.6).plan(model, context)
    looks = clocks(monkeypatch, [])
    PruneFilters(macs=0.6).apply(Rewriter(model.copy()), plan, context)
    assert not looks


def test_the_stopwatch_sees_what_is_slower(where: tuple[Model, PassContext]) -> None:
    model, context = where
    plan = PruneFilters(ratio=0.75).plan(model, context)
    small = model.copy()
    rewriter = Rewriter(small)
    PruneFilters(ratio=0.75).apply(rewriter, plan, context)
    rewriter.finish()
    assert context.feed is not None
    shares = time_shares([m.to_bytes() for m in (model, small, model)], [context.feed] * 3, Rounds(1.0, 20, 200))
    assert shares[0] == 1.0
    assert shares[1] < 0.8
    assert 0.8 < shares[2] < 1.25
