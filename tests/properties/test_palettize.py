"""palettize in numbers: packing is undone, k-means is the best where that can be known, scales are what they say."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper
from properties.builder import Array
from properties.comparing import apart
from properties.random_graphs import Made, Recipe, recipes
from properties.test_exact_passes import BRIEF, LONG, made

from onnxslim.ir import Constant, Model, Rewriter
from onnxslim.passes._palette import GridChoice, Palette, palette_of
from onnxslim.passes._palette_graph import Expander, pack, planes_of, unpacked_bytes
from onnxslim.passes._palette_kmeans import codebook, gathered, nearest
from onnxslim.passes._palette_rounding import placed_in_metric
from onnxslim.passes.palettize import Palettize
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Session, SessionConfig

Floats = npt.NDArray[np.float64]
QUICK = settings(max_examples=100, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**20)
NUMBERS = st.floats(-1, 1, width=32)
HOW = st.sampled_from(
    [(grid, grid.bits(0)) for grid in (GridChoice.INT8, GridChoice.INT4, GridChoice.SIGN)]
    + [(GridChoice.KMEANS, bits) for bits in range(1, 9)]
)

# ---- packing -----------------------------------------------------------------------------------------------------


@QUICK
@given(st.integers(1, 8), st.integers(1, 70), SEEDS)
def test_packing_is_undone(bits: int, count: int, seed: int) -> None:
    index = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    whole, shift = np.zeros(count, np.uint8), 0
    for width in planes_of(bits):
        packed = pack(index, shift, width)
        assert packed.dtype == np.uint8
        assert len(packed) == -(-count * width // 8)
        whole |= unpacked_bytes(width, shift)[packed].reshape(-1)[:count]
        shift += width
    assert shift == bits
    np.testing.assert_array_equal(whole, index)


# ---- k-means -----------------------------------------------------------------------------------------------------


def error(values: Array, counts: Array, book: Array) -> float:
    return float((counts * np.square(values[:, None] - book).min(axis=1)).sum())


def best_of_all(values: Array, counts: Array, levels: int) -> float:
    """Return the least error of all ways to cut sorted values into as many runs."""
    order = np.argsort(values)
    x, w = values[order], counts[order]
    least = np.inf
    for cuts in itertools.combinations(range(1, len(x)), min(levels, len(x)) - 1):
        runs = [slice(a, b) for a, b in itertools.pairwise((0, *cuts, len(x)))]
        means = np.array([np.average(x[run], weights=w[run]) for run in runs])
        least = min(least, error(x, w, means))
    return least


POINTS = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.floats(-1, 1)), arrays(np.float64, n, elements=st.floats(0.01, 10))
    )
)


@QUICK
@given(POINTS, st.integers(1, 4))
def test_few_points_get_the_best_levels_of_all(points: tuple[Floats, Floats], levels: int) -> None:
    values, counts = points
    book = codebook(values, counts, levels)
    assert len(book) == levels
    assert (np.diff(book) >= 0).all()
    assert error(values, counts, book) <= best_of_all(values, counts, levels) + 1e-12 * counts.sum()


@QUICK
@given(st.sampled_from(("normal", "laplace", "uniform", "two", "outlier")), st.integers(1, 8), SEEDS)
def test_levels_are_never_worse_than_a_uniform_grid(kind: str, bits: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = {
        "normal": random.standard_normal(700),
        "laplace": random.laplace(size=700),
        "uniform": random.uniform(-1, 1, 700),
        "two": random.choice([-1, 1], 700) + 0.1 * random.standard_normal(700),
        "outlier": np.append(random.standard_normal(699), 50.0),
    }[kind]
    counts = random.uniform(0.1, 1, 700)
    book = codebook(values, counts, 2**bits)
    uniform = np.linspace(values.min(), values.max(), 2**bits)
    assert error(values, counts, book) <= error(values, counts, uniform) * (1 + 1e-9)
    clusters = nearest(values, book)
    means = [np.average(values[clusters == i], weights=counts[clusters == i]) for i in np.unique(clusters)]
    np.testing.assert_allclose(book[np.unique(clusters)], means, atol=1e-9)  # each level is the mean of its values


def test_gaussian_levels_are_those_of_lloyd_and_max() -> None:
    """Max 1960, "Quantizing for Minimum Distortion", table I: mean squared error with N levels."""
    values = np.random.default_rng(0).standard_normal(400_000)
    points = gathered([(values / 8, np.ones(len(values)))])
    for bits, expected in ((1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)):
        book = 8 * codebook(*points, 2**bits)
        assert np.square(values - book[nearest(values, book)]).mean() == pytest.approx(expected, rel=0.01)


@QUICK
@given(arrays(np.float64, st.integers(1, 50), elements=st.floats(-1, 1)), SEEDS)
def test_gathered_points_stand_for_all_values(values: Floats, seed: int) -> None:
    counts = np.random.default_rng(seed).uniform(0, 3, len(values)) + 1e-3
    points, weights = gathered([(values[:20], counts[:20]), (values[20:], counts[20:])])
    assert (np.diff(points) > 0).all()
    np.testing.assert_allclose(weights.sum(), counts.sum())
    np.testing.assert_allclose((weights * points).sum(), (counts * values).sum(), atol=1e-9)
    assert np.abs(values[:, None] - points).min(axis=1).max() <= 2**-16


# ---- grids -------------------------------------------------------------------------------------------------------

WEIGHTS = st.tuples(
    arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=NUMBERS),
    st.sampled_from((1e-30, 1e-3, 1.0, 1e30)),
).map(lambda pair: (pair[0] * np.float32(pair[1])).astype(np.float32))


def squares(weight: Array, other: Array) -> Floats:
    """Return the squared error of each row."""
    return np.asarray(np.square(weight.astype(np.float64) - other).sum(axis=1))


@QUICK
@given(WEIGHTS)
def test_int8_is_never_off_by_more_than_half_a_step(weight: Array) -> None:
    palette = palette_of(weight, (0,), GridChoice.INT8, 8)
    step = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(palette.values() - weight.astype(np.float64)) <= 0.50001 * step + 1e-37).all()


@QUICK
@given(WEIGHTS)
def test_int4_is_never_worse_than_the_largest_over_7(weight: Array) -> None:
    found = palette_of(weight, (0,), GridChoice.INT4, 4).values()
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True).astype(np.float64) / 7, 1e-300)
    plain = np.clip(np.rint(weight / scale), -8, 7) * scale
    limit = 1e-10 * np.square(weight.astype(np.float64)).sum(axis=1)  # scales are rounded to float32
    assert (squares(weight, found) <= squares(weight, plain) * (1 + 1e-5) + limit + 1e-70).all()


@QUICK
@given(WEIGHTS)
def test_signs_have_the_best_scale(weight: Array) -> None:
    palette = palette_of(weight, (0,), GridChoice.SIGN, 1)
    own = squares(weight, palette.values())
    size = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64)
    for share in np.linspace(0, 1.2, 61):
        other = np.where(weight >= 0, 1, -1) * (share * size)
        assert (own <= squares(weight, other) * (1 + 1e-5) + 1e-10 * size[:, 0] ** 2 + 1e-70).all()


@QUICK
@given(HOW, SEEDS, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_scales_lie_along_the_axes_that_are_asked_for(
    how: tuple[GridChoice, int], seed: int, shape: list[int], data: st.DataObject
) -> None:
    """A weight whose channels are multiples of one is one whose rows are equal, and scales are these multiples."""
    axes = tuple(axis for axis in range(len(shape)) if data.draw(st.booleans()))
    random = np.random.default_rng(seed)
    weight = random.standard_normal(shape).astype(np.float32)
    palette = palette_of(weight, axes, *how)
    assert palette.index.shape == weight.shape
    assert palette.scale.shape == tuple(size if axis in axes else 1 for axis, size in enumerate(shape))
    assert palette.index.max() < len(palette.levels) == 2 ** how[1]
    powers = 2.0 ** random.integers(-6, 7, palette.scale.shape)
    if how[0] is not GridChoice.KMEANS:
        scaled = palette_of((weight * powers).astype(np.float32), axes, *how)
        np.testing.assert_array_equal(scaled.values(), (palette.values() * powers).astype(np.float32))


@pytest.mark.parametrize("grid", GridChoice)
def test_channels_of_zeros_stay_zeros_and_do_not_matter(grid: GridChoice) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32) / 1000
    alone = palette_of(weight, (0,), grid, grid.bits(3))
    more = palette_of(np.concatenate((weight, np.zeros((2, 50), np.float32))), (0,), grid, grid.bits(3))
    np.testing.assert_array_equal(more.values()[:6], alone.values())
    assert not more.values()[6:].any()
    assert not palette_of(np.zeros((3, 5), np.float32), (0,), grid, grid.bits(3)).values().any()


@pytest.mark.parametrize("grid", GridChoice)
def test_blocks_are_only_for_memory(grid: GridChoice) -> None:
    weight = np.random.default_rng(0).standard_normal((7, 9, 5)).astype(np.float32)
    whole = palette_of(weight, (1,), grid, grid.bits(3))
    with mock.patch("onnxslim.passes._palette.BLOCK", 70):
        parts = palette_of(weight, (1,), grid, grid.bits(3))
    np.testing.assert_array_equal(parts.values(), whole.values())


@QUICK
@given(HOW, SEEDS)
def test_a_weight_that_is_on_a_grid_stays(how: tuple[GridChoice, int], seed: int) -> None:
    """What a palette of one channel stands for has itself for a palette, within float32."""
    weight = np.random.default_rng(seed).standard_normal((1, 120)).astype(np.float32)
    once = palette_of(weight, (0,), *how).values()
    np.testing.assert_allclose(palette_of(once, (0,), *how).values(), once, rtol=1e-6, atol=1e-6)


# ---- in the metric of a layer ------------------------------------------------------------------------------------


def in_metric(weight: Floats, found: Floats, metric: Floats) -> float:
    return float(np.einsum("god,gde,goe->", weight - found, metric, weight - found))


@settings(QUICK, max_examples=40)
@given(HOW, SEEDS, st.integers(1, 3))
def test_outputs_lose_less_where_columns_are_alike(how: tuple[GridChoice, int], seed: int, groups: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((groups, 4, 40))
    patches = random.standard_normal((groups, 40, 200)) + 3 * random.standard_normal((groups, 1, 200))
    metric = patches @ patches.swapaxes(1, 2)
    index, levels, scale = placed_in_metric(weight, metric, *how)
    fitted = levels[index] * scale[:, :, None]
    plain = palette_of(weight.reshape(-1, 40).astype(np.float32), (0,), *how).values().reshape(weight.shape)
    assert in_metric(weight, fitted, metric) < 0.9 * in_metric(weight, plain.astype(np.float64), metric)


@settings(QUICK, max_examples=40)
@given(HOW, SEEDS)
def test_a_round_metric_goes_to_the_nearest(how: tuple[GridChoice, int], seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((1, 4, 30))
    index, levels, scale = placed_in_metric(weight, np.eye(30)[None], *how)
    found = levels[index] * scale[:, :, None]
    plain = palette_of(weight[0].astype(np.float32), (0,), *how).values()
    assert squares(weight[0], found[0]).sum() <= 1.05 * squares(weight[0], plain).sum()


def test_blocks_of_columns_are_only_for_speed() -> None:
    random = np.random.default_rng(0)
    weight, patches = random.standard_normal((2, 4, 30)), random.standard_normal((2, 30, 90))
    metric = patches @ patches.swapaxes(1, 2)
    whole = placed_in_metric(weight, metric, GridChoice.INT4, 4)
    with mock.patch("onnxslim.passes._palette_rounding.BLOCK", 7):
        parts = placed_in_metric(weight, metric, GridChoice.INT4, 4)
    for part in range(3):
        np.testing.assert_allclose(np.asarray(whole[part]), np.asarray(parts[part]), rtol=1e-9)


# ---- random graphs -----------------------------------------------------------------------------------------------


def stand_in(proto: onnx.ModelProto, palettes: dict[str, Palette]) -> onnx.ModelProto:
    """Return the float model that the palettes stand for."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in palettes:
            tensor.CopyFrom(numpy_helper.from_array(palettes[tensor.name].values(), tensor.name))
    for node in result.graph.node:
        if node.op_type == "Constant" and node.output[0] in palettes:
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(palettes[node.output[0]].values()))
    return result


def palettized(source: Made, item: Palettize) -> tuple[Model, dict[str, Palette]]:
    """Return the model with palettes, and these; weights are packed however small."""
    palettes: dict[str, Palette] = {}

    class Recorder(Expander):
        def write(self, weight: Constant, palette: Palette) -> None:
            palettes[weight.name] = palette
            super().write(weight, palette)

    model = Model.load(source.proto)
    rewriter = Rewriter(model)
    overhead = mock.patch("onnxslim.passes._palette_graph.NODE_BYTES", 0)
    with overhead, mock.patch("onnxslim.passes.palettize.Expander", Recorder):
        item.run(rewriter, PassContext())
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    assert all(mismatch.reason and mismatch.anchor for mismatch in rewriter.skipped)
    return model, palettes


def loaded(proto: onnx.ModelProto, feed: dict[str, Array], folder: Path) -> tuple[Counter[str], dict[str, Array]]:
    """Return what onnxruntime has left to run once constants are folded, and what it computes."""
    session = Session(proto, SessionConfig(level=Level.BASIC, optimized_path=str(folder / "loaded.onnx")))
    return Counter(node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node), session.run(feed)


def check(source: Made, how: tuple[GridChoice, int], folder: Path) -> int:
    """Folded at load, it is the model that the palettes stand for, and a second run finds nothing to do.

    Not to the bit: onnxruntime may fuse its nodes in another order.
    """
    item = Palettize(*how, min_size=0)
    model, palettes = palettized(source, item)
    before, expected = loaded(stand_in(source.proto, palettes), source.feed, folder)
    after, found = loaded(model.proto(), source.feed, folder)
    assert after == before
    assert max(apart(expected, found).values(), default=0.0) < 1e-5
    if palettes:
        data = model.to_bytes()
        again, more = palettized(Made(Model.load(data).proto(), source.feed, source.recipe), item)
        assert not more
        assert again.to_bytes() == data
    return len(palettes)


LAYERS = (
    "conv", "residual", "inverted_residual", "shared_conv", "conv_transpose", "gemm", "matmul", "attention",
    "upconv_batchnorm", "recurrent", "classifier", "gather", "branch", "loop", "activation", "concat", "transpose",
)  # fmt: skip


def test_random_graphs(tmp_path: Path) -> None:
    stored: Counter[bool] = Counter()

    @settings(BRIEF, max_examples=50)
    @given(recipes(LAYERS, most=6), HOW)
    def holds(recipe: Recipe, how: tuple[GridChoice, int]) -> None:
        stored[check(made(recipe), how, tmp_path) > 0] += 1

    holds()
    assert stored[True] > 20


@pytest.mark.slow
def test_random_graphs_long(tmp_path: Path) -> None:
    @settings(LONG, max_examples=1000)
    @given(recipes(), HOW)
    def holds(recipe: Recipe, how: tuple[GridChoice, int]) -> None:
        check(made(recipe), how, tmp_path)

    holds()
