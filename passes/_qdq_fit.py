"""Integer weights fitted layer by layer, front to back: each to what the original computes at its place.

In a copy of the model all activations are on their grids already. There, the least squares weights for the original's
outputs are what is rounded (the asymmetric problem of Zhang et al. 2015, §3.3, that low rank solves too), in the metric
of the patches that the layer now sees (``_rounding``), and the bias takes up what remains of the mean (bias correction,
empirical: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.linear_layers import LinearLayer, linear_layer, refusal
from onnxslim.analysis.moments import Moments, Settings
from onnxslim.analysis.second_order import Collector
from onnxslim.ir import Model, Rewriter, anchor_of
from onnxslim.passes import _repair
from onnxslim.passes._factoring import POSITIONS, fitted_alone, problem_of
from onnxslim.passes._factors import Problem
from onnxslim.passes._least_squares import best_bias
from onnxslim.passes._qdq_choice import WEIGHTED
from onnxslim.passes._qdq_pairs import Quantizer
from onnxslim.passes._quantize import BIAS_LIMIT, WEIGHT_LIMIT, FittedWeight
from onnxslim.passes._rounding import Floats, best_scale, rounded_in_metric
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples


@dataclass(frozen=True)
class Wanted:
    """What is to become integer."""

    nodes: Sequence[str]
    """Anchors."""
    ranges: Mapping[str, tuple[float, float]]
    per_channel: bool


def fitted_weights(model: Model, wanted: Wanted, samples: Samples, context: PassContext) -> dict[str, FittedWeight]:
    """Return integer weights by anchor, for layers that samples are enough for; ``model`` stays as it is.

    Raises:
        PassError: activations are not finite.
    """
    working = model.copy()
    rewriter = Rewriter(working)
    chosen = set(wanted.nodes)
    nodes = [node for node in working.graph.nodes if anchor_of(node) in chosen]
    able = {anchor_of(node) for node in nodes if node.op in WEIGHTED and refusal(node) is None and fitted_alone([node])}
    scales = Quantizer(rewriter, nodes, wanted.ranges, per_channel=wanted.per_channel).activations_only()
    rewriter.finish()
    collector = Collector(samples, model, Settings(POSITIONS, context.seed, context.threads))
    stages = list(_repair.stages_of(working, able & scales.keys()))
    found: dict[str, FittedWeight] = {}
    for step, stage in enumerate(stages, start=1):
        context.progress("insert-qdq: fit", step, len(stages))
        moments = collector.moments(working, [anchor_of(node) for node in stage])
        for node in stage:
            anchor, layer = anchor_of(node), linear_layer(node)
            own = moments.pop(anchor)
            if own.count < _repair.ROWS_PER_COLUMN * own.width:
                continue
            made, weight = _fitted(layer, own, float(scales[anchor]), per_channel=wanted.per_channel)
            _repair.write(rewriter, layer, weight, layer.bias() if made.bias is None else made.bias)
            found[anchor] = made
        rewriter.finish()
    return found


def _fitted(
    layer: LinearLayer, moments: Moments, input_scale: float, *, per_channel: bool
) -> tuple[FittedWeight, Floats]:
    """Return integers, and the weights that they stand for."""
    problem = problem_of(layer, moments)
    assert problem.metric is not None  # noqa: S101  (there are moments)
    scale = _scale(problem, problem.metric, layer.bias() / input_scale, per_channel=per_channel)
    integers = rounded_in_metric(problem.target, scale, WEIGHT_LIMIT, problem.metric)
    weight = integers * scale[:, :, None]
    bias = best_bias(moments, weight) if layer.has_bias else None
    return FittedWeight(layer.stored(integers).astype(np.int8), scale.reshape(-1).astype(np.float32), bias), weight


def _scale(problem: Problem, metric: Floats, bias: Floats, *, per_channel: bool) -> Floats:
    """Return the scale of each output, in float32's numbers; wide enough for its bias as int32.

    Args:
        bias: in steps of the input's grid. Shape (O,).
    """
    if per_channel:
        scale = best_scale(problem.target, WEIGHT_LIMIT, np.diagonal(metric, axis1=1, axis2=2))
    else:
        scale = np.full(problem.target.shape[:2], np.abs(problem.target).max() / WEIGHT_LIMIT)
    scale = np.maximum(scale, np.abs(bias).reshape(scale.shape) / BIAS_LIMIT)
    rounded: Floats = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32).astype(np.float64)
    return rounded
