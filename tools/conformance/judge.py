"""One case through every stage, judged by onnxruntime, or where that does not run the original, by onnx's evaluator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.errors import ModelError, OnnxslimError, PassError, UserError, one_line
from onnxslim.ir import Model, Rewriter
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import FactorLowRank, InsertQdq, PruneFilters
from onnxslim.pipeline import Costs, Pass, PassContext, exact_fixed_point
from onnxslim.runtime import Level, RuntimeRefusal, Session, SessionConfig
from onnxslim.samples import Samples
from onnxslim.workflow.registry import exact_passes
from tools.conformance.cases import Case

LOSSY: tuple[Pass, ...] = (PruneFilters(ratio=0.5), FactorLowRank(ratio=0.5, clock=Clock.OFF), InsertQdq())
STAGES = ("exact", *(item.name for item in LOSSY))

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}

Outputs = Sequence[Any]
Oracle = Callable[[bytes, dict[str, Any]], Outputs]


@dataclass(frozen=True)
class Result:
    """What became of a case at a stage: ``verdict`` is passed, unchanged, refused, failed or crashed."""

    name: str
    stage: str
    verdict: str
    reason: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether something is broken."""
        return self.verdict in ("failed", "crashed")


def judge(case: Case) -> list[Result]:
    """Put a case through all stages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _judge(case)


def _judge(case: Case) -> list[Result]:
    oracle, outputs = _oracle(case)
    try:
        exact = Model.load(case.model)
    except ModelError as error:
        runs = oracle is not None and _is_valid(case.model)
        return [Result(case.name, "exact", "failed" if runs else "refused", one_line(error))]
    before = exact.to_bytes()
    exact_fixed_point(exact, [kind() for kind in exact_passes()])
    data = exact.to_bytes()
    problem = _difference(case, oracle, outputs, data, exact=True)
    changed = "passed" if data != before else "unchanged"
    results = [Result(case.name, "exact", "failed" if problem else changed, problem or _by(oracle))]
    if problem is None:
        results += [_lossy(case, oracle, outputs, exact.copy(), item) for item in LOSSY]
    return results


def _lossy(case: Case, oracle: Oracle | None, outputs: list[Outputs] | None, model: Model, item: Pass) -> Result:
    before = model.to_bytes()
    rewriter = Rewriter(model)
    try:
        feed = case.feeds[0] if case.feeds else {}
        cost = model_cost(model, concrete_shapes(model, feed))
        context = PassContext(
            samples=Samples.from_feeds(list(case.feeds)).for_inputs(model.inputs),
            feed=feed,
            baseline=Costs(cost.bytes, cost.params, cost.macs),
        )
        item.run(rewriter, context)
        rewriter.finish()
    except (PassError, UserError, RuntimeRefusal) as error:
        return Result(case.name, item.name, "refused", one_line(error))
    data = model.to_bytes()
    if data == before:
        reason = rewriter.skipped[0].reason if rewriter.skipped else "nothing for it to do"
        return Result(case.name, item.name, "unchanged", reason)
    problem = _difference(case, oracle, outputs, data, exact=False)
    return Result(case.name, item.name, "failed" if problem else "passed", problem or _by(oracle))


# ---- oracles -----------------------------------------------------------------------------------------------------


def _oracle(case: Case) -> tuple[Oracle | None, list[Outputs] | None]:
    """Return the first of onnxruntime and onnx's evaluator that runs the original, with its outputs."""
    data = case.model.SerializeToString()
    for oracle in (_by_onnxruntime, _by_reference):
        try:
            return oracle, [oracle(data, feed) for feed in case.feeds]
        except Exception:  # noqa: S112  (whatever it raises, it does not run this model)
            continue
    return None, None


def _by_onnxruntime(data: bytes, feed: dict[str, Any]) -> Outputs:
    return list(Session(data, SessionConfig(1, Level.NONE)).run(feed).values())


def _by_reference(data: bytes, feed: dict[str, Any]) -> Outputs:
    return list(ReferenceEvaluator(onnx.load_model_from_string(data)).run(None, feed))


def _run(oracle: Oracle, data: bytes, feed: dict[str, Any]) -> Outputs:
    """Run a rewritten model as its original was run; a model of an old opset, converted, by either."""
    try:
        return oracle(data, feed)
    except Exception:  # whatever onnx's evaluator raises, it does not run this model; another may
        if oracle is _by_onnxruntime:
            raise
        with suppress(RuntimeRefusal):
            return _by_onnxruntime(data, feed)
        raise


def _by(oracle: Oracle | None) -> str:
    if oracle is None:
        return "structure only: nothing runs the original"
    return "onnxruntime" if oracle is _by_onnxruntime else "onnx's evaluator"


def _is_valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


def _difference(
    case: Case, oracle: Oracle | None, outputs: list[Outputs] | None, data: bytes, *, exact: bool
) -> str | None:
    """Return what is wrong with a rewritten model, None if nothing is."""
    try:
        if _is_valid(case.model):
            onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        return f"onnx.checker refuses it: {one_line(error)}"
    if oracle is None or outputs is None:
        return _structure(case.model, onnx.load_model_from_string(data))
    try:
        found = [_run(oracle, data, feed) for feed in case.feeds]
    except Exception as error:  # whatever it raises, it ran the original and does not run this
        if oracle is _by_reference and "No implementation for operator" in str(error):
            return _structure(case.model, onnx.load_model_from_string(data))
        return f"{_by(oracle)} refuses it: {one_line(error)}"
    loosely = not exact or _is_random(case.model)
    for ours, original, wanted in zip(found, outputs, case.expected, strict=True):
        for index, (value, reference) in enumerate(zip(ours, original, strict=True)):
            problem = _shape_or_nan(value, reference) if loosely else _value(value, reference)
            if problem is None and not loosely and index < len(wanted):
                problem = _expected(value, reference, wanted[index], case)
            if problem is not None:
                return f"output {index} {problem}"
    return None


def _shape_or_nan(value: Any, reference: Any) -> str | None:
    if not _alike(value, reference):
        return "has another type or shape"
    return "has NaN or Inf that the original lacks" if _bad(value) and not _bad(reference) else None


def _value(value: Any, reference: Any) -> str | None:
    if not _alike(value, reference):
        return "has another type or shape"
    rounding = _rounding(reference)
    return None if _close(value, reference, rounding, rounding) else "differs from the original's"


def _rounding(value: Any) -> float:
    """Return what an exact rewrite may change, relative to the range: 1e-5, or two units of a coarser type."""
    array = np.asarray(value[0] if isinstance(value, list) and value else value)
    return {"float16": 2e-3, "bfloat16": 16e-3}.get(array.dtype.name, 1e-5)


def _expected(value: Any, reference: Any, wanted: Any, case: Case) -> str | None:
    """The test's own expectation, where the original meets it."""
    meets = _close(reference, wanted, case.rtol, case.atol)
    return "differs from what the test expects" if meets and not _close(value, wanted, case.rtol, case.atol) else None


def _structure(before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
    for kind in ("input", "output"):
        ours, theirs = ([v.name for v in getattr(m.graph, kind) if v.name not in _stored(m)] for m in (after, before))
        if ours != theirs:
            return f"its {kind}s are {ours}, and were {theirs}"
    return None


def _stored(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def _is_random(model: onnx.ModelProto) -> bool:
    """Whether outputs are drawn: random operators, also in subgraphs and functions, and Dropout that trains."""
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        for node in stack.pop().node:
            if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.input) > 2):
                return True
            stack.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
    return False


# ---- comparing ---------------------------------------------------------------------------------------------------


def _alike(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(_alike, ours, theirs))
    if isinstance(theirs, np.ndarray):
        return isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype and ours.shape == theirs.shape
    return type(ours) is type(theirs)


def _close(ours: Any, theirs: Any, rtol: float, atol: float) -> bool:
    if isinstance(theirs, list):
        return (
            isinstance(ours, list)
            and len(ours) == len(theirs)
            and all(_close(a, b, rtol, atol) for a, b in zip(ours, theirs, strict=True))
        )
    if ours is None or theirs is None or isinstance(theirs, dict):
        return bool(ours == theirs)
    left, right = np.asarray(ours), np.asarray(theirs)
    if left.shape != right.shape:
        return False
    if right.dtype.kind in "OUSb":
        return bool(np.all(left.astype(str) == right.astype(str)))
    if right.dtype.kind == "c":
        return bool(np.allclose(left, right, rtol, atol, equal_nan=True))
    span = _span(right)
    return bool(
        np.allclose(left.astype(np.float64), right.astype(np.float64), rtol, max(atol, rtol * span), equal_nan=True)
    )


def _span(values: np.ndarray) -> float:
    finite = values.astype(np.float64)[np.isfinite(values.astype(np.float64))]
    return float(np.ptp(finite)) if finite.size else 0.0


def _bad(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_bad, value))
    array = np.asarray(value)
    return array.dtype.kind == "f" and not bool(np.isfinite(array).all())


def crash(name: str, error: BaseException | str) -> Result:
    """Return the result of a case in which something was raised that nothing should raise."""
    said = error if isinstance(error, str) else f"{type(error).__name__}: {one_line(error)}"
    return Result(name, "any", "failed" if isinstance(error, OnnxslimError) else "crashed", said)
