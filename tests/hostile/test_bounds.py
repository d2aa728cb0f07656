"""fold-constants evaluates nothing whose size has no bound, and small things of unknown shape it still does."""

from __future__ import annotations

import onnx
import pytest

from onnxslim.ir import Model
from onnxslim.passes.fold_constants import FoldConstants
from onnxslim.passes.infer_shapes import InferShapes
from onnxslim.passes.remove_dead import RemoveDead
from onnxslim.pipeline import exact_fixed_point


def folded(body: str, weights: str) -> list[str]:
    """Return the operators that are left."""
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float y) <{weights}> {{ {body} y = Add(x, s) }}'
    )
    model = Model.load(made)
    exact_fixed_point(model, [InferShapes(), FoldConstants(), RemoveDead()])
    return [node.op for node in model.graph.nodes]


OUTER = """n = NonZero(a)  t = Transpose(n)  o = Sub(n, t)  f = Cast <to = 1> (o)  s = ReduceSum <keepdims = 0> (f)"""


def floats(count: int) -> str:
    return f"float[{count}] a = {{{', '.join('1' * count)}}}"


def test_an_outer_product_of_unknown_shape_is_folded_while_it_must_be_small() -> None:
    assert folded(OUTER, floats(4)) == ["Add"]
    assert "Sub" in folded(OUTER, floats(2000))


@pytest.mark.parametrize(
    "grow",
    ["r = ConstantOfShape(k)", "r = Expand(one, k)", "r = Tile(ones, k)", "z = Mul(k, k)  r = Tile(ones, z)"],
)
def test_what_makes_much_of_little_is_left_alone(grow: str) -> None:
    weights = "int64[1] k = {1048576}, float one = {1}, float[1] ones = {1}"
    assert len(folded(f"{grow}  s = ReduceSum <keepdims = 0> (r)", weights)) > 1


def test_growth_adds_up_along_a_chain() -> None:
    chain = "c0 = NonZero(a)" + "".join(f"  c{i} = NonZero(c{i - 1})" for i in range(1, 30))
    left = folded(f"{chain}  f = Cast <to = 1> (c29)  s = ReduceSum <keepdims = 0> (f)", floats(8))
    assert left.count("NonZero") > 20
