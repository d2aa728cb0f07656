"""Benchmarks, one command each: ``python tools/bench exact MODEL_OR_FOLDER...``, ``... growth``.

Every comparison runs in one go, interleaved, so that a busy machine slows all sides alike. Peers live in a virtual
environment of the bench's own, made on first use; nothing of theirs is imported beside ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import claims
import counts
import exact
import growth
import low_rank
import peers
import prunable
import prune
import quantize
import quantize_peers
import refusals


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
    two = commands.add_parser("growth", help="seconds against nodes: ours, onnxsim's, onnxruntime's basic level")
    two.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 40_000], help="numbers of nodes")
    two.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    two.add_argument("--peers", type=Path, default=peers.DEFAULT_VENV, help="virtual environment for the peers")
    three = commands.add_parser("refusals", help="what every pass leaves alone, and why")
    three.add_argument("models", nargs="+", type=Path, help="ONNX files, or folders of them")
    three.add_argument("--size", type=int, default=320, help="what dynamic dimensions are fixed to (default 320)")
    four = commands.add_parser("prune", help="accuracy against MACs: ours, plain L1, onnxsim's structured pruning")
    four.add_argument("folder", type=Path, help="networks, cifar10/ and imagenet/ with labelled images")
    four.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks whose names hold one of these")
    four.add_argument("--plot", type=Path, help="write the curves as an HTML file")
    four.add_argument("--without-peers", action="store_true", help="leave onnxsim out")
    four.add_argument("--options", default="", help="further options of prune-filters, e.g. ' multiple=4'")
    four.add_argument("--peers", type=Path, default=peers.DEFAULT_VENV, help="virtual environment for the peers")
    five = commands.add_parser("prunable", help="which share of the filters pruning can reach, and what keeps the rest")
    five.add_argument("models", nargs="*", type=Path, help="ONNX files, or folders of them, besides the gallery")
    five.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks whose names hold one of these")
    six = commands.add_parser("low-rank", help="accuracy against MACs: fitted factors, plain SVD of the weights")
    six.add_argument("folder", type=Path, help="networks, cifar10/ and imagenet/ with labelled images")
    six.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks whose names hold one of these")
    six.add_argument("--plot", type=Path, help="write the curves as an HTML file")
    _add_quantize(commands)
    eight = commands.add_parser("claims", help="whether a race claims what is so: of itself, of a slower model")
    eight.add_argument("--races", type=int, default=50, help="of each kind (default 50)")
    eight.add_argument("--seconds", type=float, default=3.0, help="of each race (default 3)")
    _add_devices(commands)
    args = parser.parse_args(argv)
    if args.command == "devices":
        return counts.run(args.folder, counts.Wish(tuple(args.device), tuple(args.only), args.samples, args.size))
    if args.command == "claims":
        return claims.run(args.races, args.seconds)
    if args.command == "quantize":
        pythons = {} if args.no_peers else quantize_peers.pythons(args.peers)
        wish = quantize.Wish(args.all, args.time, args.memory, tuple(args.arms))
        return quantize.run(args.folder, args.only, pythons, wish)
    if args.command == "prunable":
        return prunable.run(_files(args.models), args.only)
    if args.command == "low-rank":
        return low_rank.run(args.folder, args.only, args.plot)
    if args.command == "prune":
        python = None if args.without_peers else peers.ensure(args.peers)
        return prune.run(args.folder, args.only, python, args.options, args.plot)
    if args.command == "refusals":
        return refusals.run(_files(args.models), args.size)
    if args.command == "growth":
        return growth.run(args.sizes, args.rounds, peers.ensure(args.peers))
    return exact.run(_files(args.models), args.rounds, peers.ensure(args.peers))


def _add_quantize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("quantize", help="int8: accuracy, size, seconds: ours, onnxruntime's, NNCF's")
    parser.add_argument("folder", type=Path, help="networks, cifar10/ and imagenet/ with labelled images")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks whose names hold one of these")
    parser.add_argument("--all", action="store_true", help="all settings of onnxruntime's, also the slow ones")
    parser.add_argument("--arms", nargs="+", default=[], metavar="NAME", help="of ours, those with these names only")
    parser.add_argument("--time", action="store_true", help="single-thread latency of every file, interleaved")
    parser.add_argument("--memory", action="store_true", help="peak memory of our calibration on 100 and 1,000 images")
    parser.add_argument("--no-peers", action="store_true", help="leave onnxruntime's tools and NNCF out")
    parser.add_argument("--peers", type=Path, default=peers.DEFAULT_VENV, help="virtual environment for the peers")


def _add_devices(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("devices", help="instructions on emulated ARM: float, int8, pruned, beside this CPU")
    parser.add_argument("folder", type=Path, help="networks; cifar10/ and imagenet/ with images where there are any")
    parser.add_argument("--device", nargs="+", default=["arm"], metavar="NAME", help="as bench takes it (default arm)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks whose names hold one of these")
    parser.add_argument("--samples", type=int, default=48, help="images that calibrate (default 48)")
    parser.add_argument("--size", type=int, default=160, help="pixels where a network takes any number (default 160)")


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found.extend(sorted(path.glob("*.onnx")) if path.is_dir() else [path])
    return found


if __name__ == "__main__":
    sys.exit(main())
