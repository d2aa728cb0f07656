"""The manager keeps what holds, rolls back what does not, and says which is which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Constant, Model, Rewriter
from onnxslim.pipeline import (
    Costs,
    Effect,
    Pass,
    PassContext,
    PassManager,
    Plan,
    PlannedPass,
    Status,
    Verdict,
    exact_fixed_point,
    option,
)
from onnxslim.runtime import Level, Session, SessionConfig

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[3] x) => (float[3] z) <float[3] w = {1, 2, 3}> {
  a = Neg(x)
  b = Neg(a)
  c = Neg(b)
  d = Neg(c)
  z = Mul(d, w)
}
"""


def load() -> Model:
    return Model.load(onnx.parser.parse_model(TEXT))


def run(data: bytes) -> np.ndarray[Any, Any]:
    feed = {"x": np.array([1, -2, 5], np.float32)}
    result = Session(data, SessionConfig(level=Level.NONE)).run(feed)["z"]
    assert isinstance(result, np.ndarray)
    return result


EXPECTED = run(load().to_bytes())


def check(candidate: Model, effect: Effect) -> Verdict:
    """Accept exact results only where they are equal, and lossy ones where they are finite."""
    actual = run(candidate.to_bytes())
    if effect is Effect.EXACT and not np.array_equal(actual, EXPECTED):
        return Verdict(False, "the outputs differ")
    return Verdict(bool(np.isfinite(actual).all()), "NaN or Inf in the outputs")


def costs(model: Model) -> Costs:
    return Costs(0, 0, len(model.graph.nodes))


@dataclass(frozen=True)
class CancelNegs(Pass):
    """Removes one pair of negations per sweep, so that it needs several rounds."""

    name = "cancel-negs"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        for node in rewriter.model.graph.nodes:
            inner = node.inputs[0].inputs
            if node.op == "Neg" and inner and inner[0].op == "Neg":
                rewriter.replace(node.outputs[0], inner[0].inputs[0])
                rewriter.remove(node)
                rewriter.remove(inner[0])
                return


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the weights: exact by its own account only."""

    name = "scale"
    effect: ClassVar[Effect] = Effect.EXACT
    factor: float = option(2.0, "what to multiply by")

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        mul = next(node for node in rewriter.model.graph.nodes if node.op == "Mul")
        weight = mul.inputs[1]
        assert isinstance(weight, Constant)
        if weight.values[0] == 1:
            rewriter.set_input(mul, 1, rewriter.constant("w", weight.values * np.float32(self.factor)))


@dataclass(frozen=True)
class LossyScale(Scale):
    """The same, honest about it."""

    name = "lossy-scale"
    effect = Effect.APPROXIMATE


@dataclass(frozen=True)
class Learn(Pass):
    """Finds out a shape once the negations are gone: knowledge, not an edit."""

    name = "learn"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        if [node.op for node in rewriter.model.graph.nodes] == ["Mul"]:
            rewriter.set_type(rewriter.model.graph.nodes[0].outputs[0], shape=["known"])


@dataclass(frozen=True)
class UseShape(Pass):
    """Waits for the shape that ``Learn`` finds out."""

    name = "use-shape"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        (last,) = [node for node in rewriter.model.graph.nodes if node.op == "Mul"]
        if last.outputs[0].shape == ["known"] and not last.name:
            last.name = "used"
            rewriter.set_input(last, 1, last.inputs[1])


@dataclass(frozen=True)
class Crash(Pass):
    """Breaks the graph, then raises."""

    name = "crash"
    effect = Effect.APPROXIMATE
    error: str = option("internal", "which error")

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        rewriter.remove(rewriter.model.graph.nodes[0])
        raise PassError("cannot do this here") if self.error == "refusal" else RuntimeError("oops")


@dataclass(frozen=True)
class Fidget(Pass):
    """Never comes to rest."""

    name = "fidget"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        rewriter.set_attr(rewriter.model.graph.nodes[0], "x", None)


class Factor(Plan):
    """A decision."""

    factor: float


@dataclass(frozen=True)
class PlannedScale(PlannedPass[Factor]):
    """Decides a factor from the samples."""

    name = "planned-scale"
    effect = Effect.APPROXIMATE
    plan_type = Factor
    needs_samples = True

    def plan(self, model: Model, context: PassContext) -> Factor:
        return Factor(factor=3.0)

    def apply(self, rewriter: Rewriter, plan: Factor, context: PassContext) -> None:
        Scale(factor=plan.factor).run(rewriter, context)


def manage(model: Model, *passes: Pass, **context: Any) -> list[tuple[str, Status]]:
    results = PassManager(passes, check, costs).run(model, PassContext(**context))
    return [(result.name, result.status) for result in results]


def test_exact_passes_run_to_a_fixed_point() -> None:
    model = load()
    results = PassManager([CancelNegs()], check, costs).run(model, PassContext())
    assert [node.op for node in model.graph.nodes] == ["Mul"]
    assert results[0].status is Status.KEPT
    assert (results[0].before.macs, results[0].after.macs) == (5, 1)
    assert exact_fixed_point(model, [CancelNegs()]) == 0


def test_what_the_last_edit_lets_a_pass_learn_is_used() -> None:
    model = load()
    exact_fixed_point(model, [Learn(), CancelNegs(), UseShape()])
    assert [node.name for node in model.graph.nodes] == ["used"]


def test_only_the_culprit_of_a_block_is_rolled_back() -> None:
    model = load()
    statuses = manage(model, CancelNegs(), Scale())
    assert statuses == [("cancel-negs", Status.KEPT), ("scale", Status.ROLLED_BACK)]
    assert [node.op for node in model.graph.nodes] == ["Mul"]
    np.testing.assert_array_equal(run(model.to_bytes()), EXPECTED)


def test_a_lossy_pass_is_kept_and_the_run_goes_on() -> None:
    model = load()
    statuses = manage(model, LossyScale(), LossyScale(factor=np.inf), CancelNegs())
    assert statuses[0] == ("lossy-scale", Status.KEPT)
    assert statuses[1] == ("lossy-scale", Status.UNCHANGED)


def test_nan_is_rolled_back_with_a_reason() -> None:
    model = load()
    (result,) = PassManager([LossyScale(factor=float("nan"))], check, costs).run(model, PassContext())
    assert result.status is Status.ROLLED_BACK
    assert result.reason == "NaN or Inf in the outputs"
    np.testing.assert_array_equal(run(model.to_bytes()), EXPECTED)


@pytest.mark.parametrize(
    ("error", "reason"), [("refusal", "cannot do this here"), ("internal", "crash: internal error: RuntimeError: oops")]
)
def test_a_pass_that_raises_leaves_no_trace(error: str, reason: str) -> None:
    model = load()
    before = model.to_bytes()
    (result,) = PassManager([Crash(error=error)], check, costs).run(model, PassContext())
    assert (result.status, result.reason) == (Status.FAILED, reason)
    assert model.to_bytes() == before


def test_a_pass_that_never_rests_is_stopped() -> None:
    with pytest.raises(PassError, match="still change the model"):
        exact_fixed_point(load(), [Fidget()])


def test_samples_are_asked_for_before_anything_runs() -> None:
    model = load()
    before = model.to_bytes()
    with pytest.raises(SpecError, match=r"'planned-scale' needs samples.*--data"):
        manage(model, CancelNegs(), PlannedScale())
    assert model.to_bytes() == before


def test_a_plan_is_recorded_and_replayed_without_samples() -> None:
    model = load()
    manager = PassManager([CancelNegs(), PlannedScale()], check, costs)
    results = manager.run(model, PassContext(), [{"factor": 5.0}])
    assert results[1].plan == {"factor": 5.0}
    np.testing.assert_array_equal(run(model.to_bytes()), EXPECTED * 5)


def test_a_plan_of_another_pipeline_is_refused() -> None:
    with pytest.raises(SpecError, match="decides 2 passes"):
        PassManager([PlannedScale()], check, costs).run(load(), PassContext(), [{}, {}])
