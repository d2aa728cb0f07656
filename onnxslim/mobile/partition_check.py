"""Which units of a model a target takes, by its rules; what it does not know is unknown and never taken."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from onnxslim.ir import Model, Node, Tensor, anchor_of, is_standard, producer
from onnxslim.mobile.partition_rules import Answer, Site, judge
from onnxslim.mobile.partition_units import DEQUANTIZE, QUANTIZE, Unit, is_stored, split_units, version_of
from onnxslim.targets.base import Target


class Verdict(enum.Enum):
    """What becomes of a node on a target."""

    RUNS = "runs"
    REFUSED = "refused"
    """It would run, but elsewhere: on the CPU."""
    UNKNOWN = "unknown"
    """Neither source nor trial tells; never counted as running."""
    BORDER = "border"
    """A pair at the model's inputs or outputs that the target leaves to the CPU unless told otherwise."""
    GONE = "gone"
    """onnxruntime takes it out of the graph when it loads the model."""


@dataclass(frozen=True)
class Judged:
    """A unit with its verdict."""

    unit: Unit
    verdict: Verdict
    reason: str = ""


def judge_units(model: Model, target: Target) -> list[Judged]:
    """Return the verdict on every unit of ``model``, a graph as onnxruntime hands it out, its shapes inferred.

    Only for targets that are checked by rules.
    """
    judges = _Judge(model, target)
    return [judges.of(unit) for unit in split_units(model, target.groups)]


class _Judge:
    """Judges units in order: an activation asks what became of the layer before it."""

    def __init__(self, model: Model, target: Target) -> None:
        self._target = target
        self._opset = model.opset
        self._functions = set(model.functions)
        self._inputs = {id(tensor) for tensor in model.graph.inputs}
        self._outputs = {id(tensor) for tensor in model.graph.outputs}
        self._done: dict[int, Judged] = {}

    def of(self, unit: Unit) -> Judged:
        """Return the verdict on a unit."""
        found = self._judge(unit)
        self._done[id(unit.node)] = found
        return found

    def _judge(self, unit: Unit) -> Judged:
        node, target = unit.node, self._target
        if (node.domain or "", node.op) in self._functions:
            return Judged(unit, Verdict.UNKNOWN, "it calls a function of the model's own, which was not looked into")
        if unit.nested and not target.subgraphs:
            known = target.subgraphs is False
            reason = "it is in a subgraph" if known else "it is in a subgraph, of which nothing is known"
            return Judged(unit, Verdict.REFUSED if known else Verdict.UNKNOWN, reason)
        if target.border is not None and self._at_border(node):
            return Judged(unit, Verdict.BORDER, target.border)
        if is_standard(node) and node.op in target.fused and not unit.is_group:
            return self._fused(unit)
        return self._by_rules(unit)

    def _by_rules(self, unit: Unit) -> Judged:
        node = unit.node
        name = node.op if is_standard(node) else f"{node.domain}:{node.op}"
        operator = self._target.operators.get(name)
        if operator is None:
            return Judged(unit, Verdict.REFUSED, f"{self._target.name} has no {name}")
        site = Site(unit, version_of(node, self._opset) if is_standard(node) else 1, self._opset)
        return Judged(unit, *_verdict(judge(site, operator)))

    def _at_border(self, node: Node) -> bool:
        """Whether a pair's operator stands between the model's inputs or outputs and everything else."""
        if is_standard(node, QUANTIZE):
            return id(node.inputs[0]) in self._inputs
        return is_standard(node, DEQUANTIZE) and id(node.outputs[0]) in self._outputs

    def _fused(self, unit: Unit) -> Judged:
        """Judge an activation that runs within the layer before it or not at all."""
        node = unit.node
        hosts = self._target.fused[node.op]
        only = f"it runs only within {', '.join(hosts[:-1])} or {hosts[-1]} right before it"
        maker = producer(node.inputs[0])
        host = None if maker is None else self._done.get(id(maker))
        if maker is None or host is None or not is_standard(maker, *hosts) or host.unit.is_group:
            return Judged(unit, Verdict.REFUSED, f"{only}; there is {'an input' if maker is None else maker.op}")
        if host.verdict is not Verdict.RUNS:
            refused = host.verdict is Verdict.REFUSED
            reason = f"{only}; that {maker.op} does not" if refused else f"{only}; of that {maker.op} nothing is known"
            return Judged(unit, Verdict.REFUSED if refused else Verdict.UNKNOWN, reason)
        if not all(is_stored(tensor) for tensor in node.inputs[1:] if not tensor.is_empty()):
            return Judged(unit, Verdict.REFUSED, "its bounds are computed")
        if self._is_read(node.inputs[0], node):
            return Judged(unit, Verdict.UNKNOWN, f"others read that {maker.op} too, of which nothing is known")
        return Judged(unit, Verdict.RUNS)

    def _is_read(self, tensor: Tensor, reader: Node) -> bool:
        """Whether anything but ``reader`` reads a tensor."""
        return id(tensor) in self._outputs or any(other is not reader for other in tensor.outputs)


def _verdict(answer: Answer) -> tuple[Verdict, str]:
    taken, reason = answer
    return {True: Verdict.RUNS, False: Verdict.REFUSED, None: Verdict.UNKNOWN}[taken], reason


def per_node(judged: list[Judged]) -> Iterator[tuple[Node, Judged]]:
    """Yield every node with the verdict on its unit."""
    for one in judged:
        for node in one.unit.nodes:
            yield node, one


def anchors(judged: list[Judged]) -> dict[str, Judged]:
    """Return verdicts by the first output of each node."""
    return {anchor_of(node): one for node, one in per_node(judged)}
