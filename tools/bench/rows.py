"""Rows of a table about networks that were compressed and judged, each made in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plot

WORKER = Path(__file__).with_name("lossy_worker.py")


@dataclass(frozen=True)
class Row:
    """A printed line, whether its bar was missed, and (share of MACs, how good) of one model by tool."""

    model: str
    text: str
    missed: bool
    points: dict[str, tuple[float, float]]


def printed(header: str, rows: Iterable[Row], picture: Path | None, title: str) -> int:
    """Print rows as they come, draw their curves, and return 1 where one missed its bar."""
    print(header + "\n" + "-" * len(header), flush=True)
    missed = 0
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        print(row.text, flush=True)
        missed += row.missed
        for tool, point in row.points.items():
            charts.setdefault(row.model, {}).setdefault(tool, []).append(point)
    if picture is not None:
        plot.write(picture, title, charts)
    return int(missed > 0)


def cell(value: float | None, width: int, spec: str) -> str:
    """Return a number in ``width`` places, a dash where there is none."""
    return f"{'-' if value is None else format(value, spec):>{width}}"


def line(model: str, cells: str, missed: bool, notes: Sequence[str], points: dict[str, tuple[float, float]]) -> Row:
    """Return a row that says what it missed and why."""
    return Row(
        model,
        "  ".join([cells, *(["MISSED"] if missed else []), *(["; ".join(notes)] if notes else [])]),
        missed,
        points,
    )


def work(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a worker of its own says of one row, see ``lossy_worker``."""
    done = subprocess.run(
        [sys.executable, str(WORKER)], input=json.dumps(row), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{row['spec']} on {row['model']}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
