"""Patches against onnxruntime's own layers, moments against numpy on everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import onnx.parser
import pytest
from gallery import Builder
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from onnxslim.analysis import moments, relay, second_order
from onnxslim.analysis.frontiers import frontier_before, part_of
from onnxslim.analysis.moments import drawn
from onnxslim.analysis.patches import items, linear_layer, patch_map, refusal
from onnxslim.analysis.second_order import (
    Collector,
    Moments,
    Request,
    Settings,
    collect_moments,
    joined_by,
)
from onnxslim.analysis.shapes import concrete_shapes, forget_shapes
from onnxslim.errors import PassError
from onnxslim.ir import Model, Rewriter, anchor_of, array_of
from onnxslim.runtime import RuntimeRefusal, Session
from onnxslim.samples import Samples

Array = npt.NDArray[Any]


def single(
    op: str, x: Sequence[int | str], weight: Array, bias: Array | None = None, opset: int = 17, **attributes: Any
) -> Model:
    """A model of one layer from x to y."""
    weights = [onnx.numpy_helper.from_array(weight, "w")]
    weights += [] if bias is None else [onnx.numpy_helper.from_array(bias, "b")]
    node = oh.make_node(op, ["x", *(w.name for w in weights)], ["y"], **attributes)
    kind = oh.np_dtype_to_tensor_dtype(weight.dtype)
    out = [None] * (len(x) if op == "MatMul" else weight.ndim)
    ends = [oh.make_tensor_value_info("x", kind, x)], [oh.make_tensor_value_info("y", kind, out)]
    graph = oh.make_graph([node], "g", *ends, weights)
    return Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8))


def multiplied(model: Model, x: Array, shape: tuple[int, ...]) -> Array:
    """W·p + b of the model's only layer at all its positions, in the shape of its output."""
    layer = linear_layer(model.graph.nodes[0])
    where = patch_map(layer, x.shape)
    matrix, everywhere = layer.matrix(), np.arange(where.positions)
    out = []
    for item in items(layer, x):
        patches = where.patches(item, everywhere).astype(np.float64).reshape(layer.groups, layer.width, -1)
        out.append((matrix @ patches).reshape(layer.channels, -1) + layer.bias()[:, None])
    stacked = np.stack(out)
    return (stacked if layer.kernel else stacked.swapaxes(1, 2)).reshape(shape)


def feeds(*shape: int, count: int = 6, seed: int = 3, name: str = "x", mean: float = 0.0) -> Samples:
    values = (np.random.default_rng(seed).standard_normal((count, *shape)) + mean).astype(np.float32)
    return Samples.from_feeds([{name: value[None]} for value in values])


# ---- patches -----------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Model, Array]:
    """A convolution, transposed or not, of any attributes that onnx has, and an input."""
    rank = draw(st.integers(1, 3))
    size = st.integers(1, 4 if rank == 3 else 7)
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    strides = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    dilations = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    groups, narrow, wide = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    transposed = draw(st.booleans())
    rules = ["NOTSET", "VALID"] if transposed else ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]
    rule = draw(st.sampled_from(rules))
    if rule != "NOTSET":
        attributes["auto_pad"] = rule
    elif draw(st.booleans()):
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    if transposed and draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    shape = (groups * narrow, wide) if transposed else (groups * wide, narrow)
    weight = random.standard_normal((*shape, *kernel)).astype(np.float32)
    bias = random.standard_normal(groups * wide).astype(np.float32) if draw(st.booleans()) else None
    x = random.standard_normal((2, groups * narrow, *(draw(size) for _ in range(rank)))).astype(np.float32)
    op = "ConvTranspose" if transposed else "Conv"
    return single(op, x.shape, weight, bias, **attributes), x


@given(convolutions())
@settings(max_examples=150, deadline=None)
def test_convolution_is_its_matrix_times_its_patches(case: tuple[Model, Array]) -> None:
    model, x = case
    try:
        y = Session(model.placed().data).run({"x": x})["y"]
    except RuntimeRefusal:
        assume(False)  # the kernel does not fit the input, or onnxruntime lacks the kernel
    assume(y.size)
    np.testing.assert_allclose(multiplied(model, x, y.shape), y, rtol=0, atol=2e-5 * (1 + np.abs(y).max()))


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([None, (1,), (1, -1), (-1,)]),
)
@settings(max_examples=40, deadline=None)
@example(3, 1, 4, True, (1, -1))
def test_gemm_is_its_matrix_times_its_rows(
    rows: int, inner: int, outer: int, transposed: bool, bias: tuple[int, ...] | None
) -> None:
    random = np.random.default_rng(rows + inner)
    weight = random.standard_normal((outer, inner) if transposed else (inner, outer)).astype(np.float32)
    shape = None if bias is None else tuple(outer if size < 0 else size for size in bias)
    added = None if shape is None else random.standard_normal(shape).astype(np.float32)
    model = single("Gemm", [rows, inner], weight, added, alpha=0.7, beta=-1.5, transB=int(transposed))
    x = random.standard_normal((rows, inner)).astype(np.float32)
    y = Session(model.placed().data).run({"x": x})["y"]
    np.testing.assert_allclose(multiplied(model, x, y.shape), y, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 3, 5, 4)])
def test_matmul_is_its_matrix_times_its_rows(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    model = single("MatMul", shape, random.standard_normal((4, 3)).astype(np.float32))
    x = random.standard_normal(shape).astype(np.float32)
    y = Session(model.placed().data).run({"x": x})["y"]
    np.testing.assert_allclose(multiplied(model, x, y.shape), y, atol=1e-5)


@given(convolutions())
@settings(max_examples=30, deadline=None)
def test_a_matrix_is_stored_as_it_was_read(case: tuple[Model, Array]) -> None:
    layer = linear_layer(case[0].graph.nodes[0])
    stored = layer.stored(layer.matrix())
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, layer.weight.values)


@pytest.mark.parametrize("transposed", [0, 1])
def test_alpha_is_divided_out(transposed: int) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    layer = linear_layer(single("Gemm", [2, 3], weight, alpha=0.3, transB=transposed).graph.nodes[0])
    np.testing.assert_allclose(layer.stored(layer.matrix()), weight, rtol=1e-6)
    np.testing.assert_allclose(layer.matrix()[0, 0], 0.3 * (weight[0] if transposed else weight[:, 0]), rtol=1e-6)


def test_weights_that_do_not_fit_are_refused() -> None:
    layer = linear_layer(single("MatMul", [2, 3], np.ones((3, 2), np.float16)).graph.nodes[0])
    with pytest.raises(PassError, match="float16"):
        layer.stored(np.full((1, 2, 3), 1e6))


def test_channels_of_columns() -> None:
    layer = linear_layer(single("Conv", [1, 4, 5, 5], np.ones((2, 2, 3, 1), np.float32), group=2).graph.nodes[0])
    assert layer.channel_of_column().tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]]


REFUSED = {
    "Relu is not one of": "g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }",
    "weights are computed": "g (float[2,3] x, float[3,3] v) => (float[2,3] y) { y = MatMul(x, v) }",
    "input is transposed": "g (float[3,2] x) => (float[2,2] y) <float[3,2] w = {1,2,3,4,5,6}> "
    "{ y = Gemm<transA=1>(x, w) }",
    "alpha is 0": "g (float[2,3] x) => (float[2,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = Gemm<alpha=0.0>(x, w) }",
    "bias is computed": "g (float[2,3] x, float[2] b) => (float[2,2] y) <float[3,2] w = {1,2,3,4,5,6}> "
    "{ y = Gemm(x, w, b) }",
    "not one number for each channel": "g (float[2,3] x) => (float[2,2] y) "
    "<float[3,2] w = {1,2,3,4,5,6}, float[2,1] b = {1,2}> { y = Gemm(x, w, b) }",
    "no matrix": "g (float[2,3] x) => (float[1,2,1] y) <float[1,3,1] w = {1,2,3}> { y = MatMul(x, w) }",
    "padding to the runtime": "g (float[1,1,3] x) => (float[1,1,6] y) <float[1,1,2] w = {1,2}> "
    '{ y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2]>(x, w) }',
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_linear_layer_says_why(reason: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]>\n{REFUSED[reason]}'
    node = Model.load(onnx.parser.parse_model(text)).graph.nodes[0]
    found = refusal(node)
    assert found is not None
    assert reason in found
    with pytest.raises(PassError, match=r"'y'.*" + reason):
        linear_layer(node)


# ---- moments -----------------------------------------------------------------------------------------------------


def brute(model: Model, anchor: str, samples: Samples, target: Array | None = None) -> Moments:
    """Moments from all patches of all samples at once; ``target``: what is wanted, otherwise the layer's own output."""
    layer = linear_layer(next(node for node in model.graph.nodes if anchor_of(node) == anchor))
    rows, wanted, count = [], [], 0
    for index, sample in enumerate(samples):
        names = [name for name in (layer.source, anchor) if name not in sample.feed]
        values = {**sample.feed, **Session(model.placed(names).data).run(sample.feed, names)}
        where = patch_map(layer, values[layer.source].shape)
        everywhere = np.arange(where.positions)
        rows.append(where.patches(items(layer, values[layer.source])[0], everywhere))
        y = values[anchor] if target is None else target[index]
        wanted.append(where.targets(items(layer, y)[0], everywhere))
        count += where.positions
    p, y = np.concatenate(rows, axis=1).astype(np.float64), np.concatenate(wanted, axis=1).astype(np.float64)
    mean, target_mean = p.mean(axis=1), y.mean(axis=1)
    p, y = (p - mean[:, None]).reshape(layer.groups, layer.width, -1), y - target_mean[:, None]
    cross = p @ y.reshape(layer.groups, -1, count).swapaxes(1, 2)
    gram = p @ p.swapaxes(1, 2)
    return Moments(count, len(samples), mean.reshape(layer.groups, -1), gram, target_mean, cross, (y**2).sum(axis=1))


def assert_same(left: Moments, right: Moments, tolerance: float = 1e-6) -> None:
    assert (left.count, left.samples) == (right.count, right.samples)
    for name in ("mean", "gram", "target_mean", "cross", "energy"):
        a, b = getattr(left, name), getattr(right, name)
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (np.abs(b).max() + 1e-12), err_msg=name)


EVERYTHING = Settings(positions=10**9, threads=1)


def mixed() -> tuple[Model, list[str]]:
    """Convolutions plain, strided, grouped, depthwise and transposed, a matrix, and the anchors of all layers."""
    b = Builder(size=9, seed=1)
    x = b.relu(b.conv("x", 6))
    x = b.relu(b.conv(x, 6, stride=2, group=6))
    x = b.relu(b.conv(x, 8, group=2))
    x = b.op("ConvTranspose", x, b.normal(8, 3, 2, 2), b.normal(6), group=2, strides=[2, 2], width=6)
    x = b.head(b.relu(x))
    model = b.build(x)
    return model, [anchor_of(node) for node in model.graph.nodes if refusal(node) is None]


def test_moments_are_those_of_all_patches_at_once() -> None:
    model, anchors = mixed()
    samples = feeds(3, 9, 9)
    found = collect_moments(model, anchors, samples, settings=EVERYTHING)
    assert list(found) == anchors
    assert len(anchors) == 5
    for anchor in anchors:
        assert_same(found[anchor], brute(model, anchor, samples), 1e-3 if anchor == anchors[-1] else 1e-6)


def test_own_targets_are_those_measured() -> None:
    """Without a reference the targets follow from W: the same as tapping the layers' outputs."""
    model, anchors = mixed()
    samples = feeds(3, 9, 9)
    own = collect_moments(model, anchors, samples, settings=EVERYTHING)
    measured = collect_moments(model, anchors, samples, model, EVERYTHING)
    for anchor in anchors:
        assert_same(own[anchor], measured[anchor], 1e-3)  # outputs are float32, and the last ones hardly vary


def scaled(model: Model, anchor: str, factor: float) -> Model:
    """A copy in which the weights of one layer are multiplied."""
    changed = model.copy()
    rewriter = Rewriter(changed)
    node = next(node for node in changed.graph.nodes if anchor_of(node) == anchor)
    weight = linear_layer(node).weight
    rewriter.set_input(node, 1, rewriter.constant(weight.name, (weight.values * factor).astype(np.float32)))
    rewriter.finish()
    return changed


def test_targets_come_from_the_reference_and_patches_from_the_candidate() -> None:
    model, anchors = mixed()
    samples = feeds(3, 9, 9)
    candidate = scaled(model, anchors[0], 0.5)
    session = Session(model.placed([anchors[2]]).data)
    wanted = np.stack([session.run(sample.feed, [anchors[2]])[anchors[2]] for sample in samples])
    found = collect_moments(candidate, [anchors[2]], samples, model, EVERYTHING)[anchors[2]]
    assert_same(found, brute(candidate, anchors[2], samples, wanted))
    own = collect_moments(candidate, [anchors[2]], samples, settings=EVERYTHING)[anchors[2]]
    assert abs(own.total_energy - found.total_energy) > 0.1 * found.total_energy


def residual(samples_size: int = 8) -> tuple[Model, list[str]]:
    b = Builder(size=samples_size, seed=2)
    x = b.relu(b.conv("x", 4))
    for _ in range(3):
        x = b.relu(b.op("Add", b.conv(b.relu(b.conv(x, 5)), 4), x))
    model = b.build(b.head(x))
    return model, [anchor_of(node) for node in model.graph.nodes if node.op == "Conv"]


def test_a_joined_target_is_the_sum_less_the_other_addend() -> None:
    model, anchors = residual()
    samples = feeds(3, 8, 8)
    candidate = scaled(model, anchors[0], 0.5)
    joined = joined_by(model, anchors[4])
    assert joined is not None
    add = next(node for node in model.graph.nodes if anchor_of(node) == joined)
    other = next(tensor.name for tensor in add.inputs if tensor.name != anchors[4])
    session, changed = Session(model.placed([joined]).data), Session(candidate.placed([other]).data)
    wanted = np.stack([session.run(s.feed, [joined])[joined] - changed.run(s.feed, [other])[other] for s in samples])
    found = collect_moments(candidate, [Request(anchors[4], joined)], samples, model, EVERYTHING)[anchors[4]]
    assert_same(found, brute(candidate, anchors[4], samples, wanted))


def narrowed(model: Model, anchor: str, reader: str, kept: list[int]) -> Model:
    """A copy in which a layer has lost filters, and the layer that reads them the channels."""
    changed = model.copy()
    rewriter = Rewriter(changed)
    for name, axis in ((anchor, 0), (reader, 1)):
        node = next(node for node in changed.graph.nodes if anchor_of(node) == name)
        for slot in (1, 2) if axis == 0 else (1,):
            values = array_of(node.inputs[slot])
            assert values is not None
            rewriter.set_input(node, slot, rewriter.constant("cut", np.take(values, kept, axis=axis)))
    forget_shapes(changed)
    rewriter.finish()
    return changed


def test_targets_of_a_layer_that_lost_filters_are_those_of_the_others() -> None:
    model, anchors = residual()
    samples = feeds(3, 8, 8)
    candidate = narrowed(model, anchors[3], anchors[4], [0, 2, 3])
    found = collect_moments(candidate, [Request(anchors[3], kept=(0, 2, 3))], samples, model, EVERYTHING)[anchors[3]]
    whole = collect_moments(model, [anchors[3]], samples, model, EVERYTHING)[anchors[3]]
    np.testing.assert_allclose(found.cross, whole.cross[:, :, [0, 2, 3]])
    np.testing.assert_allclose(found.target_mean, whole.target_mean[[0, 2, 3]])
    read = collect_moments(candidate, [anchors[4]], samples, model, EVERYTHING)[anchors[4]]
    assert read.width == 27


def test_only_a_private_output_is_joined() -> None:
    model, anchors = residual()
    assert joined_by(model, anchors[0]) is None  # a Relu reads it
    assert joined_by(model, anchors[1]) is None
    assert joined_by(model, anchors[2]) is not None
    assert joined_by(model, "nothing") is None
    with pytest.raises(PassError, match="no sum"):
        collect_moments(model, [Request(anchors[2], anchors[0])], feeds(3, 8, 8))


def test_means_far_from_zero_cost_no_digits() -> None:
    """Deviations of 1e-3 around 1e3: a naive sum of squares in float64 would keep few of them, in float32 none."""
    random = np.random.default_rng(0)
    values = (1000 + 0.001 * random.standard_normal((40, 1, 50, 5))).astype(np.float64)
    model = single("MatMul", ["n", 50, 5], random.standard_normal((5, 2)))
    samples = Samples.from_feeds([{"x": value} for value in values])
    found = collect_moments(model, ["y"], samples, settings=EVERYTHING)["y"]
    flat = values.reshape(-1, 5)
    exact = (flat - flat.mean(axis=0)).T @ (flat - flat.mean(axis=0))
    np.testing.assert_allclose(found.gram[0], exact, rtol=0, atol=1e-9 * exact.max())


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplied a few patches at a time, the sums are those of all at once."""
    model, anchors = mixed()
    samples = feeds(3, 9, 9, count=20)
    whole = collect_moments(model, anchors, samples, scaled(model, anchors[0], 1.5), EVERYTHING)
    monkeypatch.setattr(moments, "CHUNK_BYTES", 1)
    monkeypatch.setattr(moments, "_FEWEST_ROWS", 7)
    pieces = collect_moments(model, anchors, samples, scaled(model, anchors[0], 1.5), EVERYTHING)
    for anchor in anchors:
        assert_same(pieces[anchor], whole[anchor], 1e-9)


def test_many_layers_are_taken_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 8 holds some 20 KB of each of the larger layers."""
    model, anchors = mixed()
    samples = feeds(3, 9, 9, count=20)
    whole = collect_moments(model, anchors[::-1], samples, model, EVERYTHING)
    passes: list[int] = []
    take = Collector._take

    def counted(self: Collector, model: Model, requests: Sequence[Request], changing: Sequence[str]) -> Any:
        passes.append(len(requests))
        return take(self, model, requests, changing)

    monkeypatch.setattr(Collector, "_take", counted)
    monkeypatch.setattr(second_order, "BATCH_BYTES", 35_000)
    grouped = collect_moments(model, anchors[::-1], samples, model, EVERYTHING)
    assert list(grouped) == anchors[::-1]
    assert sum(passes) == 5
    assert len(passes) > 2
    for anchor in anchors:
        assert_same(grouped[anchor], whole[anchor], 1e-4)


def test_products_in_single_precision_lose_no_more_than_it_does() -> None:
    """Means of a thousand beside deviations of one: what float16 would do, or float32 without the shift, is far off."""
    model, anchors = mixed()
    samples = feeds(3, 9, 9, count=20, mean=1000.0)
    whole = collect_moments(model, anchors[:1], samples, None, EVERYTHING)
    single = collect_moments(model, anchors[:1], samples, None, replace(EVERYTHING, single=True))
    gram = single[anchors[0]].gram
    assert gram.dtype == np.float64
    assert_same(single[anchors[0]], whole[anchors[0]], 1e-5)
    assert (gram != whole[anchors[0]].gram).any()


def test_every_sample_has_positions_of_its_own() -> None:
    model, anchors = mixed()
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 9)).astype(np.float32)
    one = Settings(positions=1, threads=1)
    few = collect_moments(model, anchors[:1], Samples.from_feeds([{"x": x}] * 16), settings=one)[anchors[0]]
    many = collect_moments(model, anchors[:1], Samples.from_feeds([{"x": x}] * 32), settings=one)[anchors[0]]
    assert (few.count, many.count) == (16, 32)
    assert np.abs(few.mean - many.mean).max() > 0.01


def test_positions_are_drawn_alike_for_input_and_output() -> None:
    model, anchors = mixed()
    samples = feeds(3, 9, 9)
    few = Settings(positions=7, threads=1)
    found = collect_moments(model, anchors[:1], samples, model, few)[anchors[0]]
    assert found.count == 7 * len(samples)
    layer = linear_layer(model.graph.nodes[0])
    misfit = found.cross - found.gram @ layer.matrix().swapaxes(1, 2)
    assert np.abs(misfit).max() < 1e-5 * np.abs(found.cross).max()
    again = collect_moments(model, anchors[:1], samples, model, few)[anchors[0]]
    assert_same(found, again, 0.0)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=50)
def test_drawn_positions(positions: int, limit: int, seed: int, index: int) -> None:
    picks = drawn(positions, limit, seed, index)
    assert len(picks) == min(positions, limit)
    assert (np.diff(picks) > 0).all()
    assert picks.min() >= 0
    assert picks.max() < positions
    np.testing.assert_array_equal(picks, drawn(positions, limit, seed, index))


def test_few_rows_are_told() -> None:
    model, anchors = mixed()
    found = collect_moments(model, anchors[-1:], feeds(3, 9, 9, count=2), settings=EVERYTHING)[anchors[-1]]
    assert found.count == 2 < found.width == 6
    assert found.samples_for(1.0) == 6
    assert found.samples_for(4.0) == 24


def test_restricted_to_columns() -> None:
    model, anchors = mixed()
    whole = collect_moments(model, anchors[:1], feeds(3, 9, 9), settings=EVERYTHING)[anchors[0]]
    columns = np.array([1, 4, 26])
    part = whole.restricted(columns)
    np.testing.assert_array_equal(part.gram[0], whole.gram[0][np.ix_(columns, columns)])
    np.testing.assert_array_equal(part.cross[0], whole.cross[0][columns])
    np.testing.assert_array_equal(part.mean[0], whole.mean[0][columns])
    assert part.width == 3


# ---- refusals ----------------------------------------------------------------------------------------------------


def test_large_matrices_are_refused_by_size() -> None:
    model, anchors = mixed()
    with pytest.raises(PassError, match=r"1 x 27 x 27.*MiB"):
        collect_moments(model, anchors[:1], feeds(3, 9, 9), settings=Settings(matrix_bytes=1000))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_activations_that_are_no_numbers_are_named(poison: float) -> None:
    model, anchors = mixed()
    x = np.zeros((1, 3, 9, 9), np.float32)
    x[0, 0, 0, 0] = poison
    with pytest.raises(PassError, match="'x' holds NaN or Inf"):
        collect_moments(model, anchors[:1], Samples.from_feeds([{"x": x}]))
    bad = scaled(model, anchors[0], float("inf"))
    source = linear_layer(next(n for n in model.graph.nodes if anchor_of(n) == anchors[1])).source
    with pytest.raises(PassError, match=source):
        collect_moments(bad, anchors[1:2], feeds(3, 9, 9))


def test_unknown_layers_are_named() -> None:
    model, _ = mixed()
    with pytest.raises(PassError, match="'nowhere'"):
        collect_moments(model, ["nowhere"], feeds(3, 9, 9))


# ---- stages ------------------------------------------------------------------------------------------------------


def test_stages_give_what_fresh_runs_give() -> None:
    """Layers change one after the other; what is remembered from stage to stage must not show."""
    model, anchors = residual()
    samples = feeds(3, 8, 8, count=19)
    collector = Collector(samples, model, EVERYTHING)
    candidate = model
    for anchor in anchors:
        found = collector.moments(candidate, [anchor])[anchor]
        assert_same(found, collect_moments(candidate, [anchor], samples, model, EVERYTHING)[anchor], 1e-6)
        candidate = scaled(candidate, anchor, 0.8)


def test_stages_begin_where_the_last_one_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first stage reads the samples, however much of the front was executed before."""
    model, anchors = residual()
    sizes: list[tuple[int, bool]] = []

    class Spy(relay._Run):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            sizes.append((len(self._inputs), self.reads_inputs))

    monkeypatch.setattr(relay, "_Run", Spy)
    collector = Collector(feeds(3, 8, 8), model, EVERYTHING)
    candidate = model
    for first, second in zip(anchors[1::2], anchors[2::2], strict=True):
        collector.moments(candidate, [second], changing=[first])
        candidate = scaled(scaled(candidate, first, 0.9), second, 0.9)
    assert [reads for _, reads in sizes] == [True, True, False, False, False, False]


def test_a_reference_without_the_layer_is_refused() -> None:
    model, anchors = residual()
    other = Builder(size=8, seed=2)
    with pytest.raises(PassError, match=f"computes '{anchors[4]}'"):
        collect_moments(model, [anchors[4]], feeds(3, 8, 8), other.build(other.conv("x", 4)))


def test_stages_out_of_order_are_right_too() -> None:
    model, anchors = residual()
    samples = feeds(3, 8, 8, count=5)
    collector = Collector(samples, model, EVERYTHING)
    collector.moments(model, anchors[4:5])
    candidate = scaled(model, anchors[0], 0.3)  # far before where the collector stands
    for anchor in (anchors[5], anchors[1], anchors[6]):
        found = collector.moments(candidate, [anchor])[anchor]
        assert_same(found, collect_moments(candidate, [anchor], samples, model, EVERYTHING)[anchor], 1e-6)


def test_samples_of_different_shapes_are_run_apart() -> None:
    b = Builder(seed=3)
    b.input = oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
    first = b.conv("x", 4)
    second = b.conv(b.relu(first), 5)
    model = b.build(b.head(second))
    random = np.random.default_rng(0)
    sizes = [(5, 6), (5, 6), (7, 4), (5, 6), (9, 9)]
    samples = Samples.from_feeds([{"x": random.standard_normal((1, 3, *size)).astype(np.float32)} for size in sizes])
    found = collect_moments(model, [second], samples, settings=EVERYTHING)[second]
    assert found.count == sum(height * width for height, width in sizes)
    assert_same(found, brute(model, second, samples))


SEQUENCE_FIRST = """
g (float[n,4,3] x) => (float[4,n,2] y) <float[3,2] w = {1,2,3,4,5,6}> {
  t = Transpose<perm=[1,0,2]>(x)
  y = MatMul(t, w)
}
"""


def test_models_that_mix_samples_are_run_one_by_one() -> None:
    """Along the first axis of ``t`` lies time, not samples: a stack would be cut in the wrong places."""
    model = Model.load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{SEQUENCE_FIRST}'))
    values = np.random.default_rng(0).standard_normal((7, 1, 4, 3)).astype(np.float32)
    samples = Samples.from_feeds([{"x": value} for value in values])
    found = collect_moments(model, ["y"], samples, settings=EVERYTHING)["y"]
    rows = values.reshape(-1, 3).astype(np.float64)
    assert (found.count, found.samples) == (28, 7)
    np.testing.assert_allclose(found.mean[0], rows.mean(axis=0), atol=1e-6)
    few = collect_moments(model, ["y"], samples, settings=Settings(positions=2, threads=1))["y"]
    assert few.count <= 28


AVERAGING = """
g (float[n,4] x) => (float[n,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}> {
  m = ReduceMean<axes=[0], keepdims=1>(x)
  t = Add(x, m)
  y = MatMul(t, w)
}
"""


def test_models_that_average_over_samples_are_run_one_by_one() -> None:
    """Alone, a sample is its own mean: of a stack, shapes are right and values are not."""
    model = Model.load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{AVERAGING}'))
    samples = feeds(4, count=5)
    found = collect_moments(model, ["y"], samples, model, EVERYTHING)["y"]
    alone = 2 * np.concatenate([sample.feed["x"] for sample in samples])
    assert found.count == 5
    np.testing.assert_allclose(found.gram[0], 4 * np.cov(alone.T), rtol=1e-5)


# ---- cutting models down -----------------------------------------------------------------------------------------


def test_a_part_holds_what_leads_to_its_outputs() -> None:
    model, anchors = residual()
    shapes = concrete_shapes(model, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    position = [anchor_of(node) for node in model.graph.nodes].index(anchors[4])
    frontier = frontier_before(model, position, shapes, 10**9)
    assert len(frontier) == 2  # the branch and the shortcut
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    whole = Session(model.placed([*frontier, anchors[6]]).data).run({"x": x}, [*frontier, anchors[6]])
    stops = {name: whole[name] for name in frontier}
    part = part_of(model, [anchors[6]], stops)
    assert {spec.name for spec in part.inputs} == set(frontier)
    assert len(part.graph.nodes) < len(model.graph.nodes) - position
    found = Session(part.placed().data).run(stops)[anchors[6]]
    np.testing.assert_allclose(found, whole[anchors[6]], atol=1e-5)
    assert len(model.graph.nodes) > len(part.graph.nodes)  # and the model itself is whole


def test_a_frontier_moves_back_until_it_fits() -> None:
    model, anchors = residual()
    shapes = concrete_shapes(model, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    position = [anchor_of(node) for node in model.graph.nodes].index(anchors[4])
    branch, shortcut = 5 * 64 * 4, 4 * 64 * 4
    assert len(frontier_before(model, position, shapes, branch + shortcut)) == 2
    assert len(frontier_before(model, position, shapes, branch + shortcut - 1)) == 1
    assert frontier_before(model, position, shapes, 10) == ()
