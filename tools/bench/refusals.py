"""Refusals: what every pass leaves alone on given models, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxslim
from onnxslim.errors import UserError
from onnxslim.ir import Model

PIPELINES = ("exact", "prune-filters{ratio=0.3}", "factor-low-rank{energy=0.95}", "insert-qdq")
"""Each lossy pass alone, after the exact ones, so that none hides another's refusals."""


def run(models: Sequence[Path], size: int) -> int:
    """Print, for each model and pass, the reasons and how many layers each keeps; return 1 if a pass failed.

    Args:
        size: what dynamic dimensions other than the batch are fixed to.
    """
    failed = 0
    for path in models:
        print(f"\n{path.name}")
        for pipeline in PIPELINES:
            failed += _one(path, pipeline, size)
    return int(failed > 0)


def _one(path: Path, pipeline: str, size: int) -> int:
    try:
        shapes = _fixed(Model.load(path), size)
        report = onnxslim.optimize(path, "synthetic", passes=pipeline, shapes=shapes, bench=False).report
    except UserError as error:
        print(f"  {pipeline}: refused as a whole: {error}")
        return 0
    failed = 0
    wanted = report.passes if pipeline == "exact" else report.passes[-1:]
    for record in wanted:
        reasons: dict[str, list[str]] = {}
        for place in record.skipped:
            reasons.setdefault(place.reason, []).append(place.anchor)
        if reasons or record.status in ("failed", "rolled_back"):
            print(
                f"  {record.name}: {record.status}, {record.edits} edits"
                + (f": {record.reason}" if record.reason else "")
            )
        failed += record.status in ("failed", "rolled_back")
        for reason, anchors in sorted(reasons.items(), key=lambda item: -len(item[1])):
            print(f"    {len(anchors):4} left: {reason}  (e.g. {anchors[0]})")
    if pipeline != "exact" and not any(record.skipped for record in wanted):
        print(f"  {pipeline}: {wanted[0].status}, {wanted[0].edits} edits, nothing refused")
    return failed


def _fixed(model: Model, size: int) -> Mapping[str, Sequence[int]]:
    """Return shapes for inputs with a dynamic dimension other than the batch."""
    found = {}
    for spec in model.inputs:
        dims = [size if not isinstance(dim, int) else dim for dim in spec.shape or ()]
        if any(not isinstance(dim, int) for dim in (spec.shape or ())[1:]):
            found[spec.name] = [1, *dims[1:]]
    return found
