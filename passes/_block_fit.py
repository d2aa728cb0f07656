"""Levels of blocks fitted to what their layers compute, in one pass over the samples.

The second moments of the inputs p that each layer sees in the float model are summed; its levels and bias then minimize

    Σ‖(W − Ŵ)·p + b − b'‖²

over the samples: Ŵ by second-order rounding (``_block_rounding``) on grids whose errors are weighed by the same
moments, b' by the means, which takes up what rounding leaves of them (Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", §4.2). A MatMul has no b', so its means count among the moments.

Few samples do: a hundredth of the mean curvature is added to each column (the dampening of GPTQ, see there), and where
there are fewer inputs than columns, what the others say is rounding to the nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxslim.analysis.linear_layers import LinearLayer, linear_layer
from onnxslim.analysis.moments import Moments, Settings, in_turns
from onnxslim.analysis.second_order import Collector
from onnxslim.ir import Model, Node, anchor_of
from onnxslim.passes._block_grid import BlockWeight, Floats, GridStyle, best_grids, to_nearest
from onnxslim.passes._block_rounding import rounded_in_metric
from onnxslim.passes._factoring import fitted_alone
from onnxslim.passes._least_squares import around_bias, best_bias
from onnxslim.pipeline import PassContext
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Samples

POSITIONS = 32
"""Rows of a layer's input that are looked at for one sample: neighbours say much the same."""
PER_COLUMN = 20.0
"""Rows for each column of a layer; more do not lower the error of its outputs."""
FEWEST = 16
"""Rows below which a layer is rounded to the nearest: its means would be guesses."""
DAMPENING = 0.01
"""Of the mean curvature, added to each. Measured: 0.0003 to 0.03 are within 1 dB of each other from 16 rows on."""


@dataclass(frozen=True)
class Fitted:
    """A layer's weight in blocks, and its bias, if it has or takes one. Shape (O,)."""

    weight: BlockWeight
    bias: Floats | None


def in_blocks_alone(node: Node, style: GridStyle) -> Fitted:
    """Return the layer at ``node`` in blocks, rounded to the nearest."""
    layer = linear_layer(node)
    matrix = layer.matrix()[0]
    return Fitted(to_nearest(matrix, best_grids(matrix, style)), layer.bias() if has_bias(node) else None)


def has_bias(node: Node) -> bool:
    """Whether the layer at ``node`` has a bias."""
    return len(node.inputs) > 2 and bool(node.inputs[2].name)


def fitted_blocks(
    model: Model, styles: Mapping[str, GridStyle], samples: Samples, context: PassContext
) -> dict[str, Fitted]:
    """Return layers in blocks, by anchor, as far as they can be fitted; ``model`` stays as it is.

    Args:
        styles: by anchor.

    Raises:
        PassError: activations are not finite.
    """
    nodes = [node for node in model.graph.nodes if anchor_of(node) in styles and fitted_alone([node])]
    settings = Settings(POSITIONS, PER_COLUMN / max(len(samples), 1), context.seed, context.threads)
    collector = Collector(samples, None, settings)
    found: dict[str, Fitted] = {}
    for turn in in_turns(nodes, _moment_bytes):
        moments = collector.moments(model, [anchor_of(node) for node in turn])
        enough = [node for node in turn if moments[anchor_of(node)].count >= FEWEST]
        fit = partial(_fitted, moments=moments, styles=styles)
        for node, fitted in zip(enough, map_in_order(fit, enough, context.threads), strict=True):
            found[anchor_of(node)] = fitted
            context.progress("block-weights: fit", len(found), len(nodes))
    return found


def _moment_bytes(node: Node) -> int:
    layer = linear_layer(node)
    return 8 * layer.width * (layer.width + layer.channels)


def _fitted(node: Node, moments: Mapping[str, Moments], styles: Mapping[str, GridStyle]) -> Fitted:
    layer, own = linear_layer(node), moments[anchor_of(node)]
    matrix, metric = layer.matrix()[0], _metric(layer, own)
    grids = best_grids(matrix, styles[anchor_of(node)], np.diagonal(metric))
    weight = rounded_in_metric(matrix, grids, metric)
    return Fitted(weight, best_bias(own, weight.values()[None]) if layer.has_bias else None)


def _metric(layer: LinearLayer, moments: Moments) -> Floats:
    """Return the second moments of the inputs, around their means where a bias takes those up; positive definite."""
    metric: Floats = (moments.gram if layer.has_bias else around_bias(moments, layer.bias())[0])[0].copy()
    metric.flat[:: len(metric) + 1] += max(DAMPENING * float(np.trace(metric)) / len(metric), 1e-30)
    return metric
