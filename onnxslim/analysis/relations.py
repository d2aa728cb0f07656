"""What rules about operators say of channels: which axes belong together, index by index, and what must stay.

A *dimension* is one axis of one tensor. Rules relate dimensions by index maps; what a rule does not account for is
frozen, so that forgetting an axis can only make less prunable, never break a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from networkx.utils import UnionFind

from onnxslim.ir import Constant, Node, Tensor, anchor_of, array_of, dims_of

Indices = npt.NDArray[np.int64]
Key = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Use:
    """A constant as one node reads it: parameters are cut for each reader of their own, tied weights for all."""

    node: Node
    slot: int
    constant: Constant


@dataclass(frozen=True)
class Dimension:
    """One axis of a tensor, or of a constant as one node reads it."""

    owner: Tensor | Use
    axis: int
    size: int

    @property
    def key(self) -> Key:
        """Identity of the dimension."""
        return id(self.owner), self.axis

    @property
    def tensor(self) -> Tensor:
        """The tensor whose axis it is."""
        return self.owner.constant if isinstance(self.owner, Use) else self.owner


@dataclass(frozen=True)
class Layer:
    """A node with weights along one axis of which lie its filters, or the input channels that it reads."""

    node: Node
    dimension: Dimension

    @property
    def anchor(self) -> str:
        """First output of the layer."""
        return anchor_of(self.node)


@dataclass(frozen=True)
class Counted:
    """An attribute of ``node`` that is the size of ``dimension`` divided by ``per``: ``group``, ``hidden_size``."""

    node: Node
    attribute: str
    dimension: Dimension
    per: int = 1


@dataclass(frozen=True)
class Sized:
    """A constant input of ``node`` that names the size of ``dimension`` at ``position``: targets of a Reshape."""

    node: Node
    slot: int
    position: int
    dimension: Dimension


@dataclass(frozen=True)
class Pieces:
    """A Split whose outputs have sizes of their own."""

    node: Node
    outputs: tuple[Dimension, ...]


@dataclass(frozen=True)
class Window:
    """A Slice or Pad along channels: ``inner`` lies in ``outer`` from index ``start`` on."""

    node: Node
    axis: int
    outer: Dimension
    inner: Dimension
    start: int


@dataclass(frozen=True)
class Picked:
    """A Gather of constant indices along channels."""

    node: Node
    source: Dimension
    picked: Dimension | None
    """None where one index is taken and its axis goes."""


Adjustment = Counted | Sized | Pieces | Window | Picked
"""What of a node must change with its channels, besides the constants that lie along them."""


@dataclass
class _Standing:
    """What is known so far of dimensions that are related."""

    made: bool = False
    frozen: bool = False


@dataclass
class Relations:
    """What the rules found out."""

    dimensions: dict[Key, Dimension] = field(default_factory=dict)
    edges: list[tuple[Key, Key, Indices | None, Indices | None]] = field(default_factory=list)
    """Pairs of dimensions with pairs of indices; None stands for equal indices."""
    frozen: dict[Key, list[tuple[str, Indices | None]]] = field(default_factory=lambda: defaultdict(list))
    """Why dimensions, or some of their indices, must stay."""
    weights: dict[int, list[tuple[Node, int]]] = field(default_factory=lambda: defaultdict(list))
    """Which nodes, at which input, read a constant as their weight: it is cut for all of them alike."""
    producers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    adjustments: list[Adjustment] = field(default_factory=list)
    outputs: set[int] = field(default_factory=set)
    """The tensors that the model returns, by identity."""
    union: UnionFind[Key] = field(default_factory=UnionFind)
    _standing: dict[Key, _Standing] = field(default_factory=dict)
    _uses: dict[Key, Use] = field(default_factory=dict)
    _touched: set[Key] = field(default_factory=set)

    # ---- dimensions --------------------------------------------------------------------------------------

    def axis(self, tensor: Tensor, axis: int) -> Dimension | None:
        """Return an axis of ``tensor`` (counted from the end when negative), None where its size is unknown."""
        dims = dims_of(tensor)
        if dims is None or not -len(dims) <= axis < len(dims):
            return None
        size = dims[axis]
        return self._dimension(tensor, axis % len(dims), size) if isinstance(size, int) and size > 0 else None

    def parameter(self, node: Node, slot: int, axis: int) -> Dimension | None:
        """Return an axis of input ``slot``: a constant is cut for this reader alone."""
        tensor = node.inputs[slot]
        if not isinstance(tensor, Constant):
            return self.axis(tensor, axis)
        use = self._uses.setdefault((id(node), slot), Use(node, slot, tensor))
        rank = len(tensor.shape)
        return self._dimension(use, axis % rank, int(tensor.shape[axis])) if -rank <= axis < rank else None

    def _dimension(self, owner: Tensor | Use, axis: int, size: int) -> Dimension:
        dimension = Dimension(owner, axis, size)
        return self.dimensions.setdefault(dimension.key, dimension)

    # ---- relating ----------------------------------------------------------------------------------------

    def relate(
        self, left: Dimension | None, right: Dimension | None, a: Indices | None = None, b: Indices | None = None
    ) -> None:
        """Couple index a[i] of ``left`` with index b[i] of ``right``; equal indices when none are given."""
        if left is None or right is None:
            self.freeze(left, "a size beside it is unknown")
            self.freeze(right, "a size beside it is unknown")
            return
        if a is None and left.size != right.size:
            self.freeze(left, "sizes beside it do not correspond")
            self.freeze(right, "sizes beside it do not correspond")
            return
        self.edges.append((left.key, right.key, a, b))
        self._touched.update((left.key, right.key))
        merged = self._of(left), self._of(right)
        self.union.union(left.key, right.key)
        self._standing[self.union[left.key]] = _Standing(
            any(standing.made for standing in merged), any(standing.frozen for standing in merged)
        )

    def couple(self, dimension: Dimension | None, labels: Indices) -> None:
        """Couple the indices of ``dimension`` that have the same label."""
        if dimension is not None:
            _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
            self.relate(dimension, dimension, np.arange(dimension.size), first[inverse].astype(np.int64))

    def produce(self, node: Node, filters: Dimension | None) -> None:
        """Declare that the filters of ``node`` lie along ``filters``."""
        if filters is not None:
            self.producers.append(Layer(node, filters))
            self._of(filters).made = True

    def read(self, node: Node, channels: Dimension | None) -> None:
        """Declare that along ``channels`` of its weight, ``node`` reads input channels."""
        if channels is not None:
            self.readers.append(Layer(node, channels))

    def freeze(self, dimension: Dimension | None, reason: str, indices: Indices | None = None) -> None:
        """Declare that ``dimension``, or these indices of it, must stay as they are."""
        if dimension is None:
            return
        self.frozen[dimension.key].append((reason, indices))
        self._touched.add(dimension.key)
        if indices is None:
            self._of(dimension).frozen = True

    def is_alive(self, dimension: Dimension | None) -> bool:
        """Whether, by what is known so far, filters make ``dimension`` and nothing freezes it."""
        return dimension is not None and self._of(dimension).made and not self._of(dimension).frozen

    def leave(self, dimension: Dimension | None) -> None:
        """Declare that the operator neither relates nor disturbs ``dimension``."""
        if dimension is not None:
            self._touched.add(dimension.key)

    def _of(self, dimension: Dimension) -> _Standing:
        return self._standing.setdefault(self.union[dimension.key], _Standing())

    # ---- nodes -------------------------------------------------------------------------------------------

    def freeze_tensor(self, tensor: Tensor, reason: str) -> None:
        """Freeze every axis of a computed tensor. Constants are cut for those readers alone that are understood."""
        for axis in () if isinstance(tensor, Constant) else range(len(dims_of(tensor) or ())):
            self.freeze(self.axis(tensor, axis), reason)

    def freeze_node(self, node: Node, reason: str) -> None:
        """Freeze everything that ``node`` reads or makes."""
        for tensor in (*node.inputs, *node.outputs):
            self.freeze_tensor(tensor, reason)

    def begin(self) -> None:
        """Forget which dimensions were accounted for: the next node begins."""
        self._touched.clear()

    def end(self, node: Node) -> None:
        """Freeze what the rule of ``node`` did not account for, and note which constants it reads as weights."""
        for slot, tensor in enumerate(node.inputs):
            if isinstance(tensor, Constant):
                if any((id(tensor), axis) in self._touched for axis in range(len(tensor.shape))):
                    self.weights[id(tensor)].append((node, slot))
            else:
                self._freeze_rest(node, tensor)
        for tensor in node.outputs:
            self._freeze_rest(node, tensor)

    def _freeze_rest(self, node: Node, tensor: Tensor) -> None:
        for axis, size in enumerate(dims_of(tensor) or ()):
            if size != 1 and (id(tensor), axis) not in self._touched:
                self.freeze(self.axis(tensor, axis), f"{node.op} does not work on each index alone")

    def keep(self, source: Tensor, target: Tensor, axes: Sequence[int] | None = None) -> None:
        """Relate axes of two tensors of one rank, all of them unless given."""
        dims, other = dims_of(source), dims_of(target)
        if dims is None or other is None or len(dims) != len(other):
            self.freeze_tensor(source, "a rank beside it is unknown")
            self.freeze_tensor(target, "a rank beside it is unknown")
            return
        for axis in range(len(dims)) if axes is None else axes:
            self.relate(self.axis(source, axis), self.axis(target, axis))


def integers(node: Node, name: str, slot: int | None = None) -> list[int] | None:
    """Return integers that are an attribute of ``node`` or, in later opsets, a constant input; None where computed.

    An absent one is an empty list.
    """
    if name in node.attrs:
        value: Any = node.attrs[name]
        return [int(item) for item in (value if isinstance(value, list | tuple) else [value])]
    if slot is None or len(node.inputs) <= slot or not node.inputs[slot].name:
        return []
    values = array_of(node.inputs[slot])
    return None if values is None else [int(item) for item in values.reshape(-1)]
