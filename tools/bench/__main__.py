"""Benchmarks, one command each: ``python tools/bench exact MODEL_OR_FOLDER...``.

Every comparison runs in one go, interleaved, so that a busy machine slows all sides alike. Peers live in a virtual
environment of the bench's own, made on first use; nothing of theirs is imported beside ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import exact
import peers


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python tools/bench", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "exact", help="nodes and time of exact rewrites: ours, OnnxSlim's, onnxsim's, onnxruntime's"
    )
    one.add_argument("models", nargs="+", type=Path, help="ONNX files, or folders of them")
    one.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    one.add_argument("--peers", type=Path, default=peers.DEFAULT_VENV, help="virtual environment for the peers")
    args = parser.parse_args(argv)
    return exact.run(_files(args.models), args.rounds, peers.ensure(args.peers))


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found.extend(sorted(path.glob("*.onnx")) if path.is_dir() else [path])
    return found


if __name__ == "__main__":
    sys.exit(main())
