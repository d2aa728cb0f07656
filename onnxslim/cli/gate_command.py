"""``onnxslim gate``: pass or fail for a release pipeline."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from onnxslim.cli import tables
from onnxslim.cli.options import MODEL, common_options, metric_option
from onnxslim.cli.output import Output
from onnxslim.policy import GateVerdict, judge
from onnxslim.workflow.api import load_policy
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.evidence import collect_evidence

EXIT_CODES = {GateVerdict.PASS: 0, GateVerdict.FAIL: 1, GateVerdict.INCONCLUSIVE: 3}

EPILOG = """\b
A policy is TOML; every key is optional:
  [limits]
  bytes = "30%"            # or "5MB"; percentages are candidate / reference
  macs = "60%"
  latency = "80%"
  arm_instructions = "50%" # counted on an emulated Cortex-A76; 'onnxslim device setup arm' first
  metric_drop = "1%"       # points of the metric
  sqnr_db = 20
  top1_agreement = 0.98
  [require]
  operators = ["Conv", "Relu", "QuantizeLinear", "DequantizeLinear"]
  targets = ["arm-cpu"]

\b
Example:
  onnxslim gate small.onnx --reference original.onnx --policy gate.toml --data val/ --preprocess resize=256,crop=224

\b
Exit codes: 0 passed, 1 failed, 2 bad input, 3 inconclusive (something could not be measured well enough).
"""


@click.command(epilog=EPILOG)
@click.argument("candidate", metavar="CAND", type=MODEL)
@click.option("--reference", metavar="REF", type=MODEL, required=True, help="The model to compare with.")
@click.option("--policy", metavar="FILE", type=MODEL, required=True, help="Thresholds, as TOML.")
@click.option("--data", metavar="PATH", help="Samples to judge on, labelled for metric_drop.")
@click.option("--preprocess", metavar="SPEC", help="How images become tensors.")
@click.option("--eval-samples", metavar="N", type=click.IntRange(1), help="[default: all]")
@metric_option()
@common_options()
def command(candidate: Path, reference: Path, policy: Path, **options: Any) -> int:
    """Judge CAND by a policy: pass, fail, or inconclusive."""
    output = Output(quiet=options["quiet"], as_json=options["as_json"])
    rules = load_policy(policy)
    data = DataSettings(
        None, options["data"], options["preprocess"], eval_samples=options["eval_samples"], seed=options["seed"]
    )
    with output.progress() as progress:
        threads = options["threads"] or 0
        evidence = collect_evidence(
            rules, candidate, reference, data, metric=options["metric"], threads=threads, progress=progress
        )
    result = judge(rules, evidence)
    if options["as_json"]:
        output.json(json.dumps(_document(dataclasses.asdict(result)), indent=2, default=lambda v: v.value))
    colour = {GateVerdict.PASS: "green", GateVerdict.FAIL: "red"}.get(result.verdict, "yellow")
    output.show(tables.gate_table(result), f"[bold {colour}]{result.verdict.value}[/bold {colour}]")
    return EXIT_CODES[result.verdict]


def _document(result: dict[str, Any]) -> dict[str, Any]:
    """Return the gate's JSON: what was not measured is absent."""
    rules = [{key: value for key, value in rule.items() if value is not None} for rule in result["rules"]]
    return {"schema": result["schema"], "verdict": result["verdict"], "rules": rules}
