"""Which layers can be factorized, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.linear_layers import refusal
from onnxslim.analysis.recurrent_inputs import RECURRENT, why_no_input_matrix
from onnxslim.ir import Constant, Graph, Model, Node, anchor_of, array_of, graph_nodes, is_standard, selects

OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))

Refused = tuple[str, str]
"""(anchor, reason)."""


def eligible(
    model: Model, only: Sequence[str], exclude: Sequence[str], *, spare_others: bool
) -> tuple[list[list[Node]], list[Refused]]:
    """Return the layers to factorize, those that share a weight together, and the layers left alone.

    Args:
        spare_others: leave weights that something else reads too, which would stay beside their factors.
    """
    shared: dict[int, list[Node]] = {}
    refused: list[Refused] = []
    for graph, node in graph_nodes(model.graph):
        if not is_standard(node, *OPS):
            continue
        if node.op in RECURRENT:
            refused.append((anchor_of(node), "its recurrent weights act inside the operator"))
        excluded = None if selects(node, only, exclude) else "excluded by the options"
        reason = excluded or why_not(node, graph, model)
        if reason is None:
            shared.setdefault(id(node.inputs[1]), []).append(node)
        else:
            refused.append((anchor_of(node), reason))
    kept = [nodes for nodes in shared.values() if spare_others and len(nodes[0].inputs[1].outputs) > len(nodes)]
    reason = "its weight has other readers, so no bytes would go"
    refused += [(anchor_of(node), reason) for nodes in kept for node in nodes]
    return [nodes for nodes in shared.values() if nodes not in kept], refused


def why_not(node: Node, graph: Graph, model: Model) -> str | None:
    """Return why a layer cannot be factorized, None when it can."""
    weight = array_of(node.inputs[1])
    reasons = {
        "it lies in a subgraph": graph is not model.graph,
        "its weight is an input or computed, not constant": weight is None,
        "its input is constant": isinstance(node.inputs[0], Constant),
        "it transposes its input": node.op == "Gemm" and bool(node.attrs.get("transA")),
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    if found is not None or weight is None:
        return found
    if node.op in RECURRENT:
        return why_no_input_matrix(node) or (None if np.isfinite(weight).all() else "its weight holds NaN or Inf")
    return _why_not_weight(weight, node.op) or refusal(node) or _why_not_groups(node)


def _why_not_weight(weight: npt.NDArray[Any], op: str) -> str | None:
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype}"
    if op == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions, not 2"
    if weight.size == 0:
        return "its weight is empty"
    return None if np.isfinite(weight).all() else "its weight holds NaN or Inf"


def _why_not_groups(node: Node) -> str | None:
    if not node.op.startswith("Conv"):
        return None
    groups = int(node.attrs.get("group", 1))
    outputs = int(node.inputs[1].shape[0]) // groups if node.op == "Conv" else int(node.inputs[1].shape[1])
    return f"each of its {groups} groups has one filter: its rank is 1" if groups > 1 == outputs else None
