"""The check that the manager is handed: onnx.checker, onnxruntime, and numbers against the original."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxslim.budget import Budgets
from onnxslim.errors import ModelError, SampleError, one_line
from onnxslim.ir import Model, producer
from onnxslim.measure import Comparison, Validation, validate, within_exact_tolerance
from onnxslim.pipeline import Effect, Verdict
from onnxslim.pipeline.base import Progress
from onnxslim.runtime import Level, RuntimeRefusal, Session, SessionConfig
from onnxslim.workflow.data import SampleSets

EXACT_SAMPLES = 4
"""Samples an exact rewrite is checked on: it must hold on every input, so a few show a wrong one."""

LOSSY_SAMPLES = 64
"""Samples a lossy pass is looked at on, unless a quality budget makes every sample count."""

_KNOWN_SPANS = {"Sigmoid": 1.0, "HardSigmoid": 1.0, "Softmax": 1.0, "Tanh": 2.0}
"""Range of outputs by the operator that computes them, of which some samples may use very little."""


@dataclass(frozen=True)
class Judge:
    """How candidates are judged: what ``Checker`` needs besides the original and the samples."""

    budgets: Budgets
    metric: str
    threads: int
    progress: Progress


class Checker:
    """Judges candidates against one original.

    An exact candidate must return the original's outputs within 1e-5 of their range, optimizations off in both. A lossy
    one fails on NaN or Inf that the original lacks, and on a stated quality budget.

    Raises:
        ModelError: onnxruntime does not run the original itself, so nothing could be proven.
    """

    def __init__(self, original: Model, samples: SampleSets, judge: Judge) -> None:
        self._original = original.to_bytes()
        self._samples = samples
        self._judge = judge
        self._spans = _known_spans(original)
        self._few = samples.evaluation.take(EXACT_SAMPLES)
        config = SessionConfig(judge.threads, Level.NONE)
        try:
            session = Session(self._original, config)
            self._expected = [session.run(sample.feed) for sample in self._few]
        except RuntimeRefusal as error:
            raise ModelError(
                f"onnxruntime does not run the model, so nothing can be proven ({error}): mend the model or the samples"
            ) from None

    def __call__(self, candidate: Model, effect: Effect) -> Verdict:
        """Judge one candidate."""
        data = candidate.to_bytes()
        try:
            onnx.checker.check_model(data)
            return self._check_exact(data) if effect is Effect.EXACT else self._check_lossy(data)
        except (onnx.checker.ValidationError, ValueError) as error:
            return Verdict(False, f"onnx.checker refuses the result: {one_line(error)}")
        except SampleError:
            raise
        except (RuntimeRefusal, ModelError) as error:
            return Verdict(False, f"onnxruntime refuses the result: {one_line(error)}")

    def _check_exact(self, data: bytes) -> Verdict:
        session = Session(data, SessionConfig(self._judge.threads, Level.NONE))
        comparison = Comparison()
        for sample, expected in zip(self._few, self._expected, strict=True):
            comparison.add(expected, session.run(sample.feed))
        outputs = comparison.result()
        validation = Validation(len(self._few), self._few.source.value, None, outputs)
        reason = within_exact_tolerance(outputs, self._spans)
        return Verdict(reason is None, reason, validation)

    def _check_lossy(self, data: bytes) -> Verdict:
        judge = self._judge
        samples = self._samples.evaluation
        validation = validate(
            self._original,
            data,
            samples if judge.budgets.of_quality else samples.take(LOSSY_SAMPLES),
            metric=judge.metric,
            held_out=self._samples.held_out,
            threads=judge.threads,
            all_readings=False,
            progress=judge.progress,
        )
        reason = _broken(validation, judge.budgets)
        return Verdict(reason is None, reason, validation)


def _broken(validation: Validation, budgets: Budgets) -> str | None:
    """Return why a lossy candidate may not stay, None when it may."""
    if not validation.finite:
        names = ", ".join(output.name for output in validation.outputs if not output.finite)
        return f"NaN or Inf in {names} that the original does not have"
    drop, sqnr = validation.metric, validation.sqnr_db
    if budgets.max_drop is not None and drop is not None and drop.drop > budgets.max_drop.value:
        return f"{drop.name} drops by {100 * drop.drop:.2f} points, more than --max-drop {budgets.max_drop.text}"
    if budgets.min_sqnr is not None and sqnr is not None and sqnr < budgets.min_sqnr.value:
        return f"SQNR is {sqnr:.1f} dB, less than --min-sqnr {budgets.min_sqnr.text}"
    return None


def _known_spans(model: Model) -> dict[str, float]:
    makers = ((tensor.name, producer(tensor)) for tensor in model.graph.outputs)
    return {name: _KNOWN_SPANS[node.op] for name, node in makers if node is not None and node.op in _KNOWN_SPANS}
