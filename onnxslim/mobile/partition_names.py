"""Verdicts of those who are asked by a whole graph: onnxruntime's list checker, and onnxruntime's own CPU kernels."""

from __future__ import annotations

import re

from onnxslim.ir import Model, Node, anchor_of, dims_of
from onnxslim.mobile.partition_check import Judged, Verdict
from onnxslim.mobile.partition_units import Unit, split_units
from onnxslim.runtime.usability import Usability
from onnxslim.targets.base import Target

_NAMED = (
    re.compile(r"implementation for (?P<op>\w+)\(-?\d+\) node with name '(?P<name>[^']*)'"),
    re.compile(r"kernel for (?P<op>\w+)\(-?\d+\) \(node:'(?P<name>[^']*)'"),
    re.compile(r"(?P<domain>[\w.]*):(?P<op>\w+)\(-?\d+\) is not a registered function/op"),
)
"""How onnxruntime names the first node that it has no kernel for."""

MOST_DIMS = 5
"""Of Core ML."""


def judge_listed(model: Model, target: Target, said: Usability) -> list[Judged]:
    """Return the verdict of onnxruntime's list checker on every unit of ``model``."""
    return [_listed(unit, target, said) for unit in split_units(model, {})]


def _listed(unit: Unit, target: Target, said: Usability) -> Judged:
    first = unit.node.outputs[0].name if unit.node.outputs else ""
    if first in said.taken:
        return Judged(unit, Verdict.RUNS)
    if first in said.unlisted:
        return Judged(unit, Verdict.REFUSED, f"{target.name} has no {unit.node.op}")
    return Judged(unit, Verdict.REFUSED, _shapes(unit.node))


def _shapes(node: Node) -> str:
    """Return which of the checker's two rules on shapes refuses a node."""
    read = [tensor for tensor in node.inputs if not tensor.is_empty()]
    for tensor in read:
        dims = dims_of(tensor)
        if dims is not None and all(isinstance(dim, int) for dim in dims) and len(dims) > MOST_DIMS:
            return f"{tensor.name!r} has {len(dims)} dimensions, and it takes {MOST_DIMS}"
    return "the size of what it reads is not fixed"


def judge_kernels(model: Model, refusal: str | None) -> list[Judged]:
    """Return the verdict of onnxruntime itself: a model that loads runs as a whole.

    Args:
        refusal: what it said of a model that it does not load, and then ends at the first node.
    """
    units = split_units(model, {})
    if refusal is None:
        return [Judged(unit, Verdict.RUNS) for unit in units]
    return [_kernel(unit, refusal) for unit in units]


def _kernel(unit: Unit, refusal: str) -> Judged:
    for pattern in _NAMED:
        match = pattern.search(refusal)
        if match is not None:
            fits = match["op"] == unit.node.op and _fits(unit.node, match.groupdict())
            verdict = Verdict.REFUSED if fits else Verdict.UNKNOWN
            return Judged(unit, verdict, refusal if fits else "onnxruntime stops at another node before it tells")
    return Judged(unit, Verdict.REFUSED, f"onnxruntime does not load the model: {refusal}")


def _fits(node: Node, said: dict[str, str]) -> bool:
    domain = said.get("domain")
    if domain is not None and domain != (node.domain or ""):
        return False
    return said.get("name", "") in ("", node.name, anchor_of(node))
