"""``onnxslim bench``: latency of models, the first of which is the baseline."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from onnxslim.cli import tables
from onnxslim.cli.device_tables import device_tables
from onnxslim.cli.options import MODEL, common_options, device_option, report_option, shape_options
from onnxslim.cli.output import Output
from onnxslim.devices.finding import HOST
from onnxslim.measure import Latency, RaceSettings
from onnxslim.report import check_report_path, write_report
from onnxslim.report.evidence import Latency as LatencyPart
from onnxslim.report.placement import Placement
from onnxslim.workflow.bench_report import bench_report
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.measuring import run_bench
from onnxslim.workflow.placing import bench_placements

MOST_IN_A_REPORT = 2
"""A reference and a candidate."""
EPILOG = """\b
Examples:
  onnxslim bench original.onnx small.onnx
  onnxslim bench model.onnx --shape x=1x3x320x320 --threads 2
  onnxslim bench original.onnx small.onnx --device arm --device arm:cortex-a53
      instructions on emulated ARM beside this machine's times ('onnxslim device setup arm' first)
  onnxslim bench original.onnx small.onnx --device android:SERIAL --report page.html
"""


@click.command(epilog=EPILOG)
@click.argument("models", metavar="MODEL...", type=MODEL, nargs=-1, required=True)
@click.option("--data", metavar="PATH", help="Samples; the first one is fed.  [default: seeded random values]")
@click.option("--preprocess", metavar="SPEC", help="How images become tensors.")
@click.option("--seconds", metavar="S", type=click.FloatRange(0.1), default=15.0, show_default=True)
@device_option()
@shape_options()
@report_option()
@common_options()
def command(models: tuple[Path, ...], **options: Any) -> int:
    """Measure latency of each MODEL; the first is the baseline.

    One thread and thread CPU time by default; runs are interleaved in random order, and the baseline also races itself,
    which tells how much of a difference is noise.
    """
    output = Output(quiet=options["quiet"], as_json=options["as_json"])
    _check(models, options["reports"])
    data = DataSettings(None, options["data"], options["preprocess"], seed=options["seed"])
    race = RaceSettings(options["seconds"], options["threads"] or 1, options["seed"])
    with output.progress() as progress:
        devices = [name for name in options["devices"] if name != HOST]
        results = run_bench(models, data, dict(options["shapes"]), options["batch"], race, progress, devices)
    if options["as_json"]:
        parts = [json.loads(LatencyPart.model_validate(result).to_json()) for result in results]
        output.json(json.dumps(parts[0] if len(parts) == 1 else parts, indent=2))
    names = [path.name for path in models]
    output.show(tables.latency_table(results, names), *device_tables(results, names))
    if options["reports"] or not (options["as_json"] or options["quiet"]):
        placements = bench_placements(models, dict(options["shapes"]), options["batch"], results)
        _show_placements(output, models, placements)
        _write(models, data, results, placements, options)
    return 0


def _check(models: Sequence[Path], reports: Sequence[Path]) -> None:
    """Refuse reports that cannot be, before anything is measured."""
    if reports and len(models) > MOST_IN_A_REPORT:
        raise click.UsageError(f"--report compares two models and there are {len(models)}: name one candidate")
    for path in reports:
        check_report_path(path)


def _show_placements(output: Output, models: Sequence[Path], placements: Sequence[Placement | None]) -> None:
    """Say of each quantized model how much of it runs as integers."""
    for path, placement in zip(models, placements, strict=True):
        if placement is not None:
            output.show(*(f"{escape(path.name)}: {line}" for line in tables.placement_lines(placement)))


def _write(
    models: Sequence[Path],
    data: DataSettings,
    results: Sequence[Latency],
    placements: Sequence[Placement | None],
    options: dict[str, Any],
) -> None:
    """Write the reports that were asked for."""
    if not options["reports"]:
        return
    command = shlex.join(["onnxslim", *sys.argv[1:]])
    shapes = dict(options["shapes"])
    report = bench_report(models, data, shapes, options["batch"], results[0], placements[-1], command=command)
    for path in options["reports"]:
        write_report(report, path)
