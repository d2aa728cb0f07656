"""Low rank without training: what is lost against MACs, beside plain truncated SVD of the weights at the same MACs.

The folder is that of ``prune``. Rows with the clock off show what the factors keep; rows with it on show what a form
must win in time to be used, and where that ends. Nothing that judges has calibrated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossy_worker import samples
from rows import Row, cell, line, printed, work

import onnxslim
from onnxslim.ir import Constant, Model, constant_bytes


@dataclass(frozen=True)
class Case:
    """A network of the folder, options for some of its layers, and a bar for each: the most points of top-1 that may be
    lost, or where there are no labels, the least decibels of the outputs' SQNR.
    """

    model: str
    kind: str
    calibrate: int
    goals: tuple[tuple[str, float | None], ...]

    @property
    def is_labelled(self) -> bool:
        """Whether accuracy judges."""
        return self.kind != "pages"


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
            ("macs=0.35", None),
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
            ("macs=0.9", None),
            ("macs=0.75", None),
        ),
    ),
    Case("googlenet_cifar10", "cifar10", 1024, (("macs=0.75 clock=off", None), ("macs=0.75", None))),
    Case(
        "efficientnet_lite0",
        "imagenet",
        200,
        (("energy=0.995", 0.5), ("macs=0.95 clock=off", None), ("macs=0.95", None)),
    ),
    Case(
        "ppocrv4_det", "pages", 100, (("macs=0.85 clock=off", 25.0), ("macs=0.95 clock=off", None), ("macs=0.95", None))
    ),
)

LEGEND = """
lost: points of top-1 on images that did not calibrate, or dB of SQNR where there are no labels
plain: the same of truncated SVD of the weights, channel form, at the same MACs
speedup: one thread, interleaved
least, whole: saved time by saved MACs, of the layer that wins least and of the model; 0.6 is wanted with the clock on
a goal out of reach says what can be reached"""


def run(folder: Path, names: Sequence[str], picture: Path | None) -> int:
    """Print a row for each network and goal; return 1 where one misses its bar."""
    header = (
        f"{'model':20}{'goal':36}{'MACs':>7}{'bytes':>7}{'base':>7}{'ours':>7}{'lost':>7}{'bar':>6}{'plain':>7}"
        f"{'layers':>8}{'seconds':>9}{'GB':>6}{'speedup':>9}{'least':>7}{'whole':>7}"
    )
    chosen = [case for case in CASES if not names or any(name in case.model for name in names)]
    rows = (row for case in chosen for row in _rows(case, folder))
    missed = printed(header, rows, picture, "Low rank without training")
    print(LEGEND)
    return missed


def _rows(case: Case, folder: Path) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        exact = scratch / "exact.onnx"
        few = samples(folder, case.kind, 4)[0]
        simplified = onnxslim.optimize(folder / f"{case.model}.onnx", few, passes="exact", bench=False).model
        simplified.save(exact)
        common: dict[str, Any] = {"zoo": str(folder), "kind": case.kind, "model": str(exact), "exact": str(exact)}
        common |= {"out": str(scratch / "out.onnx"), "calibrate": case.calibrate}
        base = work({**common, "spec": None, "candidate": str(exact)})["accuracy"] if case.is_labelled else None
        for goal, bar in case.goals:
            wanted = goal.format(dense=_dense_at_a_tenth(simplified)) if "{" in goal else goal
            ours = work({**common, "spec": f"factor-low-rank{{{wanted}}}", "time": True})
            budget = " ".join(part for part in wanted.split() if not part.startswith("clock"))
            plainly = f"factor-low-rank{{{budget} scheme=channel clock=off}}"
            plain = None if "energy" in wanted else work({**common, "spec": plainly, "calibrate": 0})
            yield _row(case, wanted, bar, base, ours, plain)


def _dense_at_a_tenth(model: Model) -> float:
    """Return the share of all bytes that remains where fully connected layers keep a tenth of theirs."""
    weights = [node.inputs[1] for node in model.graph.nodes if node.op == "Gemm"]
    dense = sum(constant_bytes(weight) for weight in weights if isinstance(weight, Constant))
    return round(1 - 0.9 * dense / model.weight_bytes(), 4)


def _row(
    case: Case, goal: str, bar: float | None, base: float | None, ours: dict[str, Any], plain: dict[str, Any] | None
) -> Row:
    lost = _loss(ours, base)
    without = None if plain is None or ours["refused"] or plain["refused"] else _loss(plain, base)
    layers = [layer for plan in ours["plans"] for layer in plan["layers"]]
    cells = f"{case.model:20}{goal:36}{ours['macs']:>7.1%}{ours['size'] / ours['original']:>7.1%}"
    cells += cell(base, 7, ".1f") + cell(ours.get("accuracy"), 7, ".1f") + f"{lost:>7.2f}"
    cells += f"{'' if bar is None else f'{bar:g}':>6}" + cell(without, 7, ".1f")
    cells += f"{len(layers):>8}{ours['seconds']:>9.0f}{ours['rss_gb']:>6.1f}{ours['speedup']:>8.2f}x"
    cells += _paid(ours, layers)
    notes = list(ours["refused"])
    if without is not None and not _is_a_third(lost, without, base):
        notes.append("over a third of what plain SVD loses")
    beyond = bar is not None and (lost > bar if base is not None else lost < bar)
    missed = bar is not None and (beyond or (bool(notes) and "clock=off" in goal))
    good = ours["accuracy"] if base is not None else lost
    points = {"fitted" if "clock=off" in goal else "fitted, timed": (ours["macs"], good)}
    if plain is not None and without is not None:
        points["plain SVD"] = (plain["macs"], plain["accuracy"] if base is not None else without)
    return line(case.model, cells, missed, notes, points)


def _loss(found: dict[str, Any], base: float | None) -> float:
    return float(found["sqnr_db"] if base is None else base - found["accuracy"])


def _is_a_third(lost: float, without: float, base: float | None) -> bool:
    """Whether so many points, or so much noise in decibels, are a third at most."""
    return lost <= max(without / 3, 0.0) if base is not None else lost >= without + 4.77


def _paid(ours: dict[str, Any], layers: Sequence[dict[str, Any]]) -> str:
    """Return saved time by saved MACs: the least of the timed layers, and the model's."""
    timed = [(1 - layer["time"]) / (1 - layer["macs"]) for layer in layers if layer["time"] is not None]
    whole = (1 - 1 / ours["speedup"]) / (1 - ours["macs"]) if ours["macs"] < 1 else None
    return cell(min(timed, default=None), 7, ".2f") + cell(whole, 7, ".2f")
