"""Second-order statistics of linear layers, streamed: what least squares, second-order pruning and low rank ask for.

For a layer y = W·p + b (see ``patches``) these are the means of p and y, the centred Gram matrix Σ(p − p̄)(p − p̄)ᵀ and
the cross products Σ(p − p̄)(y − ȳ)ᵀ. With a reference, y is what the *original* model computes at that place and p is
what the model at hand feeds the layer: the asymmetric problem, in which a layer makes up for what its predecessors have
lost (Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection", §3.3; He et
al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", §3.2).

Memory is fixed: one pass over the samples, a batch at a time. ``moments`` holds the sums, ``relay`` runs the models.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from onnxslim.analysis.frontiers import Values
from onnxslim.analysis.moments import Moments, Request, Settings, Sums
from onnxslim.analysis.relay import BATCH_BYTES, Relay, Unstackable, batch_size
from onnxslim.analysis.shapes import concrete_shapes
from onnxslim.ir import Constant, Model, anchor_of, consumers, dims_of, is_standard
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Samples

__all__ = ["Collector", "Moments", "Progress", "Request", "Settings", "collect_moments", "joined_by"]

Progress = Callable[[str, int, int], None]


class Collector:
    """Takes moments of layers of a model that is changed from stage to stage, on the same samples.

    Work that stages have in common is done once: see ``relay``.

    Args:
        samples: bound to the models' inputs.
        reference: the original, whose outputs are the targets; None: the targets are the model's own, W·p + b.
    """

    def __init__(
        self,
        samples: Samples,
        reference: Model | None = None,
        settings: Settings | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._samples = samples
        self._reference = reference
        self._settings = settings or Settings()
        self._progress = progress
        self._batch: int | None = None
        self._relays: tuple[Relay, Relay] | None = None

    def moments(
        self, model: Model, layers: Sequence[str | Request], changing: Sequence[str] = ()
    ) -> dict[str, Moments]:
        """Return the moments of ``layers``, by anchor, in one pass over the samples; in more where layers are many.

        Args:
            changing: anchors of what the caller is about to change, besides ``layers``: producers whose filters go.

        Quick where what changes between calls comes after what changed before, and ``changing`` tells of all of it;
        right in any case.

        Raises:
            PassError: a layer is not linear, its Gram matrix is too large, its activations are not finite, or the
                reference computes another shape there.
            RuntimeRefusal: onnxruntime does not run a model on a sample.
        """
        requests = [Request(layer) if isinstance(layer, str) else layer for layer in layers]
        found: dict[str, Moments] = {}
        for group in self._groups(model, requests):
            try:
                found.update(self._take(model, group, changing))
            except Unstackable:
                self._batch, self._relays = 1, None
                found.update(self._take(model, group, changing))
        return {request.anchor: found[request.anchor] for request in requests}

    def _groups(self, model: Model, requests: Sequence[Request]) -> list[list[Request]]:
        """Split ``requests``, front to back, so that what one batch of each group hands out fits in ``BATCH_BYTES``."""
        if len(requests) < 2:
            return [list(requests)] if requests else []
        self._opened(model)
        shapes = concrete_shapes(model, next(iter(self._samples)).feed)
        nodes = ((index, node) for index, node in enumerate(model.graph.nodes) if node.inputs)
        order = {anchor_of(node): (index, node.inputs[0].name) for index, node in nodes}
        groups: list[list[Request]] = [[]]
        held = 0
        for request in sorted(requests, key=lambda request: order.get(request.anchor, (0, ""))[0]):
            names = (request.anchor, order.get(request.anchor, (0, ""))[1])
            size = (self._batch or 1) * sum(4 * math.prod(shapes.get(name, ())) for name in names)
            if groups[-1] and held + size > BATCH_BYTES:
                groups.append([])
                held = 0
            groups[-1].append(request)
            held += size
        return groups

    def _take(self, model: Model, requests: Sequence[Request], changing: Sequence[str]) -> dict[str, Moments]:
        sums = [Sums(model, request, self._settings, self._reference is not None) for request in requests]
        anchors = {*changing, *(one.layer.anchor for one in sums)}
        before = next(anchor_of(node) for node in model.graph.nodes if anchor_of(node) in anchors)
        done = 0
        for count, inputs, outputs in self._batches(model, sums, before):
            add = partial(_add, count, done, inputs, outputs)
            deque(map_in_order(add, sums, self._settings.threads), maxlen=0)
            done += count
            if self._progress is not None:
                self._progress("statistics", done, len(self._samples))
        return {one.layer.anchor: one.moments() for one in sums}

    def _batches(self, model: Model, sums: Sequence[Sums], before: str) -> Iterator[tuple[int, Values, Values]]:
        """Yield (samples, tensors of the model, tensors of the reference)."""
        ours, theirs = self._opened(model)
        names = [name for one in sums for name in one.inputs]
        if self._reference is None:
            yield from ((count, values, {}) for count, values in ours.values(model, names, before))
            return
        targets = [one.target for one in sums]
        pairs = zip(ours.values(model, names, before), theirs.values(self._reference, targets, before), strict=True)
        yield from ((count, inputs, outputs) for (count, inputs), (_, outputs) in pairs)

    def _opened(self, model: Model) -> tuple[Relay, Relay]:
        if self._relays is None:
            models = [model] if self._reference is None else [model, self._reference]
            self._batch = self._batch or min(batch_size(each, self._samples) for each in models)
            batch, settings = self._batch, self._settings
            ours, theirs = (Relay(self._samples, batch, settings.threads, settings.frontier_bytes) for _ in range(2))
            self._relays = ours, theirs
        return self._relays


def _add(count: int, done: int, inputs: Values, outputs: Values, sums: Sums) -> None:
    sums.add(count, done, inputs, outputs)


def collect_moments(
    model: Model,
    layers: Sequence[str | Request],
    samples: Samples,
    reference: Model | None = None,
    settings: Settings | None = None,
) -> dict[str, Moments]:
    """Return the moments of ``layers`` of ``model`` by anchor: one stage of a :class:`Collector`."""
    return Collector(samples, reference, settings).moments(model, layers)


def joined_by(model: Model, anchor: str) -> str | None:
    """Return the sum into which the output of a layer goes and nowhere else, for :class:`Request`; None for no such.

    The other addend must be computed and of the same shape, so shapes must be inferred.
    """
    out = next((t for node in model.graph.nodes for t in node.outputs if t.name == anchor), None)
    readers = consumers(out) if out is not None else []
    if out is None or len(readers) != 1 or not is_standard(readers[0], "Add") or len(out.outputs) != 1:
        return None
    if any(tensor is out for tensor in model.graph.outputs) or readers[0] not in model.graph.nodes:
        return None
    other = next(tensor for tensor in readers[0].inputs if tensor is not out)
    same = dims_of(other) is not None and dims_of(other) == dims_of(out)
    return anchor_of(readers[0]) if same and not isinstance(other, Constant) else None
