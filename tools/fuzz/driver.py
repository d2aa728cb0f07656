"""The parent process: starts workers, watches them, and counts."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.fuzz.worker import FULL, save_finding

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
SECONDS_PER_INPUT = 10.0
STARTUP = 60.0
"""Seconds that a worker may take until its first input."""

FINDINGS = ("crashed", "hung", "over memory", "internal", "pass failed", "mismatch", "wrote on refusal")


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz or replay; return 1 when there are findings."""
    parser = argparse.ArgumentParser(prog="python tools/fuzz", description="Fuzz load, the exact pipeline and save.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default 0)")
    parser.add_argument("--corpus", type=Path, help="folder of more inputs to start from")
    parser.add_argument("--findings", type=Path, default=ROOT / "build" / "fuzz", help="where findings are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input again and say what it does")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="onnxslim-fuzz-") as folder:
        driver = Driver(Path(folder), args.findings, args.seed, [MODELS, *([args.corpus] if args.corpus else [])])
        return driver.replay(args.replay) if args.replay is not None else driver.fuzz(args.seconds)


class Driver:
    """One campaign over as many workers as it takes."""

    def __init__(self, folder: Path, findings: Path, seed: int, pool: list[Path]) -> None:
        self._folder = folder
        self._findings = findings
        self._seed = seed
        self._pool = pool
        self._guided = importlib.util.find_spec("atheris") is not None
        self._ends: Counter[tuple[str, str]] = Counter()
        self._saved: list[Path] = []
        (folder / "corpus").mkdir()

    def fuzz(self, seconds: float) -> int:
        """Fuzz for a time and print the table."""
        if self._guided:
            print("coverage-guided by atheris", flush=True)
        else:
            print("no coverage feedback: atheris is not installed (pip install onnxslim-mobile[fuzz])", flush=True)
        started, workers = time.monotonic(), 0
        while (left := seconds - (time.monotonic() - started)) > 1:
            self._campaign(["--seconds", str(left), "--seed", str(self._seed + workers)])
            workers += 1
        return self._report(time.monotonic() - started, workers)

    def replay(self, path: Path) -> int:
        """Run one input in a process of its own and print what it does."""
        if not path.is_file():
            print(f"no such file: {path}")
            return 2
        self._guided = False
        self._findings = self._folder / "findings"
        self._campaign(["--one", str(path)])
        outcomes = self._outcomes()
        for kind, detail in outcomes:
            print(f"{kind}: {detail}" if detail else kind)
        return int(any(kind in FINDINGS for kind, _ in outcomes))

    def _campaign(self, arguments: list[str]) -> None:
        """Run one worker to its end, and account for an end that it did not plan."""
        current = self._folder / "current"
        current.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tools.fuzz.worker", *arguments, *(["--guided"] if self._guided else [])]
        command += ["--folder", str(self._folder), "--findings", str(self._findings)]
        command += ["--corpus", str(self._folder / "corpus"), "--pool", *map(str, self._pool)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with (self._folder / "output").open("wb") as output:
            worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
            hung = _watch(worker, current)
        if hung:
            self._note("hung", f"no answer in {SECONDS_PER_INPUT:g} s", current)
        elif worker.returncode not in (0, FULL):
            if not current.exists():
                raise SystemExit((self._folder / "output").read_text(errors="replace")[-2000:])
            self._note("crashed", _cause(worker.returncode), current)

    def _note(self, kind: str, detail: str, current: Path) -> None:
        data = current.read_bytes() if current.exists() else b""
        save_finding(self._findings, kind, f"{detail} #{len(self._ends)}", data)
        self._ends[kind, detail] += 1

    def _outcomes(self) -> Counter[tuple[str, str]]:
        log = self._folder / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        logged = Counter((kind, detail) for kind, detail in map(json.loads, lines))
        return logged + self._ends

    def _report(self, seconds: float, workers: int) -> int:
        outcomes = self._outcomes()
        kinds: Counter[str] = Counter()
        for (kind, _), count in outcomes.items():
            kinds[kind] += count
        runs = kinds.total()
        print(f"{'runs':<18}{runs:>8}\n{'runs/s':<18}{runs / seconds:>8.1f}\n{'workers':<18}{workers:>8}")
        for kind in ("accepted", "refused", *FINDINGS):
            print(f"{kind:<18}{kinds[kind]:>8}")
        self._print_details(outcomes)
        return int(any(kinds[kind] for kind in FINDINGS))

    def _print_details(self, outcomes: Counter[tuple[str, str]]) -> None:
        print("\nrefused because")
        refused = Counter({detail: count for (kind, detail), count in outcomes.items() if kind == "refused"})
        for detail, count in refused.most_common(20):
            print(f"{count:>8}  {detail}")
        found = sorted(self._findings.glob("*.onnx")) if any(kind in FINDINGS for kind, _ in outcomes) else []
        if found:
            print("\nfindings, each to be seen again with: python tools/fuzz --replay FILE")
        for path in found:
            print(f"  {path}\n      {path.with_suffix('.txt').read_text(encoding='utf-8').strip()[:160]}")


def _watch(worker: subprocess.Popen[bytes], current: Path) -> bool:
    """Wait for the worker's end; return whether it had to be ended because one input took too long."""
    started = time.time()
    while worker.poll() is None:
        time.sleep(0.2)
        begun = current.stat().st_mtime if current.exists() else started + STARTUP - SECONDS_PER_INPUT
        if time.time() - begun > SECONDS_PER_INPUT:
            worker.kill()
            worker.wait()
            return True
    return False


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
