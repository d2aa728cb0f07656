"""Which channels live and die together: coupled groups of channels, followed through every operator that carries them.

A *dimension* is the channel axis of an activation, or one axis of a constant. Every operator relates dimensions by
index maps: filter i of a convolution makes channel i of its output; entry i of a flattened tensor is channel
i // (H·W). Dimensions that are related, directly or not, form a group; indices that are related form a *unit*, which is
removed as a whole or stays. An operator that is not understood freezes what touches it, with a reason.

``channel_rules`` holds one rule for each operator; this module collects their relations and cuts groups and units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxslim.analysis.channel_rules import apply_rules
from onnxslim.analysis.relations import Dimension, Indices, Layer, Relations
from onnxslim.ir import Constant, Model, Node


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


@dataclass(frozen=True)
class Channels:
    """The groups of a model, and what else must change with them."""

    groups: tuple[ChannelGroup, ...]
    grouped: tuple[tuple[Node, Dimension], ...]
    targets: tuple[tuple[Node, int, Dimension], ...]


def analyze_channels(model: Model) -> Channels:
    """Find the coupled channels of ``model``, whose shapes must be inferred. Linear in nodes and channels."""
    relations = Relations()
    apply_rules(model, relations)
    for dimension in relations.dimensions.values():
        if id(dimension.tensor) in relations.held:
            reason = relations.held[id(dimension.tensor)]
            is_weight = isinstance(dimension.tensor, Constant)
            relations.freeze(dimension, f"its weights are shared: {reason}" if is_weight else reason)
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
