"""Which channels can be scaled without changing what a model computes, and which weights a scale must meet.

Every computed tensor x is stored as x / s, with one positive scale s for each channel. Scales are *variables*, named by
integers; each tensor has an array of them that broadcasts against it, so that numpy's own indexing says what Slice,
Concat, Transpose or Reshape do to them. 0 names the scale that is 1.

A layer with constant weights makes variables of its own for its outputs and takes up those of its inputs:

    y / s_y = (W · s_x / s_y) · (x / s_x) + b / s_y

A normalization makes variables of its own too, whatever it reads: its scale γ and its shift β are divided.

Operators that are positively homogeneous, f(s·x) = s·f(x) for s > 0, hand variables on; Add and Concat make them equal
or put them beside each other; what is not understood holds them at 1, with a reason. ``equalizable_rules`` has one
small rule for each operator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxslim.ir import Model, Node, Tensor, anchor_of, dims_of, producer

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]
"""Variables, in an array that broadcasts against a tensor."""


@dataclass(frozen=True)
class Parameter:
    """A constant input: multiplied by the scales of what comes in, divided by those of what goes out."""

    node: Node
    slot: int
    values: Array
    into: Labels
    """Of what comes in; broadcasts against ``values`` (or, for a shift, the other way round)."""
    out: Labels
    """Of what goes out."""

    @property
    def anchor(self) -> str:
        """The first output of the node."""
        return anchor_of(self.node)


@dataclass(frozen=True)
class Cap:
    """A Clip that goes on commuting with scales only where it clips nothing above, or where the scale is 1."""

    node: Node
    labels: Labels
    low: float
    high: float

    @property
    def anchor(self) -> str:
        """The first output of the node."""
        return anchor_of(self.node)


@dataclass
class Flow:
    """What the rules found out on their way through the graph."""

    count: int = 1
    """Variables so far, the 0 among them."""
    weights: list[Parameter] = field(default_factory=list)
    makers: list[Parameter] = field(default_factory=list)
    """Scales of normalizations: they make channels as weights do, but are never quantized by themselves."""
    shifts: list[Parameter] = field(default_factory=list)
    """Biases, and whatever else must follow the scales but is never quantized by itself."""
    caps: list[Cap] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    """Layers whose weights no scale can meet: (anchor, reason)."""
    _of: dict[int, tuple[Tensor, Labels]] = field(default_factory=dict)
    _same: list[tuple[Labels, Labels]] = field(default_factory=list)
    _held: list[tuple[Labels, str]] = field(default_factory=list)

    # ---- what rules ask and say --------------------------------------------------------------------------

    def of(self, tensor: Tensor) -> Labels:
        """Return the variables of ``tensor``; a tensor that is not scaled has a single 0."""
        found = self._of.get(id(tensor))
        return np.zeros((1,) * len(dims_of(tensor) or ()), np.int64) if found is None else found[1]

    def is_scaled(self, tensor: Tensor) -> bool:
        """Whether any channel of ``tensor`` has a variable."""
        return id(tensor) in self._of

    def give(self, tensor: Tensor, labels: Labels) -> None:
        """Say which variables ``tensor`` has; those of one whose shape is not known, or is another, stay at 1."""
        if not tensor.name or not labels.any():
            return
        dims = dims_of(tensor)
        if dims is None or len(dims) != labels.ndim:
            self.hold(labels, "the rank of a tensor that holds it is not known")
        elif any(size not in (1, dim) for size, dim in zip(labels.shape, dims, strict=True)):
            self.hold(labels, "the size of a tensor that holds it is not known")
        else:
            self._of[id(tensor)] = tensor, labels

    def named(self, units: Labels) -> Iterator[tuple[str, Labels]]:
        """Yield the names of tensors with the units of their variables, where they have any."""
        for tensor, labels in self._of.values():
            found = units[labels]
            if (found >= 0).any():
                yield tensor.name, found

    def fresh(self, count: int) -> Labels:
        """Return new variables. Shape (count,)."""
        found = np.arange(self.count, self.count + count, dtype=np.int64)
        self.count += count
        return found

    def same(self, left: Labels, right: Labels) -> Labels:
        """Make variables equal that meet where both are broadcast; return those of the result."""
        shape = np.broadcast_shapes(left.shape, right.shape)
        a, b = np.broadcast_to(left, shape), np.broadcast_to(right, shape)
        both = (a != 0) & (b != 0)
        self._same.append((a[both], b[both]))
        self.hold(np.where(a == 0, b, a)[(a == 0) != (b == 0)], "it is joined with something that is not scaled")
        return np.where(a == 0, b, a)

    def hold(self, labels: Labels, reason: str) -> None:
        """Keep these scales at 1."""
        found = np.unique(labels[labels != 0])
        if found.size:
            self._held.append((found, reason))

    def hold_inputs(self, node: Node, reason: str) -> None:
        """Keep the scales of everything that ``node`` reads at 1."""
        for tensor in node.inputs:
            self.hold(self.of(tensor), reason)

    # ---- what comes of it --------------------------------------------------------------------------------

    def solved(self) -> tuple[Labels, Reasons]:
        """Return the unit of each variable, −1 where it is held at 1, and why those are held.

        Units count from 0 in the order of their first variable. Shape (count,).
        """
        left = np.concatenate([np.zeros(0, np.int64), *(a for a, _ in self._same)])
        right = np.concatenate([np.zeros(0, np.int64), *(b for _, b in self._same)])
        component = _components(left, right, self.count)
        why: dict[int, dict[str, None]] = defaultdict(dict)
        for labels, reason in self._held:
            for home in np.unique(component[labels]).tolist():
                why[home][reason] = None
        free = ~np.isin(component, [component[0], *why])
        _, first, inverse = np.unique(component[free], return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        units = np.full(self.count, -1, np.int64)
        units[free] = rank[inverse]
        return units, Reasons(component, why)


def _components(left: Labels, right: Labels, count: int) -> Labels:
    """Return the component of each of ``count`` vertices, of which each of ``left`` is linked to that of ``right``."""
    links = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


@dataclass(frozen=True)
class Reasons:
    """Why variables are held at 1: all that are equal for the reasons of each."""

    component: Labels
    by_component: dict[int, dict[str, None]]

    def of(self, labels: Labels) -> tuple[str, ...]:
        """Return the reasons of some variables, each once."""
        homes = np.unique(self.component[labels]).tolist()
        return tuple(dict.fromkeys(reason for home in homes for reason in self.by_component.get(home, ())))


@dataclass(frozen=True)
class Group:
    """Units that the same layers make, directly or through other units: they are scaled in one go.

    A group without units says why its layers' outputs are left alone.
    """

    anchor: str
    """Of the first layer."""
    layers: tuple[str, ...]
    """Anchors of the layers that make its channels."""
    units: Labels
    reasons: tuple[str, ...]
    """Why some channels, or all, stay as they are."""


@dataclass(frozen=True)
class Equalizable:
    """The scales of a model. Labels of all its parameters and caps are units, −1 where the scale is 1."""

    size: int
    """How many units there are."""
    weights: tuple[Parameter, ...]
    makers: tuple[Parameter, ...]
    """Scales of normalizations, which no grid is for."""
    shifts: tuple[Parameter, ...]
    caps: tuple[Cap, ...]
    groups: tuple[Group, ...]
    tensors: dict[str, Labels]
    """Units of every tensor that can be scaled, in an array that broadcasts against it."""
    left: tuple[tuple[str, str], ...]
    """Layers whose weights no scale can meet, and those that read what nothing scales: (anchor, reason)."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every constant that scales meet."""
        return (*self.weights, *self.makers, *self.shifts)


def analyze_scales(model: Model) -> Equalizable:
    """Find what can be scaled in ``model``, whose shapes must be inferred. Linear in nodes and channels."""
    from onnxslim.analysis.equalizable_rules import follow  # the rules need Flow

    flow = Flow()
    follow(model, flow)
    units, reasons = flow.solved()
    return Equalizable(
        size=int(units.max(initial=-1)) + 1,
        weights=tuple(_named(part, units) for part in flow.weights),
        makers=tuple(_named(part, units) for part in flow.makers),
        shifts=tuple(_named(part, units) for part in flow.shifts),
        caps=tuple(Cap(cap.node, units[cap.labels], cap.low, cap.high) for cap in flow.caps),
        groups=tuple(_groups(flow, units, reasons)),
        tensors=dict(flow.named(units)),
        left=(*flow.left, *_unmade(flow)),
    )


def _named(part: Parameter, units: Labels) -> Parameter:
    return Parameter(part.node, part.slot, part.values, units[part.into], units[part.out])


def _unmade(flow: Flow) -> Iterator[tuple[str, str]]:
    for part in flow.weights:
        source = part.node.inputs[0 if part.slot else 1]
        if not flow.is_scaled(source):
            maker = producer(source)
            what = "no node makes it" if maker is None else f"{maker.op} makes it"
            yield part.anchor, f"nothing scales {source.name!r}, which it reads: {what}"


def _groups(flow: Flow, units: Labels, reasons: Reasons) -> list[Group]:
    """Put layers together that make the same units."""
    made = [(part.anchor, np.unique(part.out[part.out != 0])) for part in (*flow.weights, *flow.makers)]
    made = [(anchor, labels) for anchor, labels in made if labels.size]
    rows = np.concatenate([np.zeros(0, np.int64), *(np.full(labels.size, i) for i, (_, labels) in enumerate(made))])
    columns = units[np.concatenate([np.zeros(0, np.int64), *(labels for _, labels in made)])]
    kept = columns >= 0
    component = _components(rows[kept], len(made) + columns[kept], len(made) + int(units.max(initial=-1)) + 1)
    homes: dict[int, list[int]] = defaultdict(list)
    for index in range(len(made)):
        homes[int(component[index])].append(index)
    found = []
    for indices in homes.values():
        labels = np.concatenate([made[index][1] for index in indices])
        own = np.unique(units[labels])
        layers = tuple(made[index][0] for index in indices)
        found.append(Group(layers[0], layers, own[own >= 0], reasons.of(labels)))
    return found
