"""insert-qdq with the clock: what is slower as integers stays in float, what is not measured stays as it was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from gallery import GALLERY, Builder

import onnxslim.passes._qdq_clock as clock
from onnxslim.ir import Model
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import InsertQdq
from onnxslim.passes.insert_qdq import QdqPlan, Rounding
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Feed, RuntimeRefusal
from onnxslim.runtime.placement import LayerPlacement
from onnxslim.samples import Samples

TIMED = InsertQdq(rounding=Rounding.NEAREST, min_sqnr=0.0, clock=Clock.ON)
UNTIMED = InsertQdq(rounding=Rounding.NEAREST, min_sqnr=0.0)


def planned(options: InsertQdq) -> QdqPlan:
    model = GALLERY["resnet"](Builder())
    shape = [8, *(dim if isinstance(dim, int) else 1 for dim in (model.inputs[0].shape or ())[1:])]
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    samples = Samples.from_arrays({"x": values}).for_inputs(model.inputs)
    return options.plan(model, PassContext(samples=samples, feed={"x": values[:1]}, threads=1))


def fake_times(monkeypatch: pytest.MonkeyPatch, slow: str, share: float, whole: float) -> None:
    """Let one integer operator take three times as long, a model without it ``share``, the quantized one ``whole``."""
    timed = clock._timed_layers

    def layers(model: Model, feed: Feed) -> Sequence[LayerPlacement]:
        found = timed(model, feed)
        integer = any("QuantizeLinear" in node.op for node in model.graph.nodes)
        return [replace(one, microseconds=300.0 if integer and slow == one.op else 100.0) for one in found]

    def shares(first: Model, second: Model, feed: Feed) -> float:
        return share if any("QuantizeLinear" in node.op for node in first.graph.nodes) else whole

    monkeypatch.setattr(clock, "_timed_layers", layers)
    monkeypatch.setattr(clock, "_share", shares)


def test_what_is_slower_stays_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_times(monkeypatch, "Add", share=0.8, whole=0.5)
    reasons = dict(planned(TIMED).refused)
    given_up = [reason for reason in reasons.values() if "slower as integers on this machine: 300 µs" in reason]
    assert len(given_up) >= 2
    assert len(planned(TIMED).nodes) <= len(planned(UNTIMED).nodes) - len(given_up)


def test_what_is_slower_alone_stays_integer_where_the_model_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_times(monkeypatch, "Add", share=1.0, whole=0.5)
    assert planned(TIMED).nodes == planned(UNTIMED).nodes


def test_nothing_becomes_integer_where_the_model_would_be_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_times(monkeypatch, "nothing", share=1.0, whole=1.2)
    plan = planned(TIMED)
    assert plan.nodes == ()
    assert "120% of its time in float" in plan.refused[0][1]


def test_what_cannot_be_timed_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(model: Model, feed: Feed) -> Sequence[LayerPlacement]:
        raise RuntimeRefusal("no")

    monkeypatch.setattr(clock, "_timed_layers", refuses)
    assert planned(TIMED).nodes == planned(UNTIMED).nodes


def test_with_a_real_clock() -> None:
    """Whatever this machine says: each node is integer, or has a reason."""
    timed, untimed = planned(TIMED), planned(UNTIMED)
    assert set(timed.nodes) <= set(untimed.nodes)
    assert set(untimed.nodes) - set(timed.nodes) <= {anchor for anchor, _ in timed.refused} | set(untimed.nodes)
