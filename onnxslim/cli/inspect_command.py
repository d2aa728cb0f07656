"""``onnxslim inspect``: what is in a model."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from onnxslim.cli import rank_tables, tables, target_tables
from onnxslim.cli.options import MODEL, common_options, report_option, shape_options
from onnxslim.cli.output import Output
from onnxslim.measure.stopwatch import Clock
from onnxslim.report import check_report_path, write_report
from onnxslim.report.placement import Placement
from onnxslim.report.ranks import RankSurvey
from onnxslim.targets import TARGETS
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.explaining import run_channels
from onnxslim.workflow.measuring import run_inspect
from onnxslim.workflow.placing import inspect_placement
from onnxslim.workflow.ranks import RankSettings, inspect_report, run_ranks
from onnxslim.workflow.target_survey import TargetSurvey
from onnxslim.workflow.targeting import run_targeting

EPILOG = """\b
Examples:
  onnxslim inspect model.onnx
  onnxslim inspect model.onnx --shape input=1x3x224x224 --json
  onnxslim inspect model.onnx --channels
  onnxslim inspect model.onnx --channels --only "layer3*"
  onnxslim inspect model.onnx --ranks --data calib.npz --report ranks.html
  onnxslim inspect model.onnx --target qnn --batch 1
  onnxslim inspect model.onnx --target xnnpack --only "*Conv*"
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="MODEL", type=MODEL)
@shape_options()
@click.option("--channels", is_flag=True, help="Explain which channels can be pruned, together with what, and why not.")
@click.option("--ranks", is_flag=True, help="Explain what low rank would do to each layer: spectrum, error, time.")
@click.option(
    "--target",
    metavar="NAME",
    help="Explain which nodes would not run there, why, and which islands are left: "
    f"{', '.join(target.name for target in TARGETS)}.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="With --channels: groups with a layer that matches, whole. With --ranks: layers that match, in detail. "
    "With --target: nodes that match, each by itself.",
)
@click.option("--data", metavar="PATH", help="With --ranks: samples, so that errors are of outputs and not of weights.")
@click.option("--preprocess", metavar="SPEC", help="With --ranks: how images become tensors.")
@click.option("--calib-samples", metavar="N", type=click.IntRange(1), help="With --ranks: how many.  [default: 512]")
@click.option("--clock", type=click.Choice(["on", "off"]), help="With --ranks: time layers and forms.  [default: on]")
@report_option()
@common_options()
def command(model: Path, **options: Any) -> int:
    """Show layers, bytes, MACs and activation memory of MODEL.

    With --channels or --ranks, what could be saved; with --target, what would run there.
    """
    output = Output(quiet=options["quiet"], as_json=options["as_json"])
    _check(options)
    if options["channels"]:
        return _channels(output, model, options)
    if options["ranks"]:
        return _ranks(output, model, options)
    if options["target"] is not None:
        return _target(output, model, options)
    summary = run_inspect(model, dict(options["shapes"]), options["batch"], DataSettings(seed=options["seed"]))
    placement = None
    if options["reports"] or not (options["as_json"] or options["quiet"]):
        placement = inspect_placement(model, dict(options["shapes"]), options["batch"])
    _write(model, options, None, placement)
    if options["as_json"]:
        output.json(summary.to_json())
    output.show(f"[bold]{escape(str(model))}[/bold]", tables.summary_table(summary), "", tables.layer_table(summary))
    if placement is not None:
        output.show("", *tables.placement_lines(placement), tables.placement_table(placement))
    return 0


def _check(options: dict[str, Any]) -> None:
    """Refuse options that would do nothing."""
    asked = [name for name in ("channels", "ranks", "target") if options[name]]
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]} are two explanations: ask for one at a time")
    if options["only"] and not asked:
        raise click.UsageError("--only goes with --channels, --ranks or --target")
    for name in ("data", "preprocess", "calib_samples", "clock"):
        if options[name] is not None and not options["ranks"]:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --ranks")
    if options["reports"] and asked and asked != ["ranks"]:
        raise click.UsageError(f"--report has nothing to say about --{asked[0]}: use --json")
    for path in options["reports"]:
        check_report_path(path)


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


def _target(output: Output, model: Path, options: dict[str, Any]) -> int:
    survey = run_targeting(model, dict(options["shapes"]), options["batch"], options["target"], options["only"])
    if options["as_json"]:
        output.json(json.dumps({"schema": 1, **json.loads(survey.to_json())}, indent=1))
    output.show(f"[bold]{escape(str(model))}[/bold] on {survey.target}, {escape(survey.what)}")
    if options["only"]:
        output.show(target_tables.node_table(survey.nodes))
    else:
        _show_target(output, survey)
    return 0


def _show_target(output: Output, survey: TargetSurvey) -> None:
    output.show(*(escape(line) for line in target_tables.target_lines(survey)))
    if survey.refused.nodes or survey.unknown.nodes:
        output.show("", "[bold]does not run there[/bold]", *target_tables.refusal_lines(survey))
    if survey.partitions:
        output.show("", "[bold]islands[/bold]", *target_tables.island_lines(survey))
    output.show("", *(f"[dim]{escape(line)}[/dim]" for line in target_tables.fact_lines(survey)))
    output.show("[dim]not looked at:[/dim]", *(f"[dim]  {escape(line)}[/dim]" for line in survey.blind_spots))


def _ranks(output: Output, model: Path, options: dict[str, Any]) -> int:
    more = {} if options["calib_samples"] is None else {"calib_samples": options["calib_samples"]}
    data = DataSettings(options["data"], None, options["preprocess"], seed=options["seed"], **more)
    with output.progress() as progress:
        clock = Clock(options["clock"] or "on")
        settings = RankSettings(options["only"], clock, threads=options["threads"] or 0, progress=progress)
        survey = run_ranks(model, dict(options["shapes"]), options["batch"], data, settings)
    _write(model, options, survey)
    if options["as_json"]:
        output.json(json.dumps({"schema": 1, **json.loads(survey.to_json())}, indent=1))
    _show(output, model, survey, options)
    return 0


def _show(output: Output, model: Path, survey: RankSurvey, options: dict[str, Any]) -> None:
    count = len(survey.layers)
    output.show(f"[bold]{escape(str(model))}[/bold]: {count} of {count + len(survey.refused)} layers can be factorized")
    output.show(*(f"[dim]{escape(line)}[/dim]" for line in rank_tables.rank_lines(survey)), "")
    if options["only"]:
        output.show(*(part for layer in survey.layers for part in (rank_tables.layer_ranks_table(layer), "")))
    else:
        output.show(rank_tables.rank_table(survey))
    left = rank_tables.refusal_lines(survey)
    if left:
        output.show("", "[bold]left alone[/bold]", escape(tables.bullet(left)))


def _write(model: Path, options: dict[str, Any], survey: RankSurvey | None, placement: Placement | None = None) -> None:
    """Write the reports that were asked for."""
    if not options["reports"]:
        return
    settings = DataSettings(options["data"], None, options["preprocess"], seed=options["seed"])
    summary = run_inspect(model, dict(options["shapes"]), options["batch"], settings)
    command = shlex.join(["onnxslim", *sys.argv[1:]])
    report = inspect_report(summary, survey, placement, command=command, seed=options["seed"])
    for path in options["reports"]:
        write_report(report, path)
