"""How much the network's outputs mind: what removing channels of one group alone does to them, measured.

A layer's own error does not tell what becomes of it further on. So a share of each group's channels is removed on a
copy, its readers are refitted in closed form from the moments that are at hand, and the outputs of both networks are
compared on a few samples: Σ‖z' − z‖² as a fraction of Σ‖z − z̄‖². (Sensitivity by layer: Li et al. 2017, "Pruning
Filters for Efficient ConvNets", §3.2, there by accuracy after cutting; here after adapting, and without labels.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxslim.analysis.patches import linear_layer
from onnxslim.analysis.relations import Indices
from onnxslim.analysis.second_order import Moments
from onnxslim.ir import Model, Rewriter, anchor_of
from onnxslim.passes import _cutting, _repair
from onnxslim.passes._criteria import Floats
from onnxslim.passes._evidence import Observed, columns, linear_readers
from onnxslim.passes._least_squares import Bias, refit, shrunk
from onnxslim.passes._ranking import Ranking, weakest
from onnxslim.runtime import Session, SessionConfig
from onnxslim.samples import Samples

TRIED = 0.25
"""Share of the channels of each stratum that is removed to see what happens."""
SAMPLES = 48
"""How many samples see it, at most; a quarter of what there is where that is less."""


def divided(samples: Samples) -> tuple[Samples, Samples]:
    """Return samples to fit on and others to look with: what fitted would flatter itself."""
    count = min(SAMPLES, max(len(samples) // 4, 1))
    if len(samples) < 2:
        return samples, samples
    return samples.take(len(samples) - count), samples.drop(len(samples) - count)


class Probe:
    """Compares a model's outputs with those of changed copies on a few samples, which must not have fitted anything."""

    def __init__(self, model: Model, samples: Samples, threads: int) -> None:
        self._model = model
        self._samples = samples
        self._config = SessionConfig(threads, spins=False)
        self._expected = self._outputs(model)

    def weight(self, observed: Observed, ranking: Ranking, ridge: float) -> float:
        """Return by what to multiply the losses of ``ranking`` so that they predict the outputs' relative error."""
        removed = weakest(ranking, [TRIED] * len(ranking.group.strata), 1)
        if not removed:
            return 0.0
        trial = self._model.copy()
        rewriter = Rewriter(trial)
        kept = _cutting.cut(rewriter, {ranking.group.anchor: (ranking.group.size, removed)})
        _refit_readers(rewriter, observed, removed, kept, ridge)
        rewriter.finish()
        own = float(np.maximum(ranking.losses[np.isin(ranking.order, removed)], 0.0).sum())
        return self.error_of(trial) / max(own, 1e-9)

    def error_of(self, changed: Model) -> float:
        """Return Σ‖z' − z‖² as a fraction of Σ‖z − z̄‖², averaged over the outputs."""
        return self._error(self._outputs(changed))

    def _outputs(self, model: Model) -> list[list[Floats]]:
        placed = model.placed()  # its file lives as long
        session = Session(placed.data, self._config)
        runs = (session.run(sample.feed) for sample in self._samples)
        return [[_numbers(value) for value in run.values()] for run in runs]

    def _error(self, outputs: list[list[Floats]]) -> float:
        """Return the relative error, averaged over the outputs; 1 where an output changed its size."""
        errors = []
        for before, after in zip(zip(*self._expected, strict=True), zip(*outputs, strict=True), strict=True):
            if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
                errors.append(1.0)
                continue
            mean = np.mean([value.mean() for value in before])
            energy = sum(float(((value - mean) ** 2).sum()) for value in before)
            error = sum(float(((a - b) ** 2).sum()) for a, b in zip(before, after, strict=True))
            errors.append(min(error / max(energy, 1e-30), 1e3) if np.isfinite(error) else 1e3)
        return float(np.mean(errors)) if errors else 0.0


def _numbers(value: object) -> Floats:
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind in "fiu" else np.zeros(0)


def _refit_readers(
    rewriter: Rewriter,
    observed: Observed,
    removed: Sequence[int],
    kept: Mapping[str, tuple[int, ...]],
    ridge: float,
) -> None:
    """Refit the layers that read the cut group from the moments of the uncut model, restricted to what is left."""
    before = linear_readers(observed.group)
    for node in rewriter.model.graph.nodes:
        anchor = anchor_of(node)
        moments = observed.moments.get(anchor)
        if moments is None or moments.groups != 1:
            continue
        stay = np.flatnonzero(~np.isin(columns(observed.group, before[anchor])[0], removed))
        layer = linear_layer(node)
        left = _with_outputs(moments.restricted(stay), kept.get(anchor))
        kind = Bias.FITTED if layer.has_bias else Bias.FIXED
        fitted = refit(left, layer.matrix(), layer.bias(), shrunk(ridge, left), kind=kind)
        _repair.write(rewriter, layer, fitted.weight, fitted.bias)


def _with_outputs(moments: Moments, kept: tuple[int, ...] | None) -> Moments:
    """Return the moments of some of the layer's outputs."""
    if kept is None:
        return moments
    rows: Indices = np.array(kept, np.int64)
    return replace(
        moments,
        target_mean=moments.target_mean[rows],
        cross=moments.cross[:, :, rows],
        energy=moments.energy[rows],
    )
