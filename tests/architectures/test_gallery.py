"""The gallery: every architecture is valid, runs, listens to its input, and comes out of the exact passes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxslim.ir import Model
from onnxslim.passes import EXACT_PASSES
from onnxslim.pipeline import exact_fixed_point
from tools.gallery import ARCHITECTURES, Builder
from tools.gallery.running import apart, feed_of, run

TOLERANCE = 1e-5
FIXED = {"yolo"}
"""Exported for one sample."""
LISTENS = 0.005
"""By how much of its range an output must move with the input."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_valid_and_runs(name: str) -> None:
    proto = ARCHITECTURES[name]()
    onnx.checker.check_model(proto, full_check=True)
    outputs, others = (run(proto, feed_of(proto, seed)) for seed in (0, 1))
    assert len(outputs) == len(proto.graph.output)
    for key, value in outputs.items():
        assert np.isfinite(value).all(), key
        if value.dtype.kind == "f":
            assert np.abs(value - others[key]).max() > LISTENS * np.ptp(value) > 0, f"{key} does not hear its input"
            assert np.abs(value).max() < 1e4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_comes_out_of_the_exact_passes_the_same(name: str) -> None:
    proto = ARCHITECTURES[name]()
    model = Model.load(proto)
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    onnx.checker.check_model(model.proto(), full_check=True)
    for seed in (0, 1):
        feed = feed_of(proto, seed)
        assert apart(run(proto, feed), run(model, feed)) <= TOLERANCE
    assert exact_fixed_point(Model.load(model.to_bytes()), [cls() for cls in EXACT_PASSES]) == 0


@pytest.mark.parametrize("name", ["resnet18", "yolo", "swin", "captured"])
def test_an_architecture_is_the_same_every_time(name: str) -> None:
    assert ARCHITECTURES[name]().SerializeToString() == ARCHITECTURES[name]().SerializeToString()


def test_a_batch_that_is_left_open_may_be_any() -> None:
    for name, build in ARCHITECTURES.items():
        proto = build()
        feed, given = feed_of(proto), proto.graph.input[0]
        key = given.name
        if not given.type.tensor_type.shape.dim[0].dim_param:
            assert name in FIXED
            continue
        both, first = run(proto, feed), run(proto, {key: feed[key][:1]})
        for output, value in first.items():
            assert value.shape != both[output].shape or value.ndim == 0, f"{name}: {output} has a batch of its own"


# ---- the builder -----------------------------------------------------------------------------------------------------


def test_names_are_those_of_modules() -> None:
    b = Builder(3, 8, 8)
    with b.module("layer1"), b.module("0"):
        x = b.relu(b.conv(b.conv(b.input, 4), 5, bias=True))
    assert x == "/layer1/0/Relu_output_0"
    assert [node.name for node in b.nodes] == ["/layer1/0/conv1/Conv", "/layer1/0/conv2/Conv", "/layer1/0/Relu"]
    assert [tensor.name for tensor in b.weights] == [
        "layer1.0.conv1.weight",
        "layer1.0.conv2.weight",
        "layer1.0.conv2.bias",
    ]


def test_shapes_are_known_as_nodes_are_added() -> None:
    b = Builder(3, 16, 12)
    x = b.pool(b.conv(b.input, 6, (1, 3), 2))
    assert b.shape(x) == ("batch", 6, 4, 3)
    assert b.shape(b.reshape(b.transpose(x, 0, 2, 1, 3), 0, 0, -1)) == ("batch", 4, 18)
    assert b.shape(b.linear(b.op("Flatten", x), 7)) == ("batch", 7)
    assert b.shape(b.split(b.resize(x), 2, 4)[1])[1:] == (4, 8, 6)


def test_a_mistake_shows_where_it_is_made() -> None:
    b = Builder(3, 16, 16)
    with pytest.raises(onnx.shape_inference.InferenceError, match="5 and 768"):
        b.op("Gemm", b.op("Flatten", b.input), b.normal(5, 5))
