"""remove-noops: what changes nothing goes, what only looks like it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.passes.infer_shapes import InferShapes
from onnxslim.passes.remove_dead import RemoveDead
from onnxslim.passes.remove_noops import RemoveNoops

PASSES = [InferShapes(), RemoveNoops(), RemoveDead()]


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


STAYS = [
    ("g (float[N] x) => (float[N] z) { z = Identity(x) }", {}, "the output would lose its name"),
    ("g (float[2,3] x) => (float[3,2] z) { a = Neg(x) z = Transpose(a) }", {}, "a real Transpose"),
    ("g (float[2,3] x) => (float[3,2] z) { a = Neg(x) z = Reshape(a, s) }", {"s": ints(3, 2)}, "a real Reshape"),
    ("g (float[n] x) => (float[n] z) { a = Neg(x) z = Slice(a, s, e) }", {"s": ints(1), "e": ints(2**31)}, "a symbol"),
    ("g (float[n] x) => (float[n] z) { a = Neg(x) z = Slice(a, s, e) }", {"s": ints(0), "e": ints(2)}, "up to 2 of n"),
    (
        "g (float[4] x) => (float[4] z) { a = Neg(x) z = Slice(a, s, e, o, t) }",
        {"s": ints(-1), "e": ints(-9), "o": ints(0), "t": ints(-1)},
        "turned around",
    ),
    ("g (float[4] x) => (float[4] z) { a = Neg(x) z = Pad(a, p) }", {"p": ints(1, -1)}, "shifted by padding"),
    ("g (float[n] x) => (float[m] z) { a = Neg(x) z = Expand(a, s) }", {"s": ints(3)}, "1 could become 3"),
    ("g (float[3] x) => (float[2,3] z) { a = Neg(x) z = Add(a, c) }", {"c": np.zeros((2, 1), np.float32)}, "grows"),
    ("g (float[3] x) => (float[1,3] z) { a = Neg(x) z = Mul(a, c) }", {"c": np.ones((1, 1), np.float32)}, "one rank"),
    ("g (float[3] x) => (float[3] z) { a = Neg(x) z = Sub(c, a) }", {"c": np.zeros(1, np.float32)}, "0 - x"),
    ("g (float[3] x) => (float[3] z) { a = Exp(x) z = Div(c, a) }", {"c": np.ones(1, np.float32)}, "1 / x"),
    ("g (float[3] x) => (float[3] z) { a = Neg(x) b = Cast<to = 10>(a) z = Cast<to = 1>(b) }", {}, "float16 rounds"),
    (
        "g (int64[3] x) => (int64[3] z) { a = Neg(x) b = Cast<to = 11>(a) z = Cast<to = 7>(b) }",
        {},
        "int64 has 63 bits, float64 53",
    ),
    ("g (float[1,1,3,3] x) => (float[1,1,2,2] z) { z = MaxPool<kernel_shape = [2,2]>(x) }", {}, "real pooling"),
    ("g (float[1,1,3] x) => (float[1,1,2] z) { z = MaxPool<kernel_shape = [1], strides = [2]>(x) }", {}, "strides"),
    ("g (float[4] x) => (float[4] z) { a, b = Split(x) z = Concat<axis = 0>(b, a) }", {}, "halves swapped"),
    ("g (float[3] x) => (float[3] z) { a = Relu(x) z = Clip(a, l, h) }", {"l": -1.0, "h": 2.0}, "clips below 0"),
    ("g (float[1] x) => (float[P] z) { a = Pad(x, p) z = Pad(a, p, v) }", {"p": ints(1, 1), "v": 2.0}, "other values"),
    (
        'g (float[1,1,4] x) => (float[1,1,4] z) { z = Resize<coordinate_transformation_mode = "tf_crop_and_resize">'
        "(x, r, s) }",
        {"r": np.array([0, 0, 0.2, 1, 1, 0.8], np.float32), "s": np.ones(3, np.float32)},
        "cropped",
    ),
]


@pytest.mark.parametrize(("body", "weights"), [pytest.param(b, w, id=i) for b, w, i in STAYS])
def test_stays(check: Callable[..., Any], body: str, weights: dict[str, Any]) -> None:
    given = {k: np.array(v, np.float32) if isinstance(v, float) else v for k, v in weights.items()}
    done = check(body, [InferShapes(), RemoveNoops()], given)
    assert done.edits == 0
    assert done.difference == 0.0


def test_a_dropout_whose_mask_is_read_stays(check: Callable[..., Any]) -> None:
    body = "g (float[3] x) => (float[3] z, bool[3] m) { a = Neg(x) z, m = Dropout(a) }"
    assert check(body, [RemoveNoops()], compare=False).edits == 0


def test_a_second_reshape_that_copies_a_dimension_stays(check: Callable[..., Any]) -> None:
    """Its 0 copies a dimension of the first one's result."""
    body = "g (float[2,6] x) => (float[3,2,2] z) { a = Reshape(x, s) z = Reshape(a, t) }"
    done = check(body, PASSES, {"s": ints(3, 4), "t": ints(0, 2, 2)})
    assert done.edits == 0


def test_a_symbol_on_an_output_is_no_proof(check: Callable[..., Any]) -> None:
    """Its author called both dimensions n; the Slice still cuts."""
    body = "g (float[n,2] x) => (float[n,2] z) { a = Neg(x) z = Slice(a, s, e) }"
    done = check(body, PASSES, {"s": ints(1), "e": ints(2**40)})
    assert done.ops == ["Neg", "Slice"]


CHANGES = [
    ("g (float[N] x) => (float[N] z) { a = Neg(x) z = Identity(a) }", {}, ["Neg"], "Identity before an output"),
    ("g (float[N] x) => (float[N] z) { a = Identity(x) z = Neg(a) }", {}, ["Neg"], "Identity after an input"),
    ("g (float[N] x) => (float[N] z) { a = Dropout(x) z = Neg(a) }", {}, ["Neg"], "Dropout"),
    (
        "g (float[N] x) => (float[N] z) { a = Dropout(x, r, t) z = Neg(a) }",
        {"r": np.array(0.5, np.float32), "t": np.array(False)},
        ["Neg"],
        "Dropout, told not to train",
    ),
    ("g (float[N] x) => (float[N] z) { a = Cast<to = 1>(x) z = Neg(a) }", {}, ["Neg"], "Cast to itself"),
    ("g (float[N,M] x) => (float[N,M] z) { a = Transpose<perm = [0,1]>(x) z = Neg(a) }", {}, ["Neg"], "Transpose"),
    ("g (float[N] x) => (float[N] z) { a = Concat<axis = 0>(x) b = Sum(a) c = Max(b) z = Neg(c) }", {}, ["Neg"], "one"),
    ("g (float[2,3] x) => (float[2,3] z) { a = Reshape(x, s) z = Neg(a) }", {"s": ints(2, -1)}, ["Neg"], "Reshape"),
    ("g (float[N,M] x) => (float[N,M] z) { a = Reshape(x, s) z = Neg(a) }", {"s": ints(0, -1)}, ["Neg"], "0 and -1"),
    ("g (float[N,3] x) => (float[N,3] z) { a = Flatten(x) z = Neg(a) }", {}, ["Neg"], "Flatten of a matrix"),
    ("g (float[N,3] x) => (float[N,3] z) { a = Expand(x, s) z = Neg(a) }", {"s": ints(1, 3)}, ["Neg"], "Expand"),
    ("g (float[N,3] x) => (float[N,3] z) { a = Tile(x, s) z = Neg(a) }", {"s": ints(1, 1)}, ["Neg"], "Tile"),
    (
        "g (float[N,3] x) => (float[N,3] z) { a = Slice(x, s, e) z = Neg(a) }",
        {"s": ints(0, 0), "e": ints(2**31 - 1, 3)},
        ["Neg"],
        "Slice of everything",
    ),
    ("g (float[N,3] x) => (float[N,3] z) { a = Pad(x, p) z = Neg(a) }", {"p": ints(0, 0, 0, 0)}, ["Neg"], "Pad by 0"),
    ("g (float[N,3] x) => (float[N,3] z) { a = Add(c, x) z = Neg(a) }", {"c": np.zeros(3, np.float32)}, ["Neg"], "+ 0"),
    ("g (float[N,3] x) => (float[N,3] z) { a = Div(x, c) z = Neg(a) }", {"c": np.ones(1, np.float32)}, ["Neg"], "/ 1"),
    ("g (float[N,3] x) => (float[N,3] z) { a = Pow(x, c) z = Neg(a) }", {"c": np.ones(1, np.float32)}, ["Neg"], "** 1"),
    (
        "g (float[1,1,4] x) => (float[1,1,4] z) { a = Resize(x, , s) z = Neg(a) }",
        {"s": np.ones(3, np.float32)},
        ["Neg"],
        "Resize by 1",
    ),
    (
        "g (float[2,3,4] x) => (float[4,2,3] z) { a = Transpose<perm = [1,2,0]>(x) z = Transpose<perm = [1,2,0]>(a) }",
        {},
        ["Transpose"],
        "two Transposes",
    ),
    (
        "g (float[2,3,4] x) => (float[2,3,4] z) { a = Transpose<perm = [1,2,0]>(x) b = Transpose<perm = [2,0,1]>(a) "
        "z = Neg(b) }",
        {},
        ["Neg"],
        "Transpose and back",
    ),
    (
        "g (float16[N] x) => (double[N] z) { a = Cast<to = 1>(x) z = Cast<to = 11>(a) }",
        {},
        ["Cast"],
        "a Cast that loses nothing",
    ),
    (
        "g (float[2,6] x) => (float[3,4] z) { a = Flatten<axis = 0>(x) z = Reshape(a, s) }",
        {"s": ints(3, -1)},
        ["Reshape"],
        "Flatten and Reshape",
    ),
    (
        "g (float[N,3] x) => (float[N,3] z) { a = Unsqueeze(x, s) b = Squeeze(a, s) z = Neg(b) }",
        {"s": ints(1)},
        ["Neg"],
        "Unsqueeze and Squeeze",
    ),
    (
        "g (float[N,3] x) => (float[N,12] z) { a = Concat<axis = 1>(x, x) b = Neg(x) c = Concat<axis = 1>(b, a) "
        "z = Concat<axis = 1>(c, x) }",
        {},
        ["Neg", "Concat"],
        "Concats of Concats",
    ),
    (
        "g (float[N,4] x) => (float[N,4] z) { a, b = Split<axis = 1>(x) c = Concat<axis = 1>(a, b) z = Neg(c) }",
        {},
        ["Neg"],
        "Split and Concat",
    ),
    (
        "g (float[N,3] x) => (float[P,Q] z) { a = Pad(x, p) z = Pad(a, q) }",
        {"p": ints(1, 0, 0, 2), "q": ints(0, 3, 1, 1)},
        ["Pad"],
        "two Pads",
    ),
    ("g (float[N] x) => (float[N] z) { a = Relu(x) z = Relu(a) }", {}, ["Relu"], "two Relus"),
    (
        "g (float[N] x) => (float[N] z) { a = Relu(x) z = Clip(a, l, h) }",
        {"l": np.array(0, np.float32), "h": np.array(1, np.float32)},
        ["Clip"],
        "Relu before ReLU6",
    ),
]


@pytest.mark.parametrize(("body", "weights", "ops"), [pytest.param(b, w, o, id=i) for b, w, o, i in CHANGES])
def test_changes(check: Callable[..., Any], body: str, weights: dict[str, Any], ops: list[str]) -> None:
    done = check(body, PASSES, weights)
    assert done.ops == ops
    assert done.difference == 0.0


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        pytest.param(
            "g (float[N,1] x) => (float[N,1] z) { a = Unsqueeze<axes = [1]>(x) b = Squeeze<axes = [1]>(a) z = Neg(b) }",
            11,
            id="axes",
        ),
        pytest.param("g (float[N] x) => (float[N] z) { a = Dropout<ratio = 0.5>(x) z = Neg(a) }", 10, id="ratio"),
        pytest.param("g (float[N] x) => (float[N] z) { a = Pad<pads = [0,0]>(x) z = Neg(a) }", 10, id="pads"),
        pytest.param(
            "g (float[N] x) => (float[N] z) { a = Slice<starts = [0], ends = [9223372036854775807]>(x) z = Neg(a) }",
            9,
            id="starts",
        ),
    ],
)
def test_attributes_of_older_opsets(check: Callable[..., Any], body: str, opset: int) -> None:
    done = check(body, PASSES, opset=opset)
    assert done.ops == ["Neg"]
    assert done.difference == 0.0


def test_the_first_of_a_pair_stays_where_others_read_it(check: Callable[..., Any]) -> None:
    body = """g (float[2,3] x) => (float[2,3] y, float[3,2] z) {
        z = Transpose<perm = [1,0]>(x) a = Transpose<perm = [1,0]>(z) y = Neg(a)
    }"""
    done = check(body, PASSES)
    assert sorted(done.ops) == ["Neg", "Transpose"]
    assert done.difference == 0.0


def test_an_inner_identity_of_an_outer_tensor_stays(check: Callable[..., Any]) -> None:
    """A branch must return something it computes itself."""
    body = """g (float[2] x, bool c) => (float[2] z) {
        z = If (c) <then_branch = t () => (float[2] p) { p = Identity(x) },
                    else_branch = e () => (float[2] q) { r = Identity(x) q = Neg(r) }>
    }"""
    done = check(body, PASSES)
    (node,) = done.model.graph.nodes
    assert [n.op for n in node.attrs["then_branch"].nodes] == ["Identity"]
    assert [n.op for n in node.attrs["else_branch"].nodes] == ["Neg"]
    assert done.difference == 0.0
