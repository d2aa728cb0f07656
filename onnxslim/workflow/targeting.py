"""Explaining what of a model runs on a target: a verdict on every node, and the partitions that result.

What providers are asked about is the graph that onnxruntime makes of a file when it loads it, so verdicts are on that
graph, and told by the nodes of the file. Numbers of nodes are the file's, without those that are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxslim.analysis import infer_shapes
from onnxslim.errors import ModelError, SpecError
from onnxslim.ir import Model, Node, Tensor, anchor_of, dims_of, graph_nodes, is_standard, numpy_dtype, selects
from onnxslim.mobile.partition_check import Judged, Verdict, judge_units, per_node
from onnxslim.mobile.partition_names import judge_kernels, judge_listed
from onnxslim.mobile.partition_origin import origins, stand_ins
from onnxslim.mobile.partition_units import Unit
from onnxslim.mobile.partitioning import Partition, partition
from onnxslim.runtime import RuntimeRefusal
from onnxslim.runtime.before_providers import before_providers
from onnxslim.runtime.usability import CORE_ML, NNAPI, UsabilityError, check_usability
from onnxslim.targets import Fact, Looks, Target, find_target
from onnxslim.workflow.source import ModelLike, Source, open_source
from onnxslim.workflow.summary import cost_of
from onnxslim.workflow.target_survey import (
    Crossing,
    Known,
    TargetNode,
    TargetPartition,
    TargetShare,
    TargetSurvey,
    Word,
)


@dataclass(frozen=True)
class _Seen:
    """A model as a target sees it."""

    given: Model
    made: Model
    judged: list[Judged]
    partitions: list[Partition]
    loaded: bool
    blind: tuple[str, ...]
    notes: tuple[str, ...]


def run_targeting(
    model: ModelLike,
    shapes: Mapping[str, Sequence[int]],
    batch: int | None,
    target: str,
    only: Sequence[str] = (),
) -> TargetSurvey:
    """Return what of a model runs on a target.

    Args:
        only: patterns of nodes; others are counted and not listed.

    Raises:
        ModelError: the model cannot be used.
        SpecError: no such target, or a pattern that matches no node.
    """
    chosen = find_target(target)
    return _Survey(chosen, _look(open_source(model, shapes, batch), chosen)).part(only)


def shortfalls(source: Source, target: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return what a gate asks: nodes that do not run on a target, doubts, and a remark on what does.

    Raises:
        SpecError: no such target.
    """
    chosen = find_target(target)
    seen = _look(source, chosen)
    survey = _Survey(chosen, seen).part()
    refused = _named(survey.nodes, "refused")
    doubts = _named(survey.nodes, "unknown")
    if not seen.loaded:
        doubts += seen.notes[:1]
    if chosen.looks is Looks.NAMES:
        doubts += ("its checker looks at operators' names only: try it on a device",)
    border = survey.border.nodes
    remark = f", but {border} at the model's inputs and outputs: {chosen.border}" if border else ""
    return refused, doubts, f"every node runs there, {chosen.basis}{remark}"


def _named(nodes: Sequence[TargetNode], verdict: Word) -> tuple[str, ...]:
    """Name nodes with one verdict and why; pairs go with their layer."""
    found = [node for node in nodes if node.verdict == verdict]
    layers = {node.anchor for node in found if node.within is None}
    return tuple(f"{node.op} {node.anchor} ({node.reason})" for node in found if node.within not in layers)


# ---- looking ---------------------------------------------------------------------------------------------------------


def _look(source: Source, target: Target) -> _Seen:
    made, refusal = _made(source, target)
    notes = []
    if made is None:
        notes.append(
            "looked at as it is in the file: "
            + (f"onnxruntime does not load it: {refusal}" if refusal else "it is too large to be rewritten for a look")
        )
    network = made or source.model
    infer_shapes(network)
    judged, blind = _judged(network, target, refusal)
    units = [one.unit for one in judged if not one.unit.nested]
    taken = {id(one.unit.node) for one in judged if one.verdict is Verdict.RUNS}
    found = partition(network.graph, units, taken, target.lonely) if target.looks is not Looks.KERNELS else []
    if target.looks is not Looks.KERNELS:
        judged = _without_lonely(judged, found, target)
    if any(one.unit.nested for one in judged):
        notes.append("nodes of subgraphs have a verdict and no partition")
    return _Seen(source.model, network, judged, found, made is not None, (*target.blind, *blind), tuple(notes))


def _made(source: Source, target: Target) -> tuple[Model | None, str | None]:
    """Return the graph that onnxruntime hands out, or None, with what onnxruntime said if it refused the model."""
    if source.model.is_large:
        return None, None
    try:
        return Model.load(before_providers(source.placed.data, target.operators)), None
    except RuntimeRefusal as error:
        return None, str(error)
    except ModelError:
        return None, None


def _judged(network: Model, target: Target, refusal: str | None) -> tuple[list[Judged], tuple[str, ...]]:
    """Return the verdict on every unit, and what a list says of these operators that nobody checks."""
    if target.looks is Looks.KERNELS:
        return judge_kernels(network, refusal), ()
    if target.looks is Looks.RULES:
        return judge_units(network, target), ()
    try:
        said = check_usability(network.proto(), NNAPI if target.name == "nnapi" else CORE_ML)
    except UsabilityError as error:
        unknown = [Judged(one.unit, Verdict.UNKNOWN, str(error)) for one in judge_kernels(network, None)]
        return unknown, ()
    return judge_listed(network, target, said), tuple(f"not checked: {_plain(caveat)}" for caveat in said.caveats)


def _plain(caveat: str) -> str:
    """Return a line of onnxruntime's list as words, without its links."""
    return re.sub(r"\[(.*?)\]\(.*?\)", r"\1", caveat).removeprefix("ai.onnx:").replace(":", ": ", 1).replace("`", "")


def _without_lonely(judged: list[Judged], found: list[Partition], target: Target) -> list[Judged]:
    """Refuse what would run but is in no partition that is kept."""
    kept = {id(unit.node) for one in found for unit in one.units}
    alone = f"{target.name} leaves it to the CPU where it would be a partition by itself"
    return [
        replace(one, verdict=Verdict.REFUSED, reason=alone)
        if one.verdict is Verdict.RUNS and not one.unit.nested and id(one.unit.node) not in kept
        else one
        for one in judged
    ]


# ---- telling ---------------------------------------------------------------------------------------------------------

_WORST = (Verdict.REFUSED, Verdict.UNKNOWN, Verdict.BORDER, Verdict.RUNS)
"""A node that several stand for does what the worst of them does."""


class _Survey:
    """What was seen, in the terms of the report."""

    def __init__(self, target: Target, seen: _Seen) -> None:
        self._target = target
        self._seen = seen
        self._judged = {id(node): one for node, one in per_node(seen.judged)}
        self._number = {id(node): index for index, one in enumerate(seen.partitions, 1) for node in one.nodes}
        self._stand_ins, self._inserted = stand_ins(seen.given, seen.made)
        self._origins = origins(seen.given, seen.made)
        self._macs = _macs(seen, self._origins)

    def part(self, only: Sequence[str] = ()) -> TargetSurvey:
        """Return the whole survey, in which nodes that ``only`` does not match are not listed."""
        target, seen = self._target, self._seen
        given = [node for _, node in graph_nodes(seen.given.graph)]
        _refuse_unknown([*given, *self._inserted], only)
        told = [(node, self._node(node)) for node in given]
        told += [(node, self._told(node, [node], inserted=True)) for node in self._inserted]
        nodes = tuple(found for _, found in told)
        return TargetSurvey(
            target=target.name,
            what=target.what,
            checked_by=target.looks.value,
            basis=target.basis,
            graph="loaded" if seen.loaded else "file",
            opset=seen.given.opset,
            runs=_share(nodes, "runs"),
            refused=_share(nodes, "refused"),
            unknown=_share(nodes, "unknown"),
            border=_share(nodes, "border"),
            gone=sum(node.verdict == "gone" for node in nodes),
            partitions=tuple(self._partition(index, one, nodes) for index, one in enumerate(seen.partitions, 1)),
            nodes=tuple(found for node, found in told if selects(node, only, ())),
            integers=_known(target.integers or Fact("integers", "nothing is known", "")),
            without_integer_kernel=self._float_only(nodes),
            uneven=self._uneven(),
            channel_multiple=target.channel_multiple,
            facts=tuple(_known(fact) for fact in target.facts),
            blind_spots=seen.blind,
            notes=seen.notes,
        )

    def _node(self, node: Node) -> TargetNode:
        """Tell what becomes of a node of the file; what nothing stands for is gone."""
        found = self._stand_ins.get(id(node), [])
        if not found:
            return TargetNode(anchor=anchor_of(node), op=_op(node), verdict="gone")
        return self._told(node, found)

    def _told(self, node: Node, found: Sequence[Node], *, inserted: bool = False) -> TargetNode:
        judged = min((self._judged[id(one)] for one in found), key=lambda one: _WORST.index(one.verdict))
        return TargetNode(
            anchor=anchor_of(node),
            op=_op(node),
            verdict=judged.verdict.value,
            reason=_reason(node, judged),
            partition=next((self._number[id(one)] for one in found if id(one) in self._number), None),
            macs=self._macs.get(id(node), 0),
            within=self._within(judged.unit, found),
            inserted=True if inserted else None,
        )

    def _within(self, unit: Unit, found: Sequence[Node]) -> str | None:
        """Return the layer of a pair or an activation that is one unit with it."""
        if any(node is unit.node for node in found):
            return None
        alike = [node for node in self._origins[id(unit.node)] if node.op == unit.node.op]
        return anchor_of(next(iter((*alike, *self._origins[id(unit.node)])), unit.node))

    def _partition(self, index: int, one: Partition, nodes: Sequence[TargetNode]) -> TargetPartition:
        inside = [node for node in nodes if node.partition == index]
        return TargetPartition(
            nodes=len(inside),
            macs=_sum(node.macs for node in inside),
            first=anchor_of(one.units[0].node),
            last=anchor_of(one.units[-1].node),
            enters=tuple(_crossing(tensor) for tensor in one.enters),
            leaves=tuple(_crossing(tensor) for tensor in one.leaves),
        )

    def _float_only(self, nodes: Sequence[TargetNode]) -> tuple[str, ...]:
        """Return operators that run on the target and have no integer kernel there, where that is a list of its own."""
        integers = self._target.integer_operators
        if not integers:
            return ()
        return tuple(sorted({node.op for node in nodes if node.verdict == "runs" and node.op not in integers}))

    def _uneven(self) -> tuple[str, ...]:
        """Return layers whose channels are no multiple of what fills the target's vector lanes."""
        multiple = self._target.channel_multiple
        layers = (one.unit for one in self._seen.judged if one.verdict is Verdict.RUNS)
        return tuple(anchor_of(unit.node) for unit in layers if _channels(unit) % multiple)


def _known(fact: Fact) -> Known:
    return Known(about=fact.about, words=fact.words, source=fact.source)


def _refuse_unknown(nodes: Sequence[Node], only: Sequence[str]) -> None:
    """Refuse patterns that no node matches: a typing error would look like a model in which all is well."""
    for pattern in only:
        if not any(selects(node, [pattern], ()) for node in nodes):
            raise SpecError(f"--only {pattern!r} matches no node: nodes are known by their first output tensor")


def _op(node: Node) -> str:
    return node.op if is_standard(node) else f"{node.domain}:{node.op}"


def _reason(node: Node, judged: Judged) -> str | None:
    """Return why a node does not run; where onnxruntime makes something else of it, what."""
    made = judged.unit.node
    becomes = not judged.unit.is_group and made.op != node.op and bool(judged.reason)
    return f"it becomes {made.op}: {judged.reason}" if becomes else judged.reason or None


def _macs(seen: _Seen, lies: Mapping[int, Sequence[Node]]) -> dict[int, int | None]:
    """Return the multiply-accumulates of nodes that have any, by id, at batch 1.

    They are counted on the graph that onnxruntime made, in which more shapes are known.
    """
    try:
        cost = cost_of(seen.made, None)
    except ModelError:
        cost = cost_of(seen.made, {})
    found: dict[int, int | None] = {}
    for (_, node), layer in zip(graph_nodes(seen.made.graph), cost.layers, strict=True):
        alike = [original for original in lies[id(node)] if original.op == node.op]
        owner = next(iter((*alike, *lies[id(node)])), node)
        if layer.macs != 0:
            found[id(owner)] = layer.macs
    return found


def _share(nodes: Sequence[TargetNode], verdict: Word) -> TargetShare:
    chosen = [node for node in nodes if node.verdict == verdict]
    return TargetShare(nodes=len(chosen), macs=_sum(node.macs for node in chosen))


def _sum(values: Iterable[int | None]) -> int | None:
    """Add up; an unknown makes the sum unknown."""
    found = list(values)
    return None if None in found else sum(value or 0 for value in found)


def _channels(unit: Unit) -> int:
    """Return the channels that a layer makes, 0 where it makes none or nobody knows."""
    node = unit.node
    dims = dims_of(node.outputs[0]) if node.outputs else None
    if not is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul") or dims is None or len(dims) < 2:
        return 0
    size = dims[1] if node.op in ("Conv", "ConvTranspose") else dims[-1]
    return size if isinstance(size, int) else 0


def _crossing(tensor: Tensor) -> Crossing:
    dtype, dims = numpy_dtype(tensor.dtype), dims_of(tensor)
    size = None if dtype is None else max(dtype.itemsize, 1)
    for axis, dim in enumerate(dims or ()):
        known = dim if isinstance(dim, int) else (1 if axis == 0 else None)
        size = None if size is None or known is None else size * known
    return Crossing(
        tensor=tensor.name, dtype=None if dtype is None else dtype.name, bytes=None if dims is None else size
    )
