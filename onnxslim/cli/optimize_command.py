"""``onnxslim optimize``: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from onnxslim.cli import tables
from onnxslim.cli.device_tables import device_tables
from onnxslim.cli.options import (
    MODEL,
    common_options,
    data_options,
    device_option,
    metric_option,
    report_option,
    shape_options,
    target_option,
)
from onnxslim.cli.output import Output
from onnxslim.devices.finding import HOST
from onnxslim.report import format_bytes, summary_lines
from onnxslim.workflow.api import make_budgets
from onnxslim.workflow.data import DataSettings
from onnxslim.workflow.emit import Written, check_outputs, write_result
from onnxslim.workflow.optimizing import OptimizeResult, OptimizeSettings, run_optimize
from onnxslim.workflow.plans import read_plan

EPILOG = """\b
Examples:
  onnxslim optimize in.onnx -o out.onnx
      exact rewrites only, proven on random samples
  onnxslim optimize in.onnx -o out.onnx --data calib/ --eval-data val/ \\
      --preprocess resize=256,crop=224,scale=1/255 --report out.html
      int8, calibrated on one folder of images and judged on another
  onnxslim optimize in.onnx -o out.onnx --data samples.npz --max-macs 60% --max-drop 1%
      prune to 60 % of the work, then int8; undo what costs more than a point
  onnxslim optimize in.onnx -o out.onnx --data calib/ --ort --device arm
      the mobile package too, and instructions on an emulated phone's processor ('onnxslim device setup arm' first)
  onnxslim optimize in.onnx -o out.onnx --passes "prune-filters{ratio=0.3},factor-low-rank{energy=0.95}"
      a pipeline of your own ('onnxslim passes' lists what there is)

\b
Exit codes: 0 done, 1 a budget was missed (OUT is written), 2 bad input, 4 internal error.
"""


@click.command(epilog=EPILOG)
@click.argument("source", metavar="IN", type=MODEL)
@click.option("-o", "--out", metavar="OUT", type=MODEL, required=True, help="Where to write the model.")
@data_options()
@metric_option()
@click.option("--passes", metavar="SPEC", help="The pipeline, e.g. exact,prune-filters{ratio=0.3},insert-qdq.")
@click.option("--max-drop", metavar="POINTS", help="Points of the metric that may be lost, e.g. 1%.")
@click.option("--min-sqnr", metavar="DB", help="Decibels that every output keeps at least, e.g. 20.")
@click.option("--max-size", metavar="SIZE", help="Size of OUT, e.g. 2MB or 30%.")
@click.option("--max-macs", metavar="MACS", help="Multiply-accumulates of OUT, e.g. 50% or 300M.")
@click.option("--max-latency", metavar="TIME", help="Latency of OUT on this machine, e.g. 50% or 12ms.")
@click.option("--max-activations", metavar="SIZE", help="Activation memory of OUT at its peak, e.g. 4MB or 50%.")
@click.option("--download-limit", metavar="SIZE", help="Compressed size of OUT, e.g. 20MB.  [stores ask at 200MB]")
@target_option()
@shape_options()
@click.option("--plan", metavar="FILE", type=MODEL, help="Replay the decisions saved in FILE, without measuring.")
@click.option("--plan-out", metavar="FILE", type=MODEL, help="Save the decisions of the big passes.")
@click.option("--ort", is_flag=True, help="Write OUT.ort, its required operators and a manifest too.")
@click.option("--no-exact", is_flag=True, help="Leave the exact rewrites out.")
@click.option("--no-bench", is_flag=True, help="Do not measure latency.")
@device_option()
@report_option()
@common_options()
def command(source: Path, out: Path, **options: Any) -> int:
    """Compress IN, prove it, write OUT and its report.

    Without samples: exact rewrites, which change no output. With --data: int8 quantization too.
    """
    output = Output(quiet=options["quiet"], as_json=options["as_json"])
    extra = [path for path in (options["plan_out"],) if path is not None]
    check_outputs(source, out, options["reports"], extra)
    with output.progress() as progress:
        settings = _settings(options, progress)
        result = run_optimize(source, settings)
    target = options["target"] if options["ort"] else None
    written = write_result(result, out, options["reports"], ort_target=target)
    if options["plan_out"] is not None:
        result.plan.save(options["plan_out"])
    if options["as_json"]:
        output.json(written.report.to_json())
    else:
        _show(output, result, (source, out), options)
        _show_package(output, written)
    for line in result.warnings:
        output.warn(line)
    return 0 if result.budgets_met else 1


def _settings(options: dict[str, Any], progress: Any) -> OptimizeSettings:
    names = ("max_drop", "min_sqnr", "max_size", "max_macs", "max_latency", "max_activations", "download_limit")
    budgets = {name: options[name] for name in names}
    return OptimizeSettings(
        data=DataSettings(
            options["data"],
            options["eval_data"],
            options["preprocess"],
            options["calib_samples"],
            options["eval_samples"],
            options["seed"],
        ),
        passes=options["passes"],
        budgets=make_budgets(**budgets),
        metric=options["metric"],
        target=options["target"],
        shapes=dict(options["shapes"]),
        batch=options["batch"],
        plan=None if options["plan"] is None else read_plan(options["plan"]),
        exact=not options["no_exact"],
        bench=not options["no_bench"],
        devices=[name for name in options["devices"] if name != HOST],
        package=options["ort"],
        threads=options["threads"] or 0,
        command=shlex.join(["onnxslim", *sys.argv[1:]]),
        progress=progress,
    )


def _show(output: Output, result: OptimizeResult, paths: tuple[Path, Path], options: dict[str, Any]) -> None:
    report, (_, out) = result.report, paths
    output.show("", *(escape(line) for line in summary_lines(report)), "", tables.pass_table(report))
    skipped = tables.skipped_lines(report)
    if skipped:
        output.show("", "[bold]left alone[/bold]", escape(tables.bullet(skipped)))
    if report.latency is not None:
        output.show(*device_tables([report.latency], [path.name for path in paths]))
    written = [out, out.with_suffix(".report.json"), *options["reports"]]
    output.show("", f"wrote {escape(', '.join(str(path) for path in written))}")
    if options["data"] is None and options["passes"] is None and options["plan"] is None:
        output.note("checked on random samples; --data PATH would add int8 quantization, proven on your own")


def _show_package(output: Output, written: Written) -> None:
    """Say what the runtime of an app with this package has to hold, as far as that is known."""
    manifest = written.manifest
    if manifest is None:
        return
    runtime, names = manifest["runtime"], [file["name"] for file in manifest["files"]]
    library = runtime["library"]
    kernels, known = library.get("kernels"), library["published"]
    needs = f"onnxruntime {runtime['minimum']['ort']} or newer, {len(manifest['operators']['ort'])} operators"
    if kernels is not None:
        needs += f", at most {kernels['required']} of {kernels['registered']:,} kernels"
    full, reduced = (format_bytes(known[name]) for name in ("full_bytes", "reduced_bytes"))
    output.show(
        escape(f"package: {', '.join(names[1:])}: load {manifest['session']['load']}"),
        escape(f"  needs {needs}"),
        f"  library on {known['system']}, release {known['release']}: {full} with all operators, {reduced} with those "
        "of common models; with yours alone: known when it is built",
    )
