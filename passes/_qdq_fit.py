"""Integer weights fitted to what their layers compute, in one pass over the samples.

The second moments of the patches that each layer sees in the float model are summed, and its integers and bias are
fitted to them (``_qdq_integers``).

With 8 bits layers are fitted on their own. Chasing the original's outputs front to back, as the repair of a cut does,
was measured to take four times as long and to lose rather than win (0.8 dB of EfficientNet-Lite0's outputs, 1 dB of a
detector's): what rounding leaves is so little that the sampling error of new least squares weights is more. So was it
no better to let patches be those of the quantized activations. With few bits it wins (``_qdq_sequential``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from onnxslim.analysis.linear_layers import linear_layer, refusal
from onnxslim.analysis.moments import Moments, Settings, in_turns
from onnxslim.analysis.second_order import Collector
from onnxslim.ir import Model, Node, anchor_of
from onnxslim.passes._factoring import fitted_alone
from onnxslim.passes._qdq_choice import WEIGHTED
from onnxslim.passes._qdq_integers import Fit, fit_layer
from onnxslim.passes._qdq_pairs import shared_grids
from onnxslim.passes._qdq_sequential import fitted_in_turn
from onnxslim.passes._quantize import FittedWeight, Grid, Style
from onnxslim.passes._repair import ROWS_PER_COLUMN
from onnxslim.pipeline import PassContext
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Samples

FEW_BITS = 5
"""With so many or fewer layers are fitted front to back, and more is looked at: there is more to put right."""
SAMPLES, SAMPLES_FEW_BITS = 48, 128
"""Samples that are looked at, unless told."""
POSITIONS, POSITIONS_FEW_BITS = 32, 64
"""Output positions of a layer that are looked at for one sample: neighbours say much the same."""
PATCHES, PATCHES_FEW_BITS = 20.0, 100.0
"""For each column of a layer; more do not lower the error of its outputs."""


@dataclass(frozen=True)
class Wanted:
    """What is to become integer."""

    nodes: Sequence[str]
    """Anchors."""
    ranges: Mapping[str, tuple[float, float]]
    style: Style


def fitted_weights(
    model: Model, wanted: Wanted, fit: Fit, samples: Samples, context: PassContext
) -> dict[str, FittedWeight]:
    """Return integer weights by anchor, for layers that samples are enough for; ``model`` stays as it is.

    Raises:
        PassError: activations are not finite.
    """
    chosen = set(wanted.nodes)
    nodes = [node for node in model.graph.nodes if anchor_of(node) in chosen]
    grids = shared_grids(nodes, wanted.ranges, wanted.style)
    able = [node for node in nodes if node.op in WEIGHTED and refusal(node) is None and fitted_alone([node])]
    few = wanted.style.weight_bits <= FEW_BITS
    settings = _settings(few, max(len(samples), 1), context)
    if few:
        return fitted_in_turn(model, able, grids, fit, samples, settings, context)
    collector = Collector(samples, None, settings)
    found: dict[str, FittedWeight] = {}
    for turn in in_turns(able, _moment_bytes):
        moments = collector.moments(model, [anchor_of(node) for node in turn])
        enough = [node for node in turn if moments[anchor_of(node)].count >= ROWS_PER_COLUMN * _width(node)]
        alone = partial(_fitted, moments=moments, grids=grids, fit=fit)
        for node, weight in zip(enough, map_in_order(alone, enough, context.threads), strict=True):
            found[anchor_of(node)] = weight
            context.progress("insert-qdq: fit", len(found), len(able))
    return found


def samples_for(weight_bits: int) -> int:
    """Return how many samples are looked at, unless told."""
    return SAMPLES_FEW_BITS if weight_bits <= FEW_BITS else SAMPLES


def _settings(few: bool, samples: int, context: PassContext) -> Settings:
    positions, patches = (POSITIONS_FEW_BITS, PATCHES_FEW_BITS) if few else (POSITIONS, PATCHES)
    return Settings(positions, patches / samples, context.seed, context.threads, single=not few)


def _moment_bytes(node: Node) -> int:
    layer = linear_layer(node)
    return 8 * layer.groups * layer.width * (layer.width + layer.channels // layer.groups)


def _width(node: Node) -> int:
    return linear_layer(node).width


def _fitted(node: Node, moments: Mapping[str, Moments], grids: Mapping[str, Grid], fit: Fit) -> FittedWeight:
    layer = linear_layer(node)
    return fit_layer(layer, layer.matrix(), moments[anchor_of(node)], grids[layer.source], fit).stored(layer)
