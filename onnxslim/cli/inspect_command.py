"""``onnxslim inspect``: what is in a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from onnxslim.cli import tables
from onnxslim.cli.options import MODEL, common_options, shape_options
from onnxslim.cli.output import Output
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.explaining import run_channels
from onnxslim.workflow.measuring import run_inspect

EPILOG = """\b
Examples:
  onnxslim inspect model.onnx
  onnxslim inspect model.onnx --shape input=1x3x224x224 --json
  onnxslim inspect model.onnx --channels
  onnxslim inspect model.onnx --channels --only "layer3*"
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="MODEL", type=MODEL)
@shape_options()
@click.option("--channels", is_flag=True, help="Explain which channels can be pruned, together with what, and why not.")
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="With --channels: groups with a layer that matches, whole."
)
@common_options()
def command(model: Path, **options: Any) -> int:
    """Show layers, bytes, MACs and activation memory of MODEL; with --channels, what can be pruned."""
    output = Output(quiet=options["quiet"], as_json=options["as_json"])
    if options["only"] and not options["channels"]:
        raise click.UsageError("--only goes with --channels")
    if options["channels"]:
        return _channels(output, model, options)
    summary = run_inspect(model, dict(options["shapes"]), options["batch"], DataSettings(seed=options["seed"]))
    if options["as_json"]:
        output.json(summary.to_json())
    output.show(f"[bold]{escape(str(model))}[/bold]", tables.summary_table(summary), "", tables.layer_table(summary))
    return 0


def _channels(output: Output, model: Path, options: dict[str, Any]) -> int:
    groups = run_channels(model, dict(options["shapes"]), options["batch"], options["only"])
    if options["as_json"]:
        output.json(json.dumps({"schema": 1, "groups": [group.to_json() for group in groups]}, indent=1))
    units, free = sum(group.units for group in groups), sum(group.prunable for group in groups)
    output.show(
        f"[bold]{escape(str(model))}[/bold]: {free} of {units} units of channels can be pruned",
        *([tables.group_table(group) for group in groups] if options["only"] else [tables.channel_table(groups)]),
    )
    return 0
