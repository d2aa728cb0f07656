"""Low rank without training: accuracy against MACs, beside plain truncated SVD of the weights at the same MACs.

The folder is that of ``prune``. Rows with the clock off show what the factors keep; rows with it on show what a form
must win in time to be used, and where that ends. Nothing that judges has calibrated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plot
from prune import Row, work

import onnxslim
from onnxslim.ir import Constant, constant_bytes


@dataclass(frozen=True)
class Case:
    """A network of the folder, options for some of its layers, and what may be lost at which goal, in points."""

    model: str
    kind: str
    calibrate: int
    goals: tuple[tuple[str, float | None], ...]


CASES = (
    Case(
        "vgg11_cifar10",
        "cifar10",
        1024,
        (
            ("macs=0.75 clock=off", None),
            ("macs=0.5 clock=off", 1.0),
            ("macs=0.35 clock=off", None),
            ("macs=0.25 clock=off", 4.0),
            ("macs=0.75", None),
            ("macs=0.5", None),
            ("bytes={dense} only=*Gemm* clock=off", 0.3),
        ),
    ),
    Case(
        "resnet56_cifar10",
        "cifar10",
        1024,
        (
            ("macs=0.85 clock=off", None),
            ("macs=0.75 clock=off", 2.0),
            ("macs=0.6 clock=off", None),
            ("macs=0.85", None),
        ),
    ),
    Case("efficientnet_lite0", "imagenet", 200, (("macs=0.95 clock=off", None), ("macs=0.95", None))),
)


def run(folder: Path, names: Sequence[str], picture: Path | None) -> int:
    """Print a row for each network and goal; return 1 where one misses its bar."""
    header = (
        f"{'model':20}{'goal':36}{'MACs':>7}{'bytes':>7}{'base':>7}{'ours':>7}{'lost':>7}{'bar':>6}{'plain':>7}"
        f"{'layers':>8}{'seconds':>9}{'speedup':>9}"
    )
    print(header + "\n" + "-" * len(header), flush=True)
    missed = 0
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for case in CASES:
        if not names or any(name in case.model for name in names):
            for row in _rows(case, folder):
                print(row.text, flush=True)
                missed += row.missed
                for tool, point in row.points.items():
                    charts.setdefault(case.model, {}).setdefault(tool, []).append(point)
    if picture is not None:
        plot.write(picture, "Low rank without training", charts)
    print("\nlost: points of top-1 on images that did not calibrate; plain: truncated SVD of the weights, channel form")
    print("speedup: one thread, interleaved; a goal out of reach says what can be reached")
    return int(missed > 0)


def _rows(case: Case, folder: Path) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        exact = scratch / "exact.onnx"
        simplified = onnxslim.optimize(folder / f"{case.model}.onnx", bench=False).model
        simplified.save(exact)
        common: dict[str, Any] = {"zoo": str(folder), "kind": case.kind, "model": str(exact), "exact": str(exact)}
        common |= {"out": str(scratch / "out.onnx"), "calibrate": case.calibrate}
        base = work({**common, "spec": None, "candidate": str(exact)})["accuracy"]
        weights = [node.inputs[1] for node in simplified.graph.nodes if node.op == "Gemm"]
        dense = sum(constant_bytes(weight) for weight in weights if isinstance(weight, Constant))
        whole = simplified.weight_bytes()
        for goal, bar in case.goals:
            wanted = goal.format(dense=round(1 - 0.9 * dense / whole, 4))
            ours = work({**common, "spec": f"factor-low-rank{{{wanted}}}", "time": True})
            budget = " ".join(part for part in wanted.split() if not part.startswith("clock"))
            plainly = f"factor-low-rank{{{budget} scheme=channel clock=off}}"
            plain = work({**common, "spec": plainly, "calibrate": 0})
            yield _row(case, wanted, bar, base, ours, plain)


def _row(case: Case, goal: str, bar: float | None, base: float, ours: dict[str, Any], plain: dict[str, Any]) -> Row:
    lost, without = base - ours["accuracy"], base - plain["accuracy"]
    layers = sum(len(plan["layers"]) for plan in ours["plans"])
    compared = not ours["refused"] and not plain["refused"]
    cells = f"{case.model:20}{goal:36}{ours['macs']:>7.1%}{ours['size'] / ours['original']:>7.1%}{base:>7.1f}"
    cells += f"{ours['accuracy']:>7.1f}{lost:>7.2f}{'' if bar is None else f'{bar:g}':>6}"
    cells += f"{without if compared else float('nan'):>7.1f}{layers:>8}{ours['seconds']:>9.0f}{ours['speedup']:>8.2f}x"
    notes = list(ours["refused"])
    if compared and lost > max(without / 3, 0.0):
        notes.append("over a third of what plain SVD loses")
    missed = bar is not None and (lost > bar or bool(notes))
    points = {"fitted" if "clock=off" in goal else "fitted, timed": (ours["macs"], ours["accuracy"])}
    if compared:
        points["plain SVD"] = (plain["macs"], plain["accuracy"])
    return Row(cells + ("  MISSED" if missed else "") + ("  " + "; ".join(notes) if notes else ""), missed, points)
