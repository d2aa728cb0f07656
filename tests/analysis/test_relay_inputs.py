"""Relays where a stage begins at the model's own inputs, or reads one that has a default."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
from onnx import numpy_helper

from onnxslim.analysis.relay import Relay
from onnxslim.ir import Model
from onnxslim.samples import Samples


def model() -> Model:
    """r = Relu(x), s = r + x, t = s + d, where d is an input with a default; x is read again after r."""
    nodes = [
        oh.make_node("Relu", ["x"], ["r"]),
        oh.make_node("Add", ["r", "x"], ["s"]),
        oh.make_node("Add", ["s", "d"], ["t"]),
    ]
    inputs = [oh.make_tensor_value_info(name, 1, [2, 3]) for name in "xd"]
    default = numpy_helper.from_array(np.full((2, 3), 5, np.float32), "d")
    graph = oh.make_graph(nodes, "g", inputs, [oh.make_tensor_value_info("t", 1, [2, 3])], [default])
    return Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))


def test_a_frontier_may_hold_an_input_and_a_default_is_a_value() -> None:
    values = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    given = model()
    samples = Samples.from_feeds([{"x": value} for value in values]).for_inputs(given.inputs)
    relay = Relay(samples, threads=1)
    first = [found for _, found in relay.values(given, ["r"], "s")]
    second = [found for _, found in relay.values(given, ["s", "t", "d"], "t")]
    for value, one, two in zip(values, first, second, strict=True):
        np.testing.assert_array_equal(one["r"], np.maximum(value, 0))
        np.testing.assert_allclose(two["s"], np.maximum(value, 0) + value, rtol=1e-6)
        np.testing.assert_allclose(two["t"], two["s"] + 5, rtol=1e-6)
        np.testing.assert_array_equal(two["d"], np.full((2, 3), 5))
