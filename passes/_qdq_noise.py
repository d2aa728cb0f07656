"""What each grid alone does to the outputs: the noise that it makes, followed through the network.

Replacing a tensor t by its grid's nearest value adds δ = Q(t) − t; a weight W adds δ = Ŵ − W. As long as what arrives
at the outputs is small, effects add up:

    z' − z ≈ Σ_u g_u,    g_u = J_u·δ_u

so each grid u has an energy ‖g_u‖² and, as noise of different grids is uncorrelated, energies add too. They are
measured in the float model at small noise, where that holds even for networks that full noise would drown: each run
adds ε·s_u·δ_u everywhere at once, with random signs s_u, and Σ_r s_ru·d_r / R is g_u and what R runs do not average out
of the others, which is subtracted. So a handful of runs for each sample measures all grids, however many there are.
(Group testing, or simultaneous perturbation: Spall 1992, "Multivariate Stochastic Approximation Using a Simultaneous
Perturbation Gradient Approximation". Why not one grid at a time, as is usual: it would take a run for each; and at full
noise one grid alone may drown the outputs as well as all together, so that nothing tells how much removing it would
help.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
from onnx import numpy_helper

from onnxslim.ir import Constant, Model, Node, anchor_of
from onnxslim.passes._qdq_choice import MOVING, final_output, final_outputs, variable_inputs
from onnxslim.passes._qdq_sharing import moved_from, source_of
from onnxslim.passes._quantize import Grid
from onnxslim.runtime import Feed, Session, SessionConfig, with_outputs
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Samples

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Changes = Mapping[str, Mapping[int, Array]]
"""What becomes of constants, Ŵ − W, by anchor and index of the input."""

EPSILON = 1 / 16
"""How much of the noise is added: little enough for effects to add up, far above what float32 rounds."""
RUNS = 24
"""For each sample."""
_SWITCH = "onnxslim.switch"


@dataclass(frozen=True)
class Unit:
    """One source of noise: the grid of a tensor and of what moves its values, or a node's constants."""

    name: str
    """The tensor, or the node's anchor and "(weights)"."""
    nodes: frozenset[str]
    """Anchors of the nodes that have to stay in float for it to vanish."""


@dataclass(frozen=True)
class Energies:
    """Of the noise of each unit in each output, as fractions of that output's energy."""

    units: tuple[Unit, ...]
    values: Floats
    """Shape (units, outputs). Estimates, so some of the smallest are negative."""
    total: Floats
    """Of all units together. Shape (outputs,)."""


def units_of(nodes: Sequence[Node], grids: Mapping[str, Grid], changes: Changes) -> list[Unit]:
    """Return the units of ``nodes``, which are to be integer.

    Args:
        nodes: in order.
        grids: by tensor.
        changes: of constants.
    """
    tensors = [Unit(name, frozenset(anchors)) for name, anchors in _adjoining(nodes, grids).items()]
    return [*tensors, *(Unit(_weights(anchor), frozenset({anchor})) for anchor in changes)]


def _adjoining(nodes: Sequence[Node], grids: Mapping[str, Grid]) -> dict[str, set[str]]:
    """Return the anchors of what makes and reads each tensor whose values are rounded, by its name."""
    sources = moved_from(nodes)
    found: dict[str, set[str]] = {}
    for node in nodes:
        if node.op not in MOVING:
            for tensor in (*variable_inputs(node), *(t for t in final_outputs(node) if t.name in grids)):
                found.setdefault(source_of(tensor.name, sources), set()).add(anchor_of(node))
    for node in reversed(nodes):  # what a Concat puts together on the grid of its inputs is not rounded again
        if node.op != "Concat" or any(isinstance(tensor, Constant) for tensor in node.inputs):
            continue
        output = final_output(node)
        if all(grids[tensor.name] == grids[output.name] for tensor in node.inputs):
            anchors = found.pop(output.name)
            for tensor in node.inputs:
                found[source_of(tensor.name, sources)].update(anchors)
    return found


def _weights(anchor: str) -> str:
    return f"{anchor} (weights)"


class NoiseModel:
    """The float model with a switch for each unit's noise.

    Args:
        grids: by tensor.
    """

    def __init__(
        self,
        model: Model,
        nodes: Sequence[Node],
        grids: Mapping[str, Grid],
        changes: Changes,
        threads: int,
    ) -> None:
        self.units = tuple(units_of(nodes, grids, changes))
        self._grids = {unit.name: grids[unit.name] for unit in self.units if unit.name in grids}
        self._threads = threads
        proto = model.proto()
        self._defaults = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in self._grids}
        config = SessionConfig(1, spins=False)
        self._clean = Session(with_outputs(proto, self._tapped(proto)), config)
        self._names = [value.name for value in proto.graph.output]
        self._noisy = Session(_noisy(proto, self.units, set(self._grids), changes), config)

    def energies(self, samples: Samples, off: frozenset[str] = frozenset(), seed: tuple[int, ...] = (0,)) -> Energies:
        """Return the energies of all units, those adjoining nodes in ``off`` switched off, over ``samples``."""
        live = np.array([not unit.nodes <= off for unit in self.units], np.float64)
        jobs = ((index, sample.feed) for index, sample in enumerate(samples))
        count = len(self._names)
        each: Floats = np.zeros((len(self.units), count))
        total, signal = np.zeros(count), np.zeros(count)
        for found in map_in_order(lambda job: self._one(job[1], live, (*seed, job[0])), jobs, self._threads):
            each += found.values
            total += found.total
            signal += found.signal
        signal = np.maximum(signal, 1e-30)
        return Energies(self.units, each / signal, total / signal)

    def _tapped(self, proto: onnx.ModelProto) -> list[str]:
        given = {value.name for value in proto.graph.input}
        return [name for name in self._grids if name not in given]

    def _one(self, feed: Feed, live: Floats, seed: tuple[int, ...]) -> _Heard:
        values = {**self._defaults, **feed, **self._clean.run(feed)}
        noise = {_noise(name): _rounded(values[name], grid) - values[name] for name, grid in self._grids.items()}
        clean = [_numbers(values[name]) for name in self._names]
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (RUNS, len(live))) * live
        moved: list[list[Floats]] = [[] for _ in clean]
        for row in signs:
            outputs = self._noisy.run({**feed, **noise, _SWITCH: (EPSILON * row).astype(np.float32)})
            for held, value, before in zip(moved, outputs.values(), clean, strict=True):
                held.append(_moved(_numbers(value), before) / EPSILON)
        heard = [_separated(np.stack(held), signs) for held in moved]
        return _Heard(
            np.stack([each for each, _ in heard], axis=1),
            np.array([total for _, total in heard]),
            np.array([float(np.square(value[np.isfinite(value)]).sum()) for value in clean]),
        )


def _numbers(values: object) -> Floats:
    """Return the numbers of an output in a row; none of one that is not of floats."""
    array = np.asarray(values)
    return array.reshape(-1).astype(np.float64) if array.dtype.kind == "f" else np.zeros(0)


def _moved(value: Floats, before: Floats) -> Floats:
    """Return by how much an output has moved: not at all where it was no number, or has another shape now."""
    if value.shape != before.shape:
        return np.zeros_like(before)
    able = np.isfinite(value) & np.isfinite(before)
    return np.subtract(value, before, out=np.zeros_like(before), where=able)


@dataclass(frozen=True)
class _Heard:
    """Energies for one sample, with those of the outputs."""

    values: Floats
    total: Floats
    signal: Floats


def _separated(moved: Floats, signs: Floats) -> tuple[Floats, float]:
    """Return ‖g_u‖² of each unit, and of all, from the changes of an output; shapes (runs, size), (runs, units)."""
    runs = len(moved)
    gram = moved @ moved.T
    total = float(np.trace(gram)) / runs
    raw = np.einsum("ru,rs,su->u", signs, gram, signs, optimize=True) / runs**2
    separated: Floats = (raw - total / runs) * runs / (runs - 1) * np.abs(signs[0])
    return separated, total


def _rounded(values: Array, grid: Grid) -> Array:
    """Return the grid's nearest values."""
    info = np.iinfo(grid.zero_point.dtype)
    low, high = info.min - int(grid.zero_point), info.max - int(grid.zero_point)
    rounded: Array = np.clip(np.round(values / grid.scale), low, high).astype(np.float32) * grid.scale
    return rounded


def _noise(name: str) -> str:
    return f"{name}.onnxslim.noise"


def _noisy(
    proto: onnx.ModelProto,
    units: Sequence[Unit],
    tensors: set[str],
    changes: Changes,
) -> onnx.ModelProto:
    """Return the model in which each unit's noise, times its switch, is added; it returns its outputs alone."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    index = {unit.name: place for place, unit in enumerate(units)}
    graph.input.append(oh.make_tensor_value_info(_SWITCH, onnx.TensorProto.FLOAT, [len(units)]))
    nodes = list(graph.node)
    del graph.node[:]
    for name in tensors:
        graph.input.append(onnx.ValueInfoProto(name=_noise(name), type=_float_type()))
    for value in proto.graph.input:
        if value.name in tensors:
            graph.node.extend(_added(value.name, _noise(value.name), index[value.name], graph))
    for node in nodes:
        for place, change in changes.get(_anchor(node), {}).items():
            _fill(node, place, change, graph)
            name = f"{node.output[0]}.onnxslim.change.{place}"
            graph.initializer.append(numpy_helper.from_array(change, name))
            graph.node.extend(_added(node.input[place], name, index[_weights(_anchor(node))], graph, node.output[0]))
            node.input[place] = _with_noise(node.input[place], node.output[0])
        for place, name in enumerate(node.input):
            if name in tensors:
                node.input[place] = _with_noise(name)
        graph.node.append(node)
        for name in node.output:
            if name in tensors:
                graph.node.extend(_added(name, _noise(name), index[name], graph))
    for output in graph.output:
        if output.name in tensors:
            output.name = _with_noise(output.name)
    return made


def _fill(node: onnx.NodeProto, place: int, change: Array, graph: onnx.GraphProto) -> None:
    """Give ``node`` zeros where it lacks the input that changes: a bias."""
    if place < len(node.input) and node.input[place]:
        return
    del node.input[place:]
    node.input.append(f"{node.output[0]}.onnxslim.zeros.{place}")
    graph.initializer.append(numpy_helper.from_array(np.zeros_like(change), node.input[place]))


def _added(name: str, noise: str, switch: int, graph: onnx.GraphProto, reader: str = "") -> Iterator[onnx.NodeProto]:
    """Yield the nodes that make name + switch·noise."""
    made = _with_noise(name, reader)
    graph.initializer.append(numpy_helper.from_array(np.array([switch], np.int64), f"{made}.index"))
    yield oh.make_node("Gather", [_SWITCH, f"{made}.index"], [f"{made}.switch"])
    yield oh.make_node("Mul", [noise, f"{made}.switch"], [f"{made}.scaled"])
    yield oh.make_node("Add", [name, f"{made}.scaled"], [made])


def _with_noise(name: str, reader: str = "") -> str:
    return f"{name}.onnxslim.noisy{reader}"


def _anchor(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


def _float_type() -> onnx.TypeProto:
    return onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=onnx.TensorProto.FLOAT))
