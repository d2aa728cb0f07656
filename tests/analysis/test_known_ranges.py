"""Ranges that need no samples: two tables, and random inputs through onnxruntime that never leave them."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from onnxslim.analysis.known_ranges import known_range, narrowed
from onnxslim.ir import Constant, Model, Node, consumers
from onnxslim.runtime import Level, Session, SessionConfig

Range = tuple[float, float]


def model_of(body: str, opset: int = 17, constants: str = "") -> Model:
    head = f'<ir_version: 8, opset_import: ["" : {opset}, "other" : 1]> g (float[2, 3, 8] x) => (float[2, 3, 8] y)'
    return Model.load(onnx.parser.parse_model(f"{head} {constants} {{ {body} }}"))


def last(model: Model) -> Node:
    return next(node for node in model.graph.nodes if node.outputs[0].name == "y")


BOUNDS = (
    "<float low = {-1.5}, float high = {2.5}, float six = {6}, float zero = {0}, "
    "float[2] two = {1, 2}, int64[3] like = {2, 3, 8}>"
)

KNOWN: list[tuple[str, str, int, Range]] = [
    ("softmax", "y = Softmax(x)", 17, (0, 1)),
    ("softmax-over-the-rest", "y = Softmax<axis = 1>(x)", 11, (0, 1)),
    ("sigmoid", "y = Sigmoid(x)", 17, (0, 1)),
    ("hard-sigmoid", "y = HardSigmoid<alpha = 9.0, beta = -3.0>(x)", 17, (0, 1)),
    ("hardmax", "y = Hardmax(x)", 17, (0, 1)),
    ("tanh", "y = Tanh(x)", 17, (-1, 1)),
    ("erf", "y = Erf(x)", 17, (-1, 1)),
    ("softsign", "y = Softsign(x)", 17, (-1, 1)),
    ("sin", "y = Sin(x)", 17, (-1, 1)),
    ("cos", "y = Cos(x)", 17, (-1, 1)),
    ("clip", "y = Clip(x, low, high)", 17, (-1.5, 2.5)),
    ("clip-by-constant-nodes", "l = Constant<value = float {-1}>() y = Clip(x, l, high)", 17, (-1, 2.5)),
    ("clip-by-attributes", "y = Clip<min = -0.5, max = 6.0>(x)", 10, (-0.5, 6)),
    ("clip-above-a-relu", "r = Relu(x) y = Clip(r, , six)", 17, (0, 6)),
    ("clip-below-by-attribute", "r = Relu(x) y = Clip<max = 6.0>(r)", 7, (0, 6)),
    ("relu-of-clip", "r = Clip(x, , six) y = Relu(r)", 17, (0, 6)),
    ("min-of-a-constant-node", "r = Relu(x) l = Constant<value = float {4}>() y = Min(l, r)", 17, (0, 4)),
    ("min-of-relu", "r = Relu(x) y = Min(r, six)", 17, (0, 6)),
    ("max-of-min", "r = Min(six, x) y = Max(r, zero)", 17, (0, 6)),
    ("relu-of-tanh", "r = Tanh(x) y = Relu(r)", 17, (0, 1)),
    ("clip-inside", "r = Sigmoid(x) y = Clip(r, low, high)", 17, (0, 1)),
    ("clip-beside", "r = Sigmoid(x) y = Clip(r, high, six)", 17, (2.5, 2.5)),
    ("moved", "r = Sigmoid(x) t = Transpose<perm = [1, 0, 2]>(r) f = Flatten(t) y = Reshape(f, like)", 17, (0, 1)),
    ("pooled", "r = Tanh(x) y = MaxPool<kernel_shape = [3], pads = [1, 1]>(r)", 17, (-1, 1)),
]

UNKNOWN: list[tuple[str, str, int]] = [
    ("open above", "y = Relu(x)", 17),
    ("open below", "y = LogSoftmax(x)", 17),
    ("only one bound", "y = Clip(x, low)", 17),
    ("attributes at their defaults", "y = Clip(x)", 10),
    ("the default written out", "y = Clip<min = 0.0, max = 3.4028234663852886e38>(x)", 10),
    ("a computed bound", "h = ReduceMax<keepdims = 0>(x) y = Clip(x, low, h)", 17),
    ("bounds that cross", "y = Clip(x, high, low)", 17),
    ("a constant in another form", "l = Constant<value_float = 1.0>() y = Clip(x, low, l)", 17),
    ("two computed operands", "r = Relu(x) y = Min(r, x)", 17),
    ("several constants", "r = Relu(x) s = Slice(r, zeros, ones) t = Reshape(s, shape) y = Min(t, two)", 17),
    ("arithmetic", "r = Sigmoid(x) y = Add(r, r)", 17),
    ("another domain's operator", "y = other.Sigmoid(x)", 17),
]


@pytest.mark.parametrize(("body", "opset", "expected"), [row[1:] for row in KNOWN], ids=[row[0] for row in KNOWN])
def test_known(body: str, opset: int, expected: Range) -> None:
    model = model_of(body, opset, BOUNDS)
    assert known_range(last(model)) == expected
    session = Session(model.proto(), SessionConfig(level=Level.NONE))
    random = np.random.default_rng(0)
    for scale in (0.1, 3.0, 1000.0):
        values = session.run({"x": (scale * random.standard_normal((2, 3, 8))).astype(np.float32)})["y"]
        assert values.min() >= expected[0]
        assert values.max() <= expected[1] + 1e-6


@pytest.mark.parametrize(("body", "opset"), [row[1:] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_unknown(body: str, opset: int) -> None:
    extra = "int64[1] zeros = {0}, int64[1] ones = {1}, int64[2] shape = {12, 2}>"
    model = model_of(body, opset, BOUNDS.replace(">", f", {extra}"))
    assert known_range(last(model)) is None


def test_nan_bounds_are_unknown() -> None:
    model = model_of("y = Clip(x, low, high)", 17, BOUNDS)
    last(model).inputs[1] = Constant("nan", np.array(np.nan, np.float32))
    assert known_range(last(model)) is None


def test_outputs_after_the_first_are_unknown() -> None:
    body = "r = Sigmoid(x) p, i = MaxPool<kernel_shape = [3]>(r) y = Identity(i)"
    assert known_range(last(model_of(body))) is None


def test_a_long_chain_ends() -> None:
    chain = " ".join(f"t{i + 1} = Identity(t{i})" for i in range(3000))
    assert known_range(last(model_of(f"t0 = Sigmoid(x) {chain} y = Identity(t3000)"))) is None


NARROWED: list[tuple[str, str, Range]] = [
    ("relu", "y = Relu(t)", (0, 9)),
    ("clip", "y = Clip(t, low, high)", (-1.5, 2.5)),
    ("clip-above", "y = Clip(t, , six)", (-4, 6)),
    ("min", "y = Min(six, t)", (-4, 6)),
    ("max", "y = Max(t, low)", (-1.5, 9)),
    ("constant-nodes", "l = Constant<value = float {-1}>() y = Clip(t, l, six)", (-1, 6)),
]

NOT_NARROWED: list[tuple[str, str]] = [
    ("two read it", "r = Relu(t) y = Add(r, t)"),
    ("nobody cuts it", "y = Tanh(t)"),
    ("its bound is computed", "h = ReduceMax<keepdims = 0>(x) y = Clip(t, low, h)"),
    ("bounds that cross", "y = Clip(t, high, low)"),
]


@pytest.mark.parametrize(("body", "expected"), [row[1:] for row in NARROWED], ids=[row[0] for row in NARROWED])
def test_narrowed(body: str, expected: Range) -> None:
    model = model_of(f"t = Neg(x) {body}", 17, BOUNDS)
    readers = consumers(model.graph.nodes[0].outputs[0])
    assert narrowed((-4, 9), readers) == expected
    assert narrowed(expected, readers) == expected
    proto = model.proto()
    x = np.random.default_rng(0).uniform(-9, 4, (2, 3, 8)).astype(np.float32)
    before = np.clip(-x, *expected)
    truth = Session(proto, SessionConfig(level=Level.NONE)).run({"x": x})["y"]
    again = Session(proto, SessionConfig(level=Level.NONE)).run({"x": -before})["y"]
    np.testing.assert_array_equal(again, truth)


@pytest.mark.parametrize("body", [row[1] for row in NOT_NARROWED], ids=[row[0] for row in NOT_NARROWED])
def test_not_narrowed(body: str) -> None:
    model = model_of(f"t = Neg(x) {body}", 17, BOUNDS)
    assert narrowed((-4, 9), consumers(model.graph.nodes[0].outputs[0])) == (-4, 9)
    assert narrowed((-4, 9), []) == (-4, 9)


def test_a_range_beside_the_bounds_becomes_a_point() -> None:
    model = model_of("t = Neg(x) y = Clip(t, low, high)", 17, BOUNDS)
    assert narrowed((3, math.inf), consumers(model.graph.nodes[0].outputs[0])) == (2.5, 2.5)
