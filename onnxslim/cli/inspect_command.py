"""``onnxslim inspect``: what is in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from onnxslim.cli import tables
from onnxslim.cli.options import MODEL, common_options, shape_options
from onnxslim.cli.output import Output
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.measuring import run_inspect

EPILOG = """\b
Examples:
  onnxslim inspect model.onnx
  onnxslim inspect model.onnx --shape input=1x3x224x224 --json
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="MODEL", type=MODEL)
@shape_options()
@common_options()
def command(model: Path, **options: Any) -> int:
    """Show layers, bytes, MACs and activation memory of MODEL."""
    output = Output(quiet=options["quiet"], as_json=options["as_json"])
    summary = run_inspect(model, dict(options["shapes"]), options["batch"], DataSettings(seed=options["seed"]))
    if options["as_json"]:
        output.json(summary.to_json())
    output.show(f"[bold]{escape(str(model))}[/bold]", tables.summary_table(summary), "", tables.layer_table(summary))
    return 0
