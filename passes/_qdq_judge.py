"""Candidates of a quantized model, run on samples and compared to the model in float.

A candidate is the selection without some of its nodes, which are given up: they stay in float, or their activations get
16 bits. Readings are by the operators' definition.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Model, Rewriter, anchor_of
from onnxslim.measure.metric import MetricTracker
from onnxslim.passes._qdq_choice import Selection, tensors_of
from onnxslim.passes._qdq_fit import Wanted
from onnxslim.passes._qdq_pairs import Quantizer
from onnxslim.passes._quantize import FittedWeight
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Reading, Session, SessionConfig
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Sample, Samples

Array = npt.NDArray[Any]

LOOKED = 64
"""Samples among which the loudest are sought."""
JUDGES = 32
"""Samples on which outputs are compared, at most."""
KEPT_BYTES = 256 * 2**20
"""What the outputs of these may take; fewer samples judge where outputs are larger."""
ERRORS = 2.0
"""Standard errors that are taken off an SQNR: other samples than these are to keep the goal."""
LABELLED = 256
"""Samples on which a metric is compared, at most."""


@dataclass(frozen=True)
class Goal:
    """What is to be kept; a part that is None is not asked for."""

    sqnr_db: float | None
    """Of every output."""
    drop: float | None = None
    """Of the metric, on samples that have labels."""
    either: bool = False
    """One of both is enough."""
    metric: str = "top1"


@dataclass(frozen=True)
class Draft:
    """What was decided before candidates are judged."""

    model: Model
    selection: Selection
    wanted: Wanted
    fitted: Mapping[str, FittedWeight]


class Judge:
    """Runs candidates, and remembers.

    Raises:
        RuntimeRefusal: onnxruntime does not run the model.
    """

    def __init__(self, draft: Draft, samples: Samples, goal: Goal, context: PassContext) -> None:
        self._draft, self._goal, self._threads = draft, goal, context.threads
        looked = samples.take(min(LOOKED, len(samples)))
        order, outputs = self._by_energy(looked)
        self.loudest = looked.pick(order)
        self._samples = self.loudest.take(min(JUDGES, len(looked)))
        chosen = [outputs[index] for index in order[: len(self._samples)]] if outputs else None
        self._expected = list(self._fitting(chosen or self._outputs(draft.model, self._samples)))
        self._samples = self._samples.take(len(self._expected))
        self._scores = self._reference_scores(samples.take(min(LABELLED, len(samples))))
        self._sqnrs: dict[frozenset[str], float] = {}
        self._drops: dict[frozenset[str], float | None] = {}
        self.wide = False
        """Whether what is given up gets 16 bits instead of float."""

    def widen(self, wide: bool) -> None:
        """Let nodes that are given up keep integers, of 16 bits; or not."""
        self.wide = wide
        self._sqnrs.clear()
        self._drops.clear()

    def good(self, given_up: Sequence[str]) -> bool:
        """Whether the goal is reached."""
        goal = self._goal
        enough = goal.sqnr_db is None or self.sqnr(given_up) >= goal.sqnr_db
        if (enough and goal.either) or (not enough and not goal.either):
            return enough
        drop = self.drop(given_up)
        return enough if drop is None or goal.drop is None else drop <= goal.drop

    def sqnr(self, given_up: Sequence[str]) -> float:
        """Return what the SQNR of the worst output surely is, in dB."""
        key = frozenset(given_up)
        if key not in self._sqnrs:
            outputs = self._outputs(self._candidate(key), self._samples)
            rows = [
                [energies(*pair) for pair in zip(expected, found, strict=True)]
                for expected, found in zip(self._expected, outputs, strict=True)
            ]
            self._sqnrs[key] = min((sure_sqnr(column) for column in zip(*rows, strict=True)), default=math.inf)
        return self._sqnrs[key]

    def drop(self, given_up: Sequence[str]) -> float | None:
        """Return by how much the metric drops; None where nobody asks, or nothing tells."""
        key = frozenset(given_up)
        if self._scores is None:
            return None
        if key not in self._drops:
            samples, reference = self._scores
            found = self._metric(self._candidate(key), samples)
            self._drops[key] = None if found is None else float(np.mean(reference) - np.mean(found))
        return self._drops[key]

    # ---- running -----------------------------------------------------------------------------------------

    def _candidate(self, given_up: frozenset[str]) -> Model:
        draft = self._draft
        model, style = draft.model.copy(), draft.wanted.style
        floats: Collection[str] = () if self.wide else given_up
        if self.wide:
            style = replace(style, wide=style.wide | tensors_of(draft.selection.nodes, given_up))
        left = {anchor_of(node) for node in draft.selection.without(floats, "").nodes}
        rewriter = Rewriter(model)
        nodes = [node for node in model.graph.nodes if anchor_of(node) in left]
        Quantizer(rewriter, nodes, draft.wanted.ranges, style, draft.fitted).run()
        rewriter.finish()
        return model

    def _run(self, model: Model, samples: Samples) -> Iterator[tuple[Sample, dict[str, object]]]:
        placed = model.placed()  # its file lives as long
        session = Session(placed.data, SessionConfig(1, reading=Reading.DEFINITION, spins=False))
        yield from map_in_order(lambda sample: (sample, session.run(sample.feed)), samples, self._threads)

    def _outputs(self, model: Model, samples: Samples) -> Iterator[list[Array]]:
        """Yield the outputs that are floats, for each sample."""
        for _, outputs in self._run(model, samples):
            arrays = [np.asarray(value) for value in outputs.values()]
            yield [array for array in arrays if array.dtype.kind == "f"]

    @staticmethod
    def _fitting(rows: Iterable[list[Array]]) -> Iterator[list[Array]]:
        """Yield as many rows as there is memory for, one at least."""
        left = KEPT_BYTES
        for row in rows:
            yield row
            left -= sum(array.nbytes for array in row)
            if left <= 0:
                return

    def _by_energy(self, samples: Samples) -> tuple[list[int], list[list[Array]]]:
        """Return places of samples, those first whose outputs have most energy: it is they that SQNR is about.

        Where a detector finds nothing, its outputs are next to zero, and so is the noise in them. The outputs come
        along, by place, if there is memory for all of them.
        """
        found: list[list[float]] = []
        kept: list[list[Array]] = []
        left = KEPT_BYTES
        for row in self._outputs(self._draft.model, samples):
            found.append([energies(array, array).signal for array in row])
            left -= sum(array.nbytes for array in row)
            kept = [*kept, row] if left > 0 else []
        signal = np.array(found)
        if not signal.size:
            return list(range(len(samples))), kept
        share = (signal / np.maximum(signal.sum(axis=0), 1e-30)).max(axis=1)
        return [int(index) for index in np.argsort(-share, kind="stable")], kept

    def _reference_scores(self, samples: Samples) -> tuple[Samples, list[float]] | None:
        if self._goal.drop is None or not samples.labelled:
            return None
        scores = self._metric(self._draft.model, samples)
        return None if not scores else (samples, scores)

    def _metric(self, model: Model, samples: Samples) -> list[float] | None:
        tracker = MetricTracker(self._goal.metric)
        for sample, outputs in self._run(model, samples):
            if sample.label is not None:
                if not tracker.fits(outputs):
                    return None
                tracker.add(outputs, sample.label)
        return tracker.values


class Energies(NamedTuple):
    """Of an output on one sample: what it is, and by how much it is off."""

    signal: float
    error: float


def energies(expected: Array, found: Array) -> Energies:
    """Return ‖z‖² and ‖z − z'‖²; where z is NaN or Inf nothing counts, elsewhere z' has to be finite."""
    if expected.shape != found.shape:
        return Energies(0.0, math.inf)
    able = np.isfinite(expected)
    clean, noisy = expected[able].astype(np.float64), found[able].astype(np.float64)
    off = clean - noisy
    return Energies(float(np.vdot(clean, clean)), float(np.vdot(off, off)) if np.isfinite(noisy).all() else math.inf)


def sure_sqnr(samples: Sequence[Energies]) -> float:
    """Return 10·log10(Σ‖z‖² / Σ‖z − z'‖²) over samples, less two standard errors.

    The error of so few samples is that of a jackknife (Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
    §11): where one image in ten has something to say, a ratio over all of them may be luck.
    """
    signal, error = (np.array(column) for column in zip(*samples, strict=True))
    if not np.isfinite(error).all():
        return -math.inf
    value = _decibels(signal.sum(), error.sum())
    if len(signal) < 2:
        return value
    others = np.array([_decibels(signal.sum() - s, error.sum() - e) for s, e in zip(signal, error, strict=True)])
    spread = math.sqrt((len(others) - 1) * float(np.var(others)))
    return value - ERRORS * spread


def _decibels(signal: float, error: float) -> float:
    return 10 * math.log10(max(signal, 1e-30) / max(error, 1e-30 + 1e-20 * signal))
