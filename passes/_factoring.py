"""Factorizing layer by layer, front to back: each against the original, given what those before it have become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.linear_layers import LinearLayer
from onnxslim.analysis.moments import Moments, Request, Settings
from onnxslim.analysis.rectified import Guess
from onnxslim.analysis.recurrent_inputs import linear_part
from onnxslim.analysis.second_order import Collector, joined_by
from onnxslim.ir import Model, Node, Rewriter, anchor_of, is_standard, only_consumer
from onnxslim.passes._factors import Problem, factored
from onnxslim.passes._forms import Form, Stage, blank, is_transposed, place, set_bias, stored
from onnxslim.passes._least_squares import RIDGE, Bias, around_bias, best_bias, refit, shrunk
from onnxslim.passes._repair import stages_of
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

POSITIONS = 128
"""Output positions of a layer that are looked at for one sample."""
LARGEST = 6144
"""Columns of a layer above which its second moments would take too long; its weights alone are looked at."""


@dataclass(frozen=True)
class Fit:
    """On what factors are fitted."""

    samples: Samples
    positions: int
    ridge: float
    refinements: int = 0
    """How often factors of a layer that a ReLU follows are fitted again, to targets that the ReLU does not tell from
    the original's (Zhang et al. 2015, §3.2)."""


def fitted_alone(nodes: Sequence[Node]) -> bool:
    """Whether factors are fitted on samples: of one node that has its weight for itself, not too large."""
    layer = linear_part(nodes[0])
    return len(nodes) == 1 and len(layer.weight.outputs) == 1 and layer.width <= LARGEST


def problem_of(layer: LinearLayer, moments: Moments | None, ridge: float = RIDGE) -> Problem:
    """Return what is to be approximated: with moments, the least squares weights in the metric of the patches.

    Raises:
        PassError: the moments are not finite.
    """
    if moments is None:
        return Problem(layer, layer.matrix(), None)
    kind = Bias.FITTED if layer.has_bias else Bias.FIXED
    fraction = shrunk(ridge, moments)
    fitted = refit(moments, layer.matrix(), layer.bias(), fraction, kind=kind)
    gram = moments.gram.copy() if layer.has_bias else around_bias(moments, layer.bias())[0]
    for part in gram:
        scale = float(np.trace(part)) / len(part)
        part.flat[:: len(part) + 1] += max(fraction * scale, 1e-30)
    return Problem(layer, fitted.weight, gram)


def write_factors(
    rewriter: Rewriter, nodes: Sequence[Node], problem: Problem, moments: Moments | None, form: Form
) -> None:
    """Factorize nodes that share a weight: they share the factors too. With moments, the bias is fitted."""
    made = factored(problem, form)
    for layer in _placed(rewriter, nodes, made.stages, form):
        if moments is not None and layer.has_bias:
            set_bias(layer, best_bias(moments, made.weight), rewriter)


def write_noise(rewriter: Rewriter, nodes: Sequence[Node], form: Form, random: np.random.Generator) -> None:
    """Give nodes that share a weight the stages of ``form`` with noise for weights: a model to be timed, not used."""
    _placed(rewriter, nodes, blank(linear_part(nodes[0]), form, random), form)


def _placed(rewriter: Rewriter, nodes: Sequence[Node], stages: Sequence[Stage], form: Form) -> list[LinearLayer]:
    layers = [linear_part(node) for node in nodes]
    weights = stored(layers[0], stages, rewriter)
    for layer in layers:
        same = is_transposed(layer) == is_transposed(layers[0])
        place(layer, form, stages, weights if same else weights[::-1], rewriter)
    return layers


def factor_fitted(
    rewriter: Rewriter, reference: Model, forms: Mapping[str, Form], fit: Fit, context: PassContext
) -> None:
    """Factorize layers of ``rewriter.model``, by anchor, each fitted to what ``reference`` gives at its place.

    Raises:
        PassError: activations are not finite.
    """
    settings = Settings(fit.positions, seed=context.seed, threads=context.threads)
    collector = Collector(fit.samples, reference, settings)
    stages = list(stages_of(rewriter.model, set(forms)))
    for step, nodes in enumerate(stages, start=1):
        context.progress("factor-low-rank: fit", step, len(stages))
        requests = [Request(anchor, joined_by(rewriter.model, anchor)) for anchor in map(anchor_of, nodes)]
        moments = collector.moments(rewriter.model, requests)
        for node in nodes:
            own, form = moments.pop(anchor_of(node)), forms[anchor_of(node)]
            problem = problem_of(linear_part(node), own, fit.ridge)
            for _ in range(fit.refinements if _is_rectified(node) else 0):
                made = factored(problem, form).weight
                again = Request(anchor_of(node), guess=Guess(made, best_bias(own, made)))
                own = collector.moments(rewriter.model, [again])[anchor_of(node)]
                problem = problem_of(linear_part(node), own, fit.ridge)
            write_factors(rewriter, [node], problem, own, form)
        rewriter.finish()


def _is_rectified(node: Node) -> bool:
    """Whether nothing but a ReLU sees the layer's output."""
    after = only_consumer(node.outputs[0])
    return after is not None and is_standard(after, "Relu") and linear_part(node).has_bias
