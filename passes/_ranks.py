"""Which rank: estimated for one layer, or chosen for all layers so that a budget is met where outputs mind least.

A budget is spent as for pruning: each layer has options (forms with what they save and what they lose), the lower
convex hull of which is walked step by step, always the step with the least loss for what it saves (Fox 1966, "Discrete
Optimization Via Marginal Analysis"); what was saved too much is then given back.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from onnxslim.passes._forms import Form

Floats = npt.NDArray[np.float64]

_NOTHING = 1e-12
"""A loss below which there is none."""
GRID = 20
"""Ranks of one scheme that a budget chooses from, at most."""


@dataclass(frozen=True)
class Option:
    """A form for a layer, and what it means; no form is the layer as it is."""

    form: Form | None
    saved: float
    """Of what the budget counts."""
    loss: float


@dataclass(frozen=True)
class Tried:
    """What the outputs lost where a layer alone lost so much."""

    loss: float
    measured: float


AS_IT_IS = Option(None, 0.0, 0.0)


def without(full: int, ratio: float) -> int:
    """Return what is left of ``full`` ranks when ceil(ratio·full) go: at least 1."""
    return max(1, full - math.ceil(ratio * full - 1e-9))  # 0.07 · 100 is 7.000000000000001


def rounded(rank: int, multiple: int, full: int) -> int:
    """Return the multiple at or above ``rank``, or the full rank where that comes first."""
    return max(rank, min(math.ceil(rank / multiple) * multiple, full))


def keeping(squares: Floats, energy: float) -> int:
    """Return the smallest rank whose squared singular values sum to at least ``energy`` of all."""
    total = np.cumsum(squares)
    if total[-1] <= 0:
        return 1
    return min(int(np.searchsorted(total / total[-1], energy)) + 1, len(squares))


def grid(most: int, multiple: int) -> list[int]:
    """Return ranks to choose from, geometric, multiples where there are any, up to ``most``."""
    if most < 1:
        return []
    least = min(multiple, most)
    ranks = np.geomspace(least, most, GRID)
    return sorted({max(least, int(rank) // least * least) for rank in ranks})


def estimated(matrix: Floats) -> int:
    """Return the rank of the signal in a noisy matrix, at least 1: empirical variational Bayes.

    Nakajima et al. 2013, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization", §3 and
    Theorem 2 (noise variance by bounded minimization); for convolutions: Kim et al. 2016, §3.2.
    """
    short, long = sorted(matrix.shape)
    gram = matrix @ matrix.T if matrix.shape[0] == short else matrix.T @ matrix
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    if values[0] <= 0:
        return 1
    values = values / values[0]
    alpha = short / long
    shape = 2.5129 * math.sqrt(alpha)
    border = (1 + shape) * (1 + alpha / shape)
    most = min(math.ceil(short / (1 + alpha)) - 1, short) - 1
    rest = values[most + 1 :]
    upper = float((values**2).sum()) / (short * long)
    lower = max(float(rest[0] ** 2) / (long * border), float((rest**2).mean()) / long) if len(rest) else 0.0
    lower = max(lower, 1e-12 * upper)
    variance = upper
    if lower < upper:
        found = minimize_scalar(
            lambda noise: _free_energy(noise, values, long, border), bounds=(lower, upper), method="bounded"
        )
        variance = float(found.x)
    return max(1, int((values > math.sqrt(long * variance * border)).sum()))


def _free_energy(noise: float, values: Floats, long: int, border: float) -> float:
    short = len(values)
    alpha = short / long
    scaled = values**2 / (long * noise)
    signal, rest = scaled[scaled > border], np.maximum(scaled[scaled <= border], 1e-300)
    off = signal - (1 + alpha)
    strength = 0.5 * (off + np.sqrt(np.maximum(off**2 - 4 * alpha, 0.0)))
    terms = (rest - np.log(rest)).sum() + (signal - strength).sum() + np.log((strength + 1) / signal).sum()
    return float(terms + alpha * np.log(strength / alpha + 1).sum())


# ---- all layers together ---------------------------------------------------------------------------------------------


def spend(layers: Sequence[Sequence[Option]], wanted: float) -> list[Option] | None:
    """Return an option for each layer, together saving ``wanted`` at least loss; None where they cannot."""
    hulls = [_hull(options) for options in layers]
    at = [0] * len(layers)
    saved = 0.0
    queue = [(_slope(hull, 0), index) for index, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(queue)
    while saved < wanted and queue:
        _, index = heapq.heappop(queue)
        hull, step = hulls[index], at[index]
        saved += hull[step + 1].saved - hull[step].saved
        at[index] = step + 1
        if step + 2 < len(hull):
            heapq.heappush(queue, (_slope(hull, step + 1), index))
    if saved < wanted:
        return None
    return _given_back(layers, [hull[step] for hull, step in zip(hulls, at, strict=True)], saved - wanted)


def spread(options: Sequence[Option], count: int) -> list[Option]:
    """Return ``count`` of the options that are worth a choice, from little saved to most saved."""
    hull = _hull(options)[1:]
    if not hull:
        return []
    most = hull[-1].saved
    wanted = [most * (step + 1) / count for step in range(count)]
    nearest = [min(hull, key=lambda option: abs(option.saved - saved)) for saved in wanted]
    return list(dict.fromkeys(nearest))


def minded(loss: float, tried: Sequence[Tried]) -> float:
    """Return what the outputs will lose where the layer loses ``loss``: as measured where tried, in proportion beyond,
    a power law between.
    """
    points = sorted((max(each.loss, _NOTHING), max(each.measured, _NOTHING)) for each in tried)
    if not points:
        return loss
    at = math.log(max(loss, _NOTHING))
    factors = [math.log(measured / own) for own, measured in points]
    return max(loss, _NOTHING) * math.exp(float(np.interp(at, [math.log(own) for own, _ in points], factors)))


def _slope(hull: Sequence[Option], step: int) -> float:
    here, there = hull[step], hull[step + 1]
    return (there.loss - here.loss) / (there.saved - here.saved)


def _hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull of loss over what is saved, from the layer as it is."""
    hull = [AS_IT_IS]
    for option in sorted(options, key=lambda each: (each.saved, each.loss)):
        while (
            option.saved > 0
            and len(hull) > 1
            and (option.loss <= hull[-1].loss or _slope([hull[-2], option], 0) <= _slope(hull[-2:], 0))
        ):
            hull.pop()
        if option.saved > hull[-1].saved:
            hull.append(option)
    return hull


def _given_back(layers: Sequence[Sequence[Option]], chosen: list[Option], spare: float) -> list[Option]:
    """Return milder options for as many layers as the spare saving allows, the greatest relief first."""
    while True:
        best: tuple[float, int, Option] | None = None
        for index, options in enumerate(layers):
            for option in (*options, AS_IT_IS):
                relief = chosen[index].loss - option.loss
                fits = chosen[index].saved - option.saved <= spare
                if fits and relief > (0.0 if best is None else best[0]):
                    best = (relief, index, option)
        if best is None:
            return chosen
        _, index, option = best
        spare -= chosen[index].saved - option.saved
        chosen[index] = option
