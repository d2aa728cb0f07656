"""factor-low-rank: a layer's weight becomes the product of two thin ones, and the layer becomes two.

Given   y = W·x + b      with W of n × m: Gemm, MatMul, or a convolution whose windows are the columns x
Result  y = L·(R·x) + b  with W ≈ L·R of rank r: the first r singular values and vectors of W, √Σ to each side

A Gemm or MatMul becomes two. A k×k convolution becomes one of k×k to r channels, which keeps stride, padding and
dilation, and one of 1×1 with the bias (Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for
Classification and Detection", §3.1, in its plain form without samples; the bottleneck of Lin et al. 2014, "Network In
Network"). Instead of n·m products for each position there are r·(n + m). The second node keeps the layer's name and
output; nodes that share a weight share its factors.

Ranks follow from one goal: a ratio, an energy or a rank for each layer, or what may remain of the whole model's MACs
or bytes. The latter is met by one energy for all layers, the highest that suffices.

Left alone, with the reason: computed weights, NaN or Inf in them; grouped and transposed convolutions, transposed
inputs, recurrent layers; subgraphs; layers that would not get cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.analysis.cost import Shapes, node_macs
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import (
    Constant,
    Graph,
    Model,
    Node,
    Rewriter,
    anchor_of,
    array_of,
    graph_nodes,
    is_standard,
    selects,
)
from onnxslim.passes import _low_rank
from onnxslim.passes._low_rank import Array, Spectrum
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option

_OPS = ("Conv", "Gemm", "MatMul")
_WITHOUT_SCHEME = ("ConvTranspose", "LSTM", "GRU", "RNN")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_SCHEME = "svd"


class LayerRank(BaseModel):
    """How one layer is factorized: known by its first output, by a scheme of ``_low_rank.SCHEMES``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    scheme: str
    rank: int
    full_rank: int


class LowRankPlan(Plan):
    """The layers to factorize, in order, and those left alone."""

    layers: tuple[LayerRank, ...]
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class FactorLowRank(PlannedPass[LowRankPlan]):
    """Split layers into two of lower rank, by truncated singular value decomposition."""

    name = "factor-low-rank"
    effect = Effect.APPROXIMATE
    plan_type = LowRankPlan

    ratio: float | None = option(None, "fraction of each layer's full rank to remove, 0 to 1")
    energy: float | None = option(None, "fraction of each weight's squared singular values to keep, 0 to 1")
    rank: int | None = option(None, "rank of every layer")
    macs: float | None = option(None, "fraction of the original's multiply-accumulates that may remain")
    bytes: float | None = option(None, "fraction of the original's constant bytes that may remain")
    multiple: int | None = option(
        None, "round ranks up to multiples of this [the target's with macs and bytes, else 1]"
    )
    only: tuple[str, ...] = option((), "factorize only layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns")

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        fractions = {"ratio": self.ratio, "energy": self.energy, "macs": self.macs, "bytes": self.bytes}
        goals = {**fractions, "rank": self.rank}
        given = [name for name, value in goals.items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise SpecError(f"{self.name} takes one of {', '.join(goals)}, and got {found}: give exactly one")
        for name, value in fractions.items():
            if value is not None and not 0 <= value <= 1:
                raise SpecError(f"option {name!r} of {self.name} is {value:g}: give a fraction between 0 and 1")
        for name, count in (("rank", self.rank), ("multiple", self.multiple)):
            if count is not None and count < 1:
                raise SpecError(f"option {name!r} of {self.name} is {count}: give 1 or more")

    def plan(self, model: Model, context: PassContext) -> LowRankPlan:
        """Decompose every weight that can be factorized, and choose the ranks.

        Raises:
            PassError: ``macs`` or ``bytes`` is out of reach, or MACs cannot be counted.
        """
        budget = self._budget(model, context)
        if budget is not None and budget.excess <= 0:
            return LowRankPlan(layers=())
        shared, refused = self._eligible(model)
        spectra = []
        for step, nodes in enumerate(shared, start=1):
            price = 0 if budget is None else budget.price(nodes)
            spectra.append(_low_rank.spectrum(_weight_of(nodes[0]).values, _SCHEME, price))
            context.progress(f"{self.name}: decompose", step, len(shared))
        layers = []
        for nodes, weight, rank in zip(shared, spectra, self._ranks(spectra, budget, context), strict=True):
            reason = _why_no_gain(weight, rank)
            if reason is None:
                layers += [_decision(node, weight, rank) for node in nodes]
            else:
                refused += [(anchor_of(node), reason) for node in nodes]
        return LowRankPlan(layers=tuple(layers), refused=tuple(refused))

    def apply(self, rewriter: Rewriter, plan: LowRankPlan, context: PassContext) -> None:
        """Replace each layer of ``plan`` by two.

        Raises:
            PassError: the plan does not fit the model.
        """
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        nodes = {anchor_of(node): node for node in rewriter.model.graph.nodes}
        work = [(_layer_at(nodes, layer, rewriter.model), layer) for layer in plan.layers]
        held = [_weight_of(node) for node, _ in work]  # so that ids stay theirs
        factors: dict[tuple[int, int, str], tuple[Constant, Constant]] = {}
        for step, (weight, (node, layer)) in enumerate(zip(held, work, strict=True), start=1):
            key = (id(weight), layer.rank, layer.scheme)
            if key not in factors:
                factors[key] = _low_rank.stored_factors(weight, layer.rank, layer.scheme, rewriter)
            _low_rank.split(node, layer.rank, factors[key], rewriter)
            context.progress(f"{self.name}: split", step, len(work))

    # ---- choosing ----------------------------------------------------------------------------------------

    def _eligible(self, model: Model) -> tuple[list[list[Node]], list[tuple[str, str]]]:
        """Return the layers to factorize, those that share a weight together, and the layers left alone."""
        shared: dict[int, list[Node]] = {}
        refused: list[tuple[str, str]] = []
        for graph, node in graph_nodes(model.graph):
            if not is_standard(node, *_OPS, *_WITHOUT_SCHEME):
                continue
            excluded = None if selects(node, self.only, self.exclude) else "excluded by the options"
            reason = excluded or _why_not(node, graph, model)
            if reason is None:
                shared.setdefault(id(node.inputs[1]), []).append(node)
            else:
                refused.append((anchor_of(node), reason))
        if self.bytes is not None:
            kept = [nodes for nodes in shared.values() if len(_weight_of(nodes[0]).outputs) > len(nodes)]
            reason = "its weight has other readers, so no bytes would go"
            refused += [(anchor_of(node), reason) for nodes in kept for node in nodes]
            return [nodes for nodes in shared.values() if nodes not in kept], refused
        return list(shared.values()), refused

    def _budget(self, model: Model, context: PassContext) -> _Budget | None:
        """Return what may remain of MACs or bytes, None where the goal is another."""
        was = context.baseline
        if self.bytes is not None:
            now = model_cost(model, {}).bytes
            return _Budget("bytes", self.bytes, was.bytes, now, lambda nodes: _weight_of(nodes[0]).values.itemsize)
        if self.macs is None:
            return None
        shapes = concrete_shapes(model, context.feed)
        macs = model_cost(model, shapes).macs
        if macs is None or was.macs is None:
            raise PassError("multiply-accumulates cannot be counted, because shapes are unknown: use energy or bytes")
        return _Budget("macs", self.macs, was.macs, macs, lambda nodes: _positions(nodes, shapes))

    def _ranks(self, spectra: list[Spectrum], budget: _Budget | None, context: PassContext) -> list[int]:
        if budget is None:
            return [weight.rounded(self._own_rank(weight), self.multiple or 1) for weight in spectra]
        multiple = self.multiple or context.target.channel_multiple
        ranks, saved = _low_rank.ranks_that_save(spectra, budget.excess, multiple)
        if saved < budget.excess:
            raise PassError(
                f"{budget.name}={budget.fraction:g} is out of reach: "
                f"the lowest ranks leave {(budget.now - saved) / max(budget.was, 1):.3f} of the original"
            )
        return ranks

    def _own_rank(self, weight: Spectrum) -> int:
        """Return the rank that ratio, energy or rank asks of one weight."""
        if self.ratio is not None:
            return weight.rank_without(self.ratio)
        return weight.rank(self.energy) if self.energy is not None else self.rank or 1


@dataclass(frozen=True)
class _Budget:
    """What may remain: ``fraction`` of ``was``, where ``now`` is there."""

    name: str
    fraction: float
    was: int
    now: int
    price: Callable[[list[Node]], int]
    """What one element of the weight of some layers costs."""

    @property
    def excess(self) -> float:
        """What must go."""
        return self.now - self.fraction * self.was


def _decision(node: Node, weight: Spectrum, rank: int) -> LayerRank:
    return LayerRank(anchor=anchor_of(node), scheme=weight.scheme, rank=rank, full_rank=weight.full_rank)


def _weight_of(node: Node) -> Constant:
    weight = node.inputs[1]
    assert isinstance(weight, Constant)  # noqa: S101  (_why_not saw to it)
    return weight


def _positions(nodes: list[Node], shapes: Shapes) -> int:
    """Return how often one inference multiplies by each element of the weight that ``nodes`` share."""
    return sum(node_macs(node, shapes) or 0 for node in nodes) // _weight_of(nodes[0]).values.size


def _why_not(node: Node, graph: Graph, model: Model) -> str | None:
    """Return why a layer cannot be factorized, None when it can."""
    if node.op in _WITHOUT_SCHEME:
        return f"there is no scheme for {node.op} yet"
    weight = array_of(node.inputs[1])
    reasons = {
        "it lies in a subgraph": graph is not model.graph,
        "its weight is an input or computed, not constant": weight is None,
        "its input is constant": isinstance(node.inputs[0], Constant),
        f"it is grouped ({node.attrs.get('group', 1)} groups)": node.op == "Conv" and node.attrs.get("group", 1) != 1,
        "it transposes its input": node.op == "Gemm" and node.attrs.get("transA"),
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    return found if found is not None or weight is None else _why_not_weight(weight, node.op)


def _why_not_weight(weight: Array, op: str) -> str | None:
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype}"
    if op == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions, not 2"
    if weight.size == 0:
        return "its weight is empty"
    return None if np.isfinite(weight).all() else "its weight holds NaN or Inf"


def _why_no_gain(weight: Spectrum, rank: int) -> str | None:
    if rank >= weight.full_rank:
        return f"rank {rank} is not below its full rank {weight.full_rank}: nothing to gain"
    largest = _low_rank.largest_gain(weight.shape, weight.scheme)
    cheaper = str(largest) if largest else "none"
    return None if rank <= largest else f"rank {rank} of {weight.full_rank} would not make it cheaper: {cheaper} would"


def _layer_at(nodes: dict[str, Node], layer: LayerRank, model: Model) -> Node:
    """Return the node that ``layer`` decides about, after checking that the decision fits it."""
    node = nodes.get(layer.anchor)
    problem: str | None = f"unknown scheme {layer.scheme!r}"
    if node is None or not is_standard(node, *_OPS):
        problem = "no such layer"
    elif layer.scheme in _low_rank.SCHEMES:
        problem = _why_not(node, model.graph, model)
        full = 0 if problem else _low_rank.full_rank(node.inputs[1].shape, layer.scheme)
        if problem is None and not (1 <= layer.rank <= full == layer.full_rank):
            problem = f"rank {layer.rank} of {layer.full_rank}, where its full rank is {full}"
    if node is None or problem is not None:
        raise PassError(f"the plan does not fit the model: layer {layer.anchor!r}: {problem}")
    return node
