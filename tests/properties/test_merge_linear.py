"""merge-linear on random pairs and rows: equal outputs, whatever the windows, strides, pads, groups and biases."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from properties.comparing import assert_equal, run
from properties.test_exact_passes import BRIEF, LONG, TRAINED, trained
from properties.test_low_rank import at_full_rank

from onnxslim.analysis import concrete_shapes
from onnxslim.analysis.cost import model_cost
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import EXACT_PASSES, FactorLowRank
from onnxslim.passes.infer_shapes import InferShapes
from onnxslim.passes.merge_linear import MergeLinear
from onnxslim.pipeline import PassContext, exact_fixed_point
from onnxslim.runtime import RuntimeRefusal

PASSES = [InferShapes(), MergeLinear()]


@dataclass(frozen=True)
class Stage:
    """One layer of a row."""

    op: str
    outputs: int
    """Output channels of each group."""
    group: int
    kernel: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...]
    bias: str


@st.composite
def stages(draw: st.DrawFn, rank: int, op: str, window: Sequence[bool]) -> Stage:
    """Draw a convolution whose window lies along the axes of ``window`` alone."""
    plain = draw(st.integers(0, 2)) == 0
    numbers = st.integers(1, 1 if plain else 2)
    kernel = tuple(draw(st.integers(1, 3)) if has else 1 for has in window)
    attrs: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "strides": [draw(numbers) for _ in kernel],
        "dilations": [draw(numbers) for _ in kernel],
    }
    how = draw(st.sampled_from(["pads", "own", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if op == "ConvTranspose" and how.startswith("SAME"):
        how = "own"
    if how == "own":
        half = [draw(st.integers(0, max(0, k - 1))) for k in kernel]
        attrs["pads"] = half + [k - 1 - p for k, p in zip(kernel, half, strict=True)]
    elif how == "pads" and not plain:
        attrs["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    elif how != "pads" and (not how.startswith("SAME") or max(attrs["dilations"]) == 1):
        attrs["auto_pad"] = how
    if op == "ConvTranspose":
        attrs["output_padding"] = [draw(st.integers(0, s - 1)) for s in attrs["strides"]]
    bias = draw(st.sampled_from(["none", "zero", "some"]))
    return Stage(op, draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 4])), kernel, tuple(attrs.items()), bias)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Stage, ...]:
    """Draw two or three convolutions; of their windows, most lie along different axes."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    count = draw(st.sampled_from([2, 2, 3]))
    owner = [draw(st.integers(0, count - 1)) for _ in range(rank)]
    transposed = draw(st.integers(0, 3)) == 0
    made = []
    for index in range(count):
        window = [mine == index or draw(st.integers(0, 9)) == 0 for mine in owner]
        op = "ConvTranspose" if transposed and (any(window) or draw(st.booleans())) else "Conv"
        made.append(draw(stages(rank, op, window)))
    return tuple(made)


def built(row: Sequence[Stage], sizes: Sequence[int], dynamic: bool, seed: int) -> onnx.ModelProto:
    """Return the row as a model. Channels follow from the groups: all of a layer's are a multiple of both beside it."""
    random = np.random.default_rng(seed)
    channels, tensors, nodes = 4, [], []
    for index, stage in enumerate(row):
        after = 4 * stage.outputs
        shape = (after, channels // stage.group) if stage.op == "Conv" else (channels, after // stage.group)
        weight = random.standard_normal((*shape, *stage.kernel)) / math.sqrt(channels)
        tensors.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        inputs = [f"t{index}", f"w{index}"]
        if stage.bias != "none":
            bias = np.zeros(after) if stage.bias == "zero" else random.standard_normal(after)
            tensors.append(onnx.numpy_helper.from_array(bias.astype(np.float32), f"b{index}"))
            inputs.append(f"b{index}")
        attrs = dict(stage.attrs) | {"group": stage.group}
        nodes.append(onnx.helper.make_node(stage.op, inputs, [f"t{index + 1}"], **attrs))
        channels = after
    free: list[str | int] = [f"s{axis}" for axis in range(len(sizes))]
    kind = onnx.TensorProto.FLOAT
    given_ = onnx.helper.make_tensor_value_info("t0", kind, ["n", 4, *(free if dynamic else sizes)])
    result = onnx.helper.make_tensor_value_info(f"t{len(row)}", kind, [None] * (2 + len(sizes)))
    graph = onnx.helper.make_graph(nodes, "g", [given_], [result], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def check(row: Sequence[Stage], sizes: Sequence[int], dynamic: bool, seed: int) -> int:
    """Equal outputs for two input sizes, no more work and no more bytes; return how many layers went."""
    proto = built(row, sizes, dynamic, seed)
    random = np.random.default_rng(seed)
    feeds = [{"t0": random.standard_normal((2, 4, *sizes)).astype(np.float32)}]
    if dynamic:
        feeds.append({"t0": random.standard_normal((1, 4, *(size + 5 for size in sizes))).astype(np.float32)})
    try:
        results = [run(proto, feed) for feed in feeds]
    except RuntimeRefusal:  # a window larger than what is left, or a padding that onnxruntime has no kernel for
        assume(False)
    assume(all(array.size for result in results for array in result.values()))
    model = Model.load(proto)
    edits = exact_fixed_point(model, PASSES)
    onnx.checker.check_model(model.proto(), full_check=True)
    for feed in feeds:
        assert_equal(proto, model, feed, "float32")
    before, after = Model.load(proto), Model.load(model.to_bytes())
    for feed in feeds:
        old = model_cost(before, concrete_shapes(before, feed))
        new = model_cost(after, concrete_shapes(after, feed))
        assert old.macs is not None
        assert new.macs is not None
        assert (new.nodes < old.nodes) == (edits > 0)
        if edits:
            assert (new.macs < old.macs and new.bytes <= old.bytes) or (new.macs == old.macs and new.bytes < old.bytes)
    assert exact_fixed_point(after, PASSES) == 0
    return len(row) - len(model.graph.nodes)


ARGUMENTS = (rows(), st.lists(st.integers(3, 7), min_size=3, max_size=3), st.booleans(), st.integers(0, 9))


def test_rows() -> None:
    """Random rows, of which enough are merged for this to mean something."""
    gone: Counter[int] = Counter()

    @settings(BRIEF, max_examples=250)
    @given(*ARGUMENTS)
    def holds(row: tuple[Stage, ...], sizes: list[int], dynamic: bool, seed: int) -> None:
        found = check(row, sizes[: len(row[0].kernel)], dynamic, seed)
        event(f"{found} of {len(row)}")
        gone[found] += 1

    holds()
    assert gone[0] >= 20
    assert gone[1] >= 40
    assert gone[2] >= 5


@pytest.mark.slow
@LONG
@given(*ARGUMENTS)
def test_rows_long(row: tuple[Stage, ...], sizes: list[int], dynamic: bool, seed: int) -> None:
    check(row, sizes[: len(row[0].kernel)], dynamic, seed)


@settings(BRIEF, max_examples=80)
@given(
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=5),
    gemm=st.lists(st.booleans(), min_size=4, max_size=4),
    transposed=st.lists(st.booleans(), min_size=4, max_size=4),
    factors=st.lists(st.sampled_from([1.0, -0.5, 2.0]), min_size=8, max_size=8),
    seed=st.integers(0, 9),
)
def test_matrices(widths: list[int], gemm: list[bool], transposed: list[bool], factors: list[float], seed: int) -> None:
    """Gemm and MatMul in any order, with alpha, beta and transB."""
    random = np.random.default_rng(seed)
    nodes, tensors = [], []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        turned = gemm[index] and transposed[index]
        weight = random.standard_normal((after, before) if turned else (before, after)).astype(np.float32)
        tensors.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
        inputs = [f"t{index}", f"w{index}"]
        attrs: dict[str, Any] = {}
        if gemm[index]:
            tensors.append(onnx.numpy_helper.from_array(random.standard_normal(after).astype(np.float32), f"b{index}"))
            inputs.append(f"b{index}")
            attrs = {"alpha": factors[2 * index], "beta": factors[2 * index + 1], "transB": int(turned)}
        op = "Gemm" if gemm[index] else "MatMul"
        nodes.append(onnx.helper.make_node(op, inputs, [f"t{index + 1}"], **attrs))
    kind, last = onnx.TensorProto.FLOAT, len(widths) - 1
    given_ = onnx.helper.make_tensor_value_info("t0", kind, ["n", widths[0]])
    result = onnx.helper.make_tensor_value_info(f"t{last}", kind, ["n", widths[-1]])
    graph = onnx.helper.make_graph(nodes, "g", [given_], [result], tensors)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    model = Model.load(proto)
    exact_fixed_point(model, PASSES)
    onnx.checker.check_model(model.proto(), full_check=True)
    assert_equal(proto, model, {"t0": random.standard_normal((5, widths[0])).astype(np.float32)}, "float32")
    assert model_cost(model, concrete_shapes(model)).bytes <= sum(len(tensor.raw_data) for tensor in tensors)


@pytest.mark.parametrize("name", TRAINED)
def test_low_rank_at_full_rank_is_undone(name: str) -> None:
    """A trained model, every layer split in two that cost more: as many nodes again as before, and equal outputs."""
    source = trained(name)
    model = Model.load(source.proto)
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    before = [node.op for node in model.graph.nodes]
    rewriter = Rewriter(model)
    FactorLowRank(ratio=0).apply(rewriter, at_full_rank(model), PassContext())
    rewriter.finish()
    assert len(model.graph.nodes) > len(before) + 3
    exact_fixed_point(model, PASSES)
    assert [node.op for node in model.graph.nodes] == before
    assert_equal(source.proto, model, source.feed, "float32")
