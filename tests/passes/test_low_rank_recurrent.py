"""factor-low-rank on LSTM, GRU and RNN: the input matrix becomes a MatMul in front, the recurrent one stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.ir import Model, Rewriter
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import FactorLowRank, _form_clock, _rank_choice
from onnxslim.pipeline import Costs, PassContext
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.samples import Samples

Array = npt.NDArray[Any]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUTS, HIDDEN, RANK = 5, 2, 24, 6, 3


def recurrent(op: str, directions: int, *, rank: int | None = RANK, named: bool = True, layout: int = 0) -> Model:
    """A layer whose input matrix has ``rank``; ``named``: its first output, all steps, is the one that is read."""
    rng = np.random.default_rng(0)
    rows = GATES[op] * HIDDEN
    matrix = rng.normal(size=(directions * rows, INPUTS))
    if rank is not None:
        matrix = rng.normal(size=(directions * rows, rank)) @ rng.normal(size=(rank, INPUTS))
    weights = {
        "w": matrix.reshape(directions, rows, INPUTS) / INPUTS,
        "r": rng.normal(size=(directions, rows, HIDDEN)) / HIDDEN,
        "b": rng.normal(size=(directions, 2 * rows)),
    }
    attributes: dict[str, Any] = {"hidden_size": HIDDEN, "direction": "bidirectional" if directions == 2 else "forward"}
    if layout:
        attributes["layout"] = 1
    node = oh.make_node(op, ["x", "w", "r", "b"], ["y"] if named else ["", "y"], name="cell", **attributes)
    graph = oh.make_graph(
        [node],
        "g",
        [oh.make_tensor_value_info("x", 1, [BATCH, STEPS, INPUTS] if layout else [STEPS, BATCH, INPUTS])],
        [oh.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    return Model.load(onnx.shape_inference.infer_shapes(proto))


def feeds(model: Model, count: int) -> Samples:
    rng = np.random.default_rng(1)
    shape = tuple(int(size or 1) for size in model.inputs[0].shape or ())
    return Samples.from_feeds([{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)])


def factor(model: Model, options: FactorLowRank, samples: Samples | None) -> tuple[Model, Rewriter]:
    cost = model_cost(model, concrete_shapes(model))
    changed = model.copy()
    rewriter = Rewriter(changed)
    context = PassContext(samples=samples, baseline=Costs(cost.bytes, cost.params, cost.macs))
    options.run(rewriter, context)
    rewriter.finish()
    onnx.checker.check_model(changed.to_bytes(), full_check=True)
    return changed, rewriter


def outputs(model: Model, samples: Samples) -> Array:
    session = Session(model.to_bytes(), SessionConfig(1, Level.NONE))
    return np.stack([next(iter(session.run(sample.feed).values())) for sample in samples])


@pytest.mark.parametrize("fitted", [False, True], ids=["weights", "samples"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", sorted(GATES))
def test_a_matrix_of_low_rank_is_found(op: str, directions: int, fitted: bool) -> None:
    model = recurrent(op, directions)
    changed, _ = factor(model, FactorLowRank(rank=RANK, clock=Clock.OFF), feeds(model, 40) if fitted else None)
    assert [node.op for node in changed.graph.nodes] == ["MatMul", op]
    assert [list(node.inputs[1].shape) for node in changed.graph.nodes] == [
        [INPUTS, RANK],
        [directions, GATES[op] * HIDDEN, RANK],
    ]
    judges = feeds(model, 8)
    np.testing.assert_allclose(outputs(changed, judges), outputs(model, judges), atol=1e-5)


def test_what_is_lost_is_what_was_cut() -> None:
    model = recurrent("LSTM", 1, rank=None)
    judges = feeds(model, 8)
    lost = []
    for rank in (1, 4, 8):
        changed, _ = factor(model, FactorLowRank(rank=rank, clock=Clock.OFF), feeds(model, 40))
        lost.append(float(((outputs(changed, judges) - outputs(model, judges)) ** 2).mean()))
    assert lost[0] > lost[1] > lost[2] > 1e-6


def test_the_recurrent_weights_are_refused_with_their_reason() -> None:
    model = recurrent("GRU", 2)
    _, rewriter = factor(model, FactorLowRank(rank=RANK), None)
    assert [skipped.reason for skipped in rewriter.skipped] == ["its recurrent weights act inside the operator"]


def test_the_last_state_alone_may_be_read() -> None:
    model = recurrent("LSTM", 1, named=False)
    changed, _ = factor(model, FactorLowRank(rank=RANK, clock=Clock.OFF), feeds(model, 20))
    assert [node.op for node in changed.graph.nodes] == ["MatMul", "LSTM"]
    judges = feeds(model, 4)
    np.testing.assert_allclose(outputs(changed, judges), outputs(model, judges), atol=1e-5)


def test_macs_and_bytes_count_the_input_matrix() -> None:
    model = recurrent("LSTM", 1)
    whole = model_cost(model, concrete_shapes(model))
    own, beside = GATES["LSTM"] * HIDDEN * INPUTS, GATES["LSTM"] * HIDDEN * HIDDEN
    assert whole.macs == STEPS * BATCH * (own + beside)
    changed, _ = factor(model, FactorLowRank(macs=0.6, multiple=1, clock=Clock.OFF), None)
    left = model_cost(changed, concrete_shapes(changed)).macs
    assert left is not None
    assert 0.4 * whole.macs < left <= 0.6 * whole.macs


def test_shares_are_of_the_whole_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time and MACs of the recurrent weights count too: what is timed is a node that has them."""
    model = recurrent("LSTM", 1)
    context = PassContext(feed=next(iter(feeds(model, 1))).feed)
    timed: list[bytes] = []

    def shares(models: list[bytes], *_: Any) -> list[float]:
        timed.extend(models)
        return [1.0, 0.1]

    monkeypatch.setattr(_form_clock, "time_shares", shares)
    monkeypatch.setattr(_rank_choice, "time_shares", shares)
    (layer,) = FactorLowRank(rank=RANK).plan(model, context).layers
    own, beside = GATES["LSTM"] * HIDDEN * INPUTS, GATES["LSTM"] * HIDDEN * HIDDEN
    assert layer.macs == pytest.approx((RANK * (INPUTS + GATES["LSTM"] * HIDDEN) + beside) / (own + beside), abs=1e-3)
    assert layer.time == 0.1
    alone, split = (onnx.load_model_from_string(each) for each in timed[:2])
    assert [[node.op_type for node in each.graph.node] for each in (alone, split)] == [["LSTM"], ["MatMul", "LSTM"]]
    for each in (alone, split):
        Session(each.SerializeToString()).run({"x": next(iter((context.feed or {}).values()))})


@pytest.mark.parametrize(
    ("name", "reason"),
    [("w", "its weight is an input or computed, not constant"), ("r", "its recurrent weight is computed")],
)
def test_computed_weights_stay(name: str, reason: str) -> None:
    proto = recurrent("LSTM", 1).proto()
    kept = [value for value in proto.graph.initializer if value.name != name]
    gone = next(value for value in proto.graph.initializer if value.name == name)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.append(oh.make_tensor_value_info(name, 1, list(gone.dims)))
    _, rewriter = factor(Model.load(proto), FactorLowRank(rank=RANK), None)
    assert reason in [skipped.reason for skipped in rewriter.skipped]


def test_weights_that_are_not_finite_stay() -> None:
    proto = recurrent("LSTM", 1).proto()
    weight = next(value for value in proto.graph.initializer if value.name == "w")
    broken = numpy_helper.to_array(weight).copy()
    broken[0, 0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(broken, "w"))
    _, rewriter = factor(Model.load(proto), FactorLowRank(rank=RANK), None)
    assert "its weight holds NaN or Inf" in [skipped.reason for skipped in rewriter.skipped]
