"""Which neighbours of a row of linear layers are worth merging: costs of every stretch, and the cheapest division.

Merging is worth it where it takes fewer multiply-accumulates and no more bytes, or fewer bytes for the same. Two layers
alone may not be worth what three are (1×1, k×k, 1×1 with wide middles), so all stretches of a row are compared: an
interval's cost is its own, and the best division of a row extends the best of its beginnings.

Rows that read the same constants one by one are one :class:`Family`: they are merged together and share the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxslim.analysis.linear_layers import LinearLayer
from onnxslim.ir import Constant, Tensor, constant_bytes, dims_of, numpy_dtype
from onnxslim.passes._merging import Axis, Piece, joined, piece_of

LONGEST = 8
"""Layers that are merged into one at most."""
LARGEST = 2**22
"""Numbers in a weight that is multiplied or made: a few copies in float64 are 200 MB, and a second's work."""

Stretch = tuple[int, int]
"""First layer, and the one after the last."""


@dataclass(frozen=True)
class Gain:
    """What merging a stretch saves; negative where it costs more."""

    macs: int
    bytes: int

    @property
    def pays(self) -> bool:
        """Fewer multiply-accumulates and no more bytes, or fewer bytes for the same."""
        return (self.macs > 0 and self.bytes >= 0) or (self.macs == 0 and self.bytes > 0)

    def __add__(self, other: Gain) -> Gain:
        """Return both."""
        return Gain(self.macs + other.macs, self.bytes + other.bytes)


Row = tuple[LinearLayer, ...]


@dataclass
class Family:
    """Rows of layers that read the same weights and biases, with the same attributes."""

    rows: list[Row]
    returned: frozenset[int]
    """Ids of constants that a graph returns: they stay."""
    failed: dict[Stretch, str] = field(default_factory=dict)
    """Stretches whose numbers cannot be merged, and why."""

    def __post_init__(self) -> None:
        """Read the layers once."""
        self.pieces = [piece_of(layer) for layer in self.rows[0]]
        self._sizes = [_sizes(row, self.pieces) for row in self.rows]

    def merged(self, stretch: Stretch) -> Piece | str:
        """Return the layers of ``stretch`` as one, or why they are none."""
        whole = self.pieces[stretch[0]]
        for piece in self.pieces[stretch[0] + 1 : stretch[1]]:
            made = joined(whole, piece)
            if isinstance(made, str):
                return made
            if max(part.elements for part in (whole, piece, made)) > LARGEST:
                return f"its weights, those of the layer before it or of both as one are more than {LARGEST:,} numbers"
            whole = made
        return whole

    def division(self) -> list[Stretch]:
        """Return the stretches of the cheapest division that are to be merged, in order."""
        count = len(self.pieces)
        best: list[tuple[Gain, list[Stretch]]] = [(Gain(0, 0), [])]
        for end in range(1, count + 1):
            options = [best[end - 1]]
            for start in range(max(0, end - LONGEST), end - 1):
                gain = self._worth((start, end))
                if gain is not None:
                    before, stretches = best[start]
                    options.append((before + gain, [*stretches, (start, end)]))
            best.append(max(options, key=lambda option: (option[0].macs, option[0].bytes)))
        return best[count][1]

    def _worth(self, stretch: Stretch) -> Gain | None:
        if stretch in self.failed:
            return None
        gain = self.gain(stretch)
        return gain if isinstance(gain, Gain) and gain.pays else None

    def gain(self, stretch: Stretch) -> Gain | str:
        """Return what merging ``stretch`` saves in all rows, or why it cannot be done."""
        whole = self.merged(stretch)
        if isinstance(whole, str):
            return whole
        saved = []
        for sizes in self._sizes:
            macs = self._saved_macs(stretch, whole, sizes)
            if macs is None:
                return "which is cheaper, one layer or both, depends on sizes that are not known"
            saved.append(macs)
        # rows of other sizes may weigh anything beside each other, so none may lose
        macs = sum(saved) if min(saved) >= 0 else min(saved)
        return Gain(macs, self._freed_bytes(stretch) - self._own_bytes(stretch, whole))

    def why_apart(self, second: int) -> str:
        """Return why layer ``second`` is not merged with the one before it, for people."""
        stretch = second - 1, second + 1
        value = self.failed.get(stretch) or next(
            (reason for (start, end), reason in self.failed.items() if start < second < end), None
        )
        gain = self.gain(stretch)
        if isinstance(gain, str) or value is not None:
            return value if value is not None else str(gain)
        if gain.macs < 0:
            whole = self.merged(stretch)
            assert isinstance(whole, Piece)  # noqa: S101  (there is a gain)
            return f"one layer would take {self._ratio(stretch, whole):.3g} times the multiply-accumulates of both"
        if gain.bytes < 0:
            return f"one layer would add {-gain.bytes} bytes: its weights stay for others, or are more"
        return "one layer would save nothing"

    # ---- multiply-accumulates ----------------------------------------------------------------------------

    def _saved_macs(self, stretch: Stretch, whole: Piece, sizes: Sizes) -> int | None:
        """Return what is saved for each sample, with 1 for every size that is not known; None if that may mislead."""
        if not _lasts(self.pieces[slice(*stretch)], whole, sizes):
            return None
        return self._macs_apart(stretch, sizes) - _macs_as_one(stretch, whole, sizes)

    def _macs_apart(self, stretch: Stretch, sizes: Sizes) -> int:
        own = enumerate(self.pieces[slice(*stretch)], start=stretch[0])
        return sum(_macs_as_one((index, index + 1), piece, sizes) for index, piece in own)

    def _ratio(self, stretch: Stretch, whole: Piece) -> float:
        """Return how many times the multiply-accumulates one layer takes, in the row that loses most."""
        return max(_macs_as_one(stretch, whole, s) / max(self._macs_apart(stretch, s), 1) for s in self._sizes)

    # ---- bytes -------------------------------------------------------------------------------------------

    def _freed_bytes(self, stretch: Stretch) -> int:
        """Return the bytes of constants that only the layers of ``stretch`` read."""
        layers = [layer for row in self.rows for layer in row[slice(*stretch)]]
        nodes = {id(layer.node) for layer in layers}
        constants = {id(tensor): tensor for layer in layers for tensor in layer.node.inputs[1:]}
        freed = [tensor for tensor in constants.values() if self._goes(tensor, nodes)]
        return sum(constant_bytes(tensor) for tensor in freed if isinstance(tensor, Constant))

    def _goes(self, tensor: Tensor, nodes: set[int]) -> bool:
        return id(tensor) not in self.returned and all(id(reader) in nodes for reader in tensor.outputs)

    def _own_bytes(self, stretch: Stretch, whole: Piece) -> int:
        layers = self.rows[0][slice(*stretch)]
        dtype = numpy_dtype(layers[0].weight.dtype)
        assert dtype is not None  # noqa: S101  (its weights are numbers)
        biased = any(len(layer.node.inputs) > 2 and layer.node.inputs[2].name for layer in layers)
        return (whole.elements + (whole.outputs if biased else 0)) * dtype.itemsize


# ---- sizes -----------------------------------------------------------------------------------------------------------

Sizes = list[tuple[int | None, ...]]
"""Of the tensors before, between and after the layers of a row, along the axes of the window; None: not known."""


def _sizes(row: Row, pieces: Sequence[Piece]) -> Sizes:
    rank = len(pieces[0].axes)
    dims = dims_of(row[0].node.inputs[0])
    known = dims is not None and len(dims) == rank + 2
    given = dims[2:] if dims is not None and known else (None,) * rank
    sizes: Sizes = [tuple(size if isinstance(size, int) else None for size in given) if rank else ()]
    for piece in pieces:
        sizes.append(tuple(_after(piece.op, a, s) for a, s in zip(piece.axes, sizes[-1], strict=True)))
    return sizes


def _after(op: str, axis: Axis, size: int | None) -> int | None:
    if size is None:
        return None
    if op == "ConvTranspose":
        return axis.stride * (size - 1) + axis.extra + axis.span + 1 - axis.begin - axis.end
    if axis.rule:
        return -(-size // axis.stride)
    return (size + axis.begin + axis.end - axis.span - 1) // axis.stride + 1


def _macs_as_one(stretch: Stretch, piece: Piece, sizes: Sizes) -> int:
    """Return the multiply-accumulates for each sample: transposed at each input, otherwise at each output."""
    at = sizes[stretch[0] if piece.op == "ConvTranspose" else stretch[1]]
    return piece.elements * math.prod(1 if size is None else size for size in at)


def _lasts(pieces: Sequence[Piece], whole: Piece, sizes: Sizes) -> bool:
    """Whether along axes of unknown size each layer works at no fewer positions than the whole would."""
    for axis, size in enumerate(sizes[0]):
        along = [piece.axes[axis] for piece in pieces]
        if size is None and whole.op == "ConvTranspose":
            if any(a.begin + a.end > a.span + a.extra for a in along):
                return False
        elif size is None and any(a.rule is None and a.begin + a.end > a.span for a in along[1:]):
            return False
    return True
