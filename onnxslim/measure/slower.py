"""Which layers are slower as integers than they were in float, on this machine.

Kernels of the two models need not hold the same layers: float convolutions take in an addition that integer ones leave
apart. So what is compared are the smallest sets of layers that lie in whole kernels of both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxslim.runtime.placed_graph import Place
from onnxslim.runtime.placement import LayerPlacement

LEAST_RATIO = 1.25
"""Slower than this, to stand out from the noise of a profile."""
LEAST_SHARE = 0.005
"""Of the whole model's time."""


@dataclass(frozen=True)
class SlowerLayers:
    """Layers whose integer kernels took longer than the model in float did for the same."""

    anchors: tuple[str, ...]
    kernels: tuple[str, ...]
    """The operators that run them, as onnxruntime names them."""
    reference_us: float
    time_us: float


def slower_layers(
    reference: Sequence[LayerPlacement], candidate: Sequence[LayerPlacement], total_us: float
) -> tuple[SlowerLayers, ...]:
    """Return sets of layers that integers made slower, what is lost most first.

    Args:
        reference: layers of the model in float, timed.
        candidate: layers of the quantized model, timed.
        total_us: the time of the quantized model.
    """
    found = []
    for before, after in _common(reference, candidate):
        was, now = (sum(head.microseconds or 0.0 for head in heads) for heads in (before, after))
        integer = all(head.place is not Place.FLOAT for head in after)
        if integer and was > 0 and now > LEAST_RATIO * was and now - was > LEAST_SHARE * total_us:
            anchors, kernels = (tuple(dict.fromkeys(getattr(h, name) for h in after)) for name in ("anchor", "kernel"))
            found.append(SlowerLayers(anchors=anchors, kernels=kernels, reference_us=was, time_us=now))
    return tuple(sorted(found, key=lambda one: one.reference_us - one.time_us))


_Heads = list[LayerPlacement]


def _common(
    reference: Sequence[LayerPlacement], candidate: Sequence[LayerPlacement]
) -> Iterator[tuple[_Heads, _Heads]]:
    """Yield the heads of both models that share layers, directly or through each other."""
    kernels: list[tuple[int, LayerPlacement]] = []
    holders: dict[str, list[int]] = defaultdict(list)
    for side, layers in enumerate((reference, candidate)):
        places: dict[str, int] = {}
        for layer in layers:
            if layer.within is None:
                places[layer.anchor] = len(kernels)
                kernels.append((side, layer))
        for layer in layers:
            kernel = places.get(layer.within or layer.anchor)
            if kernel is not None:
                holders[layer.anchor].append(kernel)
    neighbours: dict[int, set[int]] = defaultdict(set)
    for joined in holders.values():
        for kernel in joined:
            neighbours[kernel].update(joined)
    seen: set[int] = set()
    for start in range(len(kernels)):
        members = _reached(start, neighbours, seen)
        before, after = ([layer for side, layer in map(kernels.__getitem__, members) if side == k] for k in (0, 1))
        if before and after:
            yield before, after


def _reached(start: int, neighbours: dict[int, set[int]], seen: set[int]) -> list[int]:
    """Return what hangs together with ``start`` and was not seen before, in order."""
    found, stack = [], [start]
    while stack:
        kernel = stack.pop()
        if kernel not in seen:
            seen.add(kernel)
            found.append(kernel)
            stack.extend(neighbours[kernel])
    return sorted(found)
