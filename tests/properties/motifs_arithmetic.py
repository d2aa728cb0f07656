"""Random arithmetic: activations, broadcasts, normalizations without filters, operators outside the standard."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
from properties.builder import Graph, Value


def layer_norm(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2 and v.shape[-1] > 2 and v.rank - 1 not in v.free)
    last = x.shape[-1]
    if g.opset >= 17:
        parameters = [g.normal(last), g.normal(last)][: g.choose(1, 2)]
        g.op("LayerNormalization", x, *parameters, axis=-1, epsilon=0.1)
        return
    mean = reduced(g, "ReduceMean", x, [-1], 1)
    centred = g.op("Sub", x, mean)
    variance = reduced(g, "ReduceMean", g.op("Mul", centred, centred), [-1], 1)
    root = g.op("Sqrt", g.op("Add", variance, g.constant(0.1)))
    y = g.op("Div", centred, root)
    g.op("Add", g.op("Mul", y, g.normal(last)), g.normal(last))


def reduced(g: Graph, op: str, x: Value, axes: list[int], keepdims: int) -> Value:
    """A reduction, its axes an attribute or an input as the operator set demands."""
    axes = axes if g.opset >= 11 else [a % x.rank for a in axes]
    since = 13 if op == "ReduceSum" else 18
    if g.opset >= since:
        return g.op(op, x, g.integers(axes), keepdims=keepdims)
    return g.op(op, x, axes=axes, keepdims=keepdims)


_ACTIVATIONS = (
    ("Relu", 6), ("Relu", 6), ("LeakyRelu", 6), ("Sigmoid", 6), ("Tanh", 6), ("Elu", 6), ("HardSigmoid", 6),
    ("Softplus", 1), ("Softsign", 1), ("Selu", 6), ("Abs", 6), ("Neg", 6), ("HardSwish", 14), ("Gelu", 20), ("Erf", 9),
    ("Celu", 12),
)  # fmt: skip


def activation(g: Graph) -> None:
    op, since = _ACTIVATIONS[g.whole(0, len(_ACTIVATIONS) - 1)]
    x = g.pick()
    if since > g.opset:
        g.op("Relu", x)
    elif op in ("LeakyRelu", "Elu", "HardSigmoid") and g.chance(0.5):
        g.op(op, x, alpha=0.25)
    else:
        g.op(op, x)


def clip(g: Graph) -> None:
    x = g.pick()
    low, high = float(g.choose(-1.0, 0.0)), float(g.choose(1.0, 6.0))
    if g.opset < 11:
        g.op("Clip", x, min=low, max=high)
        return
    bounds = [g.constant(low) if g.chance(0.8) else None, g.constant(high)][: g.choose(1, 2)]
    g.op("Clip", x, *bounds)


def prelu(g: Graph) -> None:
    x = g.image()
    g.op("PRelu", x, g.normal(*g.choose((x.channels, *(1 for _ in x.shape[2:])), (1,))))


def scale_or_shift(g: Graph) -> None:
    """Arithmetic with a constant, in every shape that broadcasts, on either side, identities among them."""
    x = g.pick()
    tail = tuple(1 for _ in x.shape[2:])
    shapes: list[tuple[int, ...]] = [(), (1,), *([(x.shape[-1],)] if x.rank else [])]
    if x.rank >= 2:
        shapes += [(x.channels, *tail)] * 2 + [(1, x.channels, *tail), (1,) * (x.rank - 1) + (x.shape[-1],)]
    if not x.free:
        shapes.append(x.shape)
    if g.chance(0.1):
        shapes.append((1,) * (x.rank + 1))
    shape = shapes[g.whole(0, len(shapes) - 1)]
    op = g.choose("Add", "Mul", "Sub", "Div")
    value = g.positive(*shape) if op == "Div" or g.chance(0.5) else g.normal(*shape)
    if g.chance(0.2):
        value = g.constant(np.full(shape, g.choose(0.0, 1.0) if op in ("Add", "Sub") else 1.0))
    left = g.chance(0.4) and op != "Div"
    g.op(op, *((value, x) if left else (x, value)))


def arithmetic(g: Graph) -> None:
    """Two activations of equal or broadcasting shapes."""
    x = g.pick()
    y = g.pick(lambda v: v.rank == x.rank and all(a in (b, 1) for a, b in zip(v.shape, x.shape, strict=True)))
    op = g.choose("Add", "Mul", "Sub", *(("Max", "Min", "Sum", "Mean") if x.dtype == np.float32 else ()))
    g.op(op, *((x, y) if g.chance(0.5) else (y, x)))


def twice(g: Graph) -> None:
    """The same work on the same tensor, written twice."""
    x = g.pick()
    value = g.positive(1)
    a, b = g.op("Mul", x, value), g.op("Mul", *((x, value) if g.chance(0.5) else (value, x)))
    g.op("Add", g.op("Sigmoid", a), g.op("Tanh", b))


def softmax(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2)
    axis = g.choose(1, -1) if g.opset >= 11 else g.choose(1, x.rank - 1)
    g.op(g.choose("Softmax", "LogSoftmax"), x, axis=axis)


def squeezed(g: Graph, x: Value, axes: list[int]) -> Value:
    """Squeeze, its axes an attribute or an input as the operator set demands."""
    return g.op("Squeeze", x, g.integers(axes)) if g.opset >= 13 else g.op("Squeeze", x, axes=axes)


def foreign(g: Graph) -> None:
    """An operator outside the standard."""
    x = g.pick(lambda v: v.rank >= 1)
    name = g.fresh()
    node = oh.make_node("QuickGelu", [x.name], [name], name=f"q_{name}", domain="com.microsoft", alpha=1.5)
    g.add(node, [Value(name, x.shape, x.dtype, x.free)])
