"""Random operators that move, cut, join or pool values, subgraphs, and what an optimizer should find superfluous."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
from properties.builder import Graph, Refused, Value
from properties.motifs_arithmetic import reduced, squeezed
from properties.motifs_layers import window


def concat(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 1)
    axis = g.choose(1, 1, x.rank - 1, 0) % x.rank
    rest = x.shape[:axis] + x.shape[axis + 1 :]

    def fits(v: Value) -> bool:
        return v.rank == x.rank and v.shape[:axis] + v.shape[axis + 1 :] == rest

    pieces = [x, *(g.pick(fits) for _ in range(g.whole(1, 2)))]
    if g.chance(0.15) and not x.free:
        pieces.append(g.normal(*x.shape))
    g.op("Concat", *pieces, axis=axis - x.rank if g.opset >= 11 and g.chance(0.3) else axis)


def split(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2 and any(s >= 2 and i not in v.free for i, s in enumerate(v.shape)))
    axes = [i for i, size in enumerate(x.shape) if size >= 2 and i not in x.free]
    axis = 1 if 1 in axes and g.chance(0.7) else axes[g.whole(0, len(axes) - 1)]
    first = g.whole(1, x.shape[axis] - 1)
    sizes = [first, x.shape[axis] - first]
    if g.opset >= 13:
        parts = g.many("Split", [x, g.integers(sizes)], 2, axis=axis)
    else:
        parts = g.many("Split", [x], 2, axis=axis, split=sizes)
    if g.chance(0.5):
        g.op("Concat", *(parts if g.chance(0.5) else parts[::-1]), axis=axis)


def sliced(g: Graph, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
    """Slice along one axis; ``step`` is 1 before the operator set that knows steps."""
    if g.opset < 10:
        return g.op("Slice", x, axes=[axis], starts=[start], ends=[end])
    inputs = [g.integers([start]), g.integers([end]), g.integers([axis])]
    return g.op("Slice", x, *inputs, *([g.integers([step])] if step != 1 or g.chance(0.5) else []))


def slicing(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2 and max(v.shape[1:]) >= 2)
    axis = int(np.argmax(x.shape[1:])) + 1
    if g.chance(0.4) and x.shape[1] >= 2:
        axis = 1
    size = x.shape[axis]
    start = g.whole(0, size - 1)
    how = g.choose("plain", "negative", "far", "step", "all", "twice", "reverse", "halves")
    if how == "plain":
        sliced(g, x, axis, start, g.whole(start + 1, size))
    elif how == "negative":
        sliced(g, x, axis, start - size, size)
    elif how == "far":
        sliced(g, x, axis, start, 2**31 - 1)
    elif how == "all":
        sliced(g, x, axis, 0, 2**31 - 1)
    elif how == "twice":
        y = sliced(g, x, axis, start // 2, 1000)
        sliced(g, y, axis, 0, max(1, y.shape[axis] - 1))
    elif how == "halves":
        half = size // 2
        parts = [sliced(g, x, axis, 0, half), sliced(g, x, axis, half, 10_000)]
        g.op("Concat", *(parts if g.chance(0.7) else parts[::-1]), axis=axis)
    elif g.opset >= 10:
        sliced(g, x, axis, *((0, 1000, 2) if how == "step" else (-1, -1000, -1)))


def pad(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2)
    amounts = np.zeros(2 * x.rank, int)
    for i in (*range(2, x.rank), *range(x.rank + 2, 2 * x.rank)):
        amounts[i] = g.whole(0, 2)
    if g.chance(0.2):
        amounts[1] = g.whole(0, 2)
    mode = g.choose("constant", "constant", "constant", "reflect", "edge")
    if mode == "reflect" and any(a >= x.shape[i % x.rank] for i, a in enumerate(amounts)):
        mode = "constant"
    value = g.choose(0.0, 0.0, 1.5)
    if g.opset < 11:
        y = g.op("Pad", x, pads=amounts.tolist(), mode=mode, value=value if mode == "constant" else None)
    else:
        extra = [g.constant(value)] if value or g.chance(0.3) else []
        y = g.op(
            "Pad", x, g.integers(amounts.tolist()), *extra, mode=mode if g.chance(0.5) or mode != "constant" else None
        )
    if y.rank >= 3 and g.chance(0.7):
        out = g.whole(1, 6)
        kernel = [min(3, size) for size in y.shape[2:]]
        weight = g.normal(out, y.channels, *kernel, fan=y.channels * int(np.prod(kernel)))
        g.op("Conv", y, weight, **window(g, y, kernel))


def pool(g: Graph) -> None:
    x = g.image(2)
    kernel = [g.whole(1, 3) if size > 2 else 2 for size in x.shape[2:]]
    op = g.choose("MaxPool", "AveragePool")
    attributes = window(g, x, kernel, dilate=op == "MaxPool" and g.opset >= 10)
    if "pads" in attributes:
        attributes["pads"] = [min(p, k - 1) for p, k in zip(attributes["pads"], (*kernel, *kernel), strict=True)]
        if g.opset >= 10 and g.chance(0.2):
            attributes["ceil_mode"] = 1
    if op == "AveragePool" and g.chance(0.4):
        attributes["count_include_pad"] = 1
    g.op(op, x, kernel_shape=kernel, **attributes)


def global_pool(g: Graph) -> None:
    x = g.image()
    y = g.op(g.choose("GlobalAveragePool", "GlobalMaxPool"), x)
    if g.chance(0.5):
        g.op("Flatten", y)


def reduce(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2)
    axes = g.choose(list(range(2, x.rank)) or [1], [1], [-1], [x.rank - 1])
    op = g.choose("ReduceMean", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")
    reduced(g, op, x, axes, g.choose(0, 1))


def head(g: Graph) -> None:
    """Pool, flatten, classify."""
    x = g.image()
    y = g.op("Flatten", g.op("GlobalAveragePool", x))
    out = g.whole(2, 6)
    g.op("Gemm", y, g.normal(out, y.shape[1], fan=y.shape[1]), g.normal(out), transB=1)


def flatten(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2)
    y = g.op("Flatten", x, axis=g.choose(1, 1, 1, 2, 0) if x.rank > 2 else None)
    if 1 not in y.free and g.chance(0.6):
        out = g.whole(1, 6)
        g.op("MatMul", y, g.normal(y.shape[1], out, fan=y.shape[1]))


def _reshape(g: Graph, x: Value, target: list[int]) -> Value:
    y = g.op("Reshape", x, g.integers(target))
    if np.prod(y.shape) != np.prod(x.shape):
        raise Refused("sizes differ")
    return y


def reshape(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2 and not v.free & set(range(1, v.rank)))
    c, rest = x.shape[1], int(np.prod(x.shape[2:]))
    how = g.choose("flat", "flat", "named", "shuffle", "heads", "merge", "same", "twice")
    if how == "flat":
        _reshape(g, x, [0, -1])
    elif how == "named":
        _reshape(g, x, [-1, c * rest])
    elif how == "merge":
        _reshape(g, x, [0, 0, -1])
    elif how == "same":
        _reshape(g, x, [0, *x.shape[1:]])
    elif how == "twice":
        _reshape(g, _reshape(g, x, [0, -1]), [-1, *x.shape[1:]])
    elif c % 2 == 0 and x.rank >= 3 and how == "shuffle":
        y = _reshape(g, x, [-1, 2, c // 2, *x.shape[2:]])
        y = g.op("Transpose", y, perm=[0, 2, 1, *range(3, y.rank)])
        _reshape(g, y, [-1, *x.shape[1:]])
    elif c % 2 == 0:
        y = _reshape(g, x, [0, 2, c // 2, rest])
        g.op("Transpose", y, perm=[0, 2, 1, 3])


def reshape_by_shape(g: Graph) -> None:
    """The chain that exporters write for x.view(x.size(0), -1)."""
    x = g.pick(lambda v: v.rank >= 2)
    dims = g.op("Shape", x)
    if g.chance(0.5):
        index = g.constant(0, np.int64)
        batch = g.op("Gather", dims, index, axis=0)
        batch = g.op("Unsqueeze", batch, g.integers([0])) if g.opset >= 13 else g.op("Unsqueeze", batch, axes=[0])
    else:
        batch = sliced(g, dims, 0, 0, 1)
    target = g.op("Concat", batch, g.integers([-1]), axis=0)
    name = g.fresh()
    shape = (x.shape[0], int(np.prod(x.shape[1:])))
    free = {0} & x.free | ({1} if x.free - {0} else set())
    node = oh.make_node("Reshape", [x.name, target.name], [name], name=f"reshape_{name}")
    g.add(node, [Value(name, shape, x.dtype, frozenset(free))])


def squeeze(g: Graph) -> None:
    ones = [v for v in g.values if v.rank >= 3 and 1 in v.shape[2:] and v.shape.index(1, 2) not in v.free]
    if ones and g.chance(0.6):
        x = ones[g.whole(0, len(ones) - 1)]
        axis = x.shape.index(1, 2)
        squeezed(g, x, [axis - x.rank] if g.opset >= 11 and g.chance(0.4) else [axis])
        return
    x = g.pick(lambda v: 1 <= v.rank <= 3)
    axis = g.whole(0, x.rank)
    g.op("Unsqueeze", x, g.integers([axis])) if g.opset >= 13 else g.op("Unsqueeze", x, axes=[axis])


def transpose(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2)
    how = g.choose("last", "random", "back", "reverse")
    if how == "reverse":
        g.op("Transpose", x)
    elif how == "random":
        g.op("Transpose", x, perm=[int(i) for i in g.random.permutation(x.rank)])
    else:
        last = [0, *range(2, x.rank), 1]
        y = g.op("Transpose", x, perm=last)
        if 1 not in x.free and g.chance(0.5):
            y = g.op("Add", g.op("MatMul", y, g.normal(x.channels, x.channels, fan=x.channels)), g.normal(x.channels))
        if how == "back":
            g.op("Transpose", y, perm=[int(i) for i in np.argsort(last)])


def resize(g: Graph) -> None:
    x = g.pick(lambda v: v.rank == 4 and v.shape[2] * v.shape[3] <= 64)
    mode = g.choose("nearest", "nearest", "linear")
    scales = g.constant([1, 1, 2, 2], np.float32)
    if g.opset < 9:
        g.op("Upsample", x, scales=[1.0, 1.0, 2.0, 2.0], mode=mode)
    elif g.opset < 10:
        g.op("Upsample", x, scales, mode=mode)
    elif g.opset < 11:
        g.op("Resize", x, scales, mode=mode)
    else:
        roi = None if g.opset >= 13 else g.constant([], np.float32)
        way = g.choose(None, "asymmetric", "align_corners") if mode == "linear" else g.choose(None, "asymmetric")
        if g.chance(0.3) and not x.free:
            sizes = g.integers([*x.shape[:2], x.shape[2] * 2, x.shape[3] + 1])
            empty = None if g.opset >= 13 else g.constant([], np.float32)
            g.op("Resize", x, roi, empty, sizes, mode=mode, coordinate_transformation_mode=way)
        else:
            g.op("Resize", x, roi, scales, mode=mode, coordinate_transformation_mode=way)


def depth_to_space(g: Graph) -> None:
    x = g.pick(lambda v: v.rank == 4)
    if x.channels % 4 == 0 and g.chance(0.6):
        g.op("DepthToSpace", x, blocksize=2, mode=g.choose("DCR", "CRD") if g.opset >= 11 else None)
    elif x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
        g.op("SpaceToDepth", x, blocksize=2)


def gather(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2 and 1 not in v.free)
    indices = [g.whole(0, x.shape[1] - 1) for _ in range(g.whole(1, 3))]
    g.op("Gather", x, g.constant(indices[0], np.int64) if g.chance(0.3) else g.integers(indices), axis=1)


def expand(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 1)
    if g.opset >= 8:
        g.op("Expand", x, g.integers(g.choose([1], [1] * x.rank, [2] + [1] * x.rank)))
