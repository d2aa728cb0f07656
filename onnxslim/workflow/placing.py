"""Where the layers of a quantized model run, joined with what they cost and with what passes said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxslim.analysis import ModelCost
from onnxslim.ir import Model
from onnxslim.measure import Latency
from onnxslim.measure.layer_times import LayerLatency
from onnxslim.measure.slower import slower_layers
from onnxslim.measure.validation import is_integer_model
from onnxslim.pipeline import PassResult
from onnxslim.report.placement import Inserted, LayerPlacement, Placement, Share, SlowerLayers, WastedOperator
from onnxslim.runtime import ModelData, RuntimeRefusal, load_proto
from onnxslim.runtime import placement as runtime
from onnxslim.runtime.placed_graph import Place
from onnxslim.runtime.placement_reasons import Why
from onnxslim.runtime.profile import NodeTime
from onnxslim.workflow.source import ModelLike, open_source
from onnxslim.workflow.summary import cost_of

REFUSING = "insert-qdq"
"""The pass whose refusals say why a layer is in float."""


@dataclass(frozen=True)
class Raced:
    """A model that a quantized one raced against, and the race."""

    reference: ModelData
    layers: tuple[LayerLatency, ...]


def raced(reference: ModelData, latency: Latency | None) -> Raced | None:
    """Return a race that timed layers, None where there was none."""
    return Raced(reference, latency.layers) if latency is not None and latency.layers else None


def run_placement(
    model: Model, cost: ModelCost, race: Raced | None = None, results: Sequence[PassResult] = ()
) -> Placement | None:
    """Return where the layers of ``model`` run.

    Args:
        model: any model; there is an answer for quantized ones, unless they are large.
        cost: of ``model``.
        race: one in which ``model`` was the candidate, for the times of nodes.
        results: what passes did to ``model``; their refusals are reasons.

    Returns:
        None where there is nothing to say.
    """
    if model.is_large or not is_integer_model(model.proto()):
        return None
    times = [] if race is None else _times(race.layers, "candidate_us")
    try:
        found = runtime.read_placement(model.to_bytes(), times)
        slower = () if race is None else _slower(race, found)
    except RuntimeRefusal:
        return None
    macs = {layer.anchor: layer.macs for layer in cost.layers}
    refused = {
        skip.anchor: skip.reason
        for result in results
        if result.name == REFUSING and result.status.value == "kept"
        for skip in result.skipped
    }
    layers = tuple(_layer(layer, macs.get(layer.output), refused) for layer in found.layers)
    return Placement(
        **{place.value: _share(place, layers) for place in Place},
        total_us=found.total_us,
        conversion_us=found.conversion_us,
        layers=layers,
        wasted=tuple(
            WastedOperator(waste=one.waste.value, tensor=one.tensor, reader=one.reader, time_us=one.microseconds)
            for one in found.wasted
        ),
        inserted=tuple(Inserted(op=one.op, count=one.count, time_us=one.microseconds) for one in found.inserted),
        slower=slower,
    )


def inspect_placement(model: ModelLike, shapes: Mapping[str, Sequence[int]], batch: int | None) -> Placement | None:
    """Return where the layers of a quantized model run, without times; None as in :func:`run_placement`.

    Raises:
        ModelError: the model cannot be used.
    """
    source = open_source(model, shapes, batch)
    return run_placement(source.model, cost_of(source.model, {}))


def bench_placements(
    models: Sequence[ModelLike],
    shapes: Mapping[str, Sequence[int]],
    batch: int | None,
    results: Sequence[Latency],
) -> list[Placement | None]:
    """Return where the layers of each model of a race run, with the times of all but the first.

    Raises:
        ModelError: a model cannot be used.
    """
    sources = [open_source(model, shapes, batch) for model in models]
    first = sources[0].placed.data
    races = [raced(first, result) for result in (None, *results)[-len(models) :]]
    pairs = zip(sources, races, strict=True)
    return [run_placement(source.model, cost_of(source.model, {}), race) for source, race in pairs]


def _times(layers: Sequence[LayerLatency], side: Literal["reference_us", "candidate_us"]) -> list[NodeTime]:
    """Return the profile of one side of a race."""
    known = ((layer, getattr(layer, side)) for layer in layers)
    return [
        NodeTime(layer.node, None if layer.origin is None else layer.node, layer.op, time)
        for layer, time in known
        if time is not None
    ]


def _slower(race: Raced, found: runtime.Placement) -> tuple[SlowerLayers, ...]:
    """Return what integers made slower; nothing where the reference is quantized itself."""
    if is_integer_model(load_proto(race.reference)):
        return ()
    before = runtime.read_placement(race.reference, _times(race.layers, "reference_us"))
    found_slower = slower_layers(before.layers, found.layers, found.total_us or 0.0)
    return tuple(SlowerLayers.model_validate(vars(one)) for one in found_slower)


def _layer(layer: runtime.LayerPlacement, macs: int | None, refused: Mapping[str, str]) -> LayerPlacement:
    why, reason = layer.why, layer.reason
    said = refused.get(layer.anchor) or refused.get(layer.output)
    if layer.place is Place.FLOAT and why is not None and said is not None:
        why, reason = Why.REFUSED, f"{REFUSING} left it alone: {said}"
    return LayerPlacement(
        anchor=layer.anchor,
        op=layer.op,
        place=layer.place.value,
        kernel=layer.kernel,
        within=layer.within,
        why=None if why is None else why.value,
        reason=reason,
        macs=macs,
        time_us=layer.microseconds,
        conversion_us=layer.conversion_us,
    )


def _share(place: Place, layers: Sequence[LayerPlacement]) -> Share:
    """Add up the layers that run in one way; a sum with an unknown in it is unknown."""
    chosen = [layer for layer in layers if layer.place == place.value]
    own = [layer for layer in chosen if layer.within is None]
    macs = [layer.macs for layer in chosen]
    times = [layer.time_us for layer in own]
    known = not any(layer.macs is None for layer in layers)
    timed = not any(layer.time_us is None for layer in layers if layer.within is None)
    return Share(
        layers=len(own),
        macs=sum(value or 0 for value in macs) if known else None,
        time_us=sum(value or 0.0 for value in times) if timed else None,
    )
