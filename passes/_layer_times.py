"""What each linear layer takes in one inference of the whole model, out of onnxruntime's profile.

onnxruntime fuses a layer with what follows it, and names the result after the one or the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxslim.ir import Model, Node, anchor_of, consumers, is_standard
from onnxslim.runtime import Feed, RuntimeRefusal
from onnxslim.runtime.profile import profile

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
_FUSED = 3
"""Nodes that may have gone into a layer: an addition, a normalization, an activation."""


class LayerTimes:
    """Microseconds of the layers of one model, on one thread; nothing where onnxruntime does not run it."""

    def __init__(self, model: Model, feed: Feed) -> None:
        self._rows: dict[str, float] = {}
        try:
            rows = profile(model.placed().data, feed)
        except RuntimeRefusal:
            return
        for row in rows:
            if any(op in row.op for op in _LINEAR):
                self._rows[row.anchor or row.name.removeprefix("fused ")] = row.microseconds

    def of(self, nodes: Sequence[Node]) -> float | None:
        """Return what ``nodes`` take together; None where one is not found again."""
        found = [next((self._rows[name] for name in _names(node) if name in self._rows), None) for node in nodes]
        known = [time for time in found if time is not None]
        return round(sum(known), 1) if len(known) == len(found) else None


def _names(node: Node) -> Iterator[str]:
    """Yield what a layer may be called after fusion: itself, or one of the next that read nothing but it."""
    for _ in range(_FUSED + 1):
        yield anchor_of(node)
        readers = consumers(node.outputs[0])
        if len(readers) != 1 or is_standard(readers[0], *_LINEAR):
            return
        node = readers[0]
