"""Which operators a model uses: what a policy allows and a reduced build of the runtime must keep."""

from __future__ import annotations

from typing import Any

import onnx

from onnxslim.ir import Model


def operators_of(model: Model) -> tuple[str, ...]:
    """Return the operators of ``model``, sorted; others than the standard's as ``com.microsoft:NAME``.

    Nodes of subgraphs and local functions count; calls of local functions do not.
    """
    proto = model.proto()
    local = {(function.domain, function.name) for function in proto.functions}
    found: set[str] = set()
    stack: list[Any] = [proto.graph, *proto.functions]
    while stack:
        for node in stack.pop().node:
            if (node.domain, node.op_type) not in local:
                found.add(node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}")
            stack.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return tuple(sorted(found))
