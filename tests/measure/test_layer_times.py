"""Rows of layers: every microsecond has a layer of the original, or was put there by the runtime; and all add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxslim
from onnxslim import Samples
from onnxslim.measure import RaceSettings, compare_latency
from onnxslim.measure.latency import Claim, claimed, ratio_with_interval
from onnxslim.measure.layer_times import Profiled, by_origin, heads_of, layer_table, origins_of
from onnxslim.runtime.profile import NodeTime

MODELS = Path(__file__).resolve().parents[2] / "models"


def graph_of(body: str) -> onnx.GraphProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,4] y) {{{body}}}'
    ).graph


PLAIN = "a = Relu(x) b = Abs(a) y = Neg(b)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (PLAIN, {"a": "a", "b": "b", "y": "y"}),
        ("s = Sin(x) t = Cos(s) a = Relu(t) b = Abs(a) y = Neg(b)", {"s": "a", "t": "a", "a": "a", "b": "b", "y": "y"}),
        ("a = Relu(x) n = Sin(a) y = Neg(n)", {"a": "a", "n": "y", "y": "y"}),
        ("a = Relu(x) b = Abs(a) y = Neg(b) dead = Sin(b)", {"a": "a", "b": "b", "y": "y", "dead": "b"}),
    ],
    ids=["the same", "stages of the first", "one merged away", "what nobody reads"],
)
def test_every_node_works_for_a_layer_of_the_original(body: str, expected: dict[str, str]) -> None:
    assert origins_of(graph_of(PLAIN), graph_of(body)) == expected


def times(*pairs: tuple[str | None, float]) -> list[NodeTime]:
    return [NodeTime(name or "put there", name, "Op", us) for name, us in pairs]


def test_what_a_kernel_of_the_original_swallowed_counts_for_that_kernel() -> None:
    """In the original Relu takes Abs in; in the candidate Abs has a kernel of its own."""
    reference = Profiled(graph_of(PLAIN), times(("a", 60.0), ("y", 40.0)), 100.0)
    candidate = Profiled(graph_of(PLAIN), times(("a", 10.0), ("b", 20.0), (None, 5.0), ("y", 15.0)), 50.0)
    rows = {row.node: row for row in by_origin(layer_table(reference, candidate))}
    assert {name: (row.reference_us, row.candidate_us) for name, row in rows.items()} == {
        "a": (60.0, 30.0), "y": (40.0, 15.0), "Op": (None, 5.0),
    }  # fmt: skip
    assert rows["a"].nodes == 2
    assert rows["Op"].origin is None


@pytest.mark.parametrize("named", ["a", "b", "s"])
def test_a_kernel_counts_for_its_weights_however_it_is_called(named: str) -> None:
    """A convolution, what follows it and a sum: one kernel, which x86 calls by its last node and ARM by its first."""
    graph = graph_of("r = Neg(x) a = Conv(x, r) b = Relu(a) s = Add(b, r) y = Neg(s)")
    heads = heads_of(graph, {"r", named, "y"})
    assert {name: heads[name] for name in ("r", "a", "b", "y")} == {"r": "r", "a": "a", "b": "a", "y": "y"}
    assert heads["s"] in ("a", "r")


def test_rows_add_up_to_times_without_the_profiler() -> None:
    reference = Profiled(graph_of(PLAIN), times(("a", 60.0), ("y", 60.0)), 100.0)
    candidate = Profiled(graph_of(PLAIN), times(("a", 30.0), (None, 30.0)), 50.0)
    rows = layer_table(reference, candidate)
    assert sum(row.reference_us or 0 for row in rows) == pytest.approx(100.0)
    assert sum(row.candidate_us or 0 for row in rows) == pytest.approx(50.0)
    assert sum(row.share or 0 for row in rows) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_layers_of_the_original_account_for_all_of_the_time(name: str) -> None:
    data = Samples.from_path(MODELS / "digits_calib.npz").take(40)
    passes = "prune-filters{ratio=0.2 samples=32},factor-low-rank{ratio=0.5 samples=32 clock=off},insert-qdq"
    made = onnxslim.optimize(MODELS / f"{name}.onnx", data=data, passes=passes, bench=False)
    original = onnx.load(MODELS / f"{name}.onnx")
    feed = {original.graph.input[0].name: next(iter(data.for_inputs(onnxslim.load(original).inputs))).feed.popitem()[1]}
    pair = [original.SerializeToString(), made.model.to_bytes()]
    (found,) = compare_latency(pair, feed, RaceSettings(seconds=0.5))
    assert found.candidate is not None
    layers = {output for node in original.graph.node for output in node.output}
    rows = by_origin(found.layers)
    assert {row.node for row in rows if row.origin is not None} <= layers
    for side, total in (("reference_us", found.reference), ("candidate_us", found.candidate)):
        assert sum(getattr(row, side) or 0 for row in rows) == pytest.approx(1e3 * total.p50_ms, rel=0.02)


# ---- claims ------------------------------------------------------------------------------------------------------


def raced(speedup: float, noise: float, seed: int, rounds: int = 60) -> tuple[Claim, float]:
    """Return the claim of a race of two models on a machine with drift and noise."""
    random = np.random.default_rng(seed)
    drift = 1 + 0.2 * np.sin(np.linspace(0, 6, rounds))
    reference, candidate, twin = (
        drift * base * random.lognormal(0, noise, rounds) for base in (10.0, 10.0 / speedup, 10.0)
    )
    even, _ = ratio_with_interval(reference, twin, seed)
    return claimed(reference, candidate, even, seed), even


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15])
def test_a_model_is_hardly_ever_faster_than_itself(noise: float) -> None:
    claims = [raced(1.0, noise, seed)[0] for seed in range(200)]
    assert sum(claim is not Claim.NOTHING for claim in claims) <= 4


def test_a_tenth_is_found_and_never_taken_for_the_opposite() -> None:
    claims = [raced(1 / 1.1, 0.05, seed)[0] for seed in range(100)]
    assert claims.count(Claim.FASTER) == 0
    assert claims.count(Claim.SLOWER) >= 90


def test_what_is_less_than_two_per_cent_is_no_claim() -> None:
    assert all(raced(1.015, 0.001, seed)[0] is Claim.NOTHING for seed in range(20))


def test_a_machine_that_differs_from_itself_proves_less() -> None:
    reference, candidate = np.full(30, 10.0), np.full(30, 9.5)
    assert claimed(reference, candidate, 1.0, 0) is Claim.FASTER
    assert claimed(reference, candidate, 1.06, 0) is Claim.NOTHING
    assert claimed(reference, candidate, 1 / 1.06, 0) is Claim.NOTHING
