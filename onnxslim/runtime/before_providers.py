"""The graph that onnxruntime hands to execution providers: after its basic rewrites, before anything is distributed.

A session rewrites a model in the level "basic" for every provider, then asks providers which nodes they take, then
rewrites what the CPU is left with. So a provider never sees the model as it is in the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx

from onnxslim.runtime.sessions import Level, ModelData, Session, SessionConfig, load_proto

_INSERTED = "InsertedPrecisionFreeCast_"
"""How onnxruntime names Casts around half precision, for which its CPU has no kernels, and the tensors they make."""


def before_providers(model: ModelData, whole: Collection[str] = ()) -> onnx.ModelProto:
    """Return the graph that execution providers are asked about.

    What the CPU alone needs is taken back: Casts around half precision, and the bodies of ``whole``.

    Args:
        model: what is loaded.
        whole: operators that onnx defines by others (such as GroupNormalization) and the provider may have as a whole.

    Raises:
        RuntimeRefusal: onnxruntime does not load the model.
    """
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        path = Path(folder) / "basic.onnx"
        Session(model, SessionConfig(level=Level.BASIC, optimized_path=str(path)))
        made = onnx.load_model(str(path))
    _remove_inserted(made.graph)
    _close_calls(load_proto(model).graph, made.graph, whole)
    return made


def _close_calls(given: onnx.GraphProto, made: onnx.GraphProto, whole: Collection[str]) -> None:
    """Put nodes of ``given`` back in place of the bodies that onnxruntime opened."""
    opened = set(whole) - {node.op_type for node in made.node}
    stored = {tensor.name: tensor for tensor in given.initializer}
    for call in given.node:
        if call.op_type not in opened or not _is_function(call):
            continue
        body = _body(call, made)
        missing = {name for name in call.input if name} - _names(made)
        if body and missing <= stored.keys():
            made.initializer.extend(stored[name] for name in sorted(missing))
            _replace(made, body, call)


def _is_function(node: onnx.NodeProto) -> bool:
    """Whether onnx defines an operator by others, in any version."""
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return False
    schema: Any = onnx.defs.get_schema(node.op_type)
    return bool(schema.has_function or schema.has_context_dependent_function)


def _names(made: onnx.GraphProto) -> set[str]:
    """Return the tensors of a graph."""
    inner = {name for node in made.node for name in node.output}
    return inner | {tensor.name for tensor in made.initializer} | {value.name for value in made.input}


def _body(call: onnx.NodeProto, made: onnx.GraphProto) -> set[str]:
    """Return the first outputs of the nodes that compute a call's outputs; nothing where others read them half done."""
    makers = {name: node for node in made.node for name in node.output}
    stack = [name for name in call.output if name in makers]
    found: dict[str, onnx.NodeProto] = {}
    while stack:
        node = makers.get(stack.pop())
        if node is None or node.output[0] in found:
            continue
        found[node.output[0]] = node
        stack += [name for name in node.input if name not in call.input]
    inside = {name for node in found.values() for name in node.output}
    fed = {name for node in found.values() for name in node.input} - inside
    constants = {tensor.name for tensor in made.initializer}
    others = {name for node in made.node if node.output[0] not in found for name in node.input}
    others |= {value.name for value in made.output}
    closed = fed <= {*call.input, *constants, ""} and not (inside - set(call.output)) & others
    return set(found) if closed else set()


def _replace(made: onnx.GraphProto, body: set[str], call: onnx.NodeProto) -> None:
    """Put ``call`` where the last node of its body was."""
    last = max(index for index, node in enumerate(made.node) if node.output[0] in body)
    kept = [node for index, node in enumerate(made.node) if index == last or node.output[0] not in body]
    nodes = [onnx.NodeProto.FromString((call if node.output[0] in body else node).SerializeToString()) for node in kept]
    del made.node[:]
    made.node.extend(nodes)


def _remove_inserted(graph: onnx.GraphProto) -> None:
    """Take out the Casts that were inserted, before and behind nodes: they are named after the tensor they convert."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = name.removeprefix(_INSERTED)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _remove_inserted(attribute.g)
    kept = [node for node in graph.node if not (node.op_type == "Cast" and node.input[0] == node.output[0])]
    del graph.node[:]
    graph.node.extend(kept)
    known = [value for value in graph.value_info if not value.name.startswith(_INSERTED)]
    del graph.value_info[:]
    graph.value_info.extend(known)
