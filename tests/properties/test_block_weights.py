"""block-weights for any shape: grids, rounding in a metric, and what onnxruntime computes of what is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from onnxslim.ir import Model, Rewriter
from onnxslim.passes._block_choice import Form
from onnxslim.passes._block_grid import SHARES, BlockWeight, Grids, GridStyle, best_grids, in_blocks, to_nearest
from onnxslim.passes._block_packing import packed, unpacked
from onnxslim.passes._block_rounding import errors_in_metric, rounded_in_metric
from onnxslim.passes.block_weights import BlockWeights, Inputs
from onnxslim.passes.dequantize import Dequantize
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Session, SessionConfig

Floats = npt.NDArray[np.float64]

EXACTLY = 1e-5
"""Of the output's range: what float32 sums in another order may differ by."""
ROUNDING = 1e-5
"""What the search in float32 may take for equal, relative."""
BRIEF = settings(max_examples=60, deadline=None)

SCALES = st.sampled_from((1e-20, 1e-3, 1.0, 1.0, 1e4, 1e30))
KINDS = st.sampled_from(("normal", "heavy tails", "one sign", "sparse", "equal", "large beside small"))


@st.composite
def styles(draw: st.DrawFn) -> GridStyle:
    symmetric = draw(st.booleans())
    bits, block = draw(st.sampled_from((2, 4, 8))), draw(st.sampled_from((16, 32, 64, 128)))
    return GridStyle(bits, block, symmetric, signed=symmetric and draw(st.booleans()))


@st.composite
def matrices(draw: st.DrawFn, most: int = 150) -> Floats:
    outputs, width = draw(st.integers(1, 9)), draw(st.integers(1, most))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    values = random.standard_normal((outputs, width))
    kind = draw(KINDS)
    if kind == "heavy tails":
        values = values**5
    elif kind == "one sign":
        values = np.abs(values) + 1
    elif kind == "sparse":
        values = values * (random.random(values.shape) < 0.1)
    elif kind == "equal":
        values = np.full_like(values, 0.7)
    elif kind == "large beside small":
        values = values * np.where(random.random(values.shape) < 0.5, 1.0, 1e-6)
    return np.asarray((values * draw(SCALES)).astype(np.float32), np.float64)


def metrics(width: int, seed: int, alike: float) -> Floats:
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((width, 2 * width)) * random.uniform(0.1, 3, (width, 1))
    inputs += alike * random.standard_normal((width, 1)) * random.standard_normal(2 * width)
    metric: Floats = inputs @ inputs.T / (2 * width) + 1e-3 * np.eye(width)
    return metric


def errors(weight: Floats, stored: BlockWeight, curvature: Floats) -> Floats:
    """Return the squared error of each block, columns weighed. Shape (O, blocks)."""
    squares = (weight - stored.values()) ** 2 * curvature
    parts: Floats = in_blocks(squares, stored.grids.style.block)  # type: ignore[assignment, arg-type]
    summed: Floats = parts.sum(axis=2)
    return summed


# ---- grids -----------------------------------------------------------------------------------------------------------


@BRIEF
@given(st.sampled_from((2, 4, 8)), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 999))
def test_packing_is_undone(bits: int, shape: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8)
    data = packed(values, bits)
    assert data.shape == (*shape[:-1], -(-shape[-1] * bits // 8))
    np.testing.assert_array_equal(unpacked(data, bits, shape[-1]), values)


@BRIEF
@given(matrices(), styles())
def test_what_is_not_cut_off_is_within_half_a_step(weight: Floats, style: GridStyle) -> None:
    stored = to_nearest(weight, best_grids(weight, style))
    scale, zero = stored.grids.columns(weight.shape[1])
    assert stored.levels.max() <= style.top
    assert zero.max() <= style.top
    assert np.isfinite(scale).all()
    assert (scale != 0).all()
    assert style.signed or (scale > 0).all()
    within = (stored.levels > 0) & (stored.levels < style.top)
    off = np.abs(weight - stored.values())
    assert (off[within] <= 0.5 * np.abs(scale[within]) * (1 + ROUNDING)).all()
    np.testing.assert_array_equal(stored.values()[weight == 0], 0.0)


@BRIEF
@given(matrices(), styles(), st.one_of(st.none(), st.integers(0, 99)))
def test_the_search_is_no_worse_than_any_cut(weight: Floats, style: GridStyle, seed: int | None) -> None:
    """By the errors as the columns' curvature weighs them, where it is known; the first share cuts off nothing."""
    curvature: Floats = np.ones(weight.shape[1])
    if seed is not None:
        curvature = np.random.default_rng(seed).uniform(0.1, 1, weight.shape[1:]) ** 4
    found = errors(
        weight, to_nearest(weight, best_grids(weight, style, None if seed is None else curvature)), curvature
    )
    parts: Floats = in_blocks(weight, style.block)  # type: ignore[assignment, arg-type]
    low, high = np.minimum(parts.min(axis=2), 0), np.maximum(parts.max(axis=2), 0)
    widest = np.maximum(-low, high) / (style.middle - 1) if style.symmetric else (high - low) / style.top
    scale = np.where(widest > 1e-36, widest, 1.0)
    zero = np.full(scale.shape, style.middle) if style.symmetric else np.round(-low / scale)
    size = ((parts**2) * in_blocks(curvature, style.block)).sum(axis=2)  # type: ignore[arg-type]
    for share in SHARES:
        plain = to_nearest(weight, Grids(style, (share * scale).astype(np.float32), zero.astype(np.uint8)))
        assert (found <= errors(weight, plain, curvature) * (1 + ROUNDING) + ROUNDING**2 * size).all()
        if share == 1:
            step = np.abs(plain.grids.columns(weight.shape[1])[0])
            assert (np.abs(weight - plain.values()) <= 0.5 * step * (1 + ROUNDING)).all()


def test_an_outlier_is_cut_off_where_it_hardly_counts() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 32))
    weight[:, 5] = 9.0
    curvature: Floats = np.ones(32)
    curvature[5] = 1e-4
    style = GridStyle(4, 32, symmetric=True)
    knowing, not_knowing = best_grids(weight, style, curvature), best_grids(weight, style)
    assert (knowing.scale < 0.7 * not_knowing.scale).all()


# ---- in a metric -----------------------------------------------------------------------------------------------------


@BRIEF
@given(matrices(), styles(), st.integers(0, 99), st.sampled_from((0.0, 1.0, 5.0)))
def test_never_worse_in_the_metric(weight: Floats, style: GridStyle, seed: int, alike: float) -> None:
    metric = metrics(weight.shape[1], seed, alike)
    grids = best_grids(weight, style, np.diagonal(metric))
    nearest, fitted = to_nearest(weight, grids), rounded_in_metric(weight, grids, metric)
    assert fitted.levels.max() <= style.top
    before, after = (errors_in_metric(weight - each.values(), metric) for each in (nearest, fitted))
    assert (after <= before).all()


@BRIEF
@given(matrices(), styles(), st.integers(0, 99))
def test_a_diagonal_metric_rounds_to_the_nearest(weight: Floats, style: GridStyle, seed: int) -> None:
    metric = np.diag(np.random.default_rng(seed).uniform(0.1, 9, weight.shape[1]))
    grids = best_grids(weight, style)
    np.testing.assert_array_equal(rounded_in_metric(weight, grids, metric).levels, to_nearest(weight, grids).levels)


def test_what_columns_share_is_used() -> None:
    better = []
    for seed in range(20):
        weight, metric = np.random.default_rng(seed).standard_normal((8, 200)), metrics(200, seed, 3.0)
        grids = best_grids(weight, GridStyle(4, 32, symmetric=True, signed=True))
        stored = rounded_in_metric(weight, grids, metric), to_nearest(weight, grids)
        ours, plain = (errors_in_metric(weight - each.values(), metric).sum() for each in stored)
        better.append(ours / plain)
    assert max(better) < 0.7


# ---- in onnxruntime --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A layer, how it is stored, and how many rows its input has."""

    weight: Floats
    rows: int
    bias: bool
    transposed: bool
    alpha: float
    item: BlockWeights

    def proto(self) -> onnx.ModelProto:
        random = np.random.default_rng(0)
        outputs, width = self.weight.shape
        held = {"w": self.weight if self.transposed else self.weight.T}
        held |= {"b": random.standard_normal(outputs) * np.abs(self.weight).max()} if self.bias else {}
        attributes: dict[str, Any] = {"transB": int(self.transposed), "alpha": self.alpha}
        node = oh.make_node("Gemm", ["x", *held], ["y"], **attributes)
        if not (self.bias or self.transposed) and self.alpha == 1:
            node = oh.make_node("MatMul", ["x", "w"], ["y"])
        graph = oh.make_graph(
            [node],
            "g",
            [oh.make_tensor_value_info("x", TensorProto.FLOAT, [self.rows, width])],
            [oh.make_tensor_value_info("y", TensorProto.FLOAT, [self.rows, outputs])],
            [numpy_helper.from_array(np.ascontiguousarray(each, np.float32), name) for name, each in held.items()],
        )
        return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    form = draw(st.sampled_from(list(Form)))
    bits, block = draw(st.sampled_from(form.bits)), draw(st.sampled_from((16, 32, 64, 128)))
    item = BlockWeights(bits, block, draw(st.booleans()), form, Inputs.FLOAT, min_size=0)
    flags = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from((1.0, 1.0, -0.5, 3.0)))
    return Case(draw(matrices()), draw(st.integers(1, 5)), *flags, item)


@BRIEF
@given(cases())
def test_onnxruntime_computes_what_blocks_stand_for(case: Case) -> None:
    proto = case.proto()
    model = Model.load(proto)
    rewriter = Rewriter(model)
    case.item.run(rewriter, PassContext())
    rewriter.finish()
    if not rewriter.edits:
        assert "would not be smaller" in rewriter.skipped[0].reason or "single block" in rewriter.skipped[0].reason
        return
    onnx.checker.check_model(model.proto(), full_check=True)
    assert model.weight_bytes() < Model.load(proto).weight_bytes()
    feed = np.random.default_rng(1).standard_normal((case.rows, case.weight.shape[1])).astype(np.float32)
    found = Session(model.proto(), SessionConfig(level=Level.NONE)).run({"x": feed})["y"]
    weight = case.alpha * case.weight
    stored = to_nearest(weight, best_grids(weight, style_of(model, case.item))).values()
    bias = numpy_helper.to_array(proto.graph.initializer[1]).astype(np.float64) if case.bias else 0.0
    expected = feed.astype(np.float64) @ stored.T + bias
    size = np.abs(feed).astype(np.float64) @ np.abs(stored).T + np.abs(bias)
    assert np.abs(expected - found).max() <= EXACTLY * max(float(size.max()), 1e-30)


def style_of(model: Model, item: BlockWeights) -> GridStyle:
    """Return the grids that ``item`` promises, with the block that the model has."""
    block = next(int(node.attrs["block_size"]) for node in model.graph.nodes if "block_size" in node.attrs)
    return GridStyle(item.bits, block, item.symmetric, signed=item.symmetric and item.form is Form.NBITS)


@BRIEF
@given(cases())
def test_dequantize_puts_back_what_blocks_stand_for(case: Case) -> None:
    model = Model.load(case.proto())
    rewriter = Rewriter(model)
    case.item.run(rewriter, PassContext())
    rewriter.finish()
    if not rewriter.edits:
        return
    feed = {"x": np.random.default_rng(1).standard_normal((case.rows, case.weight.shape[1])).astype(np.float32)}
    before = Session(model.proto(), SessionConfig(level=Level.NONE)).run(feed)["y"]
    rewriter = Rewriter(model)
    Dequantize().run(rewriter, PassContext())
    rewriter.finish()
    assert not {"MatMulNBits", "DequantizeLinear"} & {node.op for node in model.graph.nodes}
    after = Session(model.proto(), SessionConfig(level=Level.NONE)).run(feed)["y"]
    size = np.abs(feed["x"]).sum(axis=1).max() * np.abs(case.alpha * case.weight).max() + np.abs(before).max()
    assert np.abs(after - before).max() <= EXACTLY * max(float(size), 1e-30)
