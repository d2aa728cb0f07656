"""inline-functions: what is opened, what stays, and that outputs are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxslim
from onnxslim.ir import Model, Rewriter
from onnxslim.passes.inline_functions import InlineFunctions
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Session

MODEL = """<ir_version: 10, opset_import: ["" : 17, "mine" : 1]> g (float[n, 3] x, bool go) => (float[n, 3] y)
    <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { t = mine.Outer <slope = 0.5> (x, w)
      y = If (go) <then_branch = a () => (float[n, 3] p) { p = mine.Inner <slope = 0.1> (t, w) },
                   else_branch = b () => (float[n, 3] q) { q = Neg (t) }> }
    <domain: "mine", opset_import: ["" : 17, "mine" : 1]> Outer <slope> (a, b) => (c) {
      m = mine.Inner <slope: float = @slope> (a, b)  c = mine.Inner <slope = 2.0> (m, b) }
    <domain: "mine", opset_import: ["" : %d]> Inner <slope> (a, b) => (c) {
      m = MatMul (a, b)  c = LeakyRelu <alpha: float = @slope> (m) }"""


def inlined(proto: onnx.ModelProto) -> tuple[Model, Rewriter]:
    model = Model.load(proto)
    rewriter = Rewriter(model)
    InlineFunctions().run(rewriter, PassContext())
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    return model, rewriter


@pytest.mark.parametrize("go", [True, False])
def test_functions_are_opened_within_functions_and_subgraphs(go: bool) -> None:
    proto = onnx.parser.parse_model(MODEL % 17)
    model, rewriter = inlined(proto)
    assert rewriter.edits == 1
    assert not model.functions
    assert [node.op for node in model.graph.nodes] == ["MatMul", "LeakyRelu", "MatMul", "LeakyRelu", "If"]
    feed = {"x": np.array([[1, -2, 0.5]], np.float32), "go": np.array(go)}
    assert np.array_equal(Session(model.proto()).run(feed)["y"], Session(proto).run(feed)["y"])


def test_a_function_of_another_opset_stays_with_its_reason() -> None:
    model, rewriter = inlined(onnx.parser.parse_model(MODEL % 16))
    assert ("mine", "Inner") in model.functions
    assert any("another opset" in mismatch.reason for mismatch in rewriter.skipped)


def test_a_model_without_functions_stays() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Relu (x) }"""
    assert inlined(onnx.parser.parse_model(text))[1].edits == 0


def test_functions_are_opened_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(MODEL % 17), path)
    assert onnxslim.optimize(path, bench=False).model.functions
    assert not onnxslim.optimize(path, passes="inline-functions,exact", bench=False).model.functions
