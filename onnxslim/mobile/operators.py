"""Which operators a model uses: what a policy allows and a reduced build of the runtime must keep."""

from __future__ import annotations

import re
from typing import Any

import onnx

from onnxslim.ir import Model

Required = tuple[str, int, str]
"""Domain, version and name of an operator."""

_TYPES = re.compile(r"\{[^{}]*\}")
"""The innermost braces of a configuration's line: element types, as JSON."""


def operators_of(model: Model) -> tuple[str, ...]:
    """Return the operators of ``model``, sorted; others than the standard's as ``com.microsoft:NAME``.

    Nodes of subgraphs and local functions count; calls of local functions do not.
    """
    proto = model.skeleton()
    local = {(function.domain, function.name) for function in proto.functions}
    found: set[str] = set()
    stack: list[Any] = [proto.graph, *proto.functions]
    while stack:
        for node in stack.pop().node:
            if (node.domain, node.op_type) not in local:
                found.add(_qualified(node.domain, node.op_type))
            for attribute in node.attribute:
                stack.extend([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs)
    return tuple(sorted(found))


def required_operators(config: str) -> tuple[str, ...]:
    """Return the operators that a required-operators configuration names, in the form of :func:`operators_of`."""
    return tuple(sorted({_qualified(domain, name) for domain, _, name in required_versions(config)}))


def required_versions(config: str) -> frozenset[Required]:
    """Return domain, version and name of each operator that a required-operators configuration names.

    The standard's domain is empty. Its lines are ``domain;opsets;Name{types},Name`` (onnxruntime, "Reduced operator
    configuration file").
    """
    found: set[Required] = set()
    for line in config.splitlines():
        fields = line.split(";", 2)
        if line.startswith(("#", "!")) or len(fields) != 3:
            continue
        domain, opsets, names = fields
        while _TYPES.search(names):
            names = _TYPES.sub("", names)
        domain = "" if domain.strip() == "ai.onnx" else domain.strip()
        versions = [int(opset) for opset in opsets.split(",") if opset.strip().isdigit()]
        found.update((domain, since, name.strip()) for name in names.split(",") if name.strip() for since in versions)
    return frozenset(found)


def _qualified(domain: str, name: str) -> str:
    return name if domain in ("", "ai.onnx") else f"{domain}:{name}"
