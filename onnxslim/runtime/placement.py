"""Where onnxruntime runs each layer of a quantized model: by integer kernels, moved on integers, or in float, and why.

A model with pairs of QuantizeLinear and DequantizeLinear only asks for integers; onnxruntime decides when it loads it.
So it is asked for the graph that it made. Times are those of :mod:`onnxslim.runtime.profile`, joined by name; without
them the graph alone says where layers run.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxslim.runtime.placed_graph import DEQUANTIZE, PAIR, QUANTIZE, Graph, Home, Place, homes, optimized, place_of
from onnxslim.runtime.placement_reasons import ROUNDED, Reasons, Why, rounded_at_load
from onnxslim.runtime.profile import NodeTime, name_by_anchor, plain_name
from onnxslim.runtime.sessions import ModelData, load_proto


class Waste(enum.Enum):
    """What is run at every inference for nothing."""

    CONSTANT = "constant"
    """A constant that is dequantized anew."""
    MADE_INTEGER = "made_integer"
    """The same of a constant in float, of which onnxruntime itself made int8 when it loaded the model."""
    REQUANTIZED = "requantized"
    """DequantizeLinear read by QuantizeLinear alone: integers made float to become integers again."""
    ROUNDED = "rounded"
    """QuantizeLinear read by DequantizeLinear alone: floats rounded to stay float."""


@dataclass(frozen=True)
class LayerPlacement:
    """One layer of the model."""

    anchor: str
    """Its first output; where a pair took a graph output's name from it, that name."""
    output: str
    """Its first output in the model as given."""
    op: str
    place: Place
    kernel: str
    """The operator that runs it, as onnxruntime names it."""
    within: str | None = None
    """Anchor of the layer in whose kernel it disappeared; None for a layer with a kernel of its own."""
    why: Why | None = None
    reason: str | None = None
    """Why it stays in float, or is an integer against what the file says, in words."""
    microseconds: float | None = None
    conversion_us: float | None = None
    """What the pairs cost that turn integers into this layer's floats and back."""


@dataclass(frozen=True)
class WastedOperator:
    """An operator, or two in a row, that compute nothing new."""

    waste: Waste
    tensor: str
    """What it writes."""
    reader: str
    """Anchor of what reads it; of the first, where there are several."""
    microseconds: float | None = None


@dataclass(frozen=True)
class Inserted:
    """What onnxruntime put there itself to change layouts, by operator."""

    op: str
    count: int
    microseconds: float


@dataclass(frozen=True)
class Placement:
    """Where all layers run."""

    layers: tuple[LayerPlacement, ...]
    wasted: tuple[WastedOperator, ...]
    inserted: tuple[Inserted, ...] = ()
    """Known only where there are times."""
    total_us: float | None = None
    """The time of all nodes, conversions and what was inserted included."""
    conversion_us: float | None = None
    """Of all QuantizeLinear and DequantizeLinear that are left."""


def read_placement(model: ModelData, times: Sequence[NodeTime] = ()) -> Placement:
    """Ask onnxruntime how it runs ``model``; ``times`` is its profile of it, without which no time is known.

    Raises:
        RuntimeRefusal: onnxruntime does not load it.
    """
    proto = load_proto(model)
    name_by_anchor(proto.graph)
    given = Graph(proto)
    made = Graph(optimized(proto), given.values)
    found = homes(given, made)
    clock = _Clock(found, times) if times else None
    reasons = Reasons(given, made)
    placed = {name: layer for home in found for name, layer in _layers(given, made, home, reasons, clock)}
    layers = tuple(placed[node.name] for node in given.nodes if node.name in placed)
    placement = Placement(layers, tuple(_wasted(given, made, clock)))
    if clock is None:
        return placement
    total, conversion = (sum(t.microseconds for t in times if t.op in PAIR or every) for every in (True, False))
    return replace(placement, inserted=clock.inserted(), total_us=total, conversion_us=conversion)


def _layers(
    given: Graph, made: Graph, home: Home, reasons: Reasons, clock: _Clock | None
) -> Iterator[tuple[str, LayerPlacement]]:
    """Yield the layers that one node runs, by their names."""
    node, head = home.node, home.head
    if head is None:
        return
    place = place_of(made, node)
    vanishes = node.op_type in PAIR
    first = LayerPlacement(_public(given, head), head.name, head.op_type, place, node.op_type)
    for layer in home.layers:
        if layer is not head or vanishes:
            within = node.name if vanishes else first.anchor
            yield (
                layer.name,
                replace(first, anchor=_public(given, layer), output=layer.name, op=layer.op_type, within=within),
            )
            continue
        timed = first if clock is None else replace(first, microseconds=clock.of(node))
        if place is Place.FLOAT:
            why, reason = reasons.of(layer, home)
            around = None if clock is None else clock.around(made, node)
            timed = replace(timed, why=why, reason=reason, conversion_us=around)
        elif place is Place.INTEGER and rounded_at_load(given, layer):
            timed = replace(timed, why=Why.ROUNDED_AT_LOAD, reason=ROUNDED)
        yield layer.name, timed


def _public(given: Graph, layer: onnx.NodeProto) -> str:
    """Return the anchor; where a pair took a graph output's name from its layer, that name."""
    inner = layer.output[0]
    readers = given.readers.get(inner, [])
    if inner in given.outputs or any(reader.op_type != QUANTIZE for reader in readers):
        return inner
    ends = (end for reader in readers for end in given.after(reader) if end.op_type == DEQUANTIZE)
    return next((end.output[0] for end in ends if end.output[0] in given.outputs), inner)


def _wasted(given: Graph, made: Graph, clock: _Clock | None) -> Iterator[WastedOperator]:
    for node in made.nodes:
        readers = made.after(node)
        if node.op_type not in PAIR or made.outputs & set(node.output) or not readers:
            continue
        other = QUANTIZE if node.op_type == DEQUANTIZE else DEQUANTIZE
        if not made.data(node):
            waste = Waste.CONSTANT if plain_name(node.name) in given.makers else Waste.MADE_INTEGER
            spent = [node]
        elif all(reader.op_type == other for reader in readers):
            waste, spent = (Waste.REQUANTIZED if other == QUANTIZE else Waste.ROUNDED), [node, *readers]
        else:
            continue
        time = None if clock is None else sum(clock.of(one) for one in spent)
        yield WastedOperator(waste, node.output[0], readers[0].name, time)


class _Clock:
    """Times by node of onnxruntime's graph, in microseconds; of nodes that it copied, the mean of the copies."""

    def __init__(self, found: Sequence[Home], times: Sequence[NodeTime]) -> None:
        self._names = {home.node.output[0]: plain_name(home.node.name) for home in found}
        owners = {layer.name: self._names[home.node.output[0]] for home in found for layer in home.layers}
        owners |= {name: name for name in self._names.values()}
        copies = Counter(self._names.values())
        self._spent: dict[str, float] = defaultdict(float)
        self._foreign: dict[str, list[float]] = defaultdict(list)
        for time in times:
            owner = owners.get(time.anchor or "", owners.get(plain_name(time.anchor or time.name)))
            if owner is not None:
                self._spent[owner] += time.microseconds / copies[owner]
            elif time.op not in PAIR:
                self._foreign[time.op].append(time.microseconds)

    def of(self, node: onnx.NodeProto) -> float:
        """Return the time of a node."""
        return self._spent.get(self._names[node.output[0]], 0.0)

    def around(self, made: Graph, node: onnx.NodeProto) -> float:
        """Return the time of the pairs before and after a float node; onnxruntime gives each reader one of its own."""
        before = (made.makers.get(name) for name in made.data(node))
        read = sum(self.of(maker) for maker in before if maker is not None and maker.op_type == DEQUANTIZE)
        return read + sum(self.of(reader) for reader in made.after(node) if reader.op_type == QUANTIZE)

    def inserted(self) -> tuple[Inserted, ...]:
        """Return what belongs to no node: the operators that change layouts."""
        return tuple(Inserted(op, len(spent), sum(spent)) for op, spent in sorted(self._foreign.items()))
