"""Few bits: fitted front to back, integers lose less than each layer on its own; the same samples, the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxslim.passes._qdq_fit as fitting
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import EXACT_PASSES, InsertQdq
from onnxslim.passes._qdq_judge import energies, sure_sqnr
from onnxslim.passes.insert_qdq import QdqPlan, Rounding
from onnxslim.pipeline import PassContext, exact_fixed_point
from onnxslim.runtime import Level, Reading, Session, SessionConfig
from onnxslim.samples import Samples

MODELS = Path(__file__).resolve().parents[2] / "models"


def prepared(name: str) -> Model:
    model = Model.load(MODELS / f"{name}.onnx")
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    return model


def samples_of(model: Model, name: str, count: int) -> Samples:
    return Samples.from_path(MODELS / f"digits_{name}.npz").take(count).for_inputs(model.inputs)


def quantized(model: Model, options: InsertQdq, plan: QdqPlan | None = None) -> tuple[Model, QdqPlan]:
    context = PassContext(samples=samples_of(model, "calib", 64), threads=1)
    plan = plan or options.plan(model, context)
    made = model.copy()
    rewriter = Rewriter(made)
    options.apply(rewriter, plan, context)
    rewriter.finish()
    onnx.checker.check_model(made.proto(), full_check=True)
    return made, plan


def kept_db(model: Model, made: Model) -> float:
    sides = []
    for one in (model, made):
        session = Session(one.to_bytes(), SessionConfig(level=Level.ALL, reading=Reading.DEFINITION))
        outputs = (session.run(sample.feed) for sample in samples_of(model, "eval", 100))
        sides.append([np.asarray(next(iter(values.values()))) for values in outputs])
    return sure_sqnr([energies(*pair) for pair in zip(*sides, strict=True)])


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_in_turn_loses_less_than_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, options = prepared(name), InsertQdq(weight_bits=3, min_sqnr=0.0)
    in_turn = kept_db(model, quantized(model, options)[0])
    monkeypatch.setattr(fitting, "FEW_BITS", 0)
    alone = kept_db(model, quantized(model, options)[0])
    assert in_turn > alone + 0.5


def test_the_same_samples_give_the_same_bytes_from_a_plan() -> None:
    model, options = prepared("mobilenet"), InsertQdq(weight_bits=4, min_sqnr=0.0)
    made, plan = quantized(model, options)
    again, _ = quantized(model, options, QdqPlan.model_validate_json(plan.model_dump_json()))
    assert made.to_bytes() == again.to_bytes()


def test_adaround_is_no_worse_than_second_order() -> None:
    model = prepared("mobilenet")
    found = {
        rounding: kept_db(model, quantized(model, InsertQdq(weight_bits=6, rounding=rounding, min_sqnr=0.0))[0])
        for rounding in Rounding
    }
    assert found[Rounding.ADAROUND] > found[Rounding.NEAREST]
    assert found[Rounding.ADAROUND] > found[Rounding.SECOND_ORDER] - 1.5
