"""Error against cost: forms of one layer, and the best of them at a few shares of its cost."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from onnxslim.analysis.linear_layers import LinearLayer
from onnxslim.passes._factors import Problem, errors
from onnxslim.passes._forms import Form, Scheme, elements, full, misfit
from onnxslim.passes._rank_subject import Subject

SHARES = (0.9, 0.75, 0.6, 0.5, 0.35, 0.25, 0.15, 0.07)
"""Of a layer's cost, at which each scheme is looked at."""
OPTIONS = (0.75, 0.5, 0.25)
"""Of a layer's cost, at which the best of all schemes is named."""
_ABOUT = 0.02
"""How much more than a share still counts as it."""


@dataclass(frozen=True)
class Point:
    """A form, what it costs and what it loses, both as shares of the layer's own."""

    form: Form
    cost: float
    """Multiply-accumulates, or where shapes are unknown elements of the weights."""
    error: float


def schemes_of(layer: LinearLayer) -> list[Scheme]:
    """Return the schemes that factor-low-rank considers for ``layer``: all that fit but CP."""
    return [scheme for scheme in Scheme if scheme is not Scheme.CP and misfit(layer, scheme) is None]


def curve(subject: Subject, problem: Problem, scheme: Scheme, multiple: int) -> list[Point]:
    """Return forms of ``scheme`` cheaper than the layer, the cheapest first, each losing less than all before it.

    Args:
        multiple: ranks are multiples of this where they are no smaller.
    """
    ranks = _ranks_at(subject, scheme, 1 if scheme is Scheme.SEPARABLE else multiple)
    if not ranks:
        return []
    whole = max(problem.energy(), 1e-300)
    found = [
        Point(form, cost_of(subject, form), min(error / whole, 1.0)) for form, error in errors(problem, scheme, ranks)
    ]
    front: list[Point] = []
    for point in sorted(found, key=lambda each: (each.cost, each.error)):
        if point.cost < 1 and (not front or point.error < front[-1].error):
            front.append(point)
    return front


def chosen(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Return what loses least of all ``curves`` at about each of ``OPTIONS``, the most expensive first, each once."""
    found: dict[Form, Point] = {}
    for share in OPTIONS:
        within = [point for points in curves for point in points if point.cost <= share + _ABOUT]
        if within:
            best = min(within, key=lambda point: (point.error, point.cost))
            found.setdefault(best.form, best)
    return list(found.values())


def cost_of(subject: Subject, form: Form) -> float:
    """Return the cost of ``form`` as a share of the layer's own."""
    share = subject.share(form)
    layer = subject.layer
    return elements(layer, form) / (layer.channels * layer.width) if share is None else share


def _ranks_at(subject: Subject, scheme: Scheme, multiple: int) -> list[int]:
    """Return the largest ranks, rounded down, that cost no more than each of ``SHARES``."""
    most = full(subject.layer, scheme)
    ranks = range(1, most.rank + 1)

    def cost(rank: int) -> float:
        return cost_of(subject, _even(scheme, rank, most))

    found = {bisect.bisect_right(ranks, share, key=cost) for share in SHARES}
    return sorted({rank // multiple * multiple or rank for rank in found if rank})


def _even(scheme: Scheme, rank: int, most: Form) -> Form:
    """Return the form of a rank, Tucker's inner rank being the same fraction of what it can be."""
    inner = None if most.inner is None else max(1, round(rank * most.inner / most.rank))
    return Form(scheme, rank, inner)
