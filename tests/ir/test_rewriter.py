"""The one door to mutation: names, outputs, order and the count of edits."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxslim.errors import PassError
from onnxslim.ir import Model, Node, Rewriter

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x) => (float[2] z) {
  a = Relu(x)
  b = Neg(a)
  z = Abs(b)
}
"""


def load(text: str) -> Model:
    return Model.load(onnx.parser.parse_model(text))


def node_of(model: Model, op: str) -> Node:
    return next(node for node in model.graph.nodes if node.op == op)


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def test_nothing_done_is_no_edit() -> None:
    model = load(CHAIN)
    before = model.to_bytes()
    rewriter = Rewriter(model)
    rewriter.finish()
    assert rewriter.edits == 0
    assert model.to_bytes() == before


def test_an_inner_node_is_bypassed_and_removed() -> None:
    model = load(CHAIN)
    rewriter = Rewriter(model)
    neg = node_of(model, "Neg")
    assert rewriter.replace(neg.outputs[0], neg.inputs[0])
    rewriter.remove(neg)
    rewriter.finish()
    assert ops(model) == ["Relu", "Abs"]
    assert rewriter.edits == 2
    onnx.checker.check_model(model.proto())


def test_a_graph_output_keeps_its_name() -> None:
    model = load(CHAIN)
    rewriter = Rewriter(model)
    last = node_of(model, "Abs")
    assert rewriter.replace(last.outputs[0], last.inputs[0])
    rewriter.remove(last)
    rewriter.finish()
    assert ops(model) == ["Relu", "Neg"]
    assert [spec.name for spec in model.outputs] == ["z"]
    onnx.checker.check_model(model.proto())


@pytest.mark.parametrize("replacement", ["input", "constant"])
def test_an_output_is_not_replaced_by_what_cannot_bear_its_name(replacement: str) -> None:
    model = load("""<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] z) { z = Identity(x) }""")
    before = model.to_bytes()
    rewriter = Rewriter(model)
    node = model.graph.nodes[0]
    new = node.inputs[0] if replacement == "input" else rewriter.constant("c", np.ones(2, np.float32))
    assert not rewriter.replace(node.outputs[0], new)
    rewriter.finish()
    assert rewriter.edits == 0
    assert model.to_bytes() == before


def test_inserted_nodes_find_their_place() -> None:
    model = load(CHAIN)
    rewriter = Rewriter(model)
    neg = node_of(model, "Neg")
    middle = rewriter.variable("a", np.float32, [2])
    rewriter.insert("Exp", [neg.inputs[0]], [middle])
    rewriter.set_input(neg, 0, middle)
    rewriter.finish()
    assert ops(model) == ["Relu", "Exp", "Neg", "Abs"]
    assert middle.name == "a_1"
    onnx.checker.check_model(model.proto())


def test_a_cycle_is_found() -> None:
    model = load(CHAIN)
    rewriter = Rewriter(model)
    rewriter.set_input(node_of(model, "Relu"), 0, node_of(model, "Abs").outputs[0])
    with pytest.raises(PassError, match="cycle"):
        rewriter.finish()


def test_order_follows_captures_of_subgraphs() -> None:
    model = load("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2] x) => (float[2] z) {
      z = If (c) <then_branch = t () => (float[2] p) { p = Abs(x) }, else_branch = e () => (float[2] q) { q = Neg(x) }>
    }""")
    rewriter = Rewriter(model)
    captured = rewriter.variable("doubled", np.float32, [2])
    x = model.graph.inputs[1]
    rewriter.insert("Add", [x, x], [captured])
    branch = node_of(model, "If").attrs["then_branch"]
    rewriter.set_input(branch.nodes[0], 0, captured)
    rewriter.finish()
    assert ops(model) == ["Add", "If"]
    onnx.checker.check_model(model.proto())
