"""Mixed precision: the fewest layers that have to be given up for the outputs to keep their quality.

The noise of every grid is known in each output (``_qdq_noise``). Grids are given up one by one, the one first that
takes most noise away for what it costs (the layers that adjoin it, all of which then compute in float), until what is
left is predicted to be little enough; noise is measured again, without what was given up, whenever most of it has gone,
since only then the rest is seen well. What was predicted is then run: the shortest beginning of that list that really
brings the outputs to the goal is what is given up: to integers of 16 bits where the target computes with those and they
are enough, else to float. (Sensitivity by layer and a greedy list: Wu et al. 2020, "Integer
Quantization for Deep Learning Inference", §4.2 "partial quantization"; there by the accuracy of each layer alone.)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Node, anchor_of
from onnxslim.passes._qdq_choice import WEIGHTED
from onnxslim.passes._qdq_judge import Draft, Goal, Judge
from onnxslim.passes._qdq_noise import Changes, Energies, NoiseModel, Unit
from onnxslim.passes._qdq_pairs import changes_of, shared_grids
from onnxslim.passes._quantize import Grid
from onnxslim.pipeline import PassContext

Floats = npt.NDArray[np.float64]

LISTENERS = 8
"""Samples on which noise is measured, at most."""
ROUNDS = 12
"""How often noise is measured, at most."""
FALL = 4.0
"""Noise is measured again when it is predicted to have fallen so much, the next time to the square of it, and so on:
what is noisiest is soon found, and what remains is mostly alike."""
MARGIN_DB = 0.5
"""By how much a prediction must be better than the goal before it is tried."""
FIRST_DB, FINER_DB = 15.0, 3.0
"""What is tried first where a metric alone is the goal, and by how much more each time."""
CHEAP = 0.25
"""What a node without weights costs in float, where one with weights costs 1."""


@dataclass(frozen=True)
class Mixed:
    """What is given up."""

    floats: tuple[str, ...] = ()
    """Anchors of what stays in float, the noisiest first."""
    wide: tuple[str, ...] = ()
    """Anchors of what gets activations of 16 bits instead."""
    reason: str = ""
    """Why, as a user reads it."""


def mixed(draft: Draft, goal: Goal, context: PassContext) -> Mixed:
    """Return what has to be given up for the goal; all of it where nothing less does.

    Raises:
        RuntimeRefusal: onnxruntime does not run the model.
    """
    judge = Judge(draft, context.require_samples("insert-qdq"), goal, context)
    if judge.good([]):
        return Mixed()
    reason = _reason(judge)
    search = _Search(draft, goal, judge, context)
    if context.target.wide_activations:
        judge.widen(True)
        found = search.run()
        if judge.good(found):
            return Mixed(wide=tuple(found), reason=reason)
        judge.widen(False)
    return Mixed(floats=tuple(search.run()), reason=reason)


def _reason(judge: Judge) -> str:
    drop = judge.drop([])
    lost = "" if drop is None else f" and lose {100 * drop:.1f} points on the samples"
    return f"with all in int8, an output would keep {judge.sqnr([]):.1f} dB{lost}"


class _Search:
    """Gives up what is noisiest until the judge is content."""

    def __init__(self, draft: Draft, goal: Goal, judge: Judge, context: PassContext) -> None:
        self._nodes, self._goal, self._judge, self._context = draft.selection.nodes, goal, judge, context
        self._noise = NoiseModel(draft.model, self._nodes, *_sources(draft), context.threads)
        self._known: dict[frozenset[str], Energies] = {}

    def run(self) -> list[str]:
        """Return what is given up; what the goal is not reached with, if with nothing."""
        order, judge = _Order(self._noise.units, self._nodes), self._judge
        aim = (FIRST_DB if self._goal.sqnr_db is None else self._goal.sqnr_db) + MARGIN_DB
        for step in range(ROUNDS):
            self._context.progress("insert-qdq: noise", step + 1, ROUNDS)
            order.extend(self._energies(frozenset(order.floats), step), 10 ** (-aim / 10), FALL ** (step + 1))
            if not order.settled:
                continue
            if judge.good(order.floats) or order.exhausted:
                break
            short = 0.0 if self._goal.sqnr_db is None else self._goal.sqnr_db - judge.sqnr(order.floats)
            aim += short + MARGIN_DB if short > 0 else FINER_DB
        return list(_shortest(order.floats, judge.good))

    def _energies(self, off: frozenset[str], step: int) -> Energies:
        if off not in self._known:
            samples = self._judge.loudest.take(min(LISTENERS, len(self._judge.loudest)))
            self._known[off] = self._noise.energies(samples, off, (self._context.seed, step))
        return self._known[off]


def _sources(draft: Draft) -> tuple[dict[str, Grid], Changes]:
    """Return the grids of tensors, and what becomes of constants."""
    wanted, nodes = draft.wanted, draft.selection.nodes
    grids = shared_grids(nodes, wanted.ranges, wanted.style)
    changes = {
        anchor_of(node): changes_of(node, grids[node.inputs[0].name], wanted.style, draft.fitted.get(anchor_of(node)))
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

    def extend(self, energies: Energies, budget: float, fall: float) -> None:
        """Give up units until the noise in every output is within ``budget``, or too little is left to see the rest.

        Args:
            energies: of what is not given up yet.
            budget: as a fraction of each output's energy.
            fall: by which noise may fall before it has to be measured again.
        """
        left, total = np.maximum(energies.values, 0.0), energies.total
        floor = np.maximum(total / fall, budget)
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
