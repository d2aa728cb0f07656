"""fold-constants: what is computed ahead, and that the file never grows for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim.ir import Model
from onnxslim.passes.fold_constants import FREE_BYTES, FoldConstants
from onnxslim.passes.infer_shapes import InferShapes
from onnxslim.passes.merge_duplicates import MergeDuplicates
from onnxslim.passes.remove_dead import RemoveDead
from onnxslim.pipeline import exact_fixed_point

PASSES = [InferShapes(), FoldConstants(), RemoveDead()]
BIG = (64, 64)


def parts(done: Any) -> dict[str, Any]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in done.model.proto().graph.initializer}


@pytest.mark.parametrize(
    ("body", "weights", "opset"),
    [
        pytest.param(
            "g (float[1] x) => (float[256,256] z) { c = ConstantOfShape(s) z = Add(c, x) }",
            {"s": np.array([256, 256], np.int64)},
            17,
            id="a large constant from two numbers",
        ),
        pytest.param(
            "g (float[1] x) => (float[64,64] z) { c = Expand(w, s) z = Add(c, x) }",
            {"w": (64, 1), "s": np.array([64, 64], np.int64)},
            17,
            id="an expanded column",
        ),
        pytest.param(
            "g (float[1] x) => (float[64,64] z) { c = Cast<to = 1>(w) z = Add(c, x) }",
            {"w": np.ones(BIG, np.int8)},
            17,
            id="int8 weights that a Cast makes four times as large",
        ),
        pytest.param(
            "g (float[1,64] x) => (float[1,64] z) { c = DequantizeLinear(w, s) z = MatMul(x, c) }",
            {"w": np.ones(BIG, np.int8), "s": np.array(0.1, np.float32)},
            17,
            id="a weight's integer form",
        ),
        pytest.param(
            """g (float[1,64] x) => (float[1,4] z) {
                q = QuantizeLinear(w, s) c = DequantizeLinear(q, s) z = MatMul(x, c)
            }""",
            {"w": (64, 4), "s": np.array(0.1, np.float32)},
            17,
            id="a weight that is quantized on the way",
        ),
        pytest.param(
            """g (int64[3] i, float[1,64] x) => (float[1,64] z, float[3,64] e) {
                t = Transpose(w) z = MatMul(x, t) e = Gather(w, i)
            }""",
            {"w": BIG},
            17,
            id="a transposed embedding, which the lookup reads too",
        ),
        pytest.param(
            """g (float[1,64] x) => (float[1,64] y, float[64,1] z) {
                a = Transpose<perm = [1,0]>(w) b = Transpose<perm = [1,0]>(w)
                y = MatMul(x, a) t = Transpose(x) n = Neg(b) z = MatMul(n, t)
            }""",
            {"w": BIG},
            17,
            id="one weight in two other forms",
        ),
    ],
)
def test_stays(check: Callable[..., Any], body: str, weights: dict[str, Any], opset: int) -> None:
    assert check(body, PASSES, weights, opset).edits == 0


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("g (float[2] x) => (float[2] z) { r = RandomUniformLike(w) z = Add(x, r) }", id="random"),
        pytest.param(
            "g (float[2] x) => (float[2] z) { r = Dropout(w, p, t) z = Add(x, r) }", id="a Dropout that trains"
        ),
    ],
)
def test_random_numbers_stay_random(check: Callable[..., Any], body: str) -> None:
    weights = {"w": (2,), "p": np.array(0.5, np.float32), "t": np.array(True)}
    assert check(body, PASSES, weights, compare=False).edits == 0


@pytest.mark.parametrize(
    ("body", "weights", "ops"),
    [
        pytest.param(
            "g (float[N,64] x) => (float[N,64] z) { t = Transpose(w) n = Neg(t) z = MatMul(x, n) }",
            {"w": BIG},
            ["MatMul"],
            id="a chain on a weight of its own",
        ),
        pytest.param(
            "g (float[N,32] x) => (float[N,64] z) { a, b = Split(w) s = Add(a, b) z = MatMul(x, s) }",
            {"w": BIG},
            ["MatMul"],
            id="two outputs",
        ),
        pytest.param(
            """g (float[N,4] x) => (float[N,4] z) {
                s = ConstantOfShape(n) f = Constant<value_float = 2.0>() a = Mul(s, f) z = Add(x, a)
            }""",
            {"n": np.array([1, 4], np.int64)},
            ["Add"],
            id="small results are free",
        ),
    ],
)
def test_changes(check: Callable[..., Any], body: str, weights: dict[str, Any], ops: list[str]) -> None:
    done = check(body, PASSES, weights)
    assert done.ops == ops
    assert done.difference == 0.0


def test_the_limit_is_where_it_is_said_to_be(check: Callable[..., Any]) -> None:
    for count, folded in ((FREE_BYTES // 4, True), (FREE_BYTES // 4 + 1, False)):
        body = f"g (float[1] x) => (float[{count}] z) {{ c = ConstantOfShape(s) z = Add(c, x) }}"
        done = check(body, PASSES, {"s": np.array([count], np.int64)})
        assert (done.ops == ["Add"]) is folded


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("value = float[2] {1.5, 2}", np.array([1.5, 2], np.float32)),
        ("value_float = 1.5", np.array(1.5, np.float32)),
        ("value_floats = [1.5, 2.0]", np.array([1.5, 2], np.float32)),
        ("value_int = 3", np.array(3, np.int64)),
        ("value_ints = [3, 4]", np.array([3, 4], np.int64)),
    ],
)
def test_constant_nodes_become_initializers(check: Callable[..., Any], attribute: str, value: Any) -> None:
    kind = {"f": "float", "i": "int64"}[value.dtype.kind]
    body = f"""g ({kind}[2] x) => (bool[2] z) {{ c = Constant<{attribute}>() z = Equal(x, c) }}"""
    done = check(body, PASSES, opset=19, compare=False)
    (found,) = parts(done).values()
    assert done.ops == ["Equal"]
    assert found.dtype.kind == value.dtype.kind
    assert found.shape == value.shape
    assert found.reshape(-1).tolist() == value.reshape(-1).tolist()


def test_strings_survive(check: Callable[..., Any]) -> None:
    """Strings stay as they were given, and the model can still be written."""
    body = """g (float[2] x) => (string[2] y, string[2] z) {
        c = Constant<value_strings = ["a", "b"]>()
        y = Identity(c)
        d = StringConcat(v, w)
        z = StringConcat(d, v)
    }"""
    words = {"v": np.array(["c", "d"], object), "w": np.array(["c", "d"], object)}
    assert check(body, [*PASSES, MergeDuplicates()], words, opset=20).difference == 0.0


def test_what_a_graph_returns_becomes_a_constant_node(check: Callable[..., Any]) -> None:
    done = check(
        "g (float[2] x) => (float[2] z, float[2] y) { a = Neg(w) z = Abs(a) y = Add(x, z) }", PASSES, {"w": (2,)}
    )
    assert sorted(done.ops) == ["Add", "Constant"]
    assert done.difference == 0.0


def test_inside_a_subgraph(check: Callable[..., Any]) -> None:
    """An inner node that reads an outer constant is folded where it is."""
    body = """g (float[2] x, bool c) => (float[2] z) {
        z = If (c) <then_branch = t () => (float[2] p) { n = Neg(w) p = Add(x, n) },
                    else_branch = e () => (float[2] q) { q = Mul(x, w) }>
    }"""
    done = check(body, PASSES, {"w": (2,)})
    branches = [node.attrs["then_branch"] for node in done.model.graph.nodes]
    assert [node.op for node in branches[0].nodes] == ["Add"]
    assert done.difference == 0.0


def test_one_refusal_does_not_spoil_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnxruntime refuses all together, the others are still folded."""
    import onnxslim.passes.fold_constants as module
    from onnxslim.ir import Rewriter
    from onnxslim.pipeline import PassContext
    from onnxslim.runtime import RuntimeRefusal
    from onnxslim.runtime.folding import evaluate

    def picky(proto: onnx.ModelProto) -> Any:
        if any(node.op_type == "Abs" for node in proto.graph.node):
            raise RuntimeRefusal("no Abs today")
        return evaluate(proto)

    monkeypatch.setattr(module, "evaluate", picky)
    body = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1] x) => (float[1] z) <float[1] w = {2}> {
        a = Abs(w) b = Neg(w) c = Exp(w) d = Add(x, a) e = Add(d, b) z = Add(e, c)
    }"""
    model = Model.load(onnx.parser.parse_model(body))
    rewriter = Rewriter(model)
    FoldConstants().run(rewriter, PassContext())
    rewriter.finish()
    assert [node.op for node in model.graph.nodes] == ["Abs", "Add", "Add", "Add"]


def test_the_first_weight_of_an_old_file() -> None:
    """IR version 3 wants every weight declared as an input, those that folding makes included."""
    body = """<ir_version: 3, opset_import: ["" : 8]>
    g (float[2] x) => (float[2] z) { c = Constant<value = float[2] {1.5, 2}>() z = Add(x, c) }"""
    model = Model.load(onnx.parser.parse_model(body))
    assert exact_fixed_point(model, PASSES) > 0
    onnx.checker.check_model(model.proto())
    assert [spec.name for spec in Model.load(model.to_bytes()).inputs] == ["x"]


def test_a_node_that_stays_for_another_output_gives_its_name_away(check: Callable[..., Any]) -> None:
    body = "g (float[1] x) => (float[1] z, float[1] a) { a, b = Split<axis = 0>(w, s) z = Mul(x, b) }"
    done = check(body, PASSES, {"w": (2,), "s": np.array([1, 1], np.int64)})
    assert sorted(done.ops) == ["Mul", "Split"]
    assert done.difference == 0
