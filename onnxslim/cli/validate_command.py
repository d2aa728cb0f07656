"""``onnxslim validate``: numerics of one model against another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from onnxslim.cli import tables
from onnxslim.cli.options import MODEL, common_options, metric_option
from onnxslim.cli.output import Output
from onnxslim.errors import PolicyError
from onnxslim.report.evidence import Validation as ValidationPart
from onnxslim.workflow.api import make_budgets
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.measuring import run_validate

EPILOG = """\b
Examples:
  onnxslim validate original.onnx small.onnx --data val/ --preprocess resize=256,crop=224,scale=1/255
  onnxslim validate original.onnx small.onnx --data samples.npz --layers --min-sqnr 20

\b
Exit codes: 0 it ran; 1 NaN or Inf that REF lacks, or a missed --min-sqnr or --max-drop; 2 bad input.
"""


@click.command(epilog=EPILOG)
@click.argument("reference", metavar="REF", type=MODEL)
@click.argument("candidate", metavar="CAND", type=MODEL)
@click.option("--data", metavar="PATH", required=True, help="Samples, labelled or not, or 'synthetic'.")
@click.option("--preprocess", metavar="SPEC", help="How images become tensors.")
@click.option("--eval-samples", metavar="N", type=click.IntRange(1), help="[default: all]")
@metric_option()
@click.option("--layers", is_flag=True, help="SQNR of every tensor that both models compute.")
@click.option("--min-sqnr", metavar="DB", help="Decibels that every output keeps at least.")
@click.option("--max-drop", metavar="POINTS", help="Points of the metric that may be lost, e.g. 1%.")
@common_options()
def command(reference: Path, candidate: Path, **options: Any) -> int:
    """Compare the numerics of CAND to REF, end to end, with --layers layer by layer."""
    output = Output(quiet=options["quiet"], as_json=options["as_json"])
    budgets = make_budgets(max_drop=options["max_drop"], min_sqnr=options["min_sqnr"])
    data = DataSettings(
        None, options["data"], options["preprocess"], eval_samples=options["eval_samples"], seed=options["seed"]
    )
    with output.progress() as progress:
        validation = run_validate(
            reference,
            candidate,
            data,
            metric=options["metric"],
            layers=options["layers"],
            threads=options["threads"] or 0,
            progress=progress,
        )
    if budgets.max_drop is not None and validation.metric is None:
        raise PolicyError("--max-drop needs labelled samples and --data has no labels: add some, or use --min-sqnr")
    if options["as_json"]:
        output.json(ValidationPart.model_validate(validation).to_json())
    output.show(tables.validation_table(validation), *(escape(line) for line in tables.metric_lines(validation)))
    if validation.layers:
        output.show("", tables.layer_sqnr_table(validation))
    missed = not validation.finite
    if budgets.min_sqnr is not None:
        missed |= validation.sqnr_db is None or validation.sqnr_db < budgets.min_sqnr.value
    if budgets.max_drop is not None and validation.metric is not None:
        missed |= validation.metric.drop > budgets.max_drop.value
    return int(missed)
