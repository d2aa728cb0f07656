"""Evidence about coupled channels, for the criteria: weights, scales, activity, and moments of what reads them.

Moments of many layers would not fit into memory together, so groups are looked at a few at a time, each few with one
pass over the samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.activity import Activity, observe_activity
from onnxslim.analysis.channels import ChannelGroup
from onnxslim.analysis.moments import Request, blocks, in_turns
from onnxslim.analysis.patches import LinearLayer, linear_layer, refusal
from onnxslim.analysis.relations import Indices, Layer, Use
from onnxslim.analysis.second_order import Collector, Moments, Settings
from onnxslim.ir import Constant, Model, array_of, dims_of
from onnxslim.passes._criteria import Evidence, Floats, Rows
from onnxslim.passes._least_squares import shrunk
from onnxslim.passes._surgeon import Reader, readers_of
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

MATRIX_BYTES = Settings().matrix_bytes
POSITIONS = 64
"""Output positions of a layer that are looked at for one sample: channels are chosen well with fewer than weights."""


@dataclass(frozen=True)
class Observed:
    """A group, what is known about it, and the moments of its readers by anchor."""

    group: ChannelGroup
    evidence: Evidence
    moments: Mapping[str, Moments]


def by_weights(group: ChannelGroup, seed: int) -> Observed:
    """Return what needs no samples: filters, and scales of BatchNormalizations that are not folded."""
    scales = [
        Rows(_values(dimension.owner.constant), group.units[dimension.key])
        for dimension in group.dimensions
        if isinstance(dimension.owner, Use)
        and dimension.owner.node.op == "BatchNormalization"
        and dimension.owner.slot == 1
    ]
    filters = [Rows(_filters(layer), group.units[layer.dimension.key]) for layer in group.producers]
    return Observed(group, Evidence(group.size, filters, scales, seed=_seed(group.anchor, seed)), {})


def by_samples(
    model: Model, groups: Sequence[ChannelGroup], samples: Samples, context: PassContext
) -> Iterator[Observed]:
    """Yield each group with the second moments of the linear layers that read it.

    Raises:
        PassError: activations are not finite.
    """
    collector = Collector(samples, None, Settings(POSITIONS, seed=context.seed, threads=context.threads))
    done = 0
    for some in in_turns(groups, _moment_bytes):
        layers = {anchor: layer for group in some for anchor, layer in linear_readers(group).items()}
        parts = {anchor: blocks(layer, MATRIX_BYTES) for anchor, layer in layers.items()}
        moments = collector.moments(model, [anchor for anchor in layers if len(parts[anchor]) == 1])
        for group in some:
            done += 1
            context.progress("prune-filters: look at channels", done, len(groups))
            large = {
                anchor: [(part, _of_part(collector, model, anchor, part)) for part in parts[anchor]]
                for anchor in linear_readers(group)
                if anchor not in moments
            }
            yield _observed(group, layers, moments, large, context.seed)


def _of_part(collector: Collector, model: Model, anchor: str, part: tuple[int, int]) -> Moments:
    return collector.moments(model, [Request(anchor, columns=part)])[anchor]


def by_activity(
    model: Model, groups: Sequence[ChannelGroup], samples: Samples, context: PassContext
) -> Iterator[Observed]:
    """Yield each group with the activity of its channels, as its readers see them.

    Raises:
        PassError: activations are not finite.
    """
    axes = {
        layer.node.inputs[0].name: _input_axis(layer) for group in groups for layer in group.readers if _reads(layer)
    }
    activity = observe_activity(model, axes, samples, context.threads)
    for group in groups:
        known = by_weights(group, context.seed).evidence
        energies, alive = _active(group, activity)
        yield Observed(group, Evidence(known.size, known.filters, known.scales, energies, alive), {})


def linear_readers(group: ChannelGroup) -> dict[str, LinearLayer]:
    """Return the layers whose outputs are a linear function of the group's channels, by anchor."""
    return {layer.anchor: linear_layer(layer.node) for layer in group.readers if refusal(layer.node) is None}


def columns(group: ChannelGroup, layer: LinearLayer) -> Indices:
    """Return the unit of each column of ``layer``, −1 for those of other groups' channels. Shape (groups, d)."""
    axis = next(reader.dimension for reader in group.readers if reader.node is layer.node)
    units = np.repeat(group.units[axis.key], layer.taps)
    if len(units) == layer.groups * layer.width:
        return units.reshape(layer.groups, layer.width)
    return np.broadcast_to(units, (layer.groups, layer.width))


def _observed(
    group: ChannelGroup,
    layers: Mapping[str, LinearLayer],
    moments: Mapping[str, Moments],
    large: Mapping[str, Sequence[tuple[tuple[int, int], Moments]]],
    seed: int,
) -> Observed:
    known = by_weights(group, seed).evidence
    own = {anchor: moments[anchor] for anchor in linear_readers(group) if anchor in moments}
    readers = [
        reader
        for anchor, found in own.items()
        for reader in readers_of(found, layers[anchor].matrix(), columns(group, layers[anchor]))
    ]
    for anchor, parts in large.items():
        readers += _in_blocks(layers[anchor], columns(group, layers[anchor]), parts)
    return Observed(group, Evidence(known.size, known.filters, known.scales, readers=readers, seed=known.seed), own)


def _in_blocks(
    layer: LinearLayer, units: Indices, parts: Sequence[tuple[tuple[int, int], Moments]]
) -> Iterator[Reader]:
    """Yield a layer too large for one Gram matrix as readers of its blocks, as if those were not correlated."""
    energy = sum(moments.total_energy for _, moments in parts)
    for (start, stop), moments in parts:
        weight = layer.matrix()[0, :, start:stop]
        yield Reader(moments.gram[0], weight, units[0, start:stop], energy, shrunk(0.0, moments))


def _moment_bytes(group: ChannelGroup) -> int:
    return sum(min(8 * layer.groups * layer.width**2, MATRIX_BYTES) for layer in linear_readers(group).values())


def _active(group: ChannelGroup, activity: Mapping[str, Activity]) -> tuple[list[Rows], list[Rows]]:
    energies, alive = [], []
    for layer in group.readers:
        source = layer.node.inputs[0]
        units = group.units.get((id(source), _input_axis(layer)))
        if _reads(layer) and units is not None and source.name in activity:
            energies.append(Rows(activity[source.name].energy, units))
            alive.append(Rows(activity[source.name].alive, units))
    return energies, alive


def _reads(layer: Layer) -> bool:
    """Whether the layer's first input is the activation that holds the channels."""
    return not isinstance(layer.node.inputs[0], Constant) and layer.node.inputs[1] is layer.dimension.tensor


def _input_axis(layer: Layer) -> int:
    if layer.node.op.startswith("Conv"):
        return 1
    return len(dims_of(layer.node.inputs[0]) or (0, 0)) - 1


def _filters(layer: Layer) -> Floats:
    """Return the layer's filters as rows."""
    constant = layer.dimension.tensor
    assert isinstance(constant, Constant)  # noqa: S101  (weights of understood layers are constants)
    values = np.moveaxis(_values(constant), layer.dimension.axis, 0)
    rows: Floats = values.reshape(values.shape[0], -1)
    return rows


def _values(constant: Constant) -> Floats:
    values = array_of(constant)
    assert values is not None  # noqa: S101  (it is a constant)
    return values.astype(np.float64)


def _seed(anchor: str, seed: int) -> int:
    return (seed + zlib.crc32(anchor.encode())) % 2**32
