"""Random valid graphs: the kinds that exporters write, and the kinds that break optimizers.

A :class:`Recipe` is a list of motifs with a seed each, which hypothesis shrinks by leaving motifs out; :func:`build`
turns it into a model and a feed. Every shape is known by construction, so there is nothing to filter but what
onnxruntime itself has no kernel for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
from hypothesis import strategies as st
from properties import motifs_arithmetic as maths
from properties import motifs_inner as inner
from properties import motifs_layers as layers
from properties import motifs_shapes as shapes
from properties.builder import Array, Graph, Refused, Style

OPSETS = (7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 20, 21, 23, 26)
LARGEST_IR = 13
NODES = 25
"""No motif starts beyond so many nodes."""

Motif = Callable[[Graph], None]

LAYERS: dict[str, Motif] = {
    f.__name__: f
    for f in (
        layers.conv, layers.conv_batchnorm, layers.residual, layers.inverted_residual, layers.squeeze_excitation,
        layers.shared_conv, layers.conv_transpose, layers.gemm, layers.matmul, layers.batchnorm, maths.activation,
        maths.clip, maths.prelu, maths.scale_or_shift, maths.arithmetic, layers.instance_norm, maths.layer_norm,
        maths.softmax, layers.attention, layers.upconv_batchnorm, layers.scaled_conv,
        layers.classifier, layers.recurrent, maths.twice, maths.foreign,
    )
}  # fmt: skip
SHAPES: dict[str, Motif] = {
    f.__name__: f
    for f in (
        shapes.concat, shapes.split, shapes.slicing, shapes.pad, shapes.pool, shapes.global_pool, shapes.reduce,
        shapes.head, shapes.flatten, shapes.reshape, shapes.reshape_by_shape, shapes.squeeze, shapes.transpose,
        shapes.resize, shapes.depth_to_space, shapes.gather, shapes.expand, inner.superfluous,
        inner.constant_branch, inner.where, inner.branch, inner.loop,
    )
}  # fmt: skip
MOTIFS: dict[str, Motif] = {**LAYERS, **SHAPES}
DOUBLE = (
    "gemm", "matmul", "batchnorm", "scale_or_shift", "arithmetic", "softmax", "concat", "split", "slicing", "flatten",
    "reshape", "reshape_by_shape", "squeeze", "transpose", "gather", "superfluous", "constant_branch", "twice",
)  # fmt: skip
"""What onnxruntime has double kernels for."""


@dataclass(frozen=True)
class Recipe:
    """Everything a random graph follows from."""

    motifs: tuple[tuple[str, int], ...]
    opset: int = 17
    dims: int = 2
    """Spatial dimensions of the main input; 0 for a matrix."""
    dtype: str = "float32"
    seed: int = 0
    free: bool = False
    """Whether the batch, and sometimes more, is left open."""


@dataclass(frozen=True)
class Made:
    """A random model, what to feed it, and how its numbers may be compared."""

    proto: onnx.ModelProto
    feed: dict[str, Array]
    recipe: Recipe


@st.composite
def recipes(draw: Any, only: tuple[str, ...] = (), dtypes: tuple[str, ...] = ("float32",), most: int = 12) -> Recipe:
    """Draw a recipe of at most ``most`` motifs, all of them or ``only`` some, in which names may come twice."""
    dtype = draw(st.sampled_from(dtypes))
    names = tuple(name for name in only or MOTIFS if dtype != "float64" or name in DOUBLE)
    motif = st.tuples(st.sampled_from(names), st.integers(0, 999))
    return Recipe(
        motifs=tuple(draw(st.lists(motif, min_size=1, max_size=most))),
        opset=draw(st.sampled_from(OPSETS)),
        dims=draw(st.sampled_from((2, 2, 2, 1, 3, 0))),
        dtype=dtype,
        seed=draw(st.integers(0, 999)),
        free=draw(st.booleans()),
    )


def build(recipe: Recipe) -> Made:
    """Make the model; motifs that find no tensor of their liking leave no trace but dead nodes."""
    random = np.random.default_rng(recipe.seed)
    lowest = int(oh.find_min_ir_version_for([oh.make_opsetid("", recipe.opset)]))
    if {"branch", "loop"} & {name for name, _ in recipe.motifs}:
        lowest = max(lowest, 4)  # before, no subgraph may hold a weight that is not its input
    style = Style(
        opset=recipe.opset,
        ir_version=int(random.integers(lowest, LARGEST_IR + 1)),
        dtype=np.dtype(recipe.dtype),
        constant_nodes=float(random.choice([0.0, 0.0, 0.3, 1.0])),
        declared=bool(random.random() < 0.6),
        named=bool(random.random() < 0.8),
    )
    g = Graph(style, recipe.seed)
    _inputs(g, recipe)
    for name, seed in recipe.motifs:
        if len(g.nodes) >= NODES:
            break
        g.random = np.random.default_rng((recipe.seed, seed))
        try:
            MOTIFS[name](g)
        except Refused:
            continue
    g.random = random
    _finish(g)
    return Made(g.proto(), g.feeds, recipe)


def _inputs(g: Graph, recipe: Recipe) -> None:
    sizes = {0: [6], 1: [10], 2: [8, 6], 3: [4, 5, 3]}[recipe.dims]
    shape = (2, *([int(g.choose(1, 2, 3, 4, 8))] if recipe.dims else []), *sizes)
    free = [0] if recipe.free else []
    if recipe.free and recipe.dims and g.chance(0.3):
        free += list(range(2, len(shape)))
    main = g.input("x", shape, free)
    if g.chance(0.3):
        g.input("other", main.shape, free)
    if g.chance(0.15):
        g.input("unused", (2, 3))
        g.values.pop()
    if g.chance(0.15):
        g.values.append(g.normal(*(1 for _ in shape[:-1]), shape[-1]))
        name = g.values[-1].name
        if g.style.ir_version >= 4 and name not in {output for node in g.nodes for output in node.output}:
            g.defaults.add(name)


def _finish(g: Graph) -> None:
    """Return the ends, and sometimes inner tensors, inputs or initializers as well."""
    read = {name for node in g.nodes for name in node.input}
    computed = [v.name for v in g.values if v.name in {name for node in g.nodes for name in node.output}]
    ends = [name for name in computed if name not in read]
    g.outputs = list(dict.fromkeys([*ends[-3:], *computed[-1:]]))
    others = [name for name in computed if name in read]
    if others and g.chance(0.25):
        g.outputs.append(others[g.whole(0, len(others) - 1)])
    if g.chance(0.05) or not g.outputs:
        g.outputs.append("x")
    if g.chance(0.05) and g.style.ir_version >= 4:
        g.values.append(g.normal(2, 2))
        g.outputs.append(g.values[-1].name)
    g.outputs = [g.outputs[i] for i in g.random.permutation(len(g.outputs))]
