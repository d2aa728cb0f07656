"""How far a candidate's outputs are from the reference's, accumulated sample by sample in fixed memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import ModelError

Array = npt.NDArray[Any]

SQNR_CAP = 200.0
"""Decibels; what equal outputs get."""

EXACT_TOLERANCE = 1e-5
"""Largest difference of an exact rewrite, relative to the output's range."""


@dataclass(frozen=True)
class OutputNumerics:
    """One output over all samples. Distances are None where they are not defined.

    ``max_rel`` is ``max_abs`` relative to the range (largest minus smallest value) of the reference's output;
    ``sqnr_db`` is 10·log10(Σ ref² / Σ (ref − cand)²); ``top1_agreement`` exists where the output is one vector of
    scores per sample: (N, C) apart from axes of size 1, floating point, C ≥ 2.
    """

    name: str
    finite: bool
    max_abs: float | None = None
    mean_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    top1_agreement: float | None = None


class Comparison:
    """Accumulates the numerics of all outputs; give it pairs of outputs, then ask for :meth:`result`."""

    def __init__(self) -> None:
        self._outputs: dict[str, _Accumulator] = {}

    def add(self, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """Account for one sample's outputs.

        Raises:
            ModelError: the candidate lacks an output, or one has another shape.
        """
        for name, value in reference.items():
            if name not in candidate:
                raise ModelError(
                    f"the candidate has no output {name!r}, which the reference returns: compare like models"
                )
            accumulator = self._outputs.setdefault(name, _Accumulator(name))
            accumulator.add(_as_arrays(value), _as_arrays(candidate[name]))

    def result(self) -> tuple[OutputNumerics, ...]:
        """Return the numerics of every output, in the reference's order."""
        return tuple(accumulator.result() for accumulator in self._outputs.values())


def _as_arrays(value: Any) -> list[Array]:
    """Return a tensor as one array, a sequence as several."""
    values = value if isinstance(value, list) else [value]
    return [np.asarray(item) for item in values if item is not None]


class _Accumulator:
    """Sums of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.finite = True
        self.count = self.samples = self.agreed = 0
        self.max_abs = self.sum_abs = self.error = self.energy = self.candidate_energy = self.dot = 0.0
        self.low, self.high = math.inf, -math.inf
        self.scores = True

    def add(self, reference: Sequence[Array], candidate: Sequence[Array]) -> None:
        if [a.shape for a in reference] != [b.shape for b in candidate]:
            shapes = " and ".join("x".join(map(str, a.shape)) for a in (reference[0], candidate[0]) if reference)
            raise ModelError(
                f"output {self.name!r} differs in shape between the models ({shapes}): compare like models"
            )
        self.samples += 1
        for ours, theirs in zip(reference, candidate, strict=True):
            self._add_scores(ours, theirs)
            self._add_values(*_as_numbers(ours, theirs))

    def _add_scores(self, reference: Array, candidate: Array) -> None:
        rows = score_rows(reference)
        self.scores = self.scores and rows is not None
        if rows is not None:
            other = candidate.reshape(rows.shape)
            self.agreed += int((rows.argmax(1) == other.argmax(1)).all())

    def _add_values(self, reference: Array, candidate: Array) -> None:
        usable = np.isfinite(reference)
        if not np.isfinite(candidate[usable]).all():
            self.finite = False
            return
        if not usable.all():  # what the reference itself leaves undefined says nothing about the candidate
            reference, candidate = reference[usable], candidate[usable]
        if not reference.size:
            return
        difference = np.abs(reference - candidate)
        self.count += reference.size
        self.max_abs = max(self.max_abs, float(difference.max()))
        self.sum_abs += float(difference.sum())
        self.error += float(np.vdot(difference, difference))
        self.energy += float(np.vdot(reference, reference))
        self.candidate_energy += float(np.vdot(candidate, candidate))
        self.dot += float(np.vdot(reference, candidate))
        self.low, self.high = min(self.low, float(reference.min())), max(self.high, float(reference.max()))

    def result(self) -> OutputNumerics:
        if not self.finite:
            return OutputNumerics(self.name, finite=False)
        if not self.count:
            return OutputNumerics(self.name, finite=True)
        span = self.high - self.low
        norm = math.sqrt(self.energy * self.candidate_energy)
        return OutputNumerics(
            self.name,
            finite=True,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / self.count,
            max_rel=self.max_abs / span if span > 0 else None,
            cosine=max(-1.0, min(1.0, self.dot / norm)) if norm > 0 else None,
            sqnr_db=_sqnr(self.energy, self.error),
            top1_agreement=self.agreed / self.samples if self.scores else None,
        )


def _sqnr(energy: float, error: float) -> float | None:
    if error == 0:
        return SQNR_CAP
    return min(SQNR_CAP, 10 * math.log10(energy / error)) if energy > 0 else None


def sqnr_db(reference: Array, candidate: Array) -> float | None:
    """Return the signal to quantization-noise ratio of one pair of arrays, None where it is not defined."""
    ours, theirs = reference.astype(np.float64), candidate.astype(np.float64)
    if not np.isfinite(theirs).all():
        return None
    return _sqnr(float(np.vdot(ours, ours)), float(np.vdot(ours - theirs, ours - theirs)))


def _as_numbers(reference: Array, candidate: Array) -> tuple[Array, Array]:
    """Return both as float64; texts become zeros, and ones where the candidate's differ."""
    if reference.dtype.kind in "biufc" or reference.dtype.kind == "V":
        return reference.astype(np.float64), candidate.astype(np.float64)
    return np.zeros(reference.shape), (reference != candidate).astype(np.float64)


def score_rows(array: Array) -> Array | None:
    """Return an output as (N, C) scores, None where it is something else."""
    if array.dtype.kind != "f" or array.ndim < 2 or array.shape[0] == 0:
        return None
    wide = [dim for dim in array.shape[1:] if dim != 1]
    return array.reshape(array.shape[0], wide[0]) if len(wide) == 1 and wide[0] >= 2 else None


def within_exact_tolerance(outputs: Sequence[OutputNumerics], spans: Mapping[str, float]) -> str | None:
    """Return why ``outputs`` are not those of an exact rewrite, None when they are.

    Args:
        outputs: numerics of all outputs.
        spans: known ranges of outputs by name (a Sigmoid's is 1), for samples that happen to use a small part of them.
    """
    for output in outputs:
        if not output.finite:
            return f"output {output.name!r} has NaN or Inf that the original does not"
        if not output.max_abs:
            continue
        measured = output.max_abs / output.max_rel if output.max_rel else 0.0
        span = max(measured, spans.get(output.name, 0.0))
        if output.max_abs > EXACT_TOLERANCE * span:
            share = f"{output.max_abs / span:.1e} of its range" if span else f"{output.max_abs:.1e}"
            return f"output {output.name!r} differs by {share}, more than {EXACT_TOLERANCE:g}"
    return None
