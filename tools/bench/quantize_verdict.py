"""What ``quantize`` finds of an arm, and whether that meets its bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from quantize_arms import Arm, Bar, Tool, rivals
from quantize_data import SEED, Case

from onnxslim.measure import Comparison

DRAWS = 2000
Finding = tuple[bool, str]
"""Whether a bar is missed, and what there is to say about it."""

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Made:
    """A quantized file and what it took: seconds of the work itself, of imports and of reading images; peak memory."""

    path: Path
    seconds: float
    imports: float
    loading: float
    gb: float

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Judged:
    """A model's outputs against float's on the images that did not calibrate.

    Args:
        right: which images were classified rightly; None without labels.
        agreement: how often top-1 is float's; None where outputs are no scores.
        sqnr_db: of the worst output.
    """

    right: Right | None
    agreement: float | None
    sqnr_db: float

    @property
    def top1(self) -> float | None:
        """Percent of images classified rightly."""
        return None if self.right is None else 100 * float(self.right.mean())


@dataclass(frozen=True)
class Floating:
    """What everything is compared to: the float file's bytes, and its outputs on the images that judge."""

    bytes: int
    outputs: Path
    judged: Judged


@dataclass(frozen=True)
class Result:
    """One arm on one network."""

    arm: Arm
    made: Made
    judged: Judged


def judged(floating: Path, candidate: Path, evaluation: Path) -> Judged:
    """Compare two files of outputs."""
    with np.load(evaluation, allow_pickle=False) as archive:
        labels = archive["labels"] if "labels" in archive.files else None
    with np.load(floating, allow_pickle=False) as ours, np.load(candidate, allow_pickle=False) as theirs:
        reference, outputs = ({name: side[name] for name in side.files} for side in (ours, theirs))
    comparison = Comparison()
    for index in range(len(next(iter(reference.values())))):
        rows = [{name: array[index : index + 1] for name, array in side.items()} for side in (reference, outputs)]
        comparison.add(*rows)
    numerics = comparison.result()
    right = None if labels is None else _first(outputs).argmax(axis=-1) == labels
    sqnr = min(output.sqnr_db if output.sqnr_db is not None else -np.inf for output in numerics)
    return Judged(right, None if labels is None else numerics[0].top1_agreement, float(sqnr))


def _first(outputs: dict[str, Any]) -> npt.NDArray[np.float32]:
    scores = next(iter(outputs.values()))
    return np.asarray(scores).reshape(len(scores), -1)


def paired_interval(ours: Right, theirs: Right) -> tuple[float, float]:
    """Return the 95 % interval of the difference ours - theirs in points: a bootstrap of the images, in pairs.

    Differences are -1, 0 or 1, so that drawing images is drawing how many there are of each.
    """
    difference = ours.astype(int) - theirs.astype(int)
    shares = [float((difference == value).mean()) for value in (-1, 0, 1)]
    draws = np.random.default_rng(SEED).multinomial(len(difference), shares, DRAWS)
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / len(difference), (0.025, 0.975))
    return 100 * float(low), 100 * float(high)


def findings(case: Case, result: Result, base: Floating, peers: Sequence[Result]) -> Iterator[Finding]:
    """Yield what is to be said about the bars that need no clock; nothing about those that are simply met."""
    bars = result.arm.bars
    rivalry = [peer for peer in peers if peer.arm.name in rivals(result.arm)]
    if Bar.LOSS in bars:
        yield from _loss(_limits(case, result.arm), result.judged, base.judged.right)
    if Bar.BYTES in bars:
        yield from _bytes(case, result, base, rivalry)
    if not rivalry and bars & {Bar.SQNR, Bar.PEER}:
        yield False, "no peer to compare with"
    if Bar.SQNR in bars and rivalry:
        best = max(rivalry, key=lambda peer: peer.judged.sqnr_db)
        if result.judged.sqnr_db < best.judged.sqnr_db:
            yield True, f"{best.judged.sqnr_db:.1f} dB by {best.arm.name}"
    if Bar.PEER in bars and result.judged.right is not None:
        yield from _beside(result.judged.right, rivalry)


def _limits(case: Case, arm: Arm) -> Case:
    """Return the case with the arm's own limit, if it has one."""
    return case if arm.points is None else replace(case, points=arm.points[case.model], close=None, decibels=None)


def _loss(case: Case, found: Judged, base: Right | None) -> Iterator[Finding]:
    if case.decibels is not None and found.sqnr_db < case.decibels:
        yield True, f"under {case.decibels:g} dB"
    if case.points is None or found.right is None or base is None:
        return
    lost = 100 * float(base.mean() - found.right.mean())
    if lost <= case.points:
        return
    if case.close is not None and lost <= case.close[0] and (found.agreement or 0.0) >= case.close[1]:
        yield False, f"over {case.points:g} points, and close to float"
        return
    yield True, f"loses {lost:.2f} points, {case.points:g} allowed"


def _bytes(case: Case, result: Result, base: Floating, peers: Sequence[Result]) -> Iterator[Finding]:
    """Hold the file to its share of float's, or to the smallest of onnxruntime's of the same grain."""
    size, grain = result.made.bytes, result.arm.grain
    if case.size is not None:
        if size > case.size * base.bytes:
            yield True, f"{size / base.bytes:.1%} of float's bytes, {case.size:.0%} allowed"
        return
    theirs = [peer.made.bytes for peer in peers if peer.arm.tool is Tool.ONNXRUNTIME and peer.arm.grain is grain]
    if not theirs:
        yield False, "no file of onnxruntime's to compare with"
    elif size > min(theirs):
        yield True, f"{size:,} bytes, onnxruntime's {min(theirs):,}"


def _beside(right: Right, peers: Sequence[Result]) -> Iterator[Finding]:
    """Compare to the peer that classifies best."""
    able = [(peer.arm.name, peer.judged.right) for peer in peers if peer.judged.right is not None]
    if able:
        name, theirs = max(able, key=lambda pair: float(pair[1].mean()))
        low, high = paired_interval(right, theirs)
        yield high < 0, f"[{low:+.2f}, {high:+.2f}] beside {name}"
