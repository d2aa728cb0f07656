"""What integers make slower on this machine stays in float, where speed is the goal.

The quantized model and the one in float are profiled; layers whose integer kernels take clearly longer than the same
layers did in float (``measure.slower``) are given up, and the model without them is timed beside the one with them,
interleaved: it is kept only if it is faster. So until nothing is gained. Last, the whole is timed beside the model in
float: where it is no faster, nothing becomes integer.

A host's clock tells about the host's kernels. On a phone others run: this is for whoever deploys on what they measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxslim.ir import Model, Rewriter, anchor_of
from onnxslim.measure.slower import slower_layers
from onnxslim.measure.stopwatch import Rounds, time_shares
from onnxslim.passes._qdq_choice import Selection
from onnxslim.passes._qdq_judge import Draft
from onnxslim.passes._qdq_pairs import Quantizer
from onnxslim.runtime import Feed, RuntimeRefusal
from onnxslim.runtime.placement import LayerPlacement, read_placement
from onnxslim.runtime.profile import profile

FASTER = 0.98
"""A model takes at most this share of another's time to be the faster one."""
TRIES = 4
ROUNDS = Rounds(seconds=2.0, least=9, most=100)
RUNS = 10
"""Of a profile."""


def without_slower(draft: Draft, feed: Feed) -> Selection:
    """Return the selection without what integers make slower; all of it stays where onnxruntime cannot be timed."""
    try:
        return _without_slower(draft, feed)
    except RuntimeRefusal:
        return draft.selection


def _without_slower(draft: Draft, feed: Feed) -> Selection:
    selection = draft.selection
    reference = _timed_layers(draft.model, feed)
    current = _quantized(draft, selection)
    for _ in range(TRIES):
        refused = _slower(reference, _timed_layers(current, feed), selection)
        if not refused:
            break
        left = selection.without(refused, "")
        left.refused = [*selection.refused, *refused.items()]
        trial = _quantized(draft, left)
        if _share(current, trial, feed) > FASTER:
            break
        selection, current = left, trial
    share = _share(draft.model, current, feed)
    if share <= FASTER:
        return selection
    reason = f"on this machine the model would take {share:.0%} of its time in float: nothing is won"
    return Selection(refused=[*draft.selection.refused, *((anchor_of(node), reason) for node in draft.selection.nodes)])


def _quantized(draft: Draft, selection: Selection) -> Model:
    model = draft.model.copy()
    rewriter = Rewriter(model)
    chosen = {anchor_of(node) for node in selection.nodes}
    nodes = [node for node in model.graph.nodes if anchor_of(node) in chosen]
    Quantizer(rewriter, nodes, draft.wanted.ranges, draft.wanted.style, draft.fitted).run()
    rewriter.finish()
    return model


def _timed_layers(model: Model, feed: Feed) -> Sequence[LayerPlacement]:
    placed = model.placed()  # its file lives as long
    found = read_placement(placed.data, profile(placed.data, feed, RUNS))
    total = found.total_us or 0.0
    return [replace(layer, microseconds=layer.microseconds or 0.0) for layer in found.layers] if total else []


def _slower(
    reference: Sequence[LayerPlacement], candidate: Sequence[LayerPlacement], selection: Selection
) -> dict[str, str]:
    """Return what is to be given up, and why, by anchor."""
    own = {anchor_of(node) for node in selection.nodes}
    total = sum(layer.microseconds or 0.0 for layer in candidate if layer.within is None)
    found = {}
    for layers in slower_layers(reference, candidate, total):
        reason = f"slower as integers on this machine: {layers.time_us:.0f} µs, in float {layers.reference_us:.0f}"
        found.update({anchor: reason for anchor in layers.anchors if anchor in own})
    return found


def _share(first: Model, second: Model, feed: Feed) -> float:
    placed = [first.placed(), second.placed()]  # their files live as long
    return time_shares([each.data for each in placed], [feed] * 2, ROUNDS)[1]
