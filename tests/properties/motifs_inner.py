"""Random subgraphs that capture what is outside, and nodes that an optimizer should find superfluous."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
from properties.builder import Graph, Value
from properties.motifs_arithmetic import reduced


def superfluous(g: Graph) -> None:
    """Nodes that change nothing."""
    x = g.pick()
    how = g.choose("Identity", "Dropout", "Cast", "Transpose", "Concat", "Pad", "double")
    if how == "Dropout":
        g.op("Dropout", x, ratio=0.3 if g.opset < 12 else None)
    elif how == "Cast":
        g.op("Cast", x, to=int(oh.np_dtype_to_tensor_dtype(x.dtype)))
    elif how == "Transpose" and x.rank:
        g.op("Transpose", x, perm=list(range(x.rank)))
    elif how == "Concat" and x.rank:
        g.op("Concat", x, axis=0)
    elif how == "Pad" and x.rank:
        pads = [0] * (2 * x.rank)
        g.op("Pad", x, pads=pads) if g.opset < 11 else g.op("Pad", x, g.integers(pads))
    elif how == "double":
        wide = g.op("Cast", x, to=int(oh.np_dtype_to_tensor_dtype(np.dtype(np.float64))))
        g.op("Cast", wide, to=int(oh.np_dtype_to_tensor_dtype(x.dtype)))
    else:
        g.op("Identity", x)


def constant_branch(g: Graph) -> None:
    """Arithmetic on constants alone, added to an activation."""
    x = g.pick(lambda v: v.rank >= 1)
    a, b = g.positive(x.shape[-1]), g.positive(1)
    c = g.op("Mul", g.op("Sqrt", a), b)
    g.op("Add", x, c)


def where(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 1)
    mask = g.constant(g.random.random(x.shape[-1]) < 0.5, np.bool_)
    g.op("Where", mask, x, g.constant(0.0)) if g.opset >= 9 else g.op("Identity", x)


def _open(name: str, kind: int, like: Value) -> onnx.ValueInfoProto:
    """Declare a tensor of the same rank, every dimension left open."""
    return oh.make_tensor_value_info(name, kind, [f"{name}_{i}" for i in range(like.rank)])


def branch(g: Graph) -> None:
    """An If whose branches capture an activation and a weight of the outer graph."""
    x = g.pick(lambda v: v.rank >= 1)
    name, value = g.fresh(), g.positive(1)
    kind = oh.np_dtype_to_tensor_dtype(x.dtype)
    condition = g.constant(g.chance(0.5), np.bool_)
    if g.chance(0.5):
        total = reduced(g, "ReduceSum", x, list(range(x.rank)), 0)
        condition = g.op("Less", total, g.constant(0.0))
    graphs: dict[str, Any] = {}
    for key, op in (("then_branch", "Mul"), ("else_branch", "Add")):
        inner, last = g.fresh(), g.fresh()
        nodes = [
            oh.make_node(op, [x.name, value.name], [inner], name=f"in_{inner}"),
            oh.make_node("Relu", [inner], [last], name=f"in_{last}"),
        ]
        graphs[key] = oh.make_graph(nodes, key, [], [_open(last, kind, x)])
    node = oh.make_node("If", [condition.name], [name], name=f"if_{name}", **graphs)
    g.add(node, [Value(name, x.shape, x.dtype, x.free)])


def loop(g: Graph) -> None:
    """A Loop of three rounds over an activation, capturing another and a weight."""
    x = g.pick(lambda v: v.rank >= 1)
    kind = oh.np_dtype_to_tensor_dtype(x.dtype)
    count, go, value = g.constant(3, np.int64), g.constant(True, np.bool_), g.positive(1)
    step, given, same, carried, half, out = (g.fresh() for _ in range(6))
    nodes = [
        oh.make_node("Identity", [given], [same]),
        oh.make_node("Mul", [carried, value.name], [half], name=f"in_{half}"),
        oh.make_node("Add", [half, x.name], [out], name=f"in_{out}"),
    ]
    body = oh.make_graph(
        nodes,
        "body",
        [
            oh.make_tensor_value_info(step, 7, []),
            oh.make_tensor_value_info(given, 9, []),
            _open(carried, kind, x),
        ],
        [oh.make_tensor_value_info(same, 9, []), _open(out, kind, x)],
    )
    name = g.fresh()
    node = oh.make_node("Loop", [count.name, go.name, x.name], [name], name=f"loop_{name}", body=body)
    g.add(node, [Value(name, x.shape, x.dtype, x.free)])
