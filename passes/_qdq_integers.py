"""One layer's integers, scales and bias, fitted to what it computes on the samples.

Given weights W (those of the layer, or better ones) and the second moments of its patches p, integers Q, scales s and
a bias b' are sought with small

    Σ‖(W − s·Q)·p + b − b'‖²

Scales by a search over clipping (``_rounding.best_scale``); Q by second-order rounding in the metric of the patches
(``_rounding``), below 8 bits improved by single steps (``_adaround``), or by AdaRound, and scales refitted to them
(``_rounding_scale``); b' by the means, which takes up what rounding leaves of them (bias correction,
empirical: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.2).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.linear_layers import Array, LinearLayer
from onnxslim.analysis.moments import Moments
from onnxslim.passes._adaround import adarounded, descended
from onnxslim.passes._least_squares import RIDGE, around_bias, best_bias, shrunk
from onnxslim.passes._quantize import BIAS_LIMIT, FittedWeight, Grid, Style
from onnxslim.passes._rounding import Floats, best_scale, rounded_in_metric
from onnxslim.passes._rounding_scale import refitted

FINE_BITS = 8
"""With so many bits second-order rounding leaves next to nothing to improve."""


class Rounding(enum.Enum):
    """How weights become integers."""

    NEAREST = "nearest"
    SECOND_ORDER = "second-order"
    ADAROUND = "adaround"


@dataclass(frozen=True)
class Fit:
    """How integers are fitted."""

    style: Style
    rounding: Rounding


@dataclass(frozen=True)
class Fitted:
    """A layer's integers."""

    integers: Floats
    """Shape (groups, O/groups, d)."""
    scale: Floats
    """Of each output. Shape (groups, O/groups)."""
    bias: Array | None
    """None for layers that have none."""

    @property
    def weight(self) -> Floats:
        """What the integers stand for."""
        found: Floats = self.integers * self.scale[:, :, None]
        return found

    def stored(self, layer: LinearLayer) -> FittedWeight:
        """Return the integers as the layer's operator stores its weight."""
        values = layer.stored(self.integers).astype(np.int8)
        return FittedWeight(values, self.scale.reshape(-1).astype(np.float32), self.bias)


def fit_layer(layer: LinearLayer, weight: Floats, moments: Moments, grid: Grid, fit: Fit) -> Fitted:
    """Return integers for ``weight`` of ``layer``.

    Args:
        weight: shape (groups, O/groups, d).
        moments: of the layer's patches.
        grid: of the layer's input.
    """
    metric = _metric(layer, moments)
    floor = (np.abs(layer.bias() / float(grid.scale)) / BIAS_LIMIT).reshape(weight.shape[:2])
    scale = _scale(weight, metric, floor, fit.style)
    integers, scale = _integers(weight, scale, metric, floor, fit)
    bias = best_bias(moments, integers * scale[:, :, None]) if layer.has_bias else None
    return Fitted(integers, scale, bias)


def _integers(weight: Floats, scale: Floats, metric: Floats, floor: Floats, fit: Fit) -> tuple[Floats, Floats]:
    style, limit = fit.style, fit.style.weight_limit
    if fit.rounding is Rounding.ADAROUND:
        integers = adarounded(weight, scale, limit, metric)
    elif style.weight_bits >= FINE_BITS:
        return rounded_in_metric(weight, scale, limit, metric), scale
    else:
        integers = descended(weight, scale, limit, metric)
    if style.activations.power_of_two:
        return integers, scale
    return refitted(weight, scale, limit, metric, integers, least=floor, shared=not style.per_channel)


def _metric(layer: LinearLayer, moments: Moments) -> Floats:
    """Return the second moments of the patches, around their means where a bias takes those up; positive definite."""
    metric = moments.gram.copy() if layer.has_bias else around_bias(moments, layer.bias())[0]
    ridge = shrunk(RIDGE, moments)
    for part in metric:
        part.flat[:: len(part) + 1] += max(ridge * float(np.trace(part)) / len(part), 1e-30)
    return metric


def _scale(weight: Floats, metric: Floats, floor: Floats, style: Style) -> Floats:
    """Return the scale of each output, in float32's numbers.

    Args:
        floor: below which a bias would not fit int32.
    """
    curvature = np.diagonal(metric, axis1=1, axis2=2)
    scale = np.maximum(best_scale(weight, style.weight_limit, curvature, shared=not style.per_channel), floor)
    if not style.per_channel:
        scale = np.full_like(scale, scale.max())
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    if style.activations.power_of_two:
        scale = 2.0 ** np.ceil(np.log2(scale))
    rounded: Floats = scale.astype(np.float32).astype(np.float64)
    return rounded
