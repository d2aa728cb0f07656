"""Indices that meet a layer's output best, on levels of any kind: what ``_rounding`` does for whole numbers.

Given weights B, levels L, a scale for each output and the metric H of the layer's patches, indices i and scales s are
sought with small ‖B − s·L[i]‖²_H. Columns are placed one after the other, those of large curvature first, and what
each placing has changed is put right by those that are not placed yet (GPTQ: Frantar et al. 2023, §3; ``_rounding`` has
the algebra). The scales then are those that are best in the metric for the indices found:

    s_o = L[i_o]·H·B_oᵀ / L[i_o]·H·L[i_o]ᵀ
"""

from __future__ import annotations

import numpy as np

from onnxslim.passes._palette import Array, Floats, GridChoice, Indices, first_scale, index_of, levels_of, usable
from onnxslim.passes._rounding import BLOCK, _root_of_inverse

Placed = tuple[Indices, Array, Floats]
"""Indices (groups, O/groups, d), levels (2^bits,) and scales (groups, O/groups)."""


def placed_in_metric(weight: Floats, metric: Floats, grid: GridChoice, bits: int) -> Placed:
    """Return indices, levels and scales for the weight of a layer.

    Args:
        weight: B. Shape (groups, O/groups, d).
        metric: H, positive definite. Shape (groups, d, d).
    """
    groups, outputs, width = weight.shape
    rows = weight.reshape(-1, width)
    curvature = np.diagonal(metric, axis1=1, axis2=2)
    counts = curvature if groups == 1 else np.repeat(curvature, outputs, axis=0)
    counts = counts / counts.max()
    levels = levels_of(rows, grid, bits, counts)
    scale = first_scale(rows, grid, levels, counts).reshape(groups, outputs)
    index = _placed(weight, scale, levels, metric)
    return index, levels, _scale_in_metric(weight, levels[index], metric, scale)


def _placed(weight: Floats, scale: Floats, levels: Array, metric: Floats) -> Indices:
    order = np.argsort(-np.diagonal(metric, axis1=1, axis2=2), axis=1, kind="stable")
    group = np.arange(len(metric))[:, None]
    factor = _root_of_inverse(metric[group[:, :, None], order[:, :, None], order[:, None, :]])
    left = np.take_along_axis(weight, order[:, None, :], axis=2).copy()
    found = np.empty(left.shape, np.uint8)
    for start in range(0, left.shape[2], BLOCK):
        here, later = slice(start, start + BLOCK), slice(start + BLOCK, None)
        wrong = _block(left[:, :, here], found[:, :, here], factor[:, here, here], scale, levels)
        left[:, :, later] -= wrong @ factor[:, here, later]
    return np.take_along_axis(found, np.argsort(order, axis=1)[:, None, :], axis=2)


def _block(left: Floats, found: Indices, factor: Floats, scale: Floats, levels: Array) -> Floats:
    """Place columns of ``left`` in ``found``, and return by what later columns are to be corrected."""
    wrong, by = np.empty_like(left), usable(scale)
    for column in range(left.shape[2]):
        values = left[:, :, column]
        index = index_of(values / by, levels)
        found[:, :, column] = index
        off = (values - scale * levels[index]) / factor[:, column, column][:, None]
        left[:, :, column:] -= off[:, :, None] * factor[:, column, None, column:]
        wrong[:, :, column] = off
    return wrong


def _scale_in_metric(weight: Floats, levels: Array, metric: Floats, otherwise: Floats) -> Floats:
    """Return the scales that are best for ``levels``, those of each weight; ``otherwise`` where any is as good."""
    levels = levels.astype(np.float64)
    seen = levels @ metric
    squares = np.einsum("god,god->go", seen, levels)
    products = np.einsum("god,god->go", seen, weight)
    return np.where(squares > 0, products / np.where(squares > 0, squares, 1.0), otherwise)
