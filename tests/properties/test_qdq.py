"""insert-qdq on random graphs against fake quantization: exactly where floats can be exact, else region by region.

The integer model is read by its definition, every Q and DQ executed in float. Where scales are powers of two and
weights whole multiples of them, every sum is exact in float32 and the outputs must be equal to the bit. Elsewhere each
node is given what the integer model gave it, and may differ by one step of its grid: a tie that a rounding tips over.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from onnx import numpy_helper
from properties.builder import Array
from properties.fake_quantization import Reference
from properties.random_graphs import Made, Recipe, recipes
from properties.test_exact_passes import BRIEF, LONG, TRAINED, all_passes, made, optimized, trained

from onnxslim.ir import Model, Rewriter
from onnxslim.passes import InsertQdq
from onnxslim.passes.insert_qdq import OPSET, QdqPlan, Rounding
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Reading, Session, SessionConfig, with_outputs
from onnxslim.samples import Samples

ANY = (
    "conv", "conv_batchnorm", "residual", "inverted_residual", "squeeze_excitation", "shared_conv", "gemm", "matmul",
    "activation", "clip", "scale_or_shift", "arithmetic", "concat", "split", "slicing", "pad", "pool", "global_pool",
    "head", "classifier", "reshape", "squeeze", "transpose", "resize", "depth_to_space", "gather", "softmax", "prelu",
)  # fmt: skip
EXACT = (
    "conv", "conv_batchnorm", "residual", "inverted_residual", "shared_conv", "matmul", "arithmetic", "concat", "split",
    "slicing", "classifier", "reshape", "squeeze", "transpose", "clip", "gemm",
)  # fmt: skip
EXACT_OPS = {
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze",
    "Unsqueeze", "Slice", "Gather", "Concat", "Split", "Identity", "Max", "Min",
}  # fmt: skip
"""Operators whose results are exact in float32 when operands are few bits long."""
NEAREST = InsertQdq(rounding=Rounding.NEAREST)
"""What the reference does."""
DEFINITION = SessionConfig(level=Level.NONE, reading=Reading.DEFINITION)
FUSED = SessionConfig(level=Level.ALL, reading=Reading.DEFINITION)
WIDEST = 500
"""So many products of 255 and 127 sum up to less than 2^24."""


def prepared(recipe: Recipe) -> Made:
    """Build, and run the exact passes, which turn Constant nodes into weights and fold what is between layers."""
    source = made(recipe)
    model = Model.load(source.proto)
    proto = source.proto if model.opset >= OPSET else model.upgraded(OPSET).proto()
    return Made(optimized(Made(proto, source.feed, recipe), all_passes()).proto(), source.feed, recipe)


def plan_of(source: Made) -> tuple[Model, QdqPlan]:
    model = Model.load(source.proto)
    samples = Samples.from_feeds([source.feed]).for_inputs(model.inputs)
    return model, NEAREST.plan(model, PassContext(samples=samples))


def quantized(model: Model, plan: QdqPlan) -> Model:
    integer = Model.load(model.to_bytes())
    rewriter = Rewriter(integer)
    NEAREST.apply(rewriter, QdqPlan.model_validate_json(plan.model_dump_json()), PassContext())
    rewriter.finish()
    onnx.checker.check_model(integer.proto(), full_check=True)
    return integer


# ---- exactly -----------------------------------------------------------------------------------------------------


def power_of_two(low: float, high: float) -> tuple[float, float]:
    """Return a wider range whose scale is a power of two and whose zero point is whole."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = 2.0 ** np.ceil(np.log2(max(high - low, 2.0**-10) / 250))
    zero = np.ceil(-low / step)
    return float(-zero * step), float((255 - zero) * step)


def whole_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights that are whole multiples of a power of two, each channel's largest 127 of them."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    layers = {n.input[1]: n for n in result.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32:
            continue
        new = np.rint(values * 64) / 64
        node = layers.get(tensor.name)
        if node is not None:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            new = _whole(values, 0 if node.op_type == "Conv" or transposed else values.ndim - 1)
        tensor.CopyFrom(numpy_helper.from_array(new.astype(np.float32), tensor.name))
    return result


def _whole(values: Array, axis: int) -> Array:
    others = tuple(a for a in range(values.ndim) if a != axis)
    largest = np.maximum(np.abs(values).max(axis=others, keepdims=True), 2.0**-8)
    step = 2.0 ** np.rint(np.log2(largest / 127))
    counts = np.rint(values / largest * 127)
    first = np.moveaxis(counts, axis, 0).reshape(counts.shape[axis], -1)
    first[:, 0] = 127
    counts = np.moveaxis(first.reshape(np.moveaxis(counts, axis, 0).shape), 0, axis)
    return np.asarray(counts * step)


def exact_case(recipe: Recipe) -> tuple[Model, QdqPlan, dict[str, Array]]:
    source = prepared(recipe)
    proto = whole_weights(source.proto)
    feed = {name: (np.rint(array * 16) / 16).astype(np.float32) for name, array in source.feed.items()}
    model, plan = plan_of(Made(proto, feed, recipe))
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        assume(node.op_type in EXACT_OPS)
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            assume(node.output[0] in plan.nodes)
            held = weights.get(node.input[1])
            fan = 64 if held is None else int(np.prod(held.dims)) // max(1, min(held.dims))
            assume(fan <= WIDEST)
            assume(held is None or node.op_type != "MatMul" or len(held.dims) == 2)
        elif node.op_type in ("Add", "Mul", "Concat"):
            assume(not set(node.input) & set(weights))
    ranges = {name: power_of_two(*range_) for name, range_ in plan.ranges.items()}
    return model, plan.model_copy(update={"ranges": ranges}), feed


def check_exactly(recipe: Recipe) -> int:
    model, plan, feed = exact_case(recipe)
    expected = Reference(model.proto(), plan).run(feed)
    integer = quantized(model, plan)
    for config in (DEFINITION, FUSED):
        for name, values in Session(integer.to_bytes(), config).run(feed).items():
            np.testing.assert_array_equal(values, expected[name], f"{name} differs, {config.level}")
    return sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in model.proto().graph.node)


def test_exactly_on_random_graphs() -> None:
    layers: Counter[bool] = Counter()

    @settings(BRIEF, max_examples=60)
    @given(recipes(EXACT, most=6))
    def holds(recipe: Recipe) -> None:
        layers[check_exactly(recipe) > 0] += 1

    holds()
    assert layers[True] > 10


@pytest.mark.slow
@settings(LONG, max_examples=500)
@given(recipes(EXACT, most=8))
def test_exactly_on_random_graphs_long(recipe: Recipe) -> None:
    check_exactly(recipe)


# ---- region by region --------------------------------------------------------------------------------------------


def seen_by_readers(integer: Model, finals: set[str], others: set[str], feed: dict[str, Array]) -> dict[str, Array]:
    """Return every tensor as the integer model computes it: ``finals`` from their grids, ``others`` as they are."""
    proto = integer.proto()
    made_here = {name for node in proto.graph.node for name in node.output}
    quantize = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    pairs = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in quantize]
    grids = {quantize[node.input[0]]: node.output[0] for node in pairs}
    wanted = {name: grids.get(name, name) if name in finals else name for name in (finals | others) & made_here}
    values = Session(with_outputs(proto, wanted.values()), DEFINITION).run(feed, sorted(set(wanted.values())))
    return {n: values[t].astype(np.float64) for n, t in wanted.items() if values[t].dtype == np.float32}


def check_regions(source: Made) -> int:
    """Give each node what the integer model gave it: results on a grid are within a step, others within rounding."""
    model, plan = plan_of(source)
    reference = Reference(model.proto(), plan)
    finals = reference.finals()
    computed = {tensor.name for node in model.graph.nodes for tensor in node.outputs}
    seen = seen_by_readers(quantized(model, plan), finals, computed - finals, source.feed)
    assert finals <= seen.keys()
    regions = reference.run(source.feed, seen)
    for name, values in seen.items():
        size = float(np.abs(values).max(initial=0))
        most = 1.01 * reference.grids[name][0] if name in finals else 1e-5 * size
        assert np.abs(regions[name] - values).max(initial=0) <= most, f"{name} is off by more than {most:.2g}"
    return len(finals)


def test_regions_of_random_graphs() -> None:
    finals: Counter[bool] = Counter()

    @settings(BRIEF, max_examples=60)
    @given(recipes(ANY, most=8))
    def holds(recipe: Recipe) -> None:
        finals[check_regions(prepared(recipe)) > 0] += 1

    holds()
    assert finals[True] >= 5


@pytest.mark.slow
@settings(LONG, max_examples=500)
@given(recipes(ANY, most=10))
def test_regions_of_random_graphs_long(recipe: Recipe) -> None:
    check_regions(prepared(recipe))


@pytest.mark.parametrize("name", TRAINED)
def test_regions_of_trained_models(name: str) -> None:
    source = trained(name)
    assert check_regions(Made(optimized(source, all_passes()).proto(), source.feed, source.recipe)) > 5
