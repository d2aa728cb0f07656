"""Shapes around subgraphs: what a subgraph captures, and names that subgraphs side by side share."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
import onnx.numpy_helper
import onnx.parser

from onnxslim.analysis import concrete_shapes, infer_shapes
from onnxslim.analysis.cost import model_cost
from onnxslim.ir import Model

LOOP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,3] x, int64 n, bool go) => (float[2,3] z) <int64[1] flat = {-1}, int64[2] back = {2, 3}> {
    a = Reshape(x, flat)
    y = Reshape(a, back)
    z = Loop(n, go, y) <body = b (int64 i, bool c, float[p,q] s) => (bool d, float[p,q] t) { d = Identity(c) t = Add(s, y) }>
}"""  # noqa: E501
BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[4] x, bool c) => (float[2] z) <int64[2] wide = {2, 2}, int64[1] zero = {0}, int64[1] two = {2}> {
    z = If(c) <then_branch = t () => (float[2] p) { a = Reshape(x, wide) p = ReduceSum<keepdims = 0>(a, zero) },
               else_branch = e () => (float[2] q) { a = Neg(x) q = Slice(a, zero, two) }>
}"""


def shapes(text: str) -> dict[tuple[str, str], object]:
    """Return what is known of every computed tensor, by graph and name, where types alone were known before."""
    model = Model.load(onnx.parser.parse_model(text))
    for graph in model.graphs():
        for node in graph.nodes:
            for tensor in node.outputs:
                tensor.dtype = np.dtype(np.float32) if tensor.dtype is None else tensor.dtype
    infer_shapes(model)
    return {(g.name, t.name): t.shape for g in model.graphs() for node in g.nodes for t in node.outputs}


def test_a_captured_tensor_keeps_its_shape() -> None:
    found = shapes(LOOP)
    assert found["g", "y"] == [2, 3]
    assert found["b", "t"] == [2, 3]


def test_a_name_that_two_subgraphs_share_is_not_mixed_up() -> None:
    found = shapes(BRANCHES)
    assert found["t", "a"] is None
    assert found["e", "a"] is None


def test_group_normalization_is_like_its_input() -> None:
    """onnx infers nothing for it."""
    nodes = [
        oh.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2),
        oh.make_node("Relu", ["y"], ["z"]),
    ]
    values = [oh.make_tensor_value_info(name, 1, [4]) for name in "sb"]
    inputs = [oh.make_tensor_value_info("x", 1, [2, 4, 5]), *values]
    graph = oh.make_graph(nodes, "g", inputs, [oh.make_tensor_value_info("z", 1, [2, 4, 5])])
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10))
    assert concrete_shapes(model)["y"] == (2, 4, 5)
    assert [node.op for node in model.graph.nodes] == ["GroupNormalization", "Relu"]


def test_a_product_with_a_weight_in_blocks_has_the_shape_of_one() -> None:
    """onnx knows nothing of onnxruntime's operators."""
    node = oh.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=24, bits=4, block_size=16
    )
    graph = oh.make_graph(
        [node, oh.make_node("Relu", ["y"], ["z"])],
        "g",
        [oh.make_tensor_value_info("x", 1, [1, 7, 32])],
        [oh.make_tensor_value_info("z", 1, ["a", "b", "c"])],
        [
            onnx.numpy_helper.from_array(np.zeros((24, 2, 8), np.uint8), "w"),
            onnx.numpy_helper.from_array(np.ones((24, 2), np.float32), "s"),
        ],
    )
    opsets = [oh.make_opsetid("", 17), oh.make_opsetid("com.microsoft", 1)]
    model = Model.load(oh.make_model(graph, opset_imports=opsets, ir_version=8))
    found = concrete_shapes(model)
    assert (found["y"], found["z"]) == ((1, 7, 24), (1, 7, 24))
    assert model_cost(model, found).macs == 7 * 32 * 24
