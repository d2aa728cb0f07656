"""Mutations of models: of their bytes, and of what the bytes mean. Seeded, so that a seed repeats a case."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError

INTERESTING = (0, 1, -1, 2, 3, 7, 64, 127, 255, 4096, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, -(2**31), -(2**63))
"""Numbers at which somebody's arithmetic ends."""

OPERATORS = (
    "Add", "Cast", "Concat", "ConstantOfShape", "Conv", "Div", "Expand", "Flatten", "Gather", "Gemm", "Identity", "If",
    "Loop", "MatMul", "MaxPool", "Mod", "Mul", "NonZero", "Pad", "Range", "ReduceMean", "Relu", "Reshape", "Resize",
    "Shape", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip

_TEXTS = (
    """<ir_version: 8, opset_import: ["" : 17]> shapes (float[1,4,6] x) => (float[p,q] y)
    <int64[1] one = {1}, int64[1] rest = {-1}, float[24,5] w, float[5] b> {
       s = Shape(x)  first = Slice(s, one, one)  n = Gather(s, one)  target = Concat <axis = 0> (n, rest)
       flat = Flatten <axis = 0> (x)  r = Reshape(x, target)  t = Transpose <perm = [1, 0]> (r)
       u = Transpose <perm = [1, 0]> (t)  m = Identity(u)  y = Relu(m) }""",
    """<ir_version: 8, opset_import: ["" : 17]> branches (float[2,3] x, bool c) => (float[p,q] y) {
       y = If (c) <then_branch = yes () => (float[2,3] a) { a = Relu(x) },
                   else_branch = no () => (float[2,3] b) { i = Identity(x)  b = Neg(i) }> }""",
    """<ir_version: 8, opset_import: ["" : 17]> loops (float[3] x) => (float[3] y)
    <int64 n = {3}, bool go = {1}> {
       y = Loop (n, go, x) <body = step (int64 i, bool c, float[3] s) => (bool d, float[3] t) {
          d = Identity(c)  t = Add(s, s) }> }""",
    """<ir_version: 8, opset_import: ["" : 17, "local" : 1]> calls (float[3] x) => (float[3] y) { y = local.twice(x) }
    <opset_import: ["" : 17], domain: "local"> twice (a) => (b) { b = Add(a, a) }""",
    """<ir_version: 8, opset_import: ["" : 17]> constants (float[2,8] x) => (float[p,q] y)
    <int64[2] shape = {2, 8}, int64 start = {0}, int64 limit = {8}, int64 delta = {1}> {
       z = ConstantOfShape(shape)  r = Range(start, limit, delta)  f = Cast <to = 1> (r)  e = Expand(f, shape)
       a = Add(z, e)  k = Concat <axis = 0> (r, r)  o = Mul(x, a)  y = Softmax <axis = 1> (o) }""",
    """<ir_version: 10, opset_import: ["" : 21]> integers (float[1,2,4,4] x) => (float[p,q,r,s] y)
    <float step = {0.5}, uint8 zero = {3}, float[2,2,1,1] w = {1, 2, 3, 4}> {
       q = QuantizeLinear(x, step, zero)  d = DequantizeLinear(q, step, zero)  c = Conv(d, w)  y = Relu(c) }""",
)
"""Small models of what models/ lack: computed shapes, subgraphs, functions, integers."""


def seeds(folder: Path) -> list[bytes]:
    """Return small valid models: the beginnings of those in ``folder``, and a few of other kinds."""
    found = [onnx.parser.parse_model(text) for text in _TEXTS]
    for path in sorted(folder.glob("*.onnx")):
        whole = onnx.load(str(path))
        found += [_beginning(whole, count) for count in (3, 7)]
    return [model.SerializeToString(deterministic=True) for model in found]


def _beginning(whole: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """Return the first nodes of a model, with the last one's result as the output."""
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    graph = model.graph
    del graph.node[count:]
    del graph.value_info[:]
    read = {name for node in graph.node for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.output[:]
    shape = ("n", "c", "h", "w")
    graph.output.append(onnx.helper.make_tensor_value_info(graph.node[-1].output[0], onnx.TensorProto.FLOAT, shape))
    return model


def mutate(data: bytes, rng: random.Random, largest: int = 1 << 20) -> bytes:
    """Return ``data`` changed in one to four places, at most ``largest`` bytes of it."""
    changed = mutate_message(data, rng) if rng.random() < 0.5 else None
    return (mutate_bytes(data, rng) if changed is None else changed)[:largest]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat or truncate, without looking."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed))
        kind = rng.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.randrange(256)
        elif kind == 2:
            del changed[place : place + rng.randint(1, 16)]
        elif kind == 3:
            changed[place:place] = changed[place : place + rng.randint(1, 64)]
        else:
            del changed[rng.randrange(len(changed)) + 1 :]
        if not changed:
            return b"\0"
    return bytes(changed)


def mutate_message(data: bytes, rng: random.Random) -> bytes | None:
    """Change what the model says; None where ``data`` is no model, or what it became cannot be written."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return None
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            rng.choice(_MUTATIONS)(model, rng)
        except (IndexError, ValueError, TypeError, UnicodeError):  # nothing there to change, or it does not fit
            continue
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError):
        return None


def is_message(data: bytes) -> bool:
    """Whether ``data`` parses as a model with a graph."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return False
    return bool(model.graph.node)


def _graphs(model: onnx.ModelProto) -> list[Any]:
    found: list[Any] = [model.graph, *model.functions]
    for holder in found:
        found.extend(a.g for node in holder.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return found


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = [node for graph in _graphs(model) for node in graph.node]
    return rng.choice(nodes)


def _tensor(model: onnx.ModelProto, rng: random.Random) -> onnx.TensorProto:
    tensors: list[onnx.TensorProto] = [
        tensor for graph in _graphs(model) for tensor in getattr(graph, "initializer", ())
    ]
    tensors += [a.t for graph in _graphs(model) for node in graph.node for a in node.attribute if a.HasField("t")]
    return rng.choice(tensors)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> onnx.AttributeProto:
    attributes: list[onnx.AttributeProto] = [a for g in _graphs(model) for node in g.node for a in node.attribute]
    return rng.choice(attributes)


def _names(model: onnx.ModelProto) -> Iterator[str]:
    for graph in _graphs(model):
        for node in graph.node:
            yield from node.input
            yield from node.output


def _drop_node(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = rng.choice(_graphs(model)).node
    del nodes[rng.randrange(len(nodes))]


def _repeat_node(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = rng.choice(_graphs(model)).node
    nodes.append(rng.choice(nodes))


def _chain_node(model: onnx.ModelProto, rng: random.Random) -> None:
    """Repeat a node on its own result, up to forty times."""
    node = _node(model, rng)
    name = node.output[0]
    nodes = next(graph.node for graph in _graphs(model) if any(other is node for other in graph.node))
    place = next(index for index, other in enumerate(nodes) if other is node)
    for step in range(rng.choice((1, 3, 40))):
        link = onnx.NodeProto()
        link.CopyFrom(node)
        link.input[:] = [name if step else source for source in node.input]
        name = link.output[0] = f"chain_{step}"
        nodes.insert(place + step, link)
    node.input[:] = [name for _ in node.input]


def _swap_nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = rng.choice(_graphs(model)).node
    left, right = rng.sample(range(len(nodes)), 2)
    kept = onnx.NodeProto()
    kept.CopyFrom(nodes[left])
    nodes[left].CopyFrom(nodes[right])
    nodes[right].CopyFrom(kept)


def _rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.input[rng.randrange(len(node.input))] = rng.choice(["", "nobody", *_names(model)])


def _add_input(model: onnx.ModelProto, rng: random.Random) -> None:
    _node(model, rng).input.append(rng.choice(["", *_names(model)]))


def _drop_input(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    del node.input[rng.randrange(len(node.input))]


def _rename_output(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.output[rng.randrange(len(node.output))] = rng.choice(["", "other", *_names(model)])


def _other_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    _node(model, rng).op_type = rng.choice(OPERATORS)


def _drop_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    attributes = _node(model, rng).attribute
    del attributes[rng.randrange(len(attributes))]


def _attribute_type(model: onnx.ModelProto, rng: random.Random) -> None:
    kinds: list[Any] = list(onnx.AttributeProto.AttributeType.values())
    _attribute(model, rng).type = rng.choice(kinds)


def _attribute_value(model: onnx.ModelProto, rng: random.Random) -> None:
    attribute = _attribute(model, rng)
    attribute.i = rng.choice(INTERESTING)
    attribute.f = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(INTERESTING)


def _resize_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    ints = _attribute(model, rng).ints
    ints.extend(rng.choice(INTERESTING[:6]) for _ in range(rng.choice((1, 2, 100))))


def _dims(model: onnx.ModelProto, rng: random.Random) -> None:
    dims = _tensor(model, rng).dims
    dims[rng.randrange(len(dims))] = rng.choice(INTERESTING)


def _rank(model: onnx.ModelProto, rng: random.Random) -> None:
    dims = _tensor(model, rng).dims
    dims[rng.randrange(len(dims)) :] = rng.choice(([], [0], [1, 2]))


def _data_length(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)] + bytes(rng.choice((0, 1, 4)))


def _values(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    number = rng.choice(INTERESTING)
    if tensor.int64_data:
        tensor.int64_data[rng.randrange(len(tensor.int64_data))] = number
    elif tensor.float_data:
        tensor.float_data[rng.randrange(len(tensor.float_data))] = float(number)
    elif tensor.data_type == onnx.TensorProto.INT64:
        place = 8 * rng.randrange(len(tensor.raw_data) // 8)
        tensor.raw_data = b"".join(
            (tensor.raw_data[:place], number.to_bytes(8, "little", signed=True), tensor.raw_data[place + 8 :])
        )


def _data_type(model: onnx.ModelProto, rng: random.Random) -> None:
    _tensor(model, rng).data_type = rng.randrange(-1, 28)


def _external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", rng.choice(("a", "/etc/passwd", "../a", ""))), ("offset", rng.choice(INTERESTING))):
        tensor.external_data.add(key=key, value=str(value))


def _drop_weight(model: onnx.ModelProto, rng: random.Random) -> None:
    weights = model.graph.initializer
    del weights[rng.randrange(len(weights))]


def _declared(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([value for graph in _graphs(model)[:1] for value in (*graph.input, *graph.output)])
    kind = value.type.tensor_type
    choice = rng.randrange(3)
    if choice == 0:
        kind.elem_type = rng.randrange(-1, 28)
    elif choice == 1:
        kind.shape.dim[rng.randrange(len(kind.shape.dim))].dim_value = rng.choice(INTERESTING)
    else:
        kind.shape.dim.add().dim_param = "extra"


def _more_outputs(model: onnx.ModelProto, rng: random.Random) -> None:
    model.graph.output.add(name=rng.choice(list(_names(model)))).type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.5:
        model.ir_version = rng.choice((0, 3, 4, 7, 10, 99, -1))
    else:
        model.opset_import[rng.randrange(len(model.opset_import))].version = rng.choice((0, 7, 11, 13, 21, 99, -1))


def _nest(model: onnx.ModelProto, rng: random.Random) -> None:
    """Put the whole graph into an attribute of one of its nodes."""
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    attribute = _node(model, rng).attribute.add(name=rng.choice(("then_branch", "else_branch", "body")))
    attribute.type = onnx.AttributeProto.GRAPH
    attribute.g.CopyFrom(inner)


def _call_function(model: onnx.ModelProto, rng: random.Random) -> None:
    node, function = _node(model, rng), rng.choice(model.functions)
    node.op_type, node.domain = function.name, function.domain


_MUTATIONS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _add_input, _attribute_type, _attribute_value, _call_function, _chain_node, _data_length, _data_type, _declared,
    _dims, _drop_attribute, _drop_input, _drop_node, _drop_weight, _external, _more_outputs, _nest, _other_operator,
    _rank, _rename_output, _repeat_node, _resize_attribute, _rewire, _swap_nodes, _values, _values, _versions,
)  # fmt: skip
