"""Palettes fitted to what the original computes on samples, layer by layer, front to back.

A layer gets to see what layers before it have become; the weights B that then are best for the original's output (least
squares in the metric H of the patches: ``_least_squares``) are what its palette approximates in that metric
(``_palette_rounding``), and its bias makes up for the mean of what is left. At few bits this is what makes the
difference: see the table in ``palettize``.

Fitted are linear layers with a weight of their own and samples enough; of LSTM, GRU and RNN, what their inputs are
multiplied by. All other weights go to the nearest, before anything is fitted, so that layers after them make up for
those too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.linear_layers import LinearLayer, refusal, rounded
from onnxslim.analysis.moments import Moments, Request, Settings
from onnxslim.analysis.recurrent_inputs import linear_part, why_no_input_matrix
from onnxslim.analysis.second_order import Collector, joined_by
from onnxslim.ir import Constant, Model, Node, Rewriter, anchor_of, array_of
from onnxslim.passes._factoring import fitted_alone
from onnxslim.passes._forms import set_bias
from onnxslim.passes._least_squares import RIDGE, Bias, Floats, around_bias, best_bias, refit, shrunk
from onnxslim.passes._palette import GridChoice, Palette, palette_of
from onnxslim.passes._palette_choice import Candidate, weights_of
from onnxslim.passes._palette_rounding import Placed, placed_in_metric
from onnxslim.passes._repair import stages_of
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

POSITIONS = 64
"""Output positions of a layer that are looked at for one sample."""
FEWEST = 16
"""Patches below which a layer goes to the nearest. They may be far fewer than its columns: the ridge, which grows as
patches get fewer, holds what they do not tell about, and what they do tell is worth having."""

Stored = tuple[GridChoice, int]
"""Grid and bits of a weight."""
Wanted = Mapping[str, Stored]
"""By the weight's name."""


@dataclass(frozen=True)
class Fitted:
    """A weight as stored, and the bias of its layer."""

    palette: Palette
    bias: Floats | None = None
    """Shape (O,); None where it stays as it is."""


def nearest_palette(candidate: Candidate, how: Stored) -> Palette:
    """Return the palette that is nearest to a weight."""
    values = array_of(candidate.weight)
    assert values is not None  # noqa: S101  (it is a constant)
    return palette_of(values, candidate.axes, *how)


def fitted_palettes(
    model: Model, wanted: Wanted, samples: Samples, positions: int, context: PassContext
) -> dict[str, Fitted]:
    """Return ``wanted`` weights, fitted to ``samples`` where they can be; ``model`` stays as it is.

    Args:
        positions: of a layer's output that are looked at for one sample.

    Raises:
        PassError: activations are not finite.
        RuntimeRefusal: onnxruntime does not run the model on a sample.
    """
    settings = Settings(positions, seed=context.seed, threads=context.threads)
    return _Fitting(model, wanted, Collector(samples, model, settings), context).run()


class _Fitting:
    def __init__(self, model: Model, wanted: Wanted, collector: Collector, context: PassContext) -> None:
        self._model = model.copy()
        infer_shapes(self._model)
        self._rewriter = Rewriter(self._model)
        self._wanted = wanted
        self._context = context
        self._found = weights_of(self._model).found
        self._collector = collector

    def run(self) -> dict[str, Fitted]:
        """Round what is not fitted, then fit stage by stage."""
        layers = {anchor_of(c.readers[0]): name for name, c in self._found.items() if name in self._wanted and _fits(c)}
        made = {}
        fitted = set(layers.values())
        for name in (name for name in self._wanted if name not in fitted):
            made[name] = self._put(name, Fitted(nearest_palette(self._found[name], self._wanted[name])))
        self._rewriter.finish()
        for nodes in stages_of(self._model, set(layers)):
            self._context.progress("palettize: fit", len(made), len(self._wanted))
            made.update(self._stage({layers[anchor_of(node)]: node for node in nodes}))
        return made

    def _stage(self, nodes: Mapping[str, Node]) -> dict[str, Fitted]:
        """Fit layers that do not depend on each other, by the names of their weights."""
        requests = [Request(anchor, joined_by(self._model, anchor)) for anchor in map(anchor_of, nodes.values())]
        moments = self._collector.moments(self._model, requests)
        made = {}
        for name, node in nodes.items():
            layer, own = linear_part(node), moments.pop(anchor_of(node))
            if own.count < FEWEST:
                fitted = Fitted(nearest_palette(self._found[name], self._wanted[name]))
            else:
                fitted = _fitted(layer, self._found[name], own, self._wanted[name])
            if fitted.bias is not None:
                set_bias(layer, fitted.bias, self._rewriter)
            made[name] = self._put(name, fitted)
        self._rewriter.finish()
        return made

    def _put(self, name: str, fitted: Fitted) -> Fitted:
        """Let the model at hand have what a weight has become."""
        candidate = self._found[name]
        values = fitted.palette.values(candidate.dtype)
        self._rewriter.replace(candidate.weight, self._rewriter.constant(name, values))
        return fitted


def _fits(candidate: Candidate) -> bool:
    """Whether the weight is what its layer multiplies by, nobody else's, with a scale for each output."""
    node = candidate.readers[0]
    if isinstance(node.inputs[0], Constant) or not (refusal(node) is None or why_no_input_matrix(node) is None):
        return False
    layer = linear_part(node)
    alone = layer.weight is candidate.weight and fitted_alone(candidate.readers)
    return alone and candidate.scales == layer.channels


def _fitted(layer: LinearLayer, candidate: Candidate, moments: Moments, how: Stored) -> Fitted:
    ridge = shrunk(RIDGE, moments)
    kind = Bias.FITTED if layer.has_bias else Bias.FIXED
    wanted = refit(moments, layer.matrix(), layer.bias(), ridge, kind=kind).weight
    index, levels, scale = placed_in_metric(wanted, _metric(layer, moments, ridge), *how)
    bias = best_bias(moments, levels[index] * scale[:, :, None]) if layer.has_bias else None
    return Fitted(_palette(layer, candidate, (index, levels, scale), how[1]), bias)


def _metric(layer: LinearLayer, moments: Moments, ridge: float) -> Floats:
    """Return the second moments of the patches, around their means where a bias takes those up; positive definite."""
    metric = moments.gram.copy() if layer.has_bias else around_bias(moments, layer.bias())[0]
    for part in metric:
        part.flat[:: len(part) + 1] += max(ridge * float(np.trace(part)) / len(part), 1e-30)
    return metric


def _palette(layer: LinearLayer, candidate: Candidate, found: Placed, bits: int) -> Palette:
    """Return what was found for the layer's matrix as its weight is stored.

    Raises:
        PassError: a scale does not fit float32.
    """
    index, levels, scale = found
    alpha = float(layer.node.attrs.get("alpha", 1.0)) if layer.node.op == "Gemm" else 1.0
    whole = np.rint(layer.stored(alpha * index.astype(np.float64))).astype(np.uint8)
    scales = rounded(scale / alpha, np.dtype(np.float32), layer.anchor)
    spread = [int(size) if axis in candidate.axes else 1 for axis, size in enumerate(candidate.weight.shape)]
    return Palette(whole, levels, scales.reshape(spread), bits)
