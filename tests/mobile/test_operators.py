"""Operators by name, and the oldest runtime that has them."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from onnxslim.ir import Model
from onnxslim.mobile import operators_of
from onnxslim.mobile.compatibility import oldest_runtime
from onnxslim.mobile.operators import required_operators

NESTED = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1, "com.microsoft" : 1]>
g (float[2] x, bool c) => (float[2] y) {
  a = local.twice(x)
  b = com.microsoft.Gelu(a)
  y = If (c) <
    then_branch = t () => (float[2] r) { r = Abs(b) },
    else_branch = e () => (float[2] s) { s = Neg(b) }
  >
}
<domain: "local", opset_import: ["" : 17]>
twice (v) => (w) { w = Add(v, v) }
"""


def test_subgraphs_and_functions_count_and_calls_do_not() -> None:
    model = Model.load(onnx.parser.parse_model(NESTED))
    assert operators_of(model) == ("Abs", "Add", "If", "Neg", "com.microsoft:Gelu")


CONFIG = """# Generated from model/s:
# - /somewhere/model.ort
!globally_allowed_types;float,int8_t
ai.onnx;1;GlobalAveragePool
ai.onnx;11,13;Conv{"inputs": {"0": ["float"]}},Gather{"inputs": {"0": ["float", "int64_t"], "1": ["int32_t"]}},Relu
com.microsoft;1;FusedConv,QLinearAdd{"inputs": {"0": ["uint8_t"]}}

"""


def test_required_operators_of_a_configuration() -> None:
    expected = ("Conv", "Gather", "GlobalAveragePool", "Relu", "com.microsoft:FusedConv", "com.microsoft:QLinearAdd")
    assert required_operators(CONFIG) == expected


OLDEST = [
    ((11, 6, ["Conv"], False), "1.1"),
    ((12, 7, ["Conv"], False), "1.3"),
    ((17, 8, ["Conv"], False), "1.12"),
    ((17, 8, ["Conv"], True), "1.16"),
    ((17, 10, ["Conv"], False), "1.18"),
    ((20, 9, ["Conv"], True), "1.17"),
    ((99, 8, ["Conv"], False), "1.32"),
    ((17, 99, ["Conv"], False), "1.32"),
    ((17, 8, ["Conv", "com.microsoft:FusedConv"], True), "1.16"),
    ((17, 8, ["Conv", "com.microsoft:FusedConv"], False), "1.16"),
    ((17, 8, ["com.microsoft:InventedYesterday"], False), "1.32"),
    ((17, 8, ["somebody.else:Conv"], True), "1.32"),
]


@pytest.mark.parametrize(("model", "release"), OLDEST)
def test_oldest_runtime(model: tuple[int, int, list[str], bool], release: str) -> None:
    opset, ir_version, operators, ort_format = model
    assert oldest_runtime(opset, ir_version, operators, "1.32.0", ort_format=ort_format) == release
