"""Quantization: accuracy, size and seconds of our int8 beside onnxruntime's and NNCF's, judged alike.

The folder holds networks and images, as for ``prune``. Every tool gets the same calibration arrays; nothing that judges
has calibrated. All models are judged by the operators' definition, so that no CPU's integer kernels tell them apart.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import quantize_data
from quantize_arms import CLOCKED, OURS, PEERS, Arm, Bar, Tool
from quantize_data import Case
from quantize_race import race
from quantize_verdict import Finding, Floating, Made, Result, findings, judged, paired_interval
from rows import cell

from onnxslim import Model

WORKER = Path(__file__).with_name("quantize_worker.py")
PEER = Path(__file__).with_name("quantize_peer.py")
PATIENCE = 500.0
"""Seconds that one arm may take."""

CLEAR, AGAIN = 0.7, 2
"""Seconds of up to this share of the other's are fewer, whatever the neighbours do; otherwise so many more runs."""

FEW, MANY = 100, 1000
GROWTH = 1.1
"""What peak memory may grow by from few samples to many."""

LEGEND = """
drop: points of top-1 lost against float on images that did not calibrate, with the 95 % interval of a paired bootstrap
agree: how often top-1 is float's; dB: SQNR of the worst output; size: of the float file's bytes
seconds: calibration and quantization, files included, with each tool's own choice of threads; imports and reading
images come on top; GB: peak memory of that process. Ours is shown beside the peer that classifies best, in points"""


@dataclass(frozen=True)
class Wish:
    """What to measure besides accuracy."""

    more_arms: bool = False
    time: bool = False
    memory: bool = False
    arms: tuple[str, ...] = ()
    """Of ours, those with these names; all where there are none."""


class ArmFailed(Exception):
    """A process that quantizes or judges gave up; the message is its last line."""


def run(folder: Path, names: Sequence[str], pythons: Mapping[Tool, Path | str], wish: Wish) -> int:
    """Print a row for each network and arm; return 1 where a bar is missed.

    Args:
        pythons: of the peers that take part; a text says why one is absent.
    """
    header = (
        f"{'model':20}{'arm':26}{'top-1':>7}{'drop':>7}{'':>17}{'agree':>7}{'dB':>7}{'size':>7}"
        f"{'seconds':>9}{'imports':>9}{'reading':>9}{'GB':>6}"
    )
    print(header + "\n" + "-" * len(header), flush=True)
    missed = 0
    for case in quantize_data.cases(folder):
        model = case if isinstance(case, str) else case.model
        if names and not any(name in model for name in names):
            continue
        if isinstance(case, str):
            print(case, flush=True)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            missed += sum(_Bench(case, folder, Path(scratch), pythons, wish).rows())
    print(LEGEND)
    print(f"\n{missed} missed")
    return int(missed > 0)


class _Bench:
    """All arms on one network; rows are printed as they come, and say whether they missed."""

    def __init__(self, case: Case, folder: Path, scratch: Path, pythons: Mapping[Tool, Path | str], wish: Wish) -> None:
        self.case, self.folder, self.scratch, self.wish = case, folder.absolute(), scratch, wish
        self.pythons = {**pythons, Tool.OURS: Path(sys.executable)}
        self.source = self.folder / f"{case.model}.onnx"
        self.calibration, self.evaluation = quantize_data.write(case, folder, scratch)
        shape = Model.load(self.source).inputs[0].shape
        self.batched = case.kind in quantize_data.LABELLED and not isinstance((shape or (1,))[0], int)

    def rows(self) -> Iterator[bool]:
        """Measure and print everything; yield for each bar-bearing row whether it missed."""
        try:
            outputs = self._outputs(self.source)
        except ArmFailed as error:
            self._print(["float", f"MISSED: {error}"])
            yield True
            return
        base = Floating(self.source.stat().st_size, outputs, judged(outputs, outputs, self.evaluation))
        self._print(["float", cell(base.judged.top1, 7, ".2f")])
        results: list[Result] = []
        for arm in (*PEERS, *OURS):
            if not self._asked_for(arm):
                continue
            try:
                result = self._result(arm, base)
            except ArmFailed as error:
                self._print([f"{arm.name:26}{'MISSED' if arm.bars else 'absent'}: {error}"])
                yield bool(arm.bars)
                continue
            yield self._told(result, base, results)
            results.append(result)
        if self.wish.time:
            yield from self._race(results)
        if self.wish.memory:
            yield from self._memory()

    def _asked_for(self, arm: Arm) -> bool:
        wish = self.wish
        named = arm.tool is not Tool.OURS or not wish.arms or arm.name in wish.arms
        return named and (wish.more_arms or not arm.more) and arm.fits(self.case.model)

    # ---- one arm -----------------------------------------------------------------------------------------

    def _result(self, arm: Arm, base: Floating) -> Result:
        made = self._made(arm)
        outputs = self._outputs(made.path)
        return Result(arm, made, judged(base.outputs, outputs, self.evaluation))

    def _made(self, arm: Arm) -> Made:
        """Quantize, in a process of its own."""
        python = self.pythons.get(arm.tool, "not asked for")
        if isinstance(python, str):
            raise ArmFailed(python)
        path = self.scratch / f"{arm.name}.onnx"
        job = {"task": "quantize", "tool": arm.tool.value, "spec": arm.spec, "model": str(self.source)}
        job |= {"calibration": str(self.calibration), "out": str(path)}
        found = _work(python, WORKER if arm.tool is Tool.OURS else PEER, job, self.scratch)
        return Made(path, found["seconds"], found["imports"], found["loading"], found["gb"])

    def _outputs(self, model: Path) -> Path:
        """Run a model on what judges, and return the file of its outputs; a file that was run is not run again."""
        out = self.scratch / f"{hashlib.sha256(model.read_bytes()).hexdigest()}.npz"
        if out.exists():
            return out
        job = {"task": "judge", "model": str(model), "evaluation": str(self.evaluation), "out": str(out)}
        _work(Path(sys.executable), WORKER, {**job, "batched": self.batched}, self.scratch)
        return out

    def _told(self, result: Result, base: Floating, others: Sequence[Result]) -> bool:
        """Print an arm's row; return whether it missed a bar."""
        peers = [other for other in others if other.arm.tool is not Tool.OURS]
        found = list(findings(self.case, result, base, peers))
        if Bar.SECONDS in result.arm.bars and self.case.clocked:
            ours, finding = self._against_the_clock(result, others)
            result = replace(result, made=ours)
            found.append(finding)
        self._print([result.arm.name, _cells(result, base), *_verdict(result.arm, found)])
        return any(missed for missed, _ in found)

    def _against_the_clock(self, result: Result, others: Sequence[Result]) -> tuple[Made, Finding]:
        """Compare seconds to onnxruntime's; where that is close, both again in turn, and each counts by its best."""
        theirs = [other.made.seconds for other in others if other.arm is CLOCKED]
        if not theirs:
            return result.made, (False, f"no seconds of {CLOCKED.name}")
        ours = [result.made]
        try:
            for _ in range(AGAIN if ours[0].seconds > CLEAR * theirs[0] else 0):
                theirs.append(self._made(CLOCKED).seconds)
                ours.append(self._made(result.arm))
        except ArmFailed as error:
            return result.made, (True, f"{error}, the second time")
        best = min(ours, key=lambda made: made.seconds)
        return best, (best.seconds > min(theirs), f"{best.seconds:.1f} s beside {min(theirs):.1f} of {CLOCKED.name}")

    # ---- all arms ----------------------------------------------------------------------------------------

    def _race(self, results: Sequence[Result]) -> Iterator[bool]:
        """Print the latency of every arm's file beside float and the peers' fastest."""
        for row in race(self.source, self.calibration, results, self.scratch):
            self._print([row.arm, row.text])
            yield row.missed

    def _memory(self) -> Iterator[bool]:
        """Print the peak memory of our calibration on few and on many images."""
        source = quantize_data.many(self.case, self.folder, self.scratch, MANY)
        for arm in OURS:
            job = {"task": "memory", "spec": arm.spec, "model": str(self.source), "source": str(source)}
            job |= {"preprocess": quantize_data.preprocess(self.case), "out": str(self.scratch / "memory.onnx")}
            try:
                few, many = (
                    _work(Path(sys.executable), WORKER, {**job, "count": count}, self.scratch) for count in (FEW, MANY)
                )
            except ArmFailed as error:
                self._print([f"{arm.name:26}MISSED: {error}"])
                yield True
                continue
            missed = many["gb"] > GROWTH * few["gb"]
            told = f"{few['gb']:.2f} GB on {FEW} images, {many['gb']:.2f} on {MANY} ({many['seconds']:.0f} s)"
            self._print([arm.name, f"{told}  {'MISSED' if missed else 'ok'}"])
            yield missed

    def _print(self, cells: Sequence[str]) -> None:
        name, *others = cells
        print(f"{self.case.model:20}{name:26}" + "".join(others), flush=True)


def _cells(result: Result, base: Floating) -> str:
    found, made = result.judged, result.made
    drop, interval = "", ""
    if found.right is not None and base.judged.right is not None:
        low, high = paired_interval(base.judged.right, found.right)
        drop = f"{100 * (base.judged.right.mean() - found.right.mean()):.2f}"
        interval = f"[{low:+.2f}, {high:+.2f}]"
    cells = cell(found.top1, 7, ".2f") + f"{drop:>7}{interval:>17}" + cell(found.agreement, 7, ".1%")
    cells += f"{found.sqnr_db:>7.1f}{made.bytes / base.bytes:>7.1%}"
    return cells + f"{made.seconds:>9.1f}{made.imports:>9.1f}{made.loading:>9.1f}{made.gb:>6.2f}"


def _verdict(arm: Arm, found: Sequence[Finding]) -> Iterator[str]:
    """Yield what was missed, then what else there is to say; nothing for those that are held to nothing."""
    if not arm.bars:
        return
    missed = [text for is_missed, text in found if is_missed]
    yield f"  MISSED: {'; '.join(missed)}" if missed else "  ok"
    notes = [text for is_missed, text in found if not is_missed]
    if notes:
        yield f"  ({'; '.join(notes)})"


def _work(python: Path, script: Path, job: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Return what a process says of a job; what it leaves lying about is left in ``scratch``.

    Raises:
        ArmFailed: it gave up, or takes too long.
    """
    try:
        done = subprocess.run(
            [str(python), str(script)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            cwd=scratch,
        )
    except subprocess.TimeoutExpired:
        raise ArmFailed(f"took more than {PATIENCE:.0f} s") from None
    except OSError as error:
        raise ArmFailed(f"{python} does not run: {error}") from None
    if done.returncode:
        raise ArmFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
