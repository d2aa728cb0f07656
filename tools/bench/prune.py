"""Pruning without training: accuracy against MACs, beside plain L1 without repair and onnxsim at its best setting.

The folder holds networks and labelled images: ``cifar10/calib.npz``, ``cifar10/val.npz``, ``imagenet/calib``,
``imagenet/val``. Nothing that judges has calibrated.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lossy_worker import samples
from rows import Row, line, printed, work

import onnxslim
from onnxslim import Model

PEER = Path(__file__).with_name("prune_peer.py")


@dataclass(frozen=True)
class Case:
    """A network of the folder and what may be lost at which share of its MACs, in points."""

    model: str
    kind: str
    calibrate: int
    bars: tuple[tuple[float, float | None], ...]


CASES = (
    Case("resnet20_cifar10", "cifar10", 1024, ((0.9, None), (0.8, 3.0), (0.7, None), (0.6, None))),
    Case("resnet56_cifar10", "cifar10", 1024, ((0.85, None), (0.73, 2.0), (0.55, 6.0), (0.4, None))),
    Case("vgg11_cifar10", "cifar10", 1024, ((0.8, None), (0.6, 1.5), (0.4, None))),
    Case("googlenet_cifar10", "cifar10", 1024, ((0.85, None), (0.75, 2.0), (0.6, None))),
    Case("efficientnet_lite0", "imagenet", 200, ((0.9, 2.0), (0.8, 8.0), (0.7, None))),
)


def run(folder: Path, names: Sequence[str], peers: Path | None, options: str, picture: Path | None) -> int:
    """Print a row for each network and share of MACs; return 1 where one misses its bar."""
    header = (
        f"{'model':20}{'MACs':>6}{'kept':>7}{'base':>7}{'ours':>7}{'lost':>7}{'bar':>6}"
        f"{'L1':>7}{'onnxsim':>9}{'seconds':>9}{'GB':>6}{'speedup':>9}"
    )
    chosen = [case for case in CASES if not names or any(name in case.model for name in names)]
    rows = (row for case in chosen for row in _rows(case, folder, peers, options))
    missed = printed(header, rows, picture, "Pruning without training")
    print("\nlost: points of top-1 on images that did not calibrate; L1: the same MACs, no repair; onnxsim: its best")
    print(
        "setting of structured pruning (L2 or Wanda, ten sparsities) at no more MACs; speedup: one thread, interleaved"
    )
    return missed


def _rows(case: Case, folder: Path, peers: Path | None, options: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        exact = scratch / "exact.onnx"
        source = folder / f"{case.model}.onnx"
        onnxslim.optimize(source, bench=False).model.save(exact)
        common = {"zoo": str(folder), "kind": case.kind, "calibrate": case.calibrate, "model": str(exact)}
        common |= {"out": str(scratch / "out.onnx"), "exact": str(exact)}
        base = work({**common, "spec": None, "candidate": str(exact)})["accuracy"]
        theirs = _peer(case, folder, exact, scratch, peers, common) if peers is not None else []
        for share, bar in case.bars:
            ours = work({**common, "spec": f"prune-filters{{macs={share}{options}}}", "time": True})
            plain = work({**common, "spec": f"prune-filters{{macs={share} criterion=l1 repair=off multiple=1}}"})
            best = _best(theirs, share, common)
            yield _row(case.model, share, bar, base, ours, plain["accuracy"], best)


def _best(theirs: Sequence[dict[str, Any]], share: float, common: dict[str, Any]) -> float | None:
    """Return the accuracy of onnxsim's best setting at no more MACs, chosen on part of the images, judged on all."""
    able = [row for row in theirs if row["macs"] <= share + 0.01]
    if not able:
        return None
    chosen = max(able, key=lambda row: float(row["accuracy"]))
    return float(work({**common, "spec": None, "candidate": chosen["candidate"]})["accuracy"])


def _row(
    name: str, share: float, bar: float | None, base: float, ours: dict[str, Any], plain: float, best: float | None
) -> Row:
    lost = base - ours["accuracy"]
    cells = f"{name:20}{share:>6.0%}{ours['macs']:>7.1%}{base:>7.1f}{ours['accuracy']:>7.1f}{lost:>7.2f}"
    cells += f"{'' if bar is None else f'{bar:g}':>6}{plain:>7.1f}{'-' if best is None else f'{best:.1f}':>9}"
    cells += f"{ours['seconds']:>9.0f}{ours['rss_gb']:>6.1f}{ours['speedup']:>8.2f}x"
    quarter = lost <= max(0.25 * (base - plain), 0.0)
    beaten = best is None or ours["accuracy"] >= best
    notes = [
        text for good, text in ((quarter, "over a quarter of L1's loss"), (beaten, "onnxsim is better")) if not good
    ]
    notes += ours["refused"]
    missed = (bar is not None and lost > bar) or bool(notes)
    points = {"ours": (ours["macs"], ours["accuracy"]), "L1 without repair": (share, plain)}
    if best is not None:
        points["onnxsim"] = (share, best)
    return line(name, cells, missed, notes, points)


def _peer(
    case: Case, folder: Path, exact: Path, scratch: Path, peers: Path, common: dict[str, Any]
) -> list[dict[str, Any]]:
    calibration = samples(folder, case.kind, 32)[0].for_inputs(Model.load(exact).inputs)
    feeds = [next(iter(sample.feed.items())) for sample in calibration]
    name, images = feeds[0][0], np.concatenate([array for _, array in feeds])
    np.savez(scratch / "feeds.npz", allow_pickle=False, **{name: images})
    made = scratch / "onnxsim"
    made.mkdir()
    subprocess.run(
        [str(peers), str(PEER), str(exact), str(scratch / "feeds.npz"), str(made)], check=False, capture_output=True
    )
    rows = ({**common, "spec": None, "candidate": str(path), "judge": 500} for path in sorted(made.glob("*.onnx")))
    return [{**work(row), "candidate": row["candidate"]} for row in rows]
