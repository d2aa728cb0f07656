"""Task accuracy of two models on the same labelled samples, with an interval of the drop."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import SampleError, one_line
from onnxslim.measure.numerics import score_rows

Outputs = Mapping[str, Any]
MetricFunction = Callable[[Outputs, npt.NDArray[np.int64]], Any]
"""Takes the outputs of one run and the labels of its samples; returns one number per sample, higher is better."""

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Metric:
    """A metric of both models; ``drop`` is reference minus candidate, ``interval`` its 95 % interval."""

    name: str
    reference: float
    candidate: float
    drop: float
    samples: int
    interval: tuple[float, float] | None


class MetricTracker:
    """Collects one metric over samples, of one model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = find_metric(name)
        self.values: list[float] = []

    def fits(self, outputs: Outputs) -> bool:
        """Whether the metric means anything for such outputs: top-k wants one vector of class scores per sample."""
        return self.name not in _BUILT_IN or score_rows(np.asarray(next(iter(outputs.values())))) is not None

    def add(self, outputs: Outputs, label: int) -> None:
        """Account for one labelled sample.

        Raises:
            SampleError: the user's metric failed or did not return one finite number.
        """
        try:
            value = float(np.asarray(self._function(outputs, np.array([label]))).reshape(-1)[0])
        except Exception as error:  # the function may be the user's
            raise SampleError(f"metric {self.name!r} failed ({one_line(error)}): mend it") from error
        if not math.isfinite(value):
            raise SampleError(f"metric {self.name!r} returned {value}: it must return one finite number per sample")
        self.values.append(value)


def compare_metrics(reference: MetricTracker, candidate: MetricTracker, seed: int = 0) -> Metric | None:
    """Return the paired comparison of two trackers of the same samples, None where no sample had a label."""
    ours, theirs = np.array(reference.values), np.array(candidate.values)
    if not ours.size:
        return None
    return Metric(
        reference.name,
        float(ours.mean()),
        float(theirs.mean()),
        float((ours - theirs).mean()),
        int(ours.size),
        drop_interval(ours, theirs, seed),
    )


def drop_interval(
    reference: npt.NDArray[np.float64], candidate: npt.NDArray[np.float64], seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of reference - candidate, paired.

    For right-or-wrong metrics the adjusted Wald interval of Bonett and Price 2012 ("Adjusted Wald confidence interval
    for a difference of binomial proportions based on paired data", J. Educ. Behav. Stat. 37): one is added to each
    count of disagreement, so that it has a width even where the models never disagree. For others a seeded percentile
    bootstrap of the pairs; None where all differences are the same and nothing can be estimated.
    """
    pairs = np.concatenate([reference, candidate])
    if np.isin(pairs, (0.0, 1.0)).all():
        total = len(reference) + 2
        lost, won = ((np.sum(reference > candidate) + 1) / total, (np.sum(reference < candidate) + 1) / total)
        half = Z_95 * math.sqrt((lost + won - (lost - won) ** 2) / total)
        return max(-1.0, float(lost - won - half)), min(1.0, float(lost - won + half))
    differences = reference - candidate
    if np.ptp(differences) == 0:
        return None
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(differences), (2000, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def find_metric(name: str) -> MetricFunction:
    """Return the metric called ``name``: ``top1``, ``top5`` or ``module:callable``.

    Raises:
        SampleError: no such metric, or the module does not import.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise SampleError(f"unknown metric {name!r}: use {', '.join(_BUILT_IN)} or module:callable")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function: MetricFunction = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module may be the user's
        raise SampleError(f"metric {name!r} does not import ({one_line(error)}): check module and name") from error
    return function


def _top(k: int) -> MetricFunction:
    def measure(outputs: Outputs, labels: npt.NDArray[np.int64]) -> list[float]:
        scores = np.asarray(next(iter(outputs.values())))
        rows = scores.reshape(len(labels), -1)
        best: Sequence[Any] = np.argsort(-rows, axis=1, kind="stable")[:, :k].tolist()
        return [float(label in row) for label, row in zip(labels.tolist(), best, strict=True)]

    return measure


_BUILT_IN: dict[str, MetricFunction] = {"top1": _top(1), "top5": _top(5)}
