"""Conformance, one command: ``python tools/conformance``.

Every case that the installed onnx package can produce, its node tests and its model tests, goes through load, the exact
pipeline and save, and must give the expected outputs wherever the original does; then through pruning, factorization
and quantization, which may refuse but must not break. Worker processes do the work: a crash or a hang is a result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.conformance import cases, table
from tools.conformance.pool import run_all


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases and print the tables; return 1 if any failed or crashed."""
    parser = argparse.ArgumentParser(prog="python tools/conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds TEXT")
    parser.add_argument("--kind", choices=cases.KINDS, help="node tests or model tests only")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--seconds", type=float, default=60, help="time limit of one case (default 60)")
    args = parser.parse_args(argv)
    names = [name for name in cases.names(args.kind) if args.only in name]
    results = run_all(names, args.jobs, args.seconds)
    print(table.summary(results))
    return int(any(result.is_bad for result in results))


if __name__ == "__main__":
    sys.exit(main())
