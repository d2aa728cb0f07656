"""Rounding to blocks of levels so that the layer's output, not each weight, is met best.

Given weights W on the grids s·(q − z) of their blocks, and the metric H of the layer's inputs, levels q are sought with
small

    ‖W − s·(q − z)‖²_H = tr((W − Ŵ)·H·(W − Ŵ)ᵀ)

column by column, each later column putting right what those before it have changed, as in ``_rounding``, whose scales
are one for each output. Here each column has the scale of its block in its row, found before anything is rounded, so
that columns may be taken in any order: those of large curvature first (GPTQ: Frantar et al. 2023, "GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers", §3 and "grouping" of §4; "act order" and "static
groups" of its implementation). A row that is no better for it, which greedy choices do not rule out, is rounded to the
nearest.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dtrtri

from onnxslim.passes._block_grid import BlockWeight, Floats, Grids, rounded, to_nearest

TOGETHER = 128
"""Columns whose corrections of later columns are put together."""


def rounded_in_metric(weight: Floats, grids: Grids, metric: Floats) -> BlockWeight:
    """Return ``weight`` on its grids.

    Args:
        weight: W. Shape (O, d).
        metric: H, positive definite. Shape (d, d).
    """
    order = np.argsort(-np.diagonal(metric), kind="stable")
    factor = _root_of_inverse(metric[order[:, None], order])
    scale, zero = (part[:, order] for part in grids.columns(weight.shape[1]))
    left, found = weight[:, order], np.empty_like(weight)
    for start in range(0, left.shape[1], TOGETHER):
        here = slice(start, start + TOGETHER)
        grid = scale[:, here], zero[:, here]
        wrong = _rounded_columns(left[:, here], found[:, here], factor[here, here], grid, grids.style.top)
        left[:, start + TOGETHER :] -= wrong @ factor[here, start + TOGETHER :]
    levels = np.empty_like(found, dtype=np.uint8)
    levels[:, order] = found
    return _better(weight, BlockWeight(levels, grids), to_nearest(weight, grids), metric)


def _rounded_columns(left: Floats, found: Floats, factor: Floats, grid: tuple[Floats, Floats], top: int) -> Floats:
    """Round columns of ``left`` into ``found``, and return by what later columns are to be corrected."""
    scale, zero = grid
    wrong = np.empty_like(left)
    for column in range(left.shape[1]):
        values = left[:, column]
        found[:, column] = rounded(values, scale[:, column], zero[:, column], top)
        met = scale[:, column] * (found[:, column] - zero[:, column])
        wrong[:, column] = (values - met) / factor[column, column]
        left[:, column:] -= wrong[:, column, None] * factor[column, column:]
    return wrong


def _root_of_inverse(metric: Floats) -> Floats:
    """Return the upper triangular U with H⁻¹ = Uᵀ·U: the inverse of R in H = R·Rᵀ, R upper triangular too."""
    factor = np.linalg.cholesky(metric[::-1, ::-1])[::-1, ::-1]
    inverse: Floats = dtrtri(factor, lower=0)[0]
    return inverse


def _better(weight: Floats, one: BlockWeight, other: BlockWeight, metric: Floats) -> BlockWeight:
    """Return ``one``, with those rows of ``other`` that are nearer to ``weight``."""
    first, second = (errors_in_metric(weight - each.values(), metric) for each in (one, other))
    return BlockWeight(np.where((first <= second)[:, None], one.levels, other.levels), one.grids)


def errors_in_metric(off: Floats, metric: Floats) -> Floats:
    """Return ‖·‖²_H of each row. Shape (O,)."""
    errors: Floats = np.einsum("od,od->o", off @ metric, off)
    return errors
