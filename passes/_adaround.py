"""Rounding that looks again: integers changed one by one while that helps, and AdaRound.

Second-order rounding (``_rounding``) decides about each column once, with the later ones still free. What it leaves of

    ‖W/s − Q‖²_H = tr((W/s − Q)·H·(W/s − Q)ᵀ)

is lowered here; each output is a problem of its own, and s drops out of it.

1. **Descent.** With the residual E = W/s − Q and M = E·H, changing q_j by δ = ±1 changes an output's error by

       −2·δ·M_j + δ²·H_jj

   and M by −δ·H_j. The one change that lowers it most is made, until none does (greedy coordinate descent: Nair &
   Suggala 2024, "CDQuant: Greedy Coordinate Descent for Accurate LLM Quantization", §3; cyclic: Behdin et al. 2023,
   "QuantEase", §3). Greedy takes a step for each integer that changes, where a cycle visits all columns. From the
   nearest integers it gets as far as from second-order rounding, to another optimum; each output takes the better.
2. **AdaRound.** Q = ⌊W/s⌋ + h(V) with h(V) = clip(σ(V)·(ζ − γ) + γ, 0, 1) is moved by Adam down

       ‖W/s − Q‖²_H + λ·Σ(1 − |2·h(V) − 1|^β),    β from 20 to 2

   which makes h whole in the end (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
   §3.3 and §4). Since H holds all that the samples say, the gradient is a product of matrices, −2·(W/s − Q)·H, and no
   sample is looked at twice. H is divided by its mean diagonal, so that one λ fits all layers.

Descent comes near AdaRound in next to none of its time. A search beyond the first optimum (tabu search) lowers the
error further, but that of the samples only: on others, nothing was won by it.
Where H is diagonal all of them round to the nearest. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxslim.passes._rounding import Floats, rounded_in_metric

Singles = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

ROOM = 2**15
"""Numbers of a matrix that is gone over for each step: those that a processor's cache holds."""
LEAST = 1e-9
"""Of H_jj, that a step must win: less is what M has lost in digits."""
MOST = 50
"""Steps for each column after which a descent ends anyhow; a quarter of one is usual."""
ITERATIONS = 300
"""Of AdaRound."""
RATE = 0.1
"""Of Adam."""
REGULARIZATION = 1.0
"""λ: beside errors in units of H's mean diagonal."""
FREE = 0.2
"""The part of the iterations that λ is 0 in."""
STEEP, FLAT = 20.0, 2.0
"""β at the beginning and at the end."""
STRETCH = 0.1
"""ζ − 1 and −γ: how far the sigmoid goes beyond what it is cut to, so that 0 and 1 are reached."""
MOMENTUM, SQUARES = 0.9, 0.999
"""Adam's decays (Kingma & Ba 2015)."""


def descended(weight: Floats, scale: Floats, limit: int, metric: Floats, *, start: Floats | None = None) -> Floats:
    """Return integers from −limit to limit, as floats, that no single step of ±1 makes better.

    In no output is their error more than that of any start. Shape (groups, O/groups, d).

    Args:
        weight: shape (groups, O/groups, d).
        scale: of each output. Shape (groups, O/groups).
        metric: H, positive definite. Shape (groups, d, d).
        start: integers within the limit, of weight's shape; None for the nearest and second-order rounding, of which
            each output takes what ends better.
    """
    steps = weight / scale[:, :, None]
    starts = [start] if start is not None else _starts(weight, scale, limit, metric)
    return best_of(steps, metric, [*starts, *(_walked(steps, limit, metric, each) for each in starts)])


def adarounded(
    weight: Floats,
    scale: Floats,
    limit: int,
    metric: Floats,
    *,
    start: Floats | None = None,
    iterations: int = ITERATIONS,
) -> Floats:
    """Return integers from −limit to limit, as floats: AdaRound's after descent, or :func:`descended`'s if better.

    In no output is their error more than that of the nearest or of second-order rounding. Shape (groups, O/groups, d).

    Args:
        weight: shape (groups, O/groups, d).
        scale: of each output. Shape (groups, O/groups).
        metric: H, positive definite. Shape (groups, d, d).
        start: integers within the limit, of weight's shape, that h starts near; None for the weights themselves.
        iterations: each takes a product of (O/groups, d) and (d, d) for every group.
    """
    steps = weight / scale[:, :, None]
    annealed = _annealed(steps, limit, metric, start, iterations)
    known = [descended(weight, scale, limit, metric), *([] if start is None else [start])]
    return best_of(steps, metric, [*known, annealed, _walked(steps, limit, metric, annealed)])


def best_of(steps: Floats, metric: Floats, candidates: Sequence[Floats]) -> Floats:
    """Return of each output the integers with the least error, the first of those that are equal.

    Args:
        steps: W/s. Shape (groups, O/groups, d).
        candidates: integers of that shape.
    """
    best = candidates[0].copy()
    lowest = errors(steps - best, metric)
    for other in candidates[1:]:
        error = errors(steps - other, metric)
        better = error < lowest
        best[better] = other[better]
        lowest = np.where(better, error, lowest)
    return best


def errors(off: Floats, metric: Floats) -> Floats:
    """Return ‖off‖²_H of each output. Shape (groups, O/groups)."""
    found: Floats = np.einsum("god,god->go", off @ metric, off)
    return found


def _starts(weight: Floats, scale: Floats, limit: int, metric: Floats) -> list[Floats]:
    nearest: Floats = np.clip(np.round(weight / scale[:, :, None]), -limit, limit)
    return [nearest, rounded_in_metric(weight, scale, limit, metric)]


# ---- one integer at a time -------------------------------------------------------------------------------------------


def _walked(steps: Floats, limit: int, metric: Floats, start: Floats) -> Floats:
    """Return ``start`` after single steps, a few outputs at a time."""
    groups, outputs, width = steps.shape
    slope = ((steps - start) @ metric).reshape(-1, width)
    found = start.reshape(-1, width).copy()
    group = np.repeat(np.arange(groups), outputs)
    rows = max(ROOM // width, 1)
    for first in range(0, len(found), rows):
        here = slice(first, first + rows)
        found[here] = _Walk(found[here].copy(), slope[here], group[here], metric, limit).descent()
    return found.reshape(steps.shape)


class _Walk:
    """Outputs whose integers change one at a time, each output's on its own."""

    def __init__(self, integers: Floats, slope: Floats, group: Indices, metric: Floats, limit: int) -> None:
        self.integers, self._slope, self._group, self._metric, self._limit = integers, slope, group, metric, limit
        self._curvature = np.diagonal(metric, axis1=1, axis2=2)[group]
        self._rows = np.arange(len(integers))

    def descent(self) -> Floats:
        """Return the integers that no step makes better; rows that are there take no more part."""
        found = self.integers.copy()
        places = self._rows
        for _ in range(MOST * found.shape[1]):
            gain = self._gains()
            column = gain.argmax(axis=1)
            going = gain[self._rows, column] > LEAST * self._curvature[self._rows, column]
            if not going.any():
                break
            self._step(column, going)
            if 2 * np.count_nonzero(going) < len(going):
                found[places] = self.integers
                places = places[going]
                self._keep(going)
        found[places] = self.integers
        return found

    def _gains(self) -> Floats:
        """Return by what a step of each integer, in the direction that helps, lowers its output's error."""
        gain = 2.0 * np.abs(self._slope)
        gain -= self._curvature
        gain[np.abs(self.integers + np.sign(self._slope)) > self._limit] = -np.inf
        return gain

    def _step(self, column: Indices, going: npt.NDArray[np.bool_]) -> None:
        """Change one column of each row that is going, by as much as is best but by 1 at least."""
        place = self._rows, column
        slope, curvature = self._slope[place], self._curvature[place]
        size = np.maximum(np.round(np.abs(slope) / curvature), 1.0)
        sign = np.sign(slope)
        size = np.minimum(size, self._limit - sign * self.integers[place])
        change = np.where(going, sign * size, 0.0)
        self.integers[place] += change
        self._slope -= change[:, None] * self._metric[self._group, column]

    def _keep(self, rows: npt.NDArray[np.bool_]) -> None:
        self.integers, self._slope = self.integers[rows], self._slope[rows]
        self._group, self._curvature = self._group[rows], self._curvature[rows]
        self._rows = np.arange(len(self.integers))


# ---- AdaRound --------------------------------------------------------------------------------------------------------


def _annealed(steps: Floats, limit: int, metric: Floats, start: Floats | None, iterations: int) -> Floats:
    """Return the integers that AdaRound ends at."""
    below = np.clip(np.floor(steps), -limit, limit - 1)
    share = np.clip(steps - below, 0.01, 0.99)
    if start is not None:
        below = np.clip(np.where((steps - start) @ metric > 0, start, start - 1), -limit, limit - 1)
        share = 0.2 + 0.6 * (start - below)
    unit = np.trace(metric, axis1=1, axis2=2) / metric.shape[1]
    curvature = (metric / unit[:, None, None]).astype(np.float32)
    goal = (steps - below).astype(np.float32)
    logits = np.log((share + STRETCH) / (1 + STRETCH - share)).astype(np.float32)
    first, second = np.zeros_like(logits), np.zeros_like(logits)
    for count in range(1, iterations + 1):
        slope = _gradient(logits, goal, curvature, (count - 1) / iterations)
        first = MOMENTUM * first + (1 - MOMENTUM) * slope
        second = SQUARES * second + (1 - SQUARES) * slope * slope
        spread = np.sqrt(second / (1 - SQUARES**count)) + 1e-8
        logits -= (RATE / (1 - MOMENTUM**count)) * first / spread
    found: Floats = below + (logits >= 0)
    return found


def _gradient(logits: Singles, goal: Singles, metric: Singles, progress: float) -> Singles:
    """Return the derivative of ‖goal − h(V)‖²_H + λ·Σ(1 − |2·h(V) − 1|^β) by V.

    Args:
        goal: what h(V) is to be: W/s − ⌊W/s⌋.
        progress: from 0 to 1, which decides about λ and β.
    """
    share, slope = _soft(logits)
    pull = -2 * ((goal - share) @ metric)
    if progress >= FREE:
        power = FLAT + (STEEP - FLAT) * (1 - progress) / (1 - FREE)
        away = 2 * share - 1
        pull = pull - np.float32(2 * REGULARIZATION * power) * np.sign(away) * np.abs(away) ** np.float32(power - 1)
    return np.asarray(pull * slope, np.float32)


def _soft(logits: Singles) -> tuple[Singles, Singles]:
    """Return h(V) and its derivative."""
    sigmoid = 1 / (1 + np.exp(-logits))
    share = (1 + 2 * STRETCH) * sigmoid - STRETCH
    inside = (share > 0) & (share < 1)
    return np.clip(share, 0, 1), np.where(inside, (1 + 2 * STRETCH) * sigmoid * (1 - sigmoid), 0)
