"""Which channels live and die together: coupled groups of channels, followed through every operator that carries them.

A *dimension* is one axis of one tensor. Every operator relates dimensions by index maps: filter i of a convolution
makes channel i of its output; entry i of a flattened tensor is channel i // (H·W). Dimensions that are related,
directly or not, form a group; indices that are related form a *unit*, which is removed as a whole or stays. An
operator that is not understood freezes what touches it, with a reason.

``channel_rules`` holds one rule for each operator; this module collects their relations and cuts groups and units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxslim.analysis.channel_rules import apply_rules
from onnxslim.analysis.relations import Adjustment, Dimension, Indices, Key, Layer, Relations
from onnxslim.ir import Model, Node

_Edge = tuple[Key, Key, Indices | None, Indices | None]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    ``units[d]`` gives, for each index of dimension ``d``, the unit it belongs to, from 0 to ``size`` - 1.
    """

    anchor: str
    size: int
    producers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    """Layers that read the group's channels along an axis of their weight."""
    dimensions: tuple[Dimension, ...]
    units: dict[Key, Indices]
    held: npt.NDArray[np.bool_]
    """Which units must stay, of shape (size,)."""
    reasons: dict[str, int]
    """Why units must stay, with how many each reason holds."""

    strata: tuple[Indices, ...]
    """Units that lie in the same dimensions: the filters of one branch of a Concat, of one stage of a network."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Reasons why the whole group must stay; empty when some of it can be pruned."""
        return tuple(self.reasons) if self.held.all() else ()


@dataclass(frozen=True)
class Channels:
    """The groups of a model, and what else must change with them."""

    groups: tuple[ChannelGroup, ...]
    adjustments: tuple[Adjustment, ...]
    weights: dict[int, list[tuple[Node, int]]]
    """Which nodes, at which input, read a constant as their weight, by the constant's identity."""


def analyze_channels(model: Model) -> Channels:
    """Find the coupled channels of ``model``, whose shapes must be inferred. Linear in nodes and channels."""
    relations = Relations()
    apply_rules(model, relations)
    graph: nx.Graph[Any] = nx.Graph()
    graph.add_nodes_from(relations.dimensions)
    graph.add_edges_from((a, b) for a, b, _, _ in relations.edges)
    home = {key: index for index, keys in enumerate(nx.connected_components(graph)) for key in keys}
    members: dict[int, list[Key]] = defaultdict(list)
    for key in relations.dimensions:
        members[home[key]].append(key)
    edges: dict[int, list[_Edge]] = defaultdict(list)
    for edge in relations.edges:
        edges[home[edge[0]]].append(edge)
    producers, readers = _by_home(relations.producers, home), _by_home(relations.readers, home)
    groups = (
        _group(relations, members[index], edges[index], made, readers.get(index, ()))
        for index, made in producers.items()
    )
    return Channels(tuple(groups), tuple(relations.adjustments), relations.weights)


def _by_home(layers: Iterable[Layer], home: dict[Key, int]) -> dict[int, list[Layer]]:
    """Return layers by component, in the order of the model."""
    sorted_out: dict[int, list[Layer]] = {}
    for layer in layers:
        sorted_out.setdefault(home[layer.dimension.key], []).append(layer)
    return sorted_out


def _group(
    relations: Relations, keys: list[Key], edges: list[_Edge], made: list[Layer], readers: Iterable[Layer]
) -> ChannelGroup:
    first = [layer.dimension.key for layer in made]
    ordered = list(dict.fromkeys((*first, *keys)))
    units, count = _units(relations, ordered, edges)
    held = np.zeros(count, np.bool_)
    reasons: dict[str, int] = {}

    def hold(reason: str, which: Indices) -> None:
        held[which] = True
        reasons[reason] = max(reasons.get(reason, 0), len(np.unique(which)))

    for key in ordered:
        for reason, indices in relations.frozen.get(key, ()):
            hold(reason, units[key] if indices is None else units[key][indices])
    filters = np.concatenate([units[key] for key in first])
    others = np.setdiff1d(np.arange(count), filters)
    if len(others):
        hold("some of its channels come from no layer with filters", others)
    return ChannelGroup(
        anchor=made[0].anchor,
        size=count,
        producers=tuple(made),
        readers=tuple(readers),
        dimensions=tuple(relations.dimensions[key] for key in ordered),
        units=units,
        held=held,
        reasons=reasons,
        strata=_strata(units, count),
    )


def _units(relations: Relations, ordered: list[Key], edges: list[_Edge]) -> tuple[dict[Key, Indices], int]:
    """Return each dimension's units, counted in the order of the first layer's filters, and how many there are."""
    sizes = {key: relations.dimensions[key].size for key in ordered}
    offsets = dict(zip(ordered, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    total = sum(sizes.values())
    left = [offsets[a] + (np.arange(sizes[a]) if ia is None else ia) for a, _, ia, _ in edges]
    right = [offsets[b] + (np.arange(sizes[b]) if ib is None else ib) for _, b, _, ib in edges]
    rows, columns = (np.concatenate(part) if part else np.zeros(0, np.int64) for part in (left, right))
    matrix = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(total, total))
    count, labels = connected_components(matrix, directed=False)
    _, appearance = np.unique(labels, return_index=True)
    rank = np.empty(count, np.int64)
    rank[np.argsort(appearance)] = np.arange(count)
    return {key: rank[labels[offsets[key] : offsets[key] + size]] for key, size in sizes.items()}, count


def _strata(units: dict[Key, Indices], count: int) -> tuple[Indices, ...]:
    """Tell units apart by the dimensions they lie in: each dimension has a random number, each unit their sum."""
    numbers = np.random.default_rng(0).integers(2**62, size=len(units), dtype=np.uint64)
    signature = np.zeros(count, np.uint64)
    for number, labels in zip(numbers, units.values(), strict=True):
        signature[np.unique(labels)] += number
    _, first, inverse = np.unique(signature, return_index=True, return_inverse=True)
    return tuple(np.flatnonzero(inverse == label) for label in np.argsort(first))
