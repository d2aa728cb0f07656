"""One grid for tensors whose values are the same: moved, split or joined."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxslim.ir import Model, Rewriter
from onnxslim.passes import InsertQdq
from onnxslim.passes._qdq_noise import units_of
from onnxslim.passes._qdq_pairs import shared_grids
from onnxslim.passes._qdq_sharing import shared_ranges
from onnxslim.passes._quantize import Style
from onnxslim.passes.insert_qdq import QdqPlan, Rounding
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.samples import Samples

NEAREST = InsertQdq(rounding=Rounding.NEAREST, min_sqnr=0.0)
HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,4,4] x) => '
"""Every graph reads x."""
LAYERS = "<float[4,4,1,1] v, float[4,4,1,1] w> {"


def model_of(body: str, result: str = "y", gains: tuple[float, float] = (1.0, 1.0)) -> Model:
    """Return a model whose weights v and w are ``gains`` times the identity."""
    proto = onnx.parser.parse_model(f"{HEAD}(float[a,b,c,d] {result}) {LAYERS}{body}}}")
    for name, gain in zip("vw", gains, strict=True):
        values = gain * np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return Model.load(proto)


def planned(model: Model) -> QdqPlan:
    values = np.random.default_rng(2).standard_normal((8, 4, 4, 4)).astype(np.float32)
    samples = Samples.from_arrays({"x": values}).for_inputs(model.inputs)
    return NEAREST.plan(model, PassContext(samples=samples))


def quantized(model: Model) -> Model:
    plan = planned(model)
    integer = model.copy()
    rewriter = Rewriter(integer)
    NEAREST.apply(rewriter, plan, PassContext())
    rewriter.finish()
    onnx.checker.check_model(integer.proto(), full_check=True)
    return integer


MOVES = {
    "split": "a = Conv(x, v) n = Constant<value_ints=[1, 3]>() b, c = Split<axis=1>(a, n) y = Concat<axis=1>(c, b)",
    "depth to space": "a = Conv(x, v) y = DepthToSpace<blocksize=2>(a)",
    "expand": "a = Conv(x, v) s = Constant<value_ints=[2, 4, 4, 4]>() y = Expand(a, s)",
    "tile": "a = Conv(x, v) s = Constant<value_ints=[1, 1, 2, 2]>() y = Tile(a, s)",
    "largest": "a = Conv(x, v) y = ReduceMax<axes=[2, 3]>(a)",
}


@pytest.mark.parametrize("name", MOVES)
def test_what_only_moves_runs_on_integers(tmp_path: Path, name: str) -> None:
    integer = quantized(model_of(MOVES[name]))
    path = tmp_path / "run.onnx"
    Session(integer.proto(), SessionConfig(optimized_path=str(path), level=Level.EXTENDED))
    found = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1, found


def grids_of(body: str, gains: tuple[float, float] = (1.0, 1.0), result: str = "y") -> dict[str, tuple[float, float]]:
    return planned(model_of(body, result, gains)).ranges


JOINED = "a = Conv(x, v) b = Conv(x, w) y = Concat<axis=1>(a, b)"


def test_what_only_concat_reads_has_the_grid_of_the_result() -> None:
    ranges = grids_of(JOINED, (1.0, 100.0))
    assert ranges["a"] == ranges["b"] == ranges["y"]


def test_through_what_only_moves() -> None:
    ranges = grids_of(
        "a = Conv(x, v) m = MaxPool<kernel_shape=[1, 1]>(a) b = Conv(x, w) y = Concat<axis=1>(m, b)", (1.0, 100.0)
    )
    assert ranges["a"] == ranges["y"]


READ_TWICE = "a = Conv(x, v) b = Conv(x, w) c = Concat<axis=1>(a, b) d = Conv(a, v) y = Concat<axis=1>(c, d)"


def test_what_others_read_keeps_a_grid_that_is_much_finer() -> None:
    ranges = grids_of(READ_TWICE, (1.0, 100.0))
    assert ranges["a"] != ranges["y"]
    assert ranges["c"] == ranges["b"] == ranges["y"]


def test_what_others_read_shares_a_grid_that_is_much_alike() -> None:
    ranges = grids_of(READ_TWICE, (1.0, 1.5))
    assert ranges["a"] == ranges["b"] == ranges["c"] == ranges["y"]


def test_bits_that_are_lost_do_not_add_up() -> None:
    """Each of a chain of results is half as wide as the next: only neighbours may share."""
    body = (
        "a = Conv(x, v) b = Conv(a, w) p = Concat<axis=1>(a, b) s = Constant<value_ints=[4, 4]>() "
        "p0, p1 = Split<axis=1>(p, s) c = Conv(p1, w) q = Concat<axis=1>(p0, c) y = Relu(q)"
    )
    ranges = grids_of(body, (1.0, 1.9))
    widths = {name: high - low for name, (low, high) in ranges.items()}
    assert widths["a"] < widths["y"]


def test_noise_of_a_joined_grid_is_counted_once() -> None:
    model = model_of(JOINED)
    plan = planned(model)
    nodes = [node for node in model.graph.nodes if node.outputs[0].name in plan.nodes]
    units = units_of(nodes, shared_grids(nodes, plan.ranges, Style()), {})
    assert {unit.name: set(unit.nodes) for unit in units} == {"x": {"a", "b"}, "a": {"a", "y"}, "b": {"b", "y"}}


def test_ranges_of_graphs_without_concat_stay() -> None:
    model = model_of("a = Conv(x, v) y = Conv(a, w)")
    ranges = {"x": (0.0, 1.0), "a": (0.0, 2.0), "y": (0.0, 3.0)}
    assert shared_ranges(model.graph.nodes, ranges, {"y"}) == ranges


def test_softmax_between_products_is_an_integer_kernel(tmp_path: Path) -> None:
    body = "a = Conv(x, v) b = Conv(x, w) s = MatMul(a, b) p = Softmax<axis=3>(s) y = MatMul(p, b)"
    integer = quantized(model_of(body))
    path = tmp_path / "run.onnx"
    Session(integer.proto(), SessionConfig(optimized_path=str(path), level=Level.EXTENDED))
    assert "QLinearSoftmax" in {node.op_type for node in onnx.load(path).graph.node}


def test_a_softmax_that_is_the_result_stays_in_float() -> None:
    plan = planned(model_of("a = Conv(x, v) y = Softmax<axis=3>(a)"))
    assert plan.nodes == ("a",)
    assert ("y", "no MatMul reads it: floats lose nothing") in plan.refused
