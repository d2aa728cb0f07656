"""A session in another process answers as one here does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx.helper as oh
import pytest

from onnxslim.runtime import RuntimeRefusal, Session, SessionConfig
from onnxslim.runtime.apart import SessionApart, open_session, read_frame, write_frame


def model(op: str = "Relu") -> bytes:
    nodes = [oh.make_node(op, ["x"], ["y"]), oh.make_node("SequenceConstruct", ["x", "y"], ["s"])]
    inputs = [oh.make_tensor_value_info("x", 1, ["n", 3])]
    outputs = [
        oh.make_tensor_value_info("y", 1, ["n", 3]),
        oh.make_tensor_sequence_value_info("s", 1, None),
    ]
    return oh.make_model(oh.make_graph(nodes, "g", inputs, outputs), ir_version=10).SerializeToString()


@pytest.mark.parametrize("in_a_file", [False, True])
def test_outputs_are_the_same(tmp_path: Path, in_a_file: bool) -> None:
    data: bytes | Path = model()
    if in_a_file:
        data = tmp_path / "model.onnx"
        data.write_bytes(model())
    here = Session(model(), SessionConfig())
    with open_session(data, SessionConfig(), apart=True) as there:
        for count in (1, 4):
            feed = {"x": np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)}
            expected, found = here.run(feed), there.run(feed)
            np.testing.assert_array_equal(found["y"], expected["y"])
            assert len(found["s"]) == 2
            np.testing.assert_array_equal(found["s"][1], expected["s"][1])


def test_a_model_that_does_not_load_is_refused_with_the_runtime_s_reason() -> None:
    with pytest.raises(RuntimeRefusal, match="Nonsense"):
        SessionApart(model("Nonsense"))


def test_a_feed_that_does_not_fit_is_refused_with_the_runtime_s_reason() -> None:
    with SessionApart(model()) as session, pytest.raises(RuntimeRefusal, match="imension"):
        session.run({"x": np.zeros((1, 7), np.float32)})


def test_a_process_that_dies_is_no_hang() -> None:
    with SessionApart(model()) as session:
        session._process.kill()
        with pytest.raises(RuntimeRefusal, match="ended with -9"):
            session.run({"x": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6).reshape(2, 3),
        np.array(3.5),
        np.array(["a", "bc"], object),
        np.zeros((0, 2), bool),
        [np.ones(2)],
        [],
    ],
)
def test_frames_bring_values_over(value: Any) -> None:
    file = io.BytesIO()
    write_frame(file, {"v": value, "w": np.ones(1)})
    file.seek(0)
    found = read_frame(file)
    assert list(found) == ["v", "w"]
    assert isinstance(found["v"], list) == isinstance(value, list)
    np.testing.assert_array_equal(np.asarray(found["v"]), np.asarray(value))


def test_half_a_frame_is_an_end() -> None:
    file = io.BytesIO()
    write_frame(file, {"v": np.arange(1000)})
    for length in (0, 5, 60, len(file.getvalue()) - 1):
        with pytest.raises(EOFError):
            read_frame(io.BytesIO(file.getvalue()[:length]))
