"""First and second moments of one linear layer: what they are, and the sums that they come from.

Sums are taken in float64 around a shift that the first patches give (a shifted-data algorithm: Chan, Golub & LeVeque
1983, "Algorithms for Computing the Sample Variance"), so that large means cost no digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnxslim.analysis.frontiers import Values
from onnxslim.analysis.linear_layers import Array, Floats, Indices, LinearLayer
from onnxslim.analysis.patches import PatchMap, items, patch_map
from onnxslim.analysis.rectified import Guess
from onnxslim.analysis.recurrent_inputs import linear_part
from onnxslim.errors import PassError
from onnxslim.ir import Model, anchor_of, is_standard

T = TypeVar("T")

HELD_BYTES = 512 * 2**20
"""Moments of several layers that are held together."""
CHUNK_BYTES = 32 * 2**20
"""Patches in float64 that are multiplied at once."""
_FEWEST_POSITIONS = 4
_FEWEST_ROWS = 256
"""Fewer would leave the processor waiting for memory."""


@dataclass(frozen=True)
class Settings:
    """How statistics are taken."""

    positions: int = 256
    """Output positions of a layer that are looked at for one sample, at most; drawn anew for each sample. Neighbours
    say much the same: more samples tell more than more positions."""
    per_column: float = math.inf
    """Positions of one sample for each column of the layer beyond which no more are looked at, a few apart: narrow
    layers, such as depthwise ones, are known well long before wide ones are."""
    seed: int = 0
    """Of the draw; the same for input and output."""
    threads: int = 0
    """Of onnxruntime; 0 means one per core."""
    single: bool = False
    """Whether patches are multiplied in float32, in half the time: their sums stay float64."""
    matrix_bytes: int = 512 * 2**20
    """What the Gram matrix of one layer may take; one of 8192 columns takes 512 MiB."""
    frontier_bytes: int = 512 * 2**20
    """What each model's activations between stages may take, over all samples."""


@dataclass(frozen=True)
class Moments:
    """First and second moments of a layer's input patches p and targets y; sums, not averages, in float64."""

    count: int
    """Number of patches."""
    samples: int
    """Number of samples that they come from."""
    mean: Floats
    """Of p. Shape (groups, d)."""
    gram: Floats
    """Σ(p − p̄)(p − p̄)ᵀ. Shape (groups, d, d)."""
    target_mean: Floats
    """Of y. Shape (O,)."""
    cross: Floats
    """Σ(p − p̄)(y − ȳ)ᵀ. Shape (groups, d, O/groups)."""
    energy: Floats
    """Σ(y − ȳ)². Shape (O,)."""

    @property
    def groups(self) -> int:
        """Groups of the layer."""
        return len(self.gram)

    @property
    def width(self) -> int:
        """d: length of a patch."""
        return int(self.gram.shape[-1])

    @property
    def total_energy(self) -> float:
        """What errors are fractions of; 0 where y is constant."""
        return float(self.energy.sum())

    def samples_for(self, rows_per_column: float = 4.0) -> int:
        """Return how many samples would give so many patches for each column: fewer than one leaves gaps that only a
        ridge fills, a few make estimates steady.
        """
        return math.ceil(rows_per_column * self.width * self.samples / max(self.count, 1))

    def restricted(self, columns: Indices) -> Moments:
        """Return the moments of some columns of p alone, of a layer without groups: as if the others were cut.

        Args:
            columns: indices of the columns that stay.
        """
        if self.groups != 1:
            raise ValueError("columns of grouped layers cannot be chosen together")
        gram = self.gram[:, columns[:, None], columns[None]]
        parts = self.mean[:, columns], gram, self.target_mean, self.cross[:, columns]
        return Moments(self.count, self.samples, *parts, self.energy)


@dataclass(frozen=True)
class Request:
    """A layer whose moments are wanted, and what its target is."""

    anchor: str
    joined: str | None = None
    """The output of an Add of the layer's output and another tensor: then the target is the reference's *sum* less the
    other addend of the model at hand, so that the layer makes up for what the shortcut has lost too (He et al. 2017,
    §3.3, "multi-branch networks"). See :func:`joined_by`."""
    kept: tuple[int, ...] | None = None
    """Which of the reference's output channels the layer still has; None: all of them."""
    columns: tuple[int, int] | None = None
    """From where to where the columns are looked at alone, of a layer whose Gram matrix would be too large whole. Then
    the target is the reference less the layer's own output as it is now: what these columns may still put right."""
    guess: Guess | None = None
    """What the layer is about to compute where a ReLU follows: then targets below zero follow it."""


# ---- sums of one layer -----------------------------------------------------------------------------------------------


class Sums:
    """Running sums for one layer, around a shift that the first patches give."""

    def __init__(self, model: Model, request: Request, settings: Settings, referred: bool) -> None:
        node = next((node for node in model.graph.nodes if anchor_of(node) == request.anchor), None)
        if node is None:
            raise PassError(f"the model has no layer {request.anchor!r}")
        self.layer = linear_part(node)
        self._settings = settings
        self._part = _part_of(self.layer, request.columns)
        groups, width, channels = self.layer.groups, self._part.stop - self._part.start, self.layer.channels
        _refuse_size(self.layer, width, settings.matrix_bytes)
        self.target = request.joined or self.layer.target
        """The tensor of the reference that is, or holds, the target."""
        self._kept = None if request.kept is None else np.array(request.kept, np.int64)
        self._other = _other_addend(model, self.layer, request.joined) if request.joined else None
        self._referred = referred
        self._guess = request.guess
        self._own_output = referred and request.columns is not None
        self._width = width
        self._limit = int(min(settings.positions, max(_FEWEST_POSITIONS, settings.per_column * width)))
        self._count, self._samples = 0, 0
        self._shift, self._target_shift = np.zeros(groups * width), np.zeros(channels)
        self._sum, self._target_sum = np.zeros(groups * width), np.zeros(channels)
        self._gram = np.zeros((groups, width, width))
        self._cross = np.zeros((groups, width, channels // groups if referred else 0))
        self._energy = np.zeros(channels)
        self._shape: tuple[int, ...] = ()
        self._map: PatchMap | None = None

    @property
    def _rows(self) -> slice:
        """Which rows of a matrix of patches are looked at: those of all groups, or of the one group's part."""
        return slice(0, self.layer.groups * self.layer.width) if self.layer.groups > 1 else self._part

    @property
    def inputs(self) -> list[str]:
        """The tensors of the model that :meth:`add` reads."""
        more = [self._other] if self._other is not None and self._referred else []
        return [self.layer.source, *more, *([self.layer.anchor] if self._own_output else [])]

    def add(self, samples: int, done: int, inputs: Values, outputs: Values) -> None:
        """Add a batch of ``samples``, of which ``done`` came before."""
        source = _finite(inputs[self.layer.source], self.layer.source)
        if self._map is None or source.shape[1:] != self._shape:
            self._shape = source.shape[1:]
            self._map = patch_map(self.layer, source.shape)
        given = items(self.layer, source)
        wanted = items(self.layer, self._targets(inputs, outputs)) if self._referred else None
        if wanted is not None and (len(wanted), self._map.positions) != (len(given), _positions(self._map, wanted)):
            raise PassError(f"the reference computes another shape at {self.target!r}")
        for pieces in self._chunks(len(given), samples, done):
            self._multiply(self._map, given, wanted, pieces)
        self._samples += samples

    def _targets(self, inputs: Values, outputs: Values) -> Array:
        target = self.layer.seen(_finite(outputs[self.target], self.target))
        if self._kept is not None:
            target = np.take(target, self._kept, axis=1 if self.layer.kernel else -1)
        for name in self.inputs[1:]:
            other = _finite(inputs[name], name)
            if other.shape != target.shape:
                raise PassError(f"{name!r} and its part of {self.target!r} are of different shapes")
            target = target.astype(np.float64) - other
        return target

    def _chunks(self, count: int, samples: int, done: int) -> Iterator[list[tuple[int, Indices]]]:
        """Yield lists of (item, positions) whose patches are multiplied at once."""
        assert self._map is not None  # noqa: S101  (add() made it)
        room = max(_FEWEST_ROWS, CHUNK_BYTES // (8 * self.layer.groups * self.layer.width))
        per_sample = max(count // samples, 1)
        limit = max(self._limit // per_sample, 1)
        pieces: list[tuple[int, Indices]] = []
        held = 0
        for item in range(count):
            picks = drawn(self._map.positions, limit, self._settings.seed, done * per_sample + item)
            for start in range(0, len(picks), room):
                piece = picks[start : start + room]
                if held + len(piece) > room and pieces:
                    yield pieces
                    pieces, held = [], 0
                pieces.append((item, piece))
                held += len(piece)
        if held:
            yield pieces

    def _multiply(self, where: PatchMap, given: Array, wanted: Array | None, pieces: list[tuple[int, Indices]]) -> None:
        groups, width = self.layer.groups, self._width
        rows = np.concatenate([where.patches(given[item], picks)[self._rows] for item, picks in pieces], axis=1)
        if not self._count:
            self._shift = rows.mean(axis=1, dtype=np.float64)
        precision = np.float32 if self._settings.single else np.float64
        patches = np.subtract(rows, self._shift[:, None], dtype=precision, casting="same_kind")
        self._sum += patches.sum(axis=1, dtype=np.float64)
        grouped = patches.reshape(groups, width, -1)
        self._gram += grouped @ grouped.swapaxes(1, 2)
        if wanted is not None:
            targets = np.concatenate([where.targets(wanted[item], picks) for item, picks in pieces], axis=1)
            if self._guess is not None:
                targets = self._guess.rectified(targets, rows)
            self._multiply_targets(targets, grouped)
        self._count += rows.shape[1]

    def _multiply_targets(self, rows: Array, patches: Floats) -> None:
        if not self._count:
            self._target_shift = rows.mean(axis=1, dtype=np.float64)
        targets = np.subtract(rows, self._target_shift[:, None], dtype=np.float64)
        self._target_sum += targets.sum(axis=1)
        self._energy += np.einsum("or,or->o", targets, targets)
        grouped = targets.reshape(self.layer.groups, -1, targets.shape[1])
        self._cross += patches @ grouped.swapaxes(1, 2)

    def moments(self) -> Moments:
        """Return what the sums come to."""
        layer = self.layer
        if not self._count:
            raise PassError(f"no output position of {layer.anchor!r} was ever computed: its output is empty")
        drift = (self._sum / self._count).reshape(layer.groups, self._width)
        mean = drift + self._shift.reshape(layer.groups, self._width)
        gram = self._gram - self._count * drift[:, :, None] * drift[:, None, :]
        if not self._referred:
            return self._own(mean, gram)
        off = self._target_sum / self._count
        cross = self._cross - self._count * drift[:, :, None] * off.reshape(layer.groups, 1, -1)
        energy = np.maximum(self._energy - self._count * off**2, 0.0)
        return Moments(self._count, self._samples, mean, gram, self._target_shift + off, cross, energy)

    def _own(self, mean: Floats, gram: Floats) -> Moments:
        """Return the moments with the layer's own outputs for targets, which follow from those of its inputs."""
        matrix = self.layer.matrix()[:, :, self._part]
        cross = gram @ matrix.swapaxes(1, 2)
        energy = np.einsum("god,gdo->go", matrix, cross).reshape(-1)
        target = np.einsum("god,gd->go", matrix, mean).reshape(-1) + self.layer.bias()
        return Moments(self._count, self._samples, mean, gram, target, cross, np.maximum(energy, 0.0))


def in_turns(items: Sequence[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Split ``items``, in order, so that the moments of each few, ``size`` bytes each, fit beside each other."""
    held: list[T] = []
    taken = 0
    for item in items:
        own = size(item)
        if held and taken + own > HELD_BYTES:
            yield held
            held, taken = [], 0
        held.append(item)
        taken += own
    if held:
        yield held


def drawn(positions: int, limit: int, seed: int, index: int) -> Indices:
    """Return at most ``limit`` of so many positions, in order; all where they are no more. ``index`` is the item's."""
    if positions <= limit:
        return np.arange(positions)
    chosen = np.random.default_rng((seed, index)).choice(positions, limit, replace=False, shuffle=False)
    return np.sort(chosen).astype(np.int64)


def _positions(where: PatchMap, wanted: Array) -> int:
    return int(wanted.shape[2 if where.tables else 1])


def _finite(array: Array, name: str) -> Array:
    if not np.isfinite(array).all():
        raise PassError(f"{name!r} holds NaN or Inf on the samples")
    return array


def _part_of(layer: LinearLayer, columns: tuple[int, int] | None) -> slice:
    if columns is None:
        return slice(0, layer.width)
    if layer.groups != 1 or not 0 <= columns[0] < columns[1] <= layer.width:
        raise PassError(f"{layer.anchor!r} has no columns {columns[0]} to {columns[1]} of its own")
    return slice(*columns)


def blocks(layer: LinearLayer, limit: int) -> list[tuple[int, int]]:
    """Return the columns of ``layer`` in blocks of whole channels whose Gram matrices take ``limit`` bytes at most.

    One block where all fit; a layer with groups is never divided.
    """
    most = max(int(math.sqrt(limit / 8)) // layer.taps * layer.taps, layer.taps)
    if layer.groups > 1 or layer.width <= most:
        return [(0, layer.width)]
    return [(start, min(start + most, layer.width)) for start in range(0, layer.width, most)]


def _refuse_size(layer: LinearLayer, width: int, limit: int) -> None:
    needed = 8 * layer.groups * width**2
    if needed > limit:
        raise PassError(
            f"the Gram matrix of {layer.anchor!r}, {layer.groups} x {width} x {width}, takes "
            f"{needed / 2**20:.0f} MiB, more than the {limit / 2**20:.0f} MiB allowed"
        )


def _other_addend(model: Model, layer: LinearLayer, joined: str) -> str:
    add = next((node for node in model.graph.nodes if anchor_of(node) == joined), None)
    names = [] if add is None or not is_standard(add, "Add") else [tensor.name for tensor in add.inputs]
    if layer.anchor not in names or names[0] == names[-1]:
        raise PassError(f"{joined!r} is no sum of {layer.anchor!r} and another tensor")
    return str(names[1 - names.index(layer.anchor)])
