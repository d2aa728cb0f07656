"""Loops that values make endless are ended; models without loops are not watched."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnxslim
from onnxslim.errors import ModelError
from onnxslim.ir import Model
from onnxslim.runtime import RuntimeRefusal, Session, SessionConfig, sessions
from onnxslim.runtime.apart import SessionApart
from onnxslim.runtime.loops import loops_of
from onnxslim.samples import Samples, samples

HEAD = """<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) {
    s = ReduceSum<keepdims = 0>(x)  h = Constant<value = float {1.0}>()  c = Less(s, h)
    big = Constant<value = int64 {4611686018427387904}>()  si = Cast<to = 7>(s)  n = Add(big, si) """
"""c is true and n is huge for x of zeros; c is false for x of ones."""

BODY = "<body = b (int64 i, bool ci, float[3] v) => (bool co, float[3] w) { %s w = Relu(v) }> }"
INNER = """co = Identity(ci) nn = Sub(n, i) r = Loop(nn, c, v) <body = bb (int64 j, bool di, float[3] u) =>
    (bool do, float[3] q) { do = Identity(di) q = Identity(u) }>"""

ENDLESS = {
    "condition": HEAD + "y = Loop(, c, x)" + BODY % "co = Identity(ci)",
    "constant condition": HEAD + "y = Loop(, c, x)" + BODY % "co = Constant<value = bool {1}>()",
    "trip count": HEAD + "y = Loop(n, , x)" + BODY % "co = Identity(ci)",
    "a loop in a loop": HEAD + "y = Loop(, c, x)" + BODY % INNER,
}
FEED = {"x": np.zeros(3, np.float32)}
ENDS = {"x": np.ones(3, np.float32)}


def made(name: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(ENDLESS[name])


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_endless_loop_is_ended_and_named(name: str, threads: int) -> None:
    session = Session(made(name), SessionConfig(threads, patience=0.2))
    started = time.monotonic()
    with pytest.raises(RuntimeRefusal, match=r"Loop 'y'.* goes on for more than 0.2 seconds: give samples") as caught:
        session.run(FEED)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)


def test_the_same_loop_runs_on_a_feed_that_ends_it() -> None:
    session = Session(made("condition"), SessionConfig(1, patience=0.2))
    for _ in range(3):
        assert session.run(ENDS)["y"].tolist() == [1, 1, 1]
    with pytest.raises(RuntimeRefusal, match="goes on"):
        session.run(FEED)


def test_an_endless_loop_is_ended_in_a_process_apart() -> None:
    with (
        SessionApart(made("condition").SerializeToString(), SessionConfig(1, patience=0.2)) as session,
        pytest.raises(RuntimeRefusal, match=r"Loop 'y' goes on for more than 0.2 seconds"),
    ):
        session.run(FEED)


def test_seeded_values_get_less_patience_than_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "IMPATIENT", 0.2)
    monkeypatch.setattr(samples, "PATIENT", 0.3)
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(ENDLESS["condition"].replace("Less(s, h)", "Equal(s, s)")), path)
    with pytest.raises(ModelError, match=r"more than 0.2 seconds: give samples with --data"):
        onnxslim.optimize(path, bench=False)
    with pytest.raises(ModelError, match=r"more than 0.3 seconds"):
        onnxslim.optimize(path, data=Samples.from_feeds([FEED]), passes="exact", bench=False)
    with pytest.raises(ModelError, match=r"more than 0.3 seconds"):
        onnxslim.validate(path, path, Samples.from_feeds([FEED]))
    with pytest.raises(ModelError, match=r"measured: Loop 'y' goes on for more than 0.2 seconds"):
        onnxslim.bench([path])


def test_models_without_loops_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "run_limited", None)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { Loop = Relu(x) y = Neg(Loop) }'
    )
    assert Session(proto).run(ENDS)["y"].tolist() == [-1, -1, -1]


def test_weights_are_not_searched() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (uint8[4] x) => (uint8[4] y) { y = BitwiseAnd(x, w) }'
    )
    proto.graph.initializer.append(onnx.TensorProto(name="w", dims=[4], data_type=TensorProto.UINT8, raw_data=b"Loop"))
    data = proto.SerializeToString()
    assert loops_of(data) == ()
    assert loops_of(data.replace(b"BitwiseAnd", b"Loop" + b"Loopxx")) == ()  # no operator of that name
    assert loops_of(made("condition").SerializeToString()) == ("Loop 'y'",)


def test_loops_in_functions_and_files_are_found(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]> g (float[3] x) => (float[3] y) { y = mine.F(x) }
        <domain: "mine", opset_import: ["" : 17]> F (a) => (b) { b = Identity(a) }"""
    proto = onnx.parser.parse_model(text)
    loop = made("condition").graph.node[-1]
    proto.functions[0].node.append(loop)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert loops_of(tmp_path / "model.onnx") == ("Loop 'y'",)


def empty_body(trips: str, condition: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        HEAD + f"t = Constant<value = int64 {{3}}>() y = Loop({trips}, {condition}, x)" + BODY % "co = Identity(ci)"
    )
    body = proto.graph.node[-1].attribute[0].g
    del body.node[:]
    body.output[0].name, body.output[1].name = "ci", "v"
    return proto


@pytest.mark.parametrize(("trips", "condition"), [("", "c"), ("n", "c"), ("n", "")])
def test_a_body_without_nodes_must_be_bounded(trips: str, condition: str) -> None:
    with pytest.raises(ModelError, match="computes nothing"):
        Model.load(empty_body(trips, condition))


def test_a_body_of_constants_alone_is_a_body_without_nodes() -> None:
    proto = made("constant condition")
    body = proto.graph.node[-1].attribute[0].g
    body.output[1].name = "v"
    del body.node[1]
    with pytest.raises(ModelError, match="computes nothing"):
        Model.load(proto)
    body.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(False), ""))
    assert Session(Model.load(proto).proto()).run(FEED)["y"].tolist() == [0, 0, 0]


def test_a_bounded_body_without_nodes_runs() -> None:
    assert Session(Model.load(empty_body("t", "c")).proto()).run(ENDS)["y"].tolist() == [1, 1, 1]
