"""Ranges read off pairs, against the definition of QuantizeLinear."""

from __future__ import annotations

import onnx.parser
import pytest

from onnxslim.analysis.quantized_ranges import quantized_ranges
from onnxslim.ir import Model

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def ranges(body: str, constants: str) -> list[tuple[object, ...]]:
    text = f"{HEAD} a (float[2, 4] x) => (float[2, 4] y) <{constants}> {{ {body} }}"
    model = Model.load(onnx.parser.parse_model(text))
    found = quantized_ranges(model.graph)
    return [(one.tensor, one.low, one.high, one.step, one.type, one.channels) for one in found]


PAIR = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        ("float s = {0.5}, uint8 z = {10}", ("x", -5.0, 122.5, 0.5, "uint8", None)),
        ("float s = {0.5}, int8 z = {0}", ("x", -64.0, 63.5, 0.5, "int8", None)),
        ("float s = {2}, uint16 z = {0}", ("x", 0.0, 131070.0, 2.0, "uint16", None)),
        ("float[4] s = {1, 2, 3, 4}, int8[4] z = {0, 0, 0, 28}", ("x", -624.0, 396.0, 4.0, "int8", 4)),
    ],
)
def test_ranges(constants: str, expected: tuple[object, ...]) -> None:
    body = PAIR if "[4]" not in constants else PAIR.replace("Linear(", "Linear<axis = 1>(")
    assert ranges(body, constants) == [expected]


def test_without_a_zero_point_it_is_unsigned() -> None:
    assert ranges("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", "float s = {1}") == [
        ("x", 0.0, 255.0, 1.0, "uint8", None)
    ]


def test_weights_and_computed_scales_have_none_and_a_tensor_has_one() -> None:
    constants = "float s = {1}, uint8 z = {0}, float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}"
    body = """q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) t = ReduceMax<keepdims = 0>(x)
        c = QuantizeLinear(x, t, z) e = DequantizeLinear(c, t, z) f = Add(d, e)
        g = QuantizeLinear(f, s, z) h = DequantizeLinear(g, s, z) i = QuantizeLinear(f, s, z)
        j = DequantizeLinear(i, s, z) y = Add(h, j)"""
    assert [one[0] for one in ranges(body, constants)] == ["f"]
