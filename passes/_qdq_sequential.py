"""Integer weights fitted front to back, each layer to the original's output on what it sees of the layers before.

Few bits leave much to put right: with 4, what one layer gets wrong the next ones can make up for. Before a layer
becomes integer, its weights are refitted to give what the original gave from inputs that come through the integer
layers before it (``_repair``, with sources), and it is these weights that are rounded. (So do Hubara et al. 2021,
"Accurate Post Training Quantization With Small Calibration Sets", §3, layer by layer; asymmetric as in He et al. 2017.)

With 8 bits so little is left that the sampling error of new weights is more: there layers are fitted on their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxslim.analysis.linear_layers import linear_layer
from onnxslim.analysis.moments import Moments, Request, Settings
from onnxslim.analysis.second_order import Collector
from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.passes._least_squares import RIDGE, Bias, refit, shrunk
from onnxslim.passes._qdq_integers import Fit, fit_layer
from onnxslim.passes._quantize import FittedWeight, Grid
from onnxslim.passes._repair import stages_of, write
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

FEWEST = 16
"""Patches below which a layer is rounded to the nearest. They may be far fewer than its columns: the ridge grows as
they get fewer, and with few bits what they tell is worth having. (A classifier sees one patch of each image.)"""

SHRINKAGE = 8.0
"""λ of the refit is this times d/n at least. Every layer is refitted here, whatever it has to make up for, so what the
samples' error adds is added once for each: 2, as for the few layers behind a cut, was measured to lose 0.5 dB."""


def fitted_in_turn(
    model: Model,
    able: Sequence[Node],
    grids: Mapping[str, Grid],
    fit: Fit,
    samples: Samples,
    settings: Settings,
    context: PassContext,
) -> dict[str, FittedWeight]:
    """Return integer weights by anchor, for layers that samples are enough for; ``model`` stays as it is.

    Args:
        able: layers of ``model`` that can be fitted.
        grids: of tensors, by name.

    Raises:
        PassError: activations are not finite.
    """
    working = model.copy()
    rewriter = Rewriter(working)
    collector = Collector(samples, model, settings)
    found: dict[str, FittedWeight] = {}
    stages = list(stages_of(working, {anchor_of(node) for node in able}))
    for step, nodes in enumerate(stages, start=1):
        context.progress("insert-qdq: fit in turn", step, len(stages))
        moments = collector.moments(working, [Request(anchor_of(node)) for node in nodes])
        for node in nodes:
            own = moments[anchor_of(node)]
            if own.count >= FEWEST:
                found[anchor_of(node)] = _fitted(rewriter, node, own, grids, fit)
        rewriter.finish()
    return found


def _fitted(rewriter: Rewriter, node: Node, own: Moments, grids: Mapping[str, Grid], fit: Fit) -> FittedWeight:
    layer = linear_layer(node)
    kind = Bias.FITTED if layer.has_bias else Bias.FIXED
    wanted = refit(own, layer.matrix(), layer.bias(), shrunk(RIDGE, own, SHRINKAGE), kind=kind).weight
    made = fit_layer(layer, wanted, own, grids[layer.source], fit)
    bias = layer.bias() if made.bias is None else made.bias
    write(rewriter, layer, made.weight, bias)
    return made.stored(layer)
