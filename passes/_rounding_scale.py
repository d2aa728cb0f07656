"""Scales that fit the integers, and integers that fit the scales, in turns.

Given integers Q, what each output's error ‖W − s·Q‖²_H asks of its scale has a closed form:

    s = ⟨W, Q⟩_H / ⟨Q, Q⟩_H,    ⟨A, B⟩_H = A·H·Bᵀ

Integers then go on from where they are by single steps (``_adaround.descended``), and so on; neither step can make the
error larger (alternating minimization, as Lloyd's; of scales and integers: Zhang et al. 2018, "LQ-Nets: Learned
Quantization for Highly Accurate and Compact Deep Neural Networks", §3.2, there without H). Two rounds have nearly all
there is to win. A search over many scales, each with its own integers, wins as much again and takes ten times as long.
"""

from __future__ import annotations

import numpy as np

from onnxslim.passes._adaround import descended, errors
from onnxslim.passes._rounding import Floats

ROUNDS = 2


def refitted(
    weight: Floats,
    scale: Floats,
    limit: int,
    metric: Floats,
    integers: Floats,
    *,
    least: Floats | None = None,
    shared: bool = False,
    rounds: int = ROUNDS,
) -> tuple[Floats, Floats]:
    """Return integers from −limit to limit and scales, in float32's numbers, with no more error than those given.

    Args:
        weight: W. Shape (groups, O/groups, d).
        scale: of each output, in float32's numbers. Shape (groups, O/groups).
        metric: H, positive definite. Shape (groups, d, d).
        integers: Q. Shape (groups, O/groups, d).
        least: what the scales must not fall below. Shape (groups, O/groups).
        shared: one scale for all outputs, as it is given.
    """
    floor = np.full(scale.shape, np.finfo(np.float32).tiny, np.float64) if least is None else least
    error = _error(weight, scale, metric, integers, shared)
    for _ in range(rounds):
        tried = _least_squares(weight, scale, metric, integers, shared)
        tried = np.maximum(tried, floor.max() if shared else floor)
        tried = _as_single(tried, at_least=floor)
        found = descended(weight, tried, limit, metric, start=integers)
        after = _error(weight, tried, metric, found, shared)
        better = after < error
        integers = np.where(better[:, :, None], found, integers)
        scale, error = np.where(better, tried, scale), np.minimum(after, error)
    return integers, scale


def _least_squares(weight: Floats, scale: Floats, metric: Floats, integers: Floats, shared: bool) -> Floats:
    """Return the best scale for each output's integers; the one that it has where they are all zero."""
    seen = integers @ metric
    both = np.einsum("god,god->go", seen, weight)
    own = np.einsum("god,god->go", seen, integers)
    if shared:
        both, own = np.full_like(both, both.sum()), np.full_like(own, own.sum())
    found = both / np.where(own > 0, own, 1.0)
    return np.where((own > 0) & (found > 0), found, scale)


def _as_single(scale: Floats, at_least: Floats) -> Floats:
    """Return the nearest float32s that are not below what they must be."""
    near = scale.astype(np.float32)
    near = np.where(near < at_least, np.nextafter(near, np.float32(np.inf)), near)
    return near.astype(np.float64)


def _error(weight: Floats, scale: Floats, metric: Floats, integers: Floats, shared: bool) -> Floats:
    """Return the error of each output; of all together where they share their scale."""
    error = errors(weight - scale[:, :, None] * integers, metric)
    return np.full_like(error, error.sum()) if shared else error
