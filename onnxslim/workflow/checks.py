"""The check that the manager is handed: onnx.checker, onnxruntime, and numbers against the original."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx

from onnxslim.budget import Budgets
from onnxslim.errors import ModelError, SampleError, one_line
from onnxslim.ir import Model, producer
from onnxslim.ir.saving import Placed
from onnxslim.measure import Comparison, Validation, ValidationSettings, validate, within_exact_tolerance
from onnxslim.pipeline import Effect, Verdict
from onnxslim.pipeline.base import Progress
from onnxslim.runtime import Level, RuntimeRefusal, SessionConfig
from onnxslim.runtime.apart import open_session
from onnxslim.workflow.data import SampleSets
from onnxslim.workflow.source import Source

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

    def __init__(self, original: Source, samples: SampleSets, judge: Judge) -> None:
        self._original = original
        self._samples = samples
        self._judge = judge
        self._spans = _known_spans(original.model)
        self._few = samples.evaluation.take(EXACT_SAMPLES)
        try:
            self._expected = list(self._outputs(original.placed, apart=original.model.is_large))
        except RuntimeRefusal as error:
            raise ModelError(
                f"onnxruntime does not run the model, so nothing can be proven ({error}): mend the model or the samples"
            ) from None

    def __call__(self, candidate: Model, effect: Effect) -> Verdict:
        """Judge one candidate."""
        placed = candidate.placed()
        apart = candidate.is_large or self._original.model.is_large
        try:
            onnx.checker.check_model(placed.data if isinstance(placed.data, bytes) else str(placed.data))
            return self._check_exact(placed, apart) if effect is Effect.EXACT else self._check_lossy(placed, apart)
        except (onnx.checker.ValidationError, ValueError) as error:
            return Verdict(False, f"onnx.checker refuses the result: {one_line(error)}")
        except SampleError:
            raise
        except (RuntimeRefusal, ModelError) as error:
            return Verdict(False, f"onnxruntime refuses the result: {one_line(error)}")

    def _outputs(self, placed: Placed, *, apart: bool) -> Iterator[dict[str, Any]]:
        """Run a model, literally as it is written, on the few samples."""
        config = SessionConfig(self._judge.threads, Level.NONE, patience=self._few.patience)
        with open_session(placed.data, config, apart=apart) as session:
            for sample in self._few:
                yield session.run(sample.feed)

    def _check_exact(self, placed: Placed, apart: bool) -> Verdict:
        comparison = Comparison()
        for expected, found in zip(self._expected, self._outputs(placed, apart=apart), strict=True):
            comparison.add(expected, found)
        outputs = comparison.result()
        validation = Validation(len(self._few), self._few.source.value, None, outputs)
        reason = within_exact_tolerance(outputs, self._spans)
        return Verdict(reason is None, reason, validation)

    def _check_lossy(self, placed: Placed, apart: bool) -> Verdict:
        judge = self._judge
        samples = self._samples.evaluation
        validation = validate(
            self._original.placed.data,
            placed.data,
            samples if judge.budgets.of_quality else samples.take(LOSSY_SAMPLES),
            ValidationSettings(judge.metric, self._samples.held_out, judge.threads, all_readings=False, apart=apart),
            judge.progress,
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
