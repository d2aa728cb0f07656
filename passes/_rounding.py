"""Rounding weights so that the layer's output, not each weight, is met best.

Given weights B, a grid for each output and the metric H of the layer's patches, integers Q are sought with small

    ‖B − s·Q‖²_H = tr((B − s·Q)·H·(B − s·Q)ᵀ)

Columns are rounded one after the other, and what each rounding has changed is put right by those that are not rounded
yet: with H⁻¹ = Uᵀ·U (U upper triangular), after column j

    W[:, j:] −= (W[:, j] − s·Q[:, j]) / U[j, j] · U[j, j:]

(GPTQ: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", §3;
Optimal Brain Quantization: Frantar & Alistarh 2022, §4. Columns of large curvature first: "act order" of the former's
implementation.) Where H is diagonal this is rounding to the nearest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dtrtri

Floats = npt.NDArray[np.float64]

BLOCK = 32
"""Columns whose corrections of later columns are put together."""


def rounded_in_metric(weight: Floats, scale: Floats, limit: int, metric: Floats) -> Floats:
    """Return integers from −limit to limit, as floats. Shape (groups, O/groups, d).

    Args:
        weight: B. Shape (groups, O/groups, d).
        scale: s, of each output. Shape (groups, O/groups).
        metric: H, positive definite. Shape (groups, d, d).
    """
    order = np.argsort(-np.diagonal(metric, axis1=1, axis2=2), axis=1, kind="stable")
    rows = np.arange(len(metric))[:, None]
    sorted_metric = metric[rows[:, :, None], order[:, :, None], order[:, None, :]]
    factor = _root_of_inverse(sorted_metric)
    left = np.take_along_axis(weight, order[:, None, :], axis=2).copy()
    found = np.empty_like(left)
    width = left.shape[2]
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        here = slice(start, stop)
        wrong = _rounded_block(left[:, :, here], found[:, :, here], factor[:, here, here], scale, limit)
        left[:, :, stop:] -= wrong @ factor[:, start:stop, stop:]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(found, back[:, None, :], axis=2)


def _rounded_block(left: Floats, found: Floats, factor: Floats, scale: Floats, limit: int) -> Floats:
    """Round columns of ``left`` into ``found``, and return by what later columns are to be corrected."""
    wrong = np.empty_like(left)
    for column in range(left.shape[2]):
        values = left[:, :, column]
        integers = np.clip(np.round(values / scale), -limit, limit)
        found[:, :, column] = integers
        off = (values - scale * integers) / factor[:, column, column][:, None]
        left[:, :, column:] -= off[:, :, None] * factor[:, column, None, column:]
        wrong[:, :, column] = off
    return wrong


def _root_of_inverse(metric: Floats) -> Floats:
    """Return the upper triangular U with H⁻¹ = Uᵀ·U: the inverse of R in H = R·Rᵀ, R upper triangular too."""
    backwards = metric[:, ::-1, ::-1]
    factor = np.linalg.cholesky(backwards)[:, ::-1, ::-1]
    if len(factor) > 1:
        return np.triu(np.linalg.inv(factor))
    return np.stack([dtrtri(part, lower=0)[0] for part in factor])


def best_scale(
    weight: Floats, limit: int, curvature: Floats, *, shared: bool = False, steps: int = 24, least: float = 0.4
) -> Floats:
    """Return the scale of each output that rounds to the nearest with least weighted error.

    Clipping the largest weights a little lets all others be finer (Nagel et al. 2021, "A White Paper on Neural Network
    Quantization", §3.1, there by mean squared error).

    Args:
        weight: shape (groups, O/groups, d).
        curvature: diagonal of the metric. Shape (groups, d).
        shared: one scale for all outputs.
        least: of the scale that clips nothing, down to which is looked.
    """
    widest: Floats = np.abs(weight).max(axis=2) / limit
    if shared:
        widest = np.full_like(widest, widest.max())
    best, lowest = widest, np.full(widest.shape, np.inf)
    for share in np.linspace(1.0, least, steps):
        scale = np.maximum(widest * share, np.finfo(np.float32).tiny)
        integers = np.clip(np.round(weight / scale[:, :, None]), -limit, limit)
        error = np.einsum("god,gd->go", (weight - scale[:, :, None] * integers) ** 2, curvature)
        if shared:
            error = np.full_like(error, error.sum())
        best, lowest = np.where(error < lowest, scale, best), np.minimum(error, lowest)
    return best
