"""Integer weights fitted to what their layers compute, in one pass over the samples.

The second moments of the patches p that each layer sees in the float model are summed; its integers and bias then
minimize

    Σ‖(W − s·Q)·p + b − b'‖²

over the samples: Q by second-order rounding in the metric of the patches (``_rounding``), b' by the means, which takes
up what rounding leaves of them (bias correction, empirical: Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", §4.2).

Layers are fitted on their own. Chasing the original's outputs front to back, as the repair of a cut does, was measured
to take four times as long and to lose rather than win (0.8 dB of EfficientNet-Lite0's outputs, 1 dB of a detector's):
what rounding leaves is so little that the sampling error of new least squares weights is more. So was it no better to
let patches be those of the quantized activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxslim.analysis.linear_layers import LinearLayer, linear_layer, refusal
from onnxslim.analysis.moments import Moments, Settings, in_turns
from onnxslim.analysis.second_order import Collector
from onnxslim.ir import Model, Node, anchor_of
from onnxslim.passes._factoring import fitted_alone
from onnxslim.passes._least_squares import RIDGE, around_bias, best_bias, shrunk
from onnxslim.passes._qdq_choice import WEIGHTED
from onnxslim.passes._qdq_pairs import shared_grids
from onnxslim.passes._quantize import BIAS_LIMIT, FittedWeight, Grid, Style
from onnxslim.passes._repair import ROWS_PER_COLUMN
from onnxslim.passes._rounding import Floats, best_scale, rounded_in_metric
from onnxslim.pipeline import PassContext
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Samples

POSITIONS = 32
"""Output positions of a layer that are looked at for one sample: neighbours say much the same."""
PATCHES = 20.0
"""For each column of a layer; more do not lower the error of its outputs."""


@dataclass(frozen=True)
class Wanted:
    """What is to become integer."""

    nodes: Sequence[str]
    """Anchors."""
    ranges: Mapping[str, tuple[float, float]]
    style: Style


def fitted_weights(model: Model, wanted: Wanted, samples: Samples, context: PassContext) -> dict[str, FittedWeight]:
    """Return integer weights by anchor, for layers that samples are enough for; ``model`` stays as it is.

    Raises:
        PassError: activations are not finite.
    """
    chosen = set(wanted.nodes)
    nodes = [node for node in model.graph.nodes if anchor_of(node) in chosen]
    grids = shared_grids(nodes, wanted.ranges, wanted.style)
    able = [node for node in nodes if node.op in WEIGHTED and refusal(node) is None and fitted_alone([node])]
    per_column = PATCHES / max(len(samples), 1)
    collector = Collector(samples, None, Settings(POSITIONS, per_column, context.seed, context.threads))
    found: dict[str, FittedWeight] = {}
    for turn in in_turns(able, _moment_bytes):
        moments = collector.moments(model, [anchor_of(node) for node in turn])
        enough = [node for node in turn if moments[anchor_of(node)].count >= ROWS_PER_COLUMN * _width(node)]
        fit = partial(_fitted, moments=moments, grids=grids, style=wanted.style)
        for node, weight in zip(enough, map_in_order(fit, enough, context.threads), strict=True):
            found[anchor_of(node)] = weight
            context.progress("insert-qdq: fit", len(found), len(able))
    return found


def _moment_bytes(node: Node) -> int:
    layer = linear_layer(node)
    return 8 * layer.groups * layer.width * (layer.width + layer.channels // layer.groups)


def _width(node: Node) -> int:
    return linear_layer(node).width


def _fitted(node: Node, moments: Mapping[str, Moments], grids: Mapping[str, Grid], style: Style) -> FittedWeight:
    layer, own = linear_layer(node), moments[anchor_of(node)]
    weight, metric = layer.matrix(), _metric(layer, own)
    in_steps = layer.bias() / float(grids[layer.source].scale)
    scale = _scale(weight, metric, in_steps, style)
    integers = rounded_in_metric(weight, scale, style.weight_limit, metric)
    bias = best_bias(own, integers * scale[:, :, None]) if layer.has_bias else None
    return FittedWeight(layer.stored(integers).astype(np.int8), scale.reshape(-1).astype(np.float32), bias)


def _metric(layer: LinearLayer, moments: Moments) -> Floats:
    """Return the second moments of the patches, around their means where a bias takes those up; positive definite."""
    metric = moments.gram.copy() if layer.has_bias else around_bias(moments, layer.bias())[0]
    ridge = shrunk(RIDGE, moments)
    for part in metric:
        part.flat[:: len(part) + 1] += max(ridge * float(np.trace(part)) / len(part), 1e-30)
    return metric


def _scale(weight: Floats, metric: Floats, bias: Floats, style: Style) -> Floats:
    """Return the scale of each output, in float32's numbers; wide enough for its bias as int32.

    Args:
        bias: in steps of the input's grid. Shape (O,).
    """
    curvature = np.diagonal(metric, axis1=1, axis2=2)
    scale = best_scale(weight, style.weight_limit, curvature, shared=not style.per_channel)
    scale = np.maximum(scale, np.abs(bias).reshape(scale.shape) / BIAS_LIMIT)
    if not style.per_channel:
        scale = np.full_like(scale, scale.max())
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    if style.activations.power_of_two:
        scale = 2.0 ** np.ceil(np.log2(scale))
    rounded: Floats = scale.astype(np.float32).astype(np.float64)
    return rounded
