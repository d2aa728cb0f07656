"""insert-qdq: integer kernels appear, numbers are those of the definition, and what must stay in float stays."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest
from gallery import GALLERY, Builder
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.ranges import observe_ranges
from onnxslim.errors import SpecError
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import InsertQdq
from onnxslim.passes._quantize import grid_of, quantize_bias, quantize_weight
from onnxslim.passes.insert_qdq import QdqPlan, Rounding
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Reading, Session, SessionConfig
from onnxslim.samples import Samples
from onnxslim.targets import find_target

NEAREST = InsertQdq(rounding=Rounding.NEAREST)

LEAST_SQNR = 25.0
"""Decibels that int8 keeps on networks of random weights."""


def samples_of(model: Model, count: int = 8) -> Samples:
    (spec,) = model.inputs
    shape = [count, *(dim if isinstance(dim, int) else 1 for dim in (spec.shape or ())[1:])]
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return Samples.from_arrays({spec.name: values}).for_inputs(model.inputs)


def quantize(model: Model, options: InsertQdq | None = None, samples: Samples | None = None) -> tuple[Model, Rewriter]:
    integer = model.copy()
    infer_shapes(integer)
    rewriter = Rewriter(integer)
    (options or NEAREST).run(rewriter, PassContext(samples=samples or samples_of(model), threads=1))
    rewriter.finish()
    onnx.checker.check_model(integer.proto(), full_check=True)
    return integer, rewriter


def kernels(model: Model, folder: Path) -> Counter[str]:
    """Return the operators that onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(folder / "optimized.onnx")).graph.node)


def run(model: Model, feed: dict[str, Any], reading: Reading) -> list[np.ndarray[Any, Any]]:
    outputs = Session(model.to_bytes(), SessionConfig(level=Level.ALL, reading=reading)).run(feed)
    return [np.asarray(value) for value in outputs.values()]


def sqnr(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> float:
    error = float(((reference - candidate) ** 2).sum())
    return 200.0 if error == 0 else 10 * float(np.log10(float((reference**2).sum()) / error))


QUANTIZABLE = ("vgg", "reshaped-head", "resnet", "inception", "mobilenet", "matmul-head", "depth-multiplier", "decoder")


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_numbers_stay_near(name: str) -> None:
    model = GALLERY[name](Builder())
    integer, _ = quantize(model)
    for sample in samples_of(model).take(3):
        for ours, theirs in zip(
            run(model, sample.feed, Reading.DEFINITION), run(integer, sample.feed, Reading.DEFINITION), strict=True
        ):
            assert sqnr(ours, theirs) > LEAST_SQNR


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg", {"QLinearConv": 2, "QGemm": 2}),
        ("resnet", {"QLinearConv": 6, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1}),
        ("inception", {"QLinearConv": 6, "QLinearConcat": 1}),
        ("mobilenet", {"QLinearConv": 7, "QLinearAdd": 1}),
    ],
)
def test_integer_kernels_appear(tmp_path: Path, name: str, expected: dict[str, int]) -> None:
    from onnxslim.passes import EXACT_PASSES
    from onnxslim.pipeline import exact_fixed_point

    model = GALLERY[name](Builder())
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    found = kernels(quantize(model)[0], tmp_path)
    assert {op: found[op] for op in expected} == expected
    assert not {"Conv", "Gemm", "MatMul", "Relu", "Clip"} & set(found)


@pytest.mark.parametrize(("target", "maker"), [("arm-cpu", "Gemm"), ("qnn", "DequantizeLinear")])
def test_a_product_that_ends_the_model_is_on_a_grid_where_the_target_wants_it(target: str, maker: str) -> None:
    model = GALLERY["vgg"](Builder())
    rewriter = Rewriter(model)
    NEAREST.run(rewriter, PassContext(samples=samples_of(model), threads=1, target=find_target(target)))
    rewriter.finish()
    (output,) = model.graph.outputs
    assert [node.op for node in output.inputs] == [maker]
    feed = next(iter(samples_of(model))).feed
    ours, theirs = (run(each, feed, Reading.DEFINITION)[0] for each in (GALLERY["vgg"](Builder()), model))
    assert sqnr(ours, theirs) > LEAST_SQNR


def test_the_arm_reading_loads() -> None:
    integer, _ = quantize(GALLERY["resnet"](Builder()))
    Session(integer.to_bytes(), SessionConfig(reading=Reading.ARM))


def test_one_layer_equals_fake_quantization() -> None:
    """The oracle: float arithmetic on values rounded to the grids, for a Gemm whose output stays in float."""
    random = np.random.default_rng(3)
    weight, bias = random.standard_normal((4, 6)).astype(np.float32), random.standard_normal(4).astype(np.float32)
    graph = oh.make_graph(
        [oh.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    samples = samples_of(model)
    x = np.concatenate([sample.feed["x"] for sample in samples])
    grid = grid_of(float(x.min()), float(x.max()))
    scale = np.abs(weight).max(1) / np.float32(127)
    rounded_x = (np.clip(np.round(x / grid.scale) + grid.zero_point, 0, 255) - np.float64(grid.zero_point)) * grid.scale
    rounded_w = np.round(weight / scale[:, None]) * scale[:, None]
    rounded_b = np.round(bias / (grid.scale * scale)) * (grid.scale * scale)
    expected = rounded_x @ rounded_w.T + rounded_b
    integer, _ = quantize(model, samples=samples)
    actual = np.concatenate([run(integer, sample.feed, Reading.DEFINITION)[0] for sample in samples])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * float(np.ptp(expected)))


def test_axes_of_weights() -> None:
    """Conv along 0, Gemm along its outputs either way, MatMul along its columns."""
    for name, axes in (("vgg", {0}), ("matmul-head", {0, 1})):
        integer, _ = quantize(GALLERY[name](Builder()))
        found = {
            node.attrs["axis"]
            for node in integer.graph.nodes
            if node.op == "DequantizeLinear" and "axis" in node.attrs and len(node.inputs[0].shape) > 1
        }
        assert found == axes


def test_a_plan_replays_without_samples_to_the_same_bytes() -> None:
    model = GALLERY["resnet"](Builder())
    integer, _ = quantize(model)
    plan = NEAREST.plan(model.copy(), PassContext(samples=samples_of(model), threads=1))
    replayed = model.copy()
    rewriter = Rewriter(replayed)
    NEAREST.apply(rewriter, QdqPlan.model_validate(json.loads(plan.model_dump_json())), PassContext())
    rewriter.finish()
    assert replayed.to_bytes() == integer.to_bytes()


def test_types_that_the_file_does_not_declare_are_inferred() -> None:
    proto = GALLERY["vgg"](Builder()).proto()
    del proto.graph.value_info[:]
    model = Model.load(proto)
    plan = NEAREST.plan(model, PassContext(samples=samples_of(model), threads=1))
    assert len(plan.nodes) == 7
    assert plan.refused == ()


def test_without_samples_it_says_so() -> None:
    with pytest.raises(SpecError, match="--data"):
        NEAREST.plan(GALLERY["vgg"](Builder()), PassContext())


# ---- what stays in float, and why --------------------------------------------------------------------------------


def reasons(rewriter: Rewriter) -> str:
    return "; ".join(mismatch.reason for mismatch in rewriter.skipped)


def test_transposed_convolutions_stay(tmp_path: Path) -> None:
    integer, rewriter = quantize(GALLERY["decoder"](Builder()))
    assert "no integer kernel for ConvTranspose" in reasons(rewriter)
    assert kernels(integer, tmp_path)["ConvTranspose"] == 1


def test_an_integer_model_stays() -> None:
    once, _ = quantize(GALLERY["vgg"](Builder()))
    twice, rewriter = quantize(once)
    assert twice.to_bytes() == once.to_bytes()
    assert "integer operators already" in reasons(rewriter)


def test_excluded_layers_stay(tmp_path: Path) -> None:
    model = GALLERY["vgg"](Builder())
    integer, rewriter = quantize(model, replace(NEAREST, exclude=("gemm*",)))
    found = kernels(integer, tmp_path)
    assert found["Gemm"] + found["FusedGemm"] == 2
    assert found["QGemm"] == 0
    assert "excluded" in reasons(rewriter)


def test_nan_on_the_samples_keeps_a_layer_in_float() -> None:
    b = Builder()
    x = b.op("Log", b.conv("x", 4))
    model = b.build(b.conv(b.op("Mul", x, b.constant(1.5)), 2, 1))
    _, rewriter = quantize(model)
    assert "NaN or Inf on the samples" in reasons(rewriter)


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_old_opsets_are_converted(tmp_path: Path, opset: int) -> None:
    b = Builder()
    model = b.build(b.relu(b.conv(b.relu(b.conv("x", 4)), 2, 1)))
    proto = model.proto()
    proto.opset_import[0].version = opset
    old = Model.load(proto)
    integer, _ = quantize(old)
    assert integer.opset == 13
    assert kernels(integer, tmp_path)["QLinearConv"] == 2
    assert [spec.name for spec in integer.outputs] == [spec.name for spec in old.outputs]


@pytest.mark.parametrize(("opset", "mode"), [(9, "nearest"), (9, "linear"), (10, "nearest"), (10, "linear")])
def test_converting_keeps_how_old_files_resize(opset: int, mode: str) -> None:
    """Tensors get new names on the way, and onnx's converter would let linear interpolation shift by half a pixel."""
    b = Builder()
    x = b.op("Upsample" if opset == 9 else "Resize", "x", b.constant([1.0, 1.0, 2.0, 2.0]), mode=mode)
    output = oh.make_tensor_value_info(b.conv(x, 2, 1), TensorProto.FLOAT, ["n", 2, 32, 32])
    graph = oh.make_graph(b.nodes, "g", [b.input], [output], b.weights)
    old = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8))
    integer, _ = quantize(old)
    feed = next(iter(samples_of(old))).feed
    expected = run(old, feed, Reading.DEFINITION)[0]
    assert sqnr(expected, run(integer, feed, Reading.DEFINITION)[0]) > LEAST_SQNR


# ---- arithmetic --------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_grids_hold_zero_and_cover_the_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    grid = grid_of(low, high)
    scale, zero = float(grid.scale), int(grid.zero_point)
    assert scale > 0
    assert 0 <= zero <= 255
    if high - low > 1e-30:
        assert scale * (0 - zero) <= min(low, 0) + 0.51 * scale
        assert scale * (255 - zero) >= max(high, 0) - 0.51 * scale


def test_a_large_bias_raises_its_channel_s_scale() -> None:
    weight = np.array([[1e-6, -1e-6], [1.0, 0.5]], np.float32)
    bias = np.array([1000.0, 1.0], np.float32)
    integer = quantize_weight(weight, 0, bias, 0.01)
    values, scale = quantize_bias(bias, np.float32(0.01), integer.scale)
    np.testing.assert_allclose(values * scale.astype(np.float64), bias, rtol=1e-6)
    assert np.abs(values.astype(np.int64)).max() <= 2**30 + 1
    assert integer.scale[1] == np.float32(1.0 / 127)


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    integer = quantize_weight(np.zeros((2, 3), np.float32), 0, np.array([0.3, 0.0], np.float32), 0.02)
    values, scale = quantize_bias(np.array([0.3, 0.0], np.float32), np.float32(0.02), integer.scale)
    np.testing.assert_allclose(values * scale.astype(np.float64), [0.3, 0.0], rtol=1e-6)


def test_ranges_are_those_of_all_samples() -> None:
    model = GALLERY["vgg"](Builder())
    samples = samples_of(model)
    name = model.graph.nodes[1].outputs[0].name
    observed = observe_ranges(model, ["x", name], samples, threads=1)
    x = np.concatenate([sample.feed["x"] for sample in samples])
    assert observed["x"] == (float(x.min()), float(x.max()))
    relu = observed[name]
    assert relu is not None
    assert relu[0] == 0.0
    assert relu[1] > 0
