"""Mixed precision: the fewest layers that have to stay in float for the outputs to keep their quality.

The noise of every grid is known in each output (``_qdq_noise``). Grids are given up one by one, the one first that
takes most noise away for what it costs (the layers that adjoin it, all of which then compute in float), until what is
left is predicted to be little enough; noise is measured again, without what was given up, whenever most of it has gone,
since only then the rest is seen well. What was predicted is then run: the shortest beginning of that list that really
brings the outputs to the goal is what stays in float. (Sensitivity by layer and a greedy list: Wu et al. 2020, "Integer
Quantization for Deep Learning Inference", §4.2 "partial quantization"; there by the accuracy of each layer alone.)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.passes._qdq_choice import WEIGHTED, Selection
from onnxslim.passes._qdq_fit import Wanted
from onnxslim.passes._qdq_noise import Energies, NoiseModel, Unit
from onnxslim.passes._qdq_pairs import Quantizer, changes_of, shared_grids
from onnxslim.passes._quantize import FittedWeight
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Reading, Session, SessionConfig
from onnxslim.runtime.parallel import map_in_order
from onnxslim.samples import Samples

Floats = npt.NDArray[np.float64]

JUDGES = 32
"""Samples on which the outputs are compared, at most."""
LISTENERS = 8
"""Samples on which noise is measured, at most."""
ROUNDS = 8
"""How often noise is measured, at most."""
FALL = 4.0
"""Noise is measured again when this part of it is left."""
MARGIN_DB = 0.5
"""By how much a prediction must be better than the goal before it is tried."""
CHEAP = 0.25
"""What a node without weights costs in float, where one with weights costs 1."""


@dataclass(frozen=True)
class Mixed:
    """What stays in float."""

    floats: tuple[str, ...]
    """Anchors, the noisiest first."""
    sqnr_db: float
    """Of the outputs on the samples that judged, the worst of them."""
    before_db: float
    """Had everything become integer."""


def mixed(
    model: Model,
    selection: Selection,
    wanted: Wanted,
    fitted: Mapping[str, FittedWeight],
    goal_db: float,
    context: PassContext,
) -> Mixed:
    """Return what has to stay in float for every output to keep ``goal_db``; all of it where nothing less does.

    Raises:
        RuntimeRefusal: onnxruntime does not run the model.
    """
    samples = context.require_samples("insert-qdq")
    loudest = _loudest(model, samples, context.threads)
    judge = _Judge(model, selection, wanted, fitted, samples.pick(loudest[:JUDGES]), context)
    before = judge.sqnr([])
    if before >= goal_db:
        return Mixed((), before, before)
    noise = NoiseModel(model, selection.nodes, *_sources(selection.nodes, wanted, fitted), context.threads)
    listeners = samples.pick(loudest[:LISTENERS])
    order, margin, reached = _Order(noise.units, selection.nodes), MARGIN_DB, before
    for step in range(ROUNDS):
        context.progress("insert-qdq: noise", step + 1, ROUNDS)
        energies = noise.energies(listeners, frozenset(order.floats), (context.seed, step))
        order.extend(energies, 10 ** (-(goal_db + margin) / 10))
        if not order.settled:
            continue
        reached = judge.sqnr(order.floats)
        if reached >= goal_db or order.exhausted:
            break
        margin += goal_db - reached + MARGIN_DB
    kept = _shortest(order.floats, lambda floats: judge.sqnr(floats) >= goal_db)
    return Mixed(tuple(kept), judge.sqnr(kept), before)


def _loudest(model: Model, samples: Samples, threads: int) -> list[int]:
    """Return the indices of samples, those first whose outputs have most energy: it is they that SQNR is about.

    Where a detector finds nothing, its outputs are next to zero, and so is the noise in them.
    """
    placed = model.placed()  # its file lives as long
    session = Session(placed.data, SessionConfig(1, spins=False))
    runs = map_in_order(lambda sample: session.run(sample.feed), samples, threads)
    energies = np.array([[_energy(value) for value in outputs.values()] for outputs in runs])
    share = (energies / np.maximum(energies.sum(axis=0), 1e-30)).max(axis=1)
    return [int(index) for index in np.argsort(-share, kind="stable")]


def _energy(value: object) -> float:
    array = np.asarray(value)
    return float(np.square(array, dtype=np.float64).sum()) if array.dtype.kind == "f" else 0.0


def _sources(nodes: Sequence[Node], wanted: Wanted, fitted: Mapping[str, FittedWeight]) -> tuple[dict, dict]:  # type: ignore[type-arg]
    """Return the grids of tensors, and what becomes of constants."""
    grids = shared_grids(nodes, wanted.ranges, wanted.style)
    changes = {
        anchor_of(node): changes_of(node, grids[node.inputs[0].name], wanted.style, fitted.get(anchor_of(node)))
        for node in nodes
        if node.op in WEIGHTED and node.inputs[0].name in grids
    }
    return grids, {anchor: change for anchor, change in changes.items() if change}


def _shortest(items: Sequence[str], good: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """Return the shortest beginning of ``items`` that is good, all of them where none is; by bisection."""
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        if good(items[:middle]):
            high = middle
        else:
            low = middle + 1
    return items[:high]


class _Judge:
    """Runs candidates, and remembers."""

    def __init__(
        self,
        model: Model,
        selection: Selection,
        wanted: Wanted,
        fitted: Mapping[str, FittedWeight],
        samples: Samples,
        context: PassContext,
    ) -> None:
        self._model, self._selection, self._wanted, self._fitted = model, selection, wanted, fitted
        self._samples, self._threads = samples, context.threads
        self._expected = self._outputs(model)
        self._known: dict[frozenset[str], float] = {}

    def sqnr(self, floats: Sequence[str]) -> float:
        """Return what the SQNR of the worst output surely is, in dB, where ``floats`` stay in float."""
        key = frozenset(floats)
        if key not in self._known:
            outputs = self._outputs(self._quantized(key))
            columns = zip(zip(*self._expected, strict=True), zip(*outputs, strict=True), strict=True)
            self._known[key] = min((_sure_sqnr(*column) for column in columns), default=math.inf)
        return self._known[key]

    def _quantized(self, floats: frozenset[str]) -> Model:
        model = self._model.copy()
        rewriter = Rewriter(model)
        left = {anchor_of(node) for node in self._selection.without(floats, "").nodes}
        nodes = [node for node in model.graph.nodes if anchor_of(node) in left]
        Quantizer(rewriter, nodes, self._wanted.ranges, self._wanted.style, self._fitted).run()
        rewriter.finish()
        return model

    def _outputs(self, model: Model) -> list[list[Floats]]:
        placed = model.placed()  # its file lives as long
        session = Session(placed.data, SessionConfig(1, reading=Reading.DEFINITION, spins=False))
        return list(map_in_order(lambda sample: _numbers(session.run(sample.feed)), self._samples, self._threads))


def _numbers(outputs: Mapping[str, object]) -> list[Floats]:
    """Return the outputs that are floats."""
    arrays = [np.asarray(value) for value in outputs.values()]
    return [array.astype(np.float64) for array in arrays if array.dtype.kind == "f"]


def _sure_sqnr(expected: Sequence[Floats], found: Sequence[Floats]) -> float:
    """Return 10·log10(Σ‖z‖² / Σ‖z − z'‖²) over samples, less one standard error.

    The error of so few samples is that of a jackknife (Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
    §11): where one image in ten has something to say, a ratio over all of them may be luck.
    """
    if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in zip(expected, found, strict=True)):
        return -math.inf
    signal = np.array([float(np.vdot(a, a)) for a in expected])
    error = np.array([float(np.vdot(a - b, a - b)) for a, b in zip(expected, found, strict=True)])
    value = _decibels(signal.sum(), error.sum())
    if len(signal) < 2:
        return value
    others = np.array([_decibels(signal.sum() - s, error.sum() - e) for s, e in zip(signal, error, strict=True)])
    spread = math.sqrt((len(others) - 1) * float(np.var(others)))
    return value - spread


def _decibels(signal: float, error: float) -> float:
    return 10 * math.log10(max(signal, 1e-30) / max(error, 1e-30 + 1e-20 * signal))


class _Order:
    """The list of nodes that are given up, in order."""

    def __init__(self, units: Sequence[Unit], nodes: Sequence[Node]) -> None:
        self.floats: list[str] = []
        self.settled = False
        """Whether what is left was predicted to be little enough, or nothing is left."""
        self._units = units
        self._off: set[str] = set()
        self._cost = {anchor_of(node): 1.0 if node.op in WEIGHTED else CHEAP for node in nodes}
        self._near: dict[str, list[int]] = {}
        for index, unit in enumerate(units):
            for anchor in unit.nodes:
                self._near.setdefault(anchor, []).append(index)

    @property
    def exhausted(self) -> bool:
        """Whether all is float."""
        return all(unit.nodes <= self._off for unit in self._units)

    def extend(self, energies: Energies, budget: float) -> None:
        """Give up units until the noise in every output is within ``budget``, or too little is left to see the rest.

        Args:
            energies: of what is not given up yet.
            budget: as a fraction of each output's energy.
        """
        left, total = np.maximum(energies.values, 0.0), energies.total
        floor = np.maximum(total / FALL, budget)
        weights = np.where(total > budget, 1 / np.maximum(total, 1e-30), 0.0)
        worth = left @ weights
        heap = [(-self._score(index, worth), index) for index in range(len(self._units)) if worth[index] > 0]
        heapq.heapify(heap)
        while heap and (total > floor).any():
            score, index = heapq.heappop(heap)
            now = -self._score(index, worth)
            if now > score + 1e-12:  # what adjoins it was given up meanwhile: it is worth less now
                if now < 0:
                    heapq.heappush(heap, (now, index))
                continue
            for gone in self._give_up(index):
                total = total - left[gone]
                worth[gone] = 0.0
                left[gone] = 0.0
        self.settled = not (total > budget).any() or not heap

    def _score(self, index: int, worth: Floats) -> float:
        """Return how much noise giving up a unit takes away, for its cost."""
        nodes = self._units[index].nodes - self._off
        if not nodes:
            return 0.0
        off = self._off | nodes
        near = {other for anchor in nodes for other in self._near[anchor]}
        gain = sum(worth[other] for other in near if self._units[other].nodes <= off)
        return float(gain) / sum(self._cost[anchor] for anchor in nodes)

    def _give_up(self, index: int) -> list[int]:
        """Let the nodes of a unit be float; return the units whose noise vanishes."""
        nodes = self._units[index].nodes - self._off
        self.floats.extend(sorted(nodes))
        self._off |= nodes
        near = {other for anchor in nodes for other in self._near[anchor]}
        return [other for other in near if self._units[other].nodes <= self._off]
