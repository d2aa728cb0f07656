"""From records and a profile to rows of layers: what is counted twice, renamed, nested or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.devices.arm import BETWEEN, layer_counts
from onnxslim.devices.arm_counts import EPOCH, Counted, Event, Log, counted, instructions_at, read_events
from onnxslim.devices.arm_kinds import KINDS, Kind, kind_of, table
from onnxslim.devices.arm_overhead import LARGEST_FACTOR, Overhead, probes
from onnxslim.errors import DeviceError

WORDS = {
    # as objdump of GNU binutils 2.40 decodes them
    Kind.DOT: (0x4E9A979F, 0x6E9A979F, 0x6F8EE262, 0x4F82F039, 0x4E9A9F9F),
    Kind.MMLA: (0x4E84A510, 0x6E84A510, 0x4E84AE10, 0x6E44ED10),
    Kind.FMA: (0x4E7ECCFF, 0x4EF1CFFE, 0x4F811000, 0x1F1B735F, 0x1F1EF71D, 0x1F7EFD4A, 0x4E410C00),
    Kind.MLA: (0x4EBC97FD, 0x4EBD9FFF, 0x0E7D839F, 0x0E62C083, 0x2E3BC3DC, 0x2F422010),
    Kind.LOAD: (0xF9400000, 0xA9400000, 0x3DC00000, 0x4C407000, 0x4D40C800, 0x58000000, 0xB8200000, 0xC85F7C00),
    Kind.STORE: (0xF9000000, 0xA9000000, 0x3D800000, 0x3C9F0000, 0x4C007000, 0xC8007C00, 0x38001400),
    Kind.BRANCH: (0x14000000, 0x94000000, 0x54000000, 0xB4000000, 0xD65F03C0, 0xD503201F, 0x36000000),
    Kind.ALU: (0x8B010000, 0x91000400, 0x9B010000, 0xD2800000, 0xAA0103E0, 0x9AC10800),
    Kind.SIMD: (0x4E21D400, 0x6E21DC00, 0x4F000400, 0x1E204000, 0x04A00000, 0x4EA11C00, 0x6E606800),
}
"""sdot udot udot[] usdot[] usdot; smmla ummla usmmla bfmmla; fmla fmls fmla[] fmadd fmsub fnmsub fmla.8h; …"""


@pytest.mark.parametrize("kind", KINDS)
def test_instructions_are_known_by_their_words(kind: Kind) -> None:
    assert {hex(word): kind_of(word) for word in WORDS[kind]} == dict.fromkeys(map(hex, WORDS[kind]), kind)


def test_the_compiled_table_is_that_of_the_rules_and_its_last_fits_all() -> None:
    lines = table().splitlines()
    assert lines[0] == f"#define CLASSES {len(KINDS)}"
    assert lines[-2].strip() == "{0x00000000, 0x00000000, 0},"


def test_the_clock_starts_at_its_epoch() -> None:
    assert instructions_at(EPOCH) == 0
    assert instructions_at(EPOCH + 5_000) == 5


def log_of(totals: list[int]) -> Log:
    """Return records in which all but a tenth is ALU, the rest loads."""
    records = np.zeros((len(totals), 1 + len(KINDS)), np.uint64)
    for record, total in zip(records, totals, strict=True):
        load = total // 10
        record[0], record[1 + KINDS.index(Kind.ALU)], record[1 + KINDS.index(Kind.LOAD)] = total, total - load, load
    return Log(records)


def test_what_lies_between_two_readings_is_told_by_kind(tmp_path: Path) -> None:
    spent = log_of([100, 250, 900]).between(100, 900)
    assert (spent[KINDS.index(Kind.ALU)], spent[KINDS.index(Kind.LOAD)], spent.sum()) == (720, 80, 800)
    words = np.array([7, 7, *[0] * (len(KINDS) - 1), 9, 9, *[0] * (len(KINDS) - 1), 1, 2], "<u8")
    words.tofile(tmp_path / "log")  # ends within a record, as on a full disk
    assert Log.read(tmp_path / "log").between(7, 9).sum() == 2


@pytest.mark.parametrize("reading", [0, 101, 1000])
def test_a_clock_that_was_not_read_then_is_an_error(reading: int) -> None:
    with pytest.raises(DeviceError, match=r"do not go together: make room") as caught:
        log_of([100, 900]).between(reading, 900)
    assert str(caught.value).count("\n") == 0


def node(name: str, start: int, length: int, op: str = "Conv", shapes: int = 2) -> dict[str, Any]:
    arguments = {"op_name": op, "input_type_shape": [{"float": [1, 2]}] * (shapes - 1), "output_type_shape": [{}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": length, "args": arguments}


PROFILE = [
    {"cat": "Session", "name": "model_run", "ts": 0, "dur": 1000, "args": {}},
    node("late", 700, 50),
    node("loop", 100, 500, "Loop", 4),
    node("in loop", 150, 100),
    node("in loop", 300, 100),
    {"cat": "Node", "name": "loop_fence_before", "ts": 99, "dur": 0, "args": {"op_name": "Loop"}},
]


def test_nodes_of_subgraphs_belong_to_theirs() -> None:
    events = read_events(json.dumps(PROFILE), began=10_000)
    assert [(event.name, event.start, event.end, len(event.inner)) for event in events] == [
        ("loop", 10_100, 10_600, 2),
        ("late", 10_700, 10_750, 0),
    ]
    assert events[0].tensors == 4
    assert events[0].characters == len(json.dumps([*[{"float": [1, 2]}] * 3, {}]))


def clock(count: int) -> int:
    return EPOCH + count * 1000


def test_the_last_profiled_run_and_the_least_other_one_count() -> None:
    totals = [0, 400, 500, 520, 620, 900, 1000, 1090, 1100, 1195]
    found = {
        "profiled": [[clock(0), clock(400)], [clock(500), clock(900)]],
        "plain": [[clock(1000), clock(1100)], [clock(1100), clock(1195)]],
        "began": clock(0),
    }
    text = json.dumps([node("a", 10, 50), node("a", 520, 100)])
    result = counted(log_of(totals), found, text)
    assert (result.profiled.sum(), result.plain.sum()) == (400, 95)
    assert [event.start for event in result.events] == [520]
    assert result.spent[0].sum() == 100
    assert (result.nodes, result.tensors) == (1, 2)


RATES = {"run": 5_000.0, "node": 20_000.0, "tensor": 1_500.0, "character": 30.0}
AFTER = 6_000.0
"""What the profiler of these tests costs, and how much of a node's comes after its time."""


def vector(count: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    spent = np.zeros(len(KINDS))
    spent[0], spent[1] = count * 0.75, count * 0.25
    return spent


def profiler(event: Event) -> float:
    return RATES["node"] + RATES["tensor"] * event.tensors + RATES["character"] * event.characters


def run_of(kernels: list[float], tensors: int, characters: int, *, scale: float = 1.0) -> Counted:
    """Return what a run is counted as whose nodes take ``kernels``, and 100 between each two."""
    events, spent, at = [], [], 0.0
    for index, kernel in enumerate(kernels):
        event = Event(f"n{index}", "Conv", 0, 0, tensors, characters)
        inside = kernel + scale * (profiler(event) - AFTER)
        events.append(Event(event.name, "Conv", int(at), int(at + inside), tensors, characters))
        spent.append(vector(inside))
        at += inside + AFTER + 100
    plain = sum(kernels) + 100 * len(kernels)
    added = scale * (RATES["run"] + sum(map(profiler, events)))
    return Counted(vector(plain + added), vector(plain), tuple(events), tuple(spent))


def overhead() -> Overhead:
    return Overhead.fit(
        [run_of([0] * 4, 2, 20), run_of([0] * 40, 2, 20), run_of([0] * 40, 2, 60), run_of([0] * 24, 9, 90)]
    )


def test_probes_tell_the_terms_apart() -> None:
    graphs = [probe.graph for probe in probes()]
    features = np.array([[1, len(g.node), sum(len(n.input) + 1 for n in g.node)] for g in graphs])
    assert np.linalg.matrix_rank(features) == 3
    assert [len(g.input) for g in graphs] == [1] * 4


@pytest.mark.parametrize("scale", [1.0, 1.04])
def test_the_profilers_own_work_is_taken_off(scale: float) -> None:
    run = run_of([50_000, 200_000, 3_000], 4, 70, scale=scale)
    rows = layer_counts(run, overhead().suiting(run), frozenset({"n0", "n2"}))
    assert [row.node for row in rows] == ["n0", "n1", "n2", BETWEEN]
    assert [row.instructions for row in rows] == pytest.approx([50_000, 200_000, 3_000, 300], abs=1_100)
    assert sum(row.instructions for row in rows) == pytest.approx(run.plain.sum(), rel=0.02)
    assert [row.origin for row in rows] == ["n0", None, "n2", None]
    for row in rows:
        assert sum(row.classes.values()) == row.instructions
        assert list(row.classes) == [kind.value for kind in KINDS]


def test_a_row_is_never_negative() -> None:
    run = run_of([0, 900_000], 4, 500)
    broken = Counted(run.profiled, run.plain, run.events, (vector(10), *run.spent[1:]))
    assert layer_counts(broken, overhead().suiting(broken), frozenset())[0].instructions == 0


def test_where_a_run_varies_by_more_than_all_overhead_the_probes_are_believed() -> None:
    run = run_of([5e9], 4, 70)
    noisy = Counted(run.profiled, run.plain - vector(3e6), run.events, run.spent)
    fitted = overhead()
    factor = fitted.suiting(noisy).of_run(run).sum() / fitted.of_run(run).sum()
    assert factor == pytest.approx(LARGEST_FACTOR)


def test_what_the_runtime_renamed_is_found_and_what_it_inserted_is_not() -> None:
    run = run_of([10_000] * 4, 2, 30)
    names = ["conv_out_nchwc", "y_token_12", "ReorderInput_token_3", "relu"]
    events = tuple(
        Event(name, "Conv", e.start, e.end, e.tensors, e.characters) for name, e in zip(names, run.events, strict=True)
    )
    renamed = Counted(run.profiled, run.plain, events, run.spent)
    rows = layer_counts(renamed, overhead(), frozenset({"conv_out", "y", "relu"}))
    assert [row.origin for row in rows[:-1]] == ["conv_out", "y", None, "relu"]


def test_profiling_nodes_of_subgraphs_is_taken_off_the_outer_node() -> None:
    fitted = overhead()
    inner = Event("i", "Mul", 10, 20, 3, 40)
    outer = Event("l", "Loop", 0, 100, 4, 70, (inner, inner))
    alone = Event("l", "Loop", 0, 100, 4, 70)
    assert (fitted.of_node(outer) - fitted.of_node(alone)).sum() == pytest.approx(2 * profiler(inner))
