"""Tables a person enjoys reading: what was won, what was lost, what was skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from onnxslim.measure import Latency, Validation
from onnxslim.policy import GateResult
from onnxslim.report import Report, format_bytes, format_count, format_ms, format_percent, format_points
from onnxslim.report.network import ModelSummary
from onnxslim.report.placement import Placement
from onnxslim.report.placement_story import float_groups, integer_facts, waste_groups
from onnxslim.report.units import format_ratio
from onnxslim.workflow.explaining import GroupSummary

TOP_LAYERS = 20


def plain_table(*headings: str, right: Sequence[int] = ()) -> Table:
    """Return a table without lines; columns whose index is in ``right`` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(any(headings)))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold")
    return table


def pass_table(report: Report) -> Table:
    """What each pass did."""
    table = plain_table("pass", "", "edits", "bytes", "MACs", "time", right=(2, 3, 4, 5))
    for record in report.passes:
        after = record.after or record.before
        change = _change(record.before.bytes, after.bytes), _change(record.before.macs, after.macs)
        mark = {"kept": "[green]kept[/green]", "unchanged": "[dim]unchanged[/dim]"}.get(record.status.value)
        status = mark or f"[red]{record.status.value.replace('_', ' ')}[/red]"
        table.add_row(record.name, status, str(record.edits), *change, f"{record.seconds:.1f} s")
    return table


def skipped_lines(report: Report, most: int = 6) -> list[str]:
    """Why lossy passes left layers alone, reasons with the most layers first."""
    lines = []
    for record in report.passes:
        reasons = Counter(skip.reason for skip in record.skipped)
        for reason, count in reasons.most_common(most):
            lines.append(f"{record.name} left {count} {'layer' if count == 1 else 'layers'}: {reason}")
    return lines


def _change(before: int | None, after: int | None) -> str:
    if before is None or after is None or not before or before == after:
        return ""
    return f"{100 * (after - before) / before:+.1f} %"


def layer_table(summary: ModelSummary) -> Table:
    """The layers that hold most, by MACs and bytes."""
    table = plain_table("layer", "operator", "MACs", "parameters", "bytes", "live activations", right=(2, 3, 4, 5))
    total_macs, total_bytes = summary.macs or 1, summary.bytes or 1
    weight = {layer.anchor: (layer.macs or 0) / total_macs + layer.bytes / total_bytes for layer in summary.layers}
    top = sorted(summary.layers, key=lambda layer: -weight[layer.anchor])[:TOP_LAYERS]
    chosen = {layer.anchor for layer in top if weight[layer.anchor] > 0}
    for layer in summary.layers:
        if layer.anchor in chosen:
            macs = "?" if layer.macs is None else format_count(layer.macs)
            live = "?" if layer.activation_bytes is None else format_bytes(layer.activation_bytes)
            table.add_row(layer.anchor, layer.op, macs, format_count(layer.params), format_bytes(layer.bytes), live)
    rest = len(summary.layers) - len(chosen)
    if rest:
        table.caption = f"and {rest} smaller nodes (all of them with --json)"
        table.caption_justify = "left"
    return table


def channel_table(groups: Sequence[GroupSummary]) -> Table:
    """Groups of coupled channels, one line each."""
    table = plain_table("group", "units", "prunable", "made by", "read by", "why the others stay", right=(1, 2, 3, 4))
    for group in groups:
        reasons = "; ".join(group.reasons)
        made, read = f"{len(group.makers)} layers", f"{len(group.readers)} layers"
        table.add_row(escape(group.anchor), str(group.units), str(group.prunable), made, read, escape(reasons))
    return table


def group_table(group: GroupSummary) -> Table:
    """One group with all its members."""
    table = plain_table("", "")
    rows = {
        "group": group.anchor,
        "units": f"{group.units}, of which {group.prunable} can be pruned",
        "branches": " + ".join(map(str, group.branches)),
        "made by": "\n".join(group.makers),
        "read by": "\n".join(group.readers) or "nothing",
        "carried by": "\n".join(group.tensors),
        "must stay": "\n".join(f"{count}: {reason}" for reason, count in group.reasons.items()) or "none",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def summary_table(summary: ModelSummary) -> Table:
    """A model in a few lines."""
    table = plain_table("", "")
    rows = {
        "file": format_bytes(summary.bytes),
        "nodes": str(summary.nodes),
        "parameters": format_count(summary.params),
        "MACs": "unknown: fix the shapes with --shape" if summary.macs is None else format_count(summary.macs),
        "peak activations": "unknown"
        if summary.peak_activation_bytes is None
        else format_bytes(summary.peak_activation_bytes),
        "opset": str(summary.opset),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def validation_table(validation: Validation) -> Table:
    """Outputs of the candidate against the reference's, in every reading."""
    table = plain_table("reading", "output", "SQNR", "cosine", "max abs", "top-1 agreement", right=(2, 3, 4, 5))
    readings = {"definition": validation, "ARM kernels": validation.arm, "this CPU": validation.kernels}
    for name, reading in readings.items():
        for output in reading.outputs if reading is not None else ():
            if not output.finite:
                table.add_row(name, output.name, "[red]NaN or Inf[/red]")
                continue
            table.add_row(
                name,
                output.name,
                "" if output.sqnr_db is None else f"{output.sqnr_db:.1f} dB",
                "" if output.cosine is None else f"{output.cosine:.6f}",
                "" if output.max_abs is None else f"{output.max_abs:.3g}",
                "" if output.top1_agreement is None else format_percent(output.top1_agreement),
            )
    return table


def metric_lines(validation: Validation) -> list[str]:
    """Accuracy in words, one line for each reading."""
    lines = []
    readings = {"": validation.metric}
    if validation.arm is not None:
        readings[" by ARM's kernels"] = validation.arm.metric
    if validation.kernels is not None:
        readings[" by this CPU's kernels"] = validation.kernels.metric
    for how, metric in readings.items():
        if metric is None:
            continue
        span = "" if metric.interval is None else f", 95 % interval of the drop {_points(metric.interval)}"
        lines.append(
            f"{metric.name}{how}: {format_percent(metric.candidate)} from {format_percent(metric.reference)} "
            f"({format_points(-metric.drop)}) on {metric.samples} samples{span}"
        )
    return lines


def _points(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} points"


def layer_sqnr_table(validation: Validation) -> Table:
    """SQNR layer by layer."""
    table = plain_table("tensor", "SQNR", right=(1,))
    for layer in validation.layers:
        table.add_row(layer.tensor, "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB")
    return table


def latency_table(results: Sequence[Latency], names: Sequence[str]) -> Table:
    """Times of all models, the first of which is the baseline."""
    table = plain_table(
        "model", "p50", "p90", "p99", "load", "memory", "speed-up", "95 % interval", "", right=range(1, 8)
    )
    sides = [results[0].reference, *(r.candidate for r in results if r.candidate is not None)]
    compared: list[Latency | None] = [None, *(r for r in results if r.candidate is not None)]
    for name, side, result in zip(names, sides, compared, strict=True):
        times = [format_ms(value) for value in (side.p50_ms, side.p90_ms, side.p99_ms)]
        load = "" if side.load_ms is None else format_ms(side.load_ms)
        memory = "" if side.peak_rss_bytes is None else format_bytes(side.peak_rss_bytes)
        speed = ["", "", ""]
        if result is not None and result.speedup is not None and result.interval is not None:
            low, high = result.interval
            stable = "" if result.stable else "[yellow]not stable[/yellow]"
            speed = [format_ratio(result.speedup), f"{low:.2f} to {high:.2f}", stable]
        table.add_row(name, *times, load, memory, *speed)
    protocol = results[0].protocol
    table.caption = f"{protocol.clock}, {protocol.threads} thread(s), {protocol.runs} rounds, {protocol.order}"
    table.caption_justify = "left"
    return table


def gate_table(result: GateResult) -> Table:
    """The rules of a policy, judged."""
    colours = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
    table = plain_table("rule", "limit", "observed", "95 % interval", "verdict", "why", right=(2,))
    for rule in result.rules:
        value = rule.observed if isinstance(rule.observed, str) else _number(rule.observed)
        span = "" if rule.interval is None else f"{_number(rule.interval[0])} to {_number(rule.interval[1])}"
        colour = colours[rule.verdict.value]
        table.add_row(rule.name, rule.limit, value, span, f"[{colour}]{rule.verdict.value}[/{colour}]", rule.reason)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def placement_lines(placement: Placement) -> list[str]:
    """How much of a quantized model runs as integers, in one line."""
    return [escape(f"{fact.label.lower()}: {fact.line}") for fact in integer_facts(placement)]


def placement_table(placement: Placement) -> Table:
    """What stays in float, and what is run for nothing."""
    table = plain_table("layers", "operator", "why it stays in float", right=(0,))
    for group in float_groups(placement):
        table.add_row(str(len(group.anchors)), escape(group.op), escape(group.reason))
    for waste in waste_groups(placement):
        table.add_row(str(len(waste.places)), "", f"[dim]run for nothing:[/dim] {waste.what}")
    return table


def bullet(lines: Iterable[str]) -> str:
    """Join lines as a list."""
    return "\n".join(f"  {line}" for line in lines)
