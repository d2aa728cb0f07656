"""Which channels live and die together: coupled groups of channels, followed through every operator that carries them.

A *dimension* is the channel axis of an activation, or one axis of a constant. Every operator relates dimensions by
index maps: filter i of a convolution makes channel i of its output; entry i of a flattened tensor is channel
i // (H·W). Dimensions that are related, directly or not, form a group; indices that are related form a *unit*, which is
removed as a whole or stays. An operator that is not understood freezes what touches it, with a reason.

``channel_rules`` holds one rule for each operator; this module collects their relations and cuts groups and units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxslim.ir import Constant, Model, Node, Tensor, anchor_of, dims_of

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dimension:
    """One axis of one tensor."""

    tensor: Tensor
    axis: int
    size: int

    @property
    def key(self) -> tuple[int, int]:
        """Identity of the dimension."""
        return id(self.tensor), self.axis


@dataclass(frozen=True)
class Layer:
    """A layer whose weight has its filters along ``dimension``."""

    node: Node
    dimension: Dimension
    fan_axis: int | None
    """Axis of the weight that reads input channels; None for depthwise filters."""

    @property
    def anchor(self) -> str:
        """First output of the layer."""
        return anchor_of(self.node)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    ``units[d]`` gives, for each index of dimension ``d``, the unit it belongs to, from 0 to ``size`` - 1.
    """

    anchor: str
    size: int
    producers: tuple[Layer, ...]
    dimensions: tuple[Dimension, ...]
    units: dict[tuple[int, int], Indices]
    frozen: tuple[str, ...]
    """Reasons why the group must stay; empty when it can be pruned."""


@dataclass
class Relations:
    """What the rules found out; ``axes`` holds the channel axis of every activation that has one."""

    axes: dict[int, int] = field(default_factory=dict)
    dimensions: dict[tuple[int, int], Dimension] = field(default_factory=dict)
    edges: list[tuple[tuple[int, int], tuple[int, int], Indices, Indices]] = field(default_factory=list)
    frozen: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)
    """Constants that something which is not understood reads, with the reason."""
    producers: list[Layer] = field(default_factory=list)
    grouped: list[tuple[Node, Dimension]] = field(default_factory=list)
    """Depthwise convolutions, whose ``group`` attribute counts the channels of a dimension."""
    targets: list[tuple[Node, int, Dimension]] = field(default_factory=list)
    """Reshapes whose constant target names, at a position, the size of a dimension."""

    def channel(self, tensor: Tensor) -> Dimension | None:
        """Return the channel dimension of an activation, None where it has none or its size is unknown."""
        axis = self.axes.get(id(tensor))
        dims = dims_of(tensor)
        size = None if axis is None or dims is None or axis >= len(dims) else dims[axis]
        return self.dimension(tensor, axis, size) if axis is not None and isinstance(size, int) else None

    def dimension(self, tensor: Tensor, axis: int, size: int) -> Dimension:
        """Return the one object for an axis of a tensor."""
        dimension = Dimension(tensor, axis, size)
        return self.dimensions.setdefault(dimension.key, dimension)

    def weight(self, constant: Constant, axis: int) -> Dimension:
        """Return an axis of a constant."""
        return self.dimension(constant, axis, int(constant.shape[axis]))

    def follow(self, tensor: Tensor, axis: int) -> Dimension | None:
        """Declare that channels of ``tensor`` lie along ``axis``, and return that dimension."""
        self.axes[id(tensor)] = axis
        return self.channel(tensor)

    def relate(
        self, left: Dimension | None, right: Dimension | None, a: Indices | None = None, b: Indices | None = None
    ) -> None:
        """Couple index a[i] of ``left`` with index b[i] of ``right``; equal indices when none are given."""
        if left is None or right is None:
            for known in (left, right):
                if known is not None:
                    self.freeze(known, "a size beside it is unknown")
            return
        if a is None or b is None:
            if left.size != right.size:
                self.freeze(left, "sizes beside it do not correspond")
                self.freeze(right, "sizes beside it do not correspond")
                return
            a = b = np.arange(left.size)
        self.edges.append((left.key, right.key, a, b))

    def freeze(self, dimension: Dimension | None, reason: str) -> None:
        """Declare that ``dimension`` must stay as it is."""
        if dimension is not None:
            self.frozen.setdefault(dimension.key, []).append(reason)

    def freeze_node(self, node: Node, reason: str) -> None:
        """Freeze the channels of everything that ``node`` reads or makes, and follow channels no further."""
        for tensor in (*node.inputs, *node.outputs):
            self.freeze(self.channel(tensor), reason)
            if isinstance(tensor, Constant):
                self.held[id(tensor)] = reason


@dataclass(frozen=True)
class Channels:
    """The groups of a model, and what else must change with them."""

    groups: tuple[ChannelGroup, ...]
    grouped: tuple[tuple[Node, Dimension], ...]
    targets: tuple[tuple[Node, int, Dimension], ...]


def analyze_channels(model: Model) -> Channels:
    """Find the coupled channels of ``model``, whose shapes must be inferred. Linear in nodes and channels."""
    from onnxslim.analysis.channel_rules import apply_rules

    relations = Relations()
    apply_rules(model, relations)
    for dimension in relations.dimensions.values():
        if id(dimension.tensor) in relations.held:
            relations.freeze(dimension, f"its weights are shared: {relations.held[id(dimension.tensor)]}")
    graph: nx.Graph[Any] = nx.Graph()
    graph.add_nodes_from(relations.dimensions)
    graph.add_edges_from((a, b) for a, b, _, _ in relations.edges)
    components = list(nx.connected_components(graph))
    home = {key: index for index, keys in enumerate(components) for key in keys}
    edges: list[list[tuple[tuple[int, int], tuple[int, int], Indices, Indices]]] = [[] for _ in components]
    for edge in relations.edges:
        edges[home[edge[0]]].append(edge)
    producers: list[list[Layer]] = [[] for _ in components]
    for layer in relations.producers:
        producers[home[layer.dimension.key]].append(layer)
    order = sorted(
        (i for i, layers in enumerate(producers) if layers), key=lambda i: relations.producers.index(producers[i][0])
    )
    groups = tuple(_group(relations, components[i], edges[i], producers[i]) for i in order)
    return Channels(groups, tuple(relations.grouped), tuple(relations.targets))


def _group(
    relations: Relations,
    keys: set[tuple[int, int]],
    edges: list[tuple[tuple[int, int], tuple[int, int], Indices, Indices]],
    layers: list[Layer],
) -> ChannelGroup:
    first = [layer.dimension.key for layer in layers]
    ordered = [*dict.fromkeys(first), *sorted(keys - set(first), key=list(relations.dimensions).index)]
    offsets: dict[tuple[int, int], int] = {}
    total = 0
    for key in ordered:
        offsets[key] = total
        total += relations.dimensions[key].size
    left = np.concatenate([offsets[a] + ia for a, _, ia, _ in edges]) if edges else np.zeros(0, np.int64)
    right = np.concatenate([offsets[b] + ib for _, b, _, ib in edges]) if edges else np.zeros(0, np.int64)
    matrix = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(total, total))
    count, labels = connected_components(matrix, directed=False)
    _, appearance = np.unique(labels, return_index=True)
    rank = np.empty(count, np.int64)
    rank[np.argsort(appearance)] = np.arange(count)  # units count in the order of the first layer's filters
    units = {key: rank[labels[start : start + relations.dimensions[key].size]] for key, start in offsets.items()}
    made = set(np.concatenate([units[key] for key in first]).tolist())
    frozen = list(dict.fromkeys(reason for key in ordered for reason in relations.frozen.get(key, ())))
    if len(made) < count:
        frozen.append("some of its channels come from no layer with filters")
    return ChannelGroup(
        anchor=layers[0].anchor,
        size=count,
        producers=tuple(layers),
        dimensions=tuple(relations.dimensions[key] for key in ordered),
        units=units,
        frozen=tuple(frozen),
    )
