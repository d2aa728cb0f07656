"""Repair without training: layers are refitted, front to back, to give what the original gave.

After a cut, the layer y = W·p + b sees less, and what it sees has changed, because layers before it were cut and
refitted too. Its new weights minimize Σ‖y − W·p' − b‖² over the samples, where y is what the *original* network
computes there and p' is what the layer gets to see *now*: errors are put right where they arise and do not pile up
(the asymmetric reconstruction of He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", §3.2,
and Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection", §3.3; see
``_least_squares``).

Where a layer's output is added to another tensor, the target is the original's sum less the other addend as it is now,
so that the layer makes up for what the shortcut has lost (He et al. 2017, §3.3).

Left alone: layers whose refit predicts no better than what they were, those with fewer patches than columns (the reason
says how many samples would do), and those that are not linear with constant weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxslim.analysis.moments import Moments, Request, Settings, blocks
from onnxslim.analysis.patches import LinearLayer, linear_layer
from onnxslim.analysis.second_order import Collector, joined_by
from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.passes._least_squares import Bias, Floats, Pull, error_of, refit, shrunk
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

MATRIX_BYTES = Settings().matrix_bytes
ROWS_PER_COLUMN = 1.0
"""Patches for each column of a layer below which there are too few samples to refit it."""


@dataclass(frozen=True)
class Repaired:
    """What a refit won."""

    anchor: str
    before: float
    """Error of the layer's output, as a fraction of its energy, had it only been cut."""
    after: float


def repair(
    rewriter: Rewriter,
    reference: Model,
    kept: Mapping[str, tuple[int, ...]],
    settings: RepairSettings,
    context: PassContext,
) -> tuple[Repaired, ...]:
    """Refit the layers behind a cut of ``rewriter.model``.

    Args:
        reference: the model before the cut, with the same names.
        kept: by anchor, which output channels a layer still has, where they are not all of them.

    Raises:
        PassError: activations are not finite.
    """
    samples = settings.of(context.require_samples("prune-filters"))
    collector = Collector(samples, reference, Settings(settings.positions, seed=context.seed, threads=context.threads))
    stages = list(stages_of(rewriter.model, set(settings.layers)))
    done: list[Repaired] = []
    for step, nodes in enumerate(stages, start=1):
        context.progress("prune-filters: repair", step, len(stages))
        requests = [Request(a, joined_by(rewriter.model, a), kept.get(a)) for a in map(anchor_of, nodes)]
        large = [len(blocks(linear_layer(node), MATRIX_BYTES)) > 1 for node in nodes]
        whole = [request for request, is_large in zip(requests, large, strict=True) if not is_large]
        moments = collector.moments(rewriter.model, whole)
        for node, request, is_large in zip(nodes, requests, large, strict=True):
            if is_large:
                done.append(_refit_in_blocks(rewriter, node, collector, request, settings.ridge))
            else:
                done.append(_refit(rewriter, node, moments[request.anchor], settings.ridge))
    return tuple(done)


@dataclass(frozen=True)
class RepairSettings:
    """How a cut is repaired."""

    layers: tuple[str, ...]
    """Anchors of the layers to refit."""
    samples: int
    """How many calibration samples are used."""
    ridge: float
    positions: int

    def of(self, samples: Samples) -> Samples:
        """Return the samples that the repair uses."""
        return samples.take(self.samples)


def stages_of(model: Model, anchors: set[str]) -> Iterator[list[Node]]:
    """Yield layers that do not depend on each other, by anchor, those before others first."""
    depth: dict[int, int] = {}
    stages: dict[int, list[Node]] = {}
    for node in model.graph.nodes:
        level = max((depth.get(id(tensor), 0) for tensor in node.inputs), default=0)
        if anchor_of(node) in anchors:
            level += 1
            stages.setdefault(level, []).append(node)
        depth.update((id(tensor), level) for tensor in node.outputs)
    yield from (stages[level] for level in sorted(stages))


def _refit(rewriter: Rewriter, node: Node, moments: Moments, ridge: float) -> Repaired:
    layer = linear_layer(node)
    if moments.count < ROWS_PER_COLUMN * moments.width:
        return _left_alone(rewriter, layer, moments, error_of(moments, layer.matrix(), layer.bias()))
    kind = Bias.FITTED if layer.has_bias else Bias.FIXED
    fitted = refit(moments, layer.matrix(), layer.bias(), shrunk(ridge, moments), kind=kind)
    if fitted.after < fitted.before:
        write(rewriter, layer, fitted.weight, fitted.bias)
    return Repaired(layer.anchor, fitted.before, min(fitted.before, fitted.after))


def _refit_in_blocks(rewriter: Rewriter, node: Node, collector: Collector, request: Request, ridge: float) -> Repaired:
    """Refit a layer whose Gram matrix would be too large a block of columns at a time, each to what is still wrong.

    Block coordinate descent: every step can only lower the error. Errors are fractions of what the first step found.
    """
    layer = linear_layer(node)
    left, first = 1.0, 0.0
    for start, stop in blocks(layer, MATRIX_BYTES):
        part = replace(request, columns=(start, stop))
        moments = collector.moments(rewriter.model, [part])[layer.anchor]
        if moments.count < ROWS_PER_COLUMN * moments.width:
            return _left_alone(rewriter, layer, moments, left)
        nothing = np.zeros((1, layer.channels, stop - start)), np.zeros(layer.channels)
        kind = Bias.FITTED if layer.has_bias else Bias.FIXED
        fitted = refit(moments, *nothing, shrunk(ridge, moments), Pull.ZERO, kind)
        first = first or moments.total_energy
        left = fitted.after * moments.total_energy / max(first, 1e-30)
        weight = layer.matrix()
        weight[:, :, start:stop] += fitted.weight
        write(rewriter, layer, weight, layer.bias() + fitted.bias)
        layer = linear_layer(node)
    return Repaired(layer.anchor, 1.0, left)


def _left_alone(rewriter: Rewriter, layer: LinearLayer, moments: Moments, error: float) -> Repaired:
    needed = moments.samples_for(ROWS_PER_COLUMN)
    reason = f"{moments.samples} samples are too few to refit it: give {needed}"
    rewriter.refuse("prune-filters", layer.anchor, reason)
    return Repaired(layer.anchor, error, error)


def write(rewriter: Rewriter, layer: LinearLayer, weight: Floats, bias: Floats) -> None:
    """Give a layer new weights, shape (groups, O/groups, d), and a new bias, shape (O,), where it can have one."""
    node = layer.node
    new = rewriter.constant(layer.weight.name, layer.stored(weight))
    rewriter.set_input(node, 1, new)
    if not layer.has_bias:
        return
    has_one = len(node.inputs) > 2 and bool(node.inputs[2].name)
    if node.op == "Gemm" and float(node.attrs.get("beta", 1.0)) != 1.0:
        rewriter.set_attr(node, "beta", None)
    hint = node.inputs[2].name if has_one else f"{layer.weight.name}_bias"
    rewriter.set_input(node, 2, rewriter.constant(hint, layer.stored_bias(bias)))
