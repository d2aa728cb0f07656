"""The child process: one campaign until its time is up or it dies. Every input is on disk before it is run."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.fuzz import mutators

ADDRESS_SPACE = 6 << 30
"""Bytes of address space: an allocation beyond fails instead of taking the machine along."""

ALLOWED = 500 << 20
"""Bytes of memory that a refused input may take, besides twice its own size."""

COMMAND_EVERY = 16
"""One input in so many also goes through the command line, which is slower."""

FULL = 3
"""Exit code of a worker whose memory high-water mark must be set back."""


class Campaign:
    """Runs inputs, logs what became of each, and keeps findings."""

    def __init__(self, folder: Path, findings: Path) -> None:
        from tools.fuzz import target

        self._target = target
        self._folder = folder
        self._findings = findings
        self._log = (folder / "log.jsonl").open("a")
        self._count = 0
        self._base = _high_water()

    def run(self, data: bytes) -> None:
        """Run one input."""
        (self._folder / "current").write_bytes(data)
        self._count += 1
        place = self._folder / "place"
        place.mkdir(exist_ok=True)
        outcome = self._target.run(data, place)
        if outcome.detail != self._target.TOO_LARGE and not outcome.is_finding and self._count % COMMAND_EVERY == 0:
            by_command = self._target.run_command(data, place)
            outcome = by_command if by_command.is_finding else outcome
        full = _high_water() - self._base > ALLOWED + 2 * len(data)
        if full and outcome.kind == self._target.REFUSED:
            outcome = self._target.Outcome("over memory", outcome.detail)
        self._log.write(json.dumps([outcome.kind, outcome.detail]) + "\n")
        self._log.flush()
        if outcome.is_finding:
            save_finding(self._findings, outcome.kind, outcome.detail, data)
        if full:
            os._exit(FULL)


def save_finding(findings: Path, kind: str, detail: str, data: bytes) -> Path:
    """Keep an input and what it did; like ones replace each other."""
    findings.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{kind}{detail[:60]}".encode()).hexdigest()[:10]
    path = findings / f"{kind.replace(' ', '-')}-{digest}.onnx"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(f"{kind}: {detail}\n", encoding="utf-8", errors="backslashreplace")
    return path


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _plain(campaign: Campaign, pool: list[bytes], seed: int, seconds: float) -> None:
    """Mutate the pool's models at random until the time is up."""
    rng, ends = random.Random(seed), time.monotonic() + seconds  # noqa: S311
    while time.monotonic() < ends:
        campaign.run(mutators.mutate(rng.choice(pool), rng))


def _guided(make: Callable[[], Campaign], pool: list[bytes], args: argparse.Namespace) -> None:
    """Let atheris choose by coverage of this package; our mutators change what it chose."""
    import atheris  # type: ignore[import-untyped, unused-ignore]

    with atheris.instrument_imports(include=["onnxslim"]):
        campaign = make()
    for number, data in enumerate(pool):
        (args.corpus / f"seed-{number}").write_bytes(data)

    def mutator(data: bytes, largest: int, seed: int) -> bytes:
        rng = random.Random(seed)  # noqa: S311
        return mutators.mutate(data if mutators.is_message(data) else rng.choice(pool), rng, largest)

    options = [f"-seed={args.seed + 1}", f"-max_total_time={max(1, round(args.seconds))}", "-max_len=65536"]
    options += ["-timeout=100000", "-rss_limit_mb=0", "-verbosity=0", "-print_final_stats=0", "-detect_leaks=0"]
    atheris.Setup(["fuzz", *options, str(args.corpus)], campaign.run, custom_mutator=mutator)
    atheris.Fuzz()


def _pool(folders: list[Path]) -> list[bytes]:
    found = mutators.seeds(folders[0])
    for folder in folders[1:]:
        found += [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]
    return found


def main() -> int:
    """Run a campaign, or with ``--one`` a single input, whose outcome is printed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("--pool", type=Path, nargs="+", default=[])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--one", type=Path)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if args.one is not None:
        campaign = Campaign(args.folder, args.findings)
        campaign.run(args.one.read_bytes())
    elif args.guided:
        _guided(lambda: Campaign(args.folder, args.findings), _pool(args.pool), args)
    else:
        with contextlib.redirect_stderr(sys.stdout):
            _plain(Campaign(args.folder, args.findings), _pool(args.pool), args.seed, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
