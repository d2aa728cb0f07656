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
from dataclasses import dataclass

from onnxslim.analysis.patches import LinearLayer, linear_layer, refusal
from onnxslim.analysis.second_order import Collector, Moments, Request, Settings, joined_by
from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.passes._least_squares import Bias, Floats, error_of, refit
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

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
    collector = Collector(samples, reference, Settings(settings.positions, context.seed, context.threads))
    stages = list(_stages(rewriter.model, set(settings.layers)))
    done: list[Repaired] = []
    for step, nodes in enumerate(stages, start=1):
        context.progress("prune-filters: repair", step, len(stages))
        requests = [Request(a, joined_by(rewriter.model, a), kept.get(a)) for a in map(anchor_of, nodes)]
        moments = collector.moments(rewriter.model, requests)
        done += [_refit(rewriter, node, moments[anchor_of(node)], settings.ridge) for node in nodes]
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


def linear_after(model: Model, anchors: set[str]) -> tuple[str, ...]:
    """Return the linear layers that read, directly or not, what the layers ``anchors`` compute."""
    reached: set[int] = set()
    found = []
    for node in model.graph.nodes:
        behind = any(id(tensor) in reached for tensor in node.inputs)
        if behind and refusal(node) is None:
            found.append(anchor_of(node))
        if behind or anchor_of(node) in anchors:
            reached.update(id(tensor) for tensor in node.outputs)
    return tuple(found)


def _stages(model: Model, anchors: set[str]) -> Iterator[list[Node]]:
    """Yield layers that do not depend on each other, those before others first."""
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
        needed = moments.samples_for(ROWS_PER_COLUMN)
        rewriter.refuse(
            "prune-filters", layer.anchor, f"{moments.samples} samples are too few to refit it: give {needed}"
        )
        before = error_of(moments, layer.matrix(), layer.bias())
        return Repaired(layer.anchor, before, before)
    kind = Bias.FITTED if layer.has_bias else Bias.FIXED
    fitted = refit(moments, layer.matrix(), layer.bias(), ridge, kind=kind)
    if fitted.after < fitted.before:
        write(rewriter, layer, fitted.weight, fitted.bias)
    return Repaired(layer.anchor, fitted.before, min(fitted.before, fitted.after))


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
