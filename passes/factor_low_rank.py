"""factor-low-rank: one large layer becomes two small ones with a bottleneck between them.

Given   y = x·W + b            (Gemm, MatMul; W of shape m x n)
Result  y = (x·U)·V + b        with U m x r, V r x n from the truncated SVD of W: r·(m + n) instead of m·n MACs

Given   y = Conv(x, W, b)      with O filters of k x k over I channels; any stride, padding, dilation
Result  y = Conv₁ₓ₁(Conv(x, V), U, b)   with r filters of k x k, then O of 1 x 1, from the SVD of W as an O x (I·k·k) matrix:
        r·(I·k·k + O) instead of O·I·k·k MACs. The first keeps stride, padding and dilation.

(Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks for Classification and Detection", §3.1, in its plain form;
the pair is the bottleneck of Network-in-Network, Lin et al. 2014.) Weights that several nodes share are factorized once.

Left alone, with the reason: pairs that would not need fewer MACs; grouped and depthwise convolutions, transposed ones,
recurrent layers; weights that are computed or hold NaN or Inf; nodes of subgraphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis import concrete_shapes, forget_shapes, infer_shapes, model_cost
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Constant, Model, Node, Rewriter, anchor_of, array_of, graph_nodes, is_standard, selects
from onnxslim.passes._low_rank import Spectrum, decompose
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option

Array = npt.NDArray[Any]
STEPS = 12
_OPS = ("Conv", "Gemm", "MatMul")
_LATER = ("ConvTranspose", "LSTM", "GRU", "RNN")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


class LayerRank(BaseModel):
    """One layer's decision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    rank: int
    full_rank: int


class LowRankPlan(Plan):
    """Ranks of layers, and the layers that were left alone."""

    layers: tuple[LayerRank, ...]
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class FactorLowRank(PlannedPass[LowRankPlan]):
    """Split layers into low-rank pairs by truncated SVD, where that needs fewer MACs."""

    name = "factor-low-rank"
    effect = Effect.APPROXIMATE
    plan_type = LowRankPlan

    ratio: float | None = option(None, "fraction of each layer's full rank to remove, 0 to 1")
    energy: float | None = option(None, "fraction of squared singular values to keep, 0 to 1")
    rank: int | None = option(None, "the same rank for every layer")
    macs: float | None = option(None, "fraction of the original's multiply-accumulates that may remain")
    bytes: float | None = option(None, "fraction of the original's constant bytes that may remain")
    multiple: int | None = option(None, "ranks are multiples of this [the target's with macs and bytes, otherwise 1]")
    only: tuple[str, ...] = option((), "factorize only layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns")

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        goals = {n: getattr(self, n) for n in ("ratio", "energy", "rank", "macs", "bytes")}
        given = {name: value for name, value in goals.items() if value is not None}
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise SpecError(f"factor-low-rank takes one of {', '.join(goals)}, and got {found}: give exactly one")
        for name, value in given.items():
            if name == "rank" and value < 1:
                raise SpecError(f"option 'rank' of factor-low-rank is {value}: give 1 or more")
            if name != "rank" and not 0 <= value <= 1:
                raise SpecError(f"option {name!r} of factor-low-rank is {value:g}: give a fraction between 0 and 1")
        if self.multiple is not None and self.multiple < 1:
            raise SpecError(f"option 'multiple' of factor-low-rank is {self.multiple}: give 1 or more")

    def plan(self, model: Model, context: PassContext) -> LowRankPlan:
        """Decompose every weight that can be factorized, and choose the ranks.

        Raises:
            PassError: ``macs`` or ``bytes`` is out of reach, or MACs cannot be counted.
        """
        budget = self._budget(model, context)
        if budget is not None and budget.now <= budget.goal:
            return LowRankPlan(layers=())
        weights, refused = self._weights(model, context)
        layers = []
        for weight, rank in zip(weights, self._ranks(weights, budget, context), strict=True):
            reason = _why_no_gain(weight, rank)
            for anchor in map(anchor_of, weight.nodes):
                if reason is not None:
                    refused.append((anchor, reason))
                    continue
                layers.append(LayerRank(anchor=anchor, scheme=_SCHEME, rank=rank, full_rank=weight.full_rank))
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
        weights = {id(node.inputs[1]): node.inputs[1] for node, _ in work}  # held, so that ids stay theirs
        factors: dict[tuple[int, int], tuple[Constant, Constant]] = {}
        for step, (node, layer) in enumerate(work, start=1):
            key = (id(node.inputs[1]), layer.rank)
            if key not in factors:
                factors[key] = _factorized(weights[key[0]], layer, rewriter)
            _split(node, layer.rank, factors[key], rewriter)
            context.progress(f"{self.name}: split", step, len(work))

    # ---- choosing ----------------------------------------------------------------------------------------

    def _weights(self, model: Model, context: PassContext) -> tuple[list[_Weight], list[tuple[str, str]]]:
        """Return the weights to factorize, each once, in order, and the layers left alone."""
        layers: dict[int, list[Node]] = {}
        refused: list[tuple[str, str]] = []
        for graph, node in graph_nodes(model.graph):
            if not is_standard(node, *_OPS):
                continue
            excluded = None if selects(node, self.only, self.exclude) else "excluded by the options"
            reason = excluded or _why_not(node, graph, model)
            if reason is None:
                layers.setdefault(id(node.inputs[1]), []).append(node)
            else:
                refused.append((anchor_of(node), reason))
        weights = []
        for step, nodes in enumerate(layers.values(), start=1):
            tensor = nodes[0].inputs[1]
            if self.bytes is not None and len(tensor.outputs) > len(nodes):
                refused.extend(
                    (anchor_of(node), "its weight has other readers, so no bytes would go") for node in nodes
                )
                continue
            weights.append(_Weight(tuple(nodes), tuple(tensor.shape), _low_rank.kept_energy(tensor.values, _SCHEME)))
            context.progress(f"{self.name}: decompose", step, len(layers))
        return weights, refused

    def _budget(self, model: Model, context: PassContext) -> _Budget | None:
        """Return what may remain of MACs or bytes, None where the goal is another."""
        if self.bytes is not None:
            now = model_cost(model, {}).bytes
            return _Budget(
                "bytes", self.bytes, context.baseline.bytes, now, lambda w: w.nodes[0].inputs[1].values.itemsize
            )
        if self.macs is None:
            return None
        shapes = concrete_shapes(model, context.feed)
        now_macs, was = model_cost(model, shapes).macs, context.baseline.macs
        if now_macs is None or was is None:
            raise PassError(
                "multiply-accumulates cannot be counted, because shapes are unknown: use ratio, energy or bytes"
            )
        return _Budget(
            "macs", self.macs, was, now_macs, lambda w: sum(node_macs(n, shapes) or 0 for n in w.nodes) // prod(w.shape)
        )

    def _ranks(self, weights: list[_Weight], budget: _Budget | None, context: PassContext) -> list[int]:
        multiple = self.multiple or (1 if budget is None else context.target.channel_multiple)
        if budget is None:
            return [_low_rank.rounded_up(self._own_rank(w), multiple, w.full_rank) for w in weights]

        def ranks_at(energy: float) -> list[int]:
            wanted = (_low_rank.rank_for_energy(w.kept, energy) for w in weights)
            return [_low_rank.rounded_up(rank, multiple, w.full_rank) for rank, w in zip(wanted, weights, strict=True)]

        def cost(energy: float) -> int:
            return budget.now - sum(budget.saved(w, rank) for w, rank in zip(weights, ranks_at(energy), strict=True))

        energy = _low_rank.highest_energy([w.kept for w in weights], cost, budget.goal)
        if energy is None:
            least = cost(0.0) / budget.was if budget.was else 1.0
            raise PassError(f"{budget.name}={budget.fraction:g} is out of reach: the lowest ranks leave {least:.3f}")
        return ranks_at(energy)

    def _own_rank(self, weight: _Weight) -> int:
        """Return the rank that ratio, energy or rank asks of one weight."""
        if self.ratio is not None:
            return _low_rank.rank_for_ratio(weight.full_rank, self.ratio)
        if self.energy is not None:
            return _low_rank.rank_for_energy(weight.kept, self.energy)
        assert self.rank is not None  # noqa: S101  (exactly one goal is given)
        return self.rank


@dataclass(frozen=True)
class _Weight:
    """One constant, the layers that multiply by it, and what its ranks keep."""

    nodes: tuple[Node, ...]
    shape: tuple[int, ...]
    kept: Array

    @property
    def full_rank(self) -> int:
        return len(self.kept)


@dataclass(frozen=True)
class _Budget:
    """What may remain: ``fraction`` of ``was``; ``now`` is what is there; ``price`` is that of a weight's element."""

    name: str
    fraction: float
    was: int
    now: int
    price: Callable[[_Weight], int]

    @property
    def goal(self) -> float:
        return self.fraction * self.was

    def saved(self, weight: _Weight, rank: int) -> int:
        """Return what the factors of ``weight`` at ``rank`` save; 0 where they would cost more."""
        return max(0, prod(weight.shape) - _low_rank.elements(weight.shape, rank, _SCHEME)) * self.price(weight)


def _why_not(node: Node, graph: Graph, model: Model) -> str | None:
    """Return why a layer cannot be factorized, None when it can."""
    weight = array_of(node.inputs[1])
    reasons = {
        "it lies in a subgraph": graph is not model.graph,
        "its weight is an input or computed, not constant": weight is None,
        "its input is constant": isinstance(node.inputs[0], Constant),
        f"it is grouped ({node.attrs.get('group', 1)} groups)": node.op == "Conv" and node.attrs.get("group", 1) != 1,
        "it transposes its input": node.op == "Gemm" and node.attrs.get("transA"),
        "Gemm cannot do without a bias before operator set 7": node.op == "Gemm" and model.opset < _GEMM_BROADCASTS,
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


def _why_no_gain(weight: _Weight, rank: int) -> str | None:
    if rank >= weight.full_rank:
        return f"rank {rank} is not below its full rank {weight.full_rank}: nothing to gain"
    largest = _low_rank.largest_gain(weight.shape, _SCHEME)
    return None if rank <= largest else f"rank {rank} of {weight.full_rank} would not make it cheaper: {largest} would"


# ---- doing -------------------------------------------------------------------------------------------------------


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


def _factorized(weight: Constant, layer: LayerRank, rewriter: Rewriter) -> tuple[Constant, Constant]:
    left, right = _low_rank.factors(weight.values, layer.rank, layer.scheme)
    return rewriter.constant(f"{weight.name}_left", left), rewriter.constant(f"{weight.name}_right", right)


def _split(node: Node, rank: int, factors: tuple[Constant, Constant], rewriter: Rewriter) -> None:
    """Put a node with one factor before ``node``, which keeps the other, its bias, name and output."""
    outputs_first = node.op == "Conv" or bool(node.attrs.get("transB"))  # how the weight is stored: n × m, or m × n
    second, first = factors if outputs_first else factors[::-1]
    out = node.outputs[0]
    shape = dims_of(out)
    if shape:
        axis = 1 if node.op == "Conv" else len(shape) - 1
        shape = (*shape[:axis], rank, *shape[axis + 1 :])
    inputs, attrs = [node.inputs[0], first], {}
    if node.op == "Conv":
        attrs = dict(node.attrs)
        rewriter.set_op(node, "Conv", {"kernel_shape": [1] * (len(first.shape) - 2)})
    elif node.op == "Gemm":
        attrs = {"transB": 1} if outputs_first else {}
        if rewriter.model.opset < _GEMM_WITHOUT_BIAS:
            inputs.append(rewriter.constant(f"{first.name}_bias", np.zeros(1, first.values.dtype)))
    middle = rewriter.variable(f"{out.name}_rank{rank}", out.dtype, shape)
    rewriter.insert(node.op, inputs, [middle], attrs, name=f"{node.name or out.name}_rank{rank}", domain=node.domain)
    rewriter.set_input(node, 0, middle)
    rewriter.set_input(node, 1, second)
