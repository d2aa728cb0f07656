"""insert-qdq{ranges=…}: which values integers cover."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.range_choice import RangeMethod
from onnxslim.ir import Model
from onnxslim.passes import InsertQdq
from onnxslim.passes.insert_qdq import Rounding
from onnxslim.pipeline import PassContext, format_pass, parse_spec
from onnxslim.samples import Samples

OUTLIER = 300.0
WIDTH = 64


def model_of(*, last: str | None = None) -> Model:
    """A layer with weights, and perhaps an operator behind."""
    weight = np.random.default_rng(0).normal(size=(WIDTH, 8)).astype(np.float32) / 4
    nodes = [oh.make_node("Gemm", ["x", "w"], ["h"])]
    nodes += [oh.make_node(last, ["h"], ["s"]), oh.make_node("Mul", ["s", "h"], ["y"])] if last else []
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", 1, [1, WIDTH])],
        [oh.make_tensor_value_info("y" if last else "h", 1, [1, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    infer_shapes(model)
    return model


def ranges(model: Model, method: RangeMethod, *, broken: float | None = None) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(400, 1, WIDTH)).astype(np.float32)
    values[7, 0, 3] = OUTLIER if broken is None else broken
    samples = Samples.from_feeds([{"x": each} for each in values])
    return InsertQdq(ranges=method).plan(model, PassContext(samples=samples, threads=1)).ranges


def test_minimum_and_maximum_hold_everything() -> None:
    assert ranges(model_of(), RangeMethod.MINMAX)["x"][1] == OUTLIER


@pytest.mark.parametrize(
    "method", [RangeMethod.MSE, RangeMethod.PERCENTILE, RangeMethod.AVERAGE, RangeMethod.ENTROPY, RangeMethod.AUTO]
)
def test_others_let_an_outlier_go(method: RangeMethod) -> None:
    """One value of 25,600; the mean of extremes still feels it, and what has the least error may keep some of it."""
    low, high = ranges(model_of(), method)["x"]
    assert low < -1.0
    assert 1.0 < high < (OUTLIER if method in (RangeMethod.MSE, RangeMethod.AUTO) else 60.0)


def test_a_promised_range_needs_no_sample() -> None:
    model = model_of(last="Sigmoid")
    assert ranges(model, RangeMethod.MINMAX)["s"] == (0.0, 1.0)
    assert ranges(model, RangeMethod.AUTO)["s"] == (0.0, 1.0)
    assert ranges(model_of(last="Relu"), RangeMethod.MINMAX).get("s", (0.0, 0.5))[1] != 1.0


def test_what_a_clip_cuts_off_needs_no_integers() -> None:
    """Its bounds come from nodes, so that it is not one with the layer: the layer's own output has a grid."""
    proto = model_of().proto()
    bounds = {"low": 0.0, "high": 1.0}
    proto.graph.node.extend(
        oh.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.float32), name))
        for name, value in bounds.items()
    )
    proto.graph.node.append(oh.make_node("Clip", ["h", *bounds], ["c"]))
    proto.graph.node.append(oh.make_node("Gemm", ["c", "v"], ["y"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 4), np.float32), "v"))
    del proto.graph.output[:]
    proto.graph.output.append(oh.make_tensor_value_info("y", 1, [1, 4]))
    found = ranges(Model.load(proto), RangeMethod.MINMAX)
    assert {found[name] for name in ("h", "c") if name in found} == {(0.0, 1.0)}


@pytest.mark.parametrize("method", [RangeMethod.MINMAX, RangeMethod.AUTO])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_tensors_that_are_not_finite_have_no_range(method: RangeMethod, broken: float) -> None:
    assert "x" not in ranges(model_of(), method, broken=broken)


def test_spelling() -> None:
    (item,) = parse_spec("insert-qdq{ranges=auto rounding=nearest}", {"insert-qdq": InsertQdq}, ())
    assert item == InsertQdq(ranges=RangeMethod.AUTO, rounding=Rounding.NEAREST)
    assert format_pass(item) == "insert-qdq{rounding=nearest ranges=auto}"
