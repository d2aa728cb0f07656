"""Costs against counts made by hand, from the operators' definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto, numpy_helper

from onnxslim.analysis import concrete_shapes, infer_shapes, model_cost
from onnxslim.errors import ModelError
from onnxslim.ir import Model


def one_node(op: str, inputs: dict[str, list[int]], weights: dict[str, list[int]], **attributes: Any) -> Model:
    """A model of a single node whose output shape is left to inference."""
    names = [*inputs, *weights]
    graph = oh.make_graph(
        [oh.make_node(op, names, ["z"], **attributes)],
        "g",
        [oh.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [oh.make_empty_tensor_value_info("z")],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    model = Model.load(onnx.shape_inference.infer_shapes(proto))
    model.graph.outputs[0].shape = None
    return model


CASES = [
    ("Conv", {"x": [1, 3, 8, 8]}, {"w": [16, 3, 3, 3], "b": [16]}, {"pads": [1, 1, 1, 1]}, 16 * 8 * 8 * 3 * 9),
    ("Conv", {"x": [1, 8, 8, 8]}, {"w": [8, 1, 3, 3]}, {"group": 8, "strides": [2, 2]}, 8 * 3 * 3 * 9),
    ("Conv", {"x": [2, 4, 10]}, {"w": [6, 4, 3]}, {}, 2 * 6 * 8 * 4 * 3),
    ("ConvTranspose", {"x": [1, 4, 5, 5]}, {"w": [4, 6, 2, 2]}, {"strides": [2, 2]}, 4 * 25 * 6 * 4),
    ("Gemm", {"x": [5, 7]}, {"w": [7, 3]}, {}, 5 * 7 * 3),
    ("Gemm", {"x": [7, 5]}, {"w": [3, 7]}, {"transA": 1, "transB": 1}, 5 * 7 * 3),
    ("MatMul", {"x": [2, 5, 7]}, {"w": [7, 3]}, {}, 2 * 5 * 7 * 3),
    ("MatMul", {"x": [2, 5, 7], "y": [2, 7, 4]}, {}, {}, 2 * 5 * 7 * 4),
    ("Relu", {"x": [5, 7]}, {}, {}, 0),
]


@pytest.mark.parametrize(("op", "inputs", "weights", "attributes", "macs"), CASES)
def test_macs(
    op: str, inputs: dict[str, list[int]], weights: dict[str, list[int]], attributes: dict[str, Any], macs: int
) -> None:
    model = one_node(op, inputs, weights, **attributes)
    cost = model_cost(model, concrete_shapes(model))
    assert cost.macs == macs
    assert cost.params == sum(int(np.prod(shape)) for shape in weights.values())
    assert cost.bytes == 4 * cost.params


def test_a_shared_weight_counts_once() -> None:
    graph = oh.make_graph(
        [oh.make_node("MatMul", ["x", "w"], ["y"]), oh.make_node("MatMul", ["y", "w"], ["z"])],
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [oh.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    cost = model_cost(model, concrete_shapes(model))
    assert [layer.params for layer in cost.layers] == [16, 0]
    assert cost.macs == 32


def test_an_unknown_shape_makes_the_count_unknown() -> None:
    model = one_node("Conv", {"x": [1, 3, 8, 8]}, {"w": [16, 3, 3, 3]})
    cost = model_cost(model, {})
    assert cost.layers[0].macs is None
    assert cost.macs is None


def test_an_int8_weight_is_charged_to_the_layer_that_uses_it() -> None:
    graph = oh.make_graph(
        [oh.make_node("DequantizeLinear", ["q", "s"], ["w"]), oh.make_node("MatMul", ["x", "w"], ["z"])],
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [oh.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(np.ones((4, 2), np.int8), "q"),
            numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        ],
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    cost = model_cost(model, concrete_shapes(model))
    assert [(layer.op, layer.bytes) for layer in cost.layers] == [("DequantizeLinear", 0), ("MatMul", 12)]


def test_inference_fills_in_what_it_can_and_leaves_no_trace_in_the_file() -> None:
    model = one_node("Conv", {"x": [1, 3, 8, 8]}, {"w": [16, 3, 3, 3]})
    before = model.proto().graph.value_info
    assert infer_shapes(model) == 1
    assert model.outputs[0].shape == (1, 16, 6, 6)
    assert infer_shapes(model) == 0
    assert model.proto().graph.value_info == before


def test_a_dynamic_size_needs_a_feed() -> None:
    model = one_node("Relu", {"x": [1, 3]}, {})
    model.graph.inputs[0].shape = ["n", "w"]
    with pytest.raises(ModelError, match=r"dynamic dimension at axis 1.*--data.*--shape x="):
        concrete_shapes(model)
    assert concrete_shapes(model, {"x": np.zeros((2, 9), np.float32)})["z"] == (2, 9)


def test_shapes_that_depend_on_values_are_asked_of_the_sample() -> None:
    model = one_node("NonZero", {"x": [4]}, {})
    assert "z" not in concrete_shapes(model)
    assert concrete_shapes(model, {"x": np.array([0, 1, 0, 1], np.float32)})["z"] == (1, 2)
