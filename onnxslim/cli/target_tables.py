"""Tables of what runs on a target: what does not and why, and the islands that are left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from onnxslim.cli.tables import plain_table
from onnxslim.report import format_bytes, format_count, format_percent
from onnxslim.workflow.target_survey import Crossing, TargetNode, TargetShare, TargetSurvey

NAMED = 40
"""Nodes up to which all are named; above, the first of every group."""
FEW = 3
UNFIXED = " is not fixed"
"""What reasons say of a size that is not known before running."""
MOST_ISLANDS = 20


def target_lines(survey: TargetSurvey) -> Iterator[str]:
    """What the figures come to."""
    yield f"{survey.runs.nodes} of {_total(survey)} nodes {_run(survey)} there, {survey.basis}{_macs_words(survey)}"
    if survey.border.nodes:
        border = next(node.reason for node in survey.nodes if node.verdict == "border")
        yield f"{survey.border.nodes} more could: {border}"
    if survey.unknown.nodes:
        yield f"{survey.unknown.nodes} unknown: counted as not running"
    if survey.gone:
        yield f"{survey.gone} more are gone once onnxruntime has loaded the model"
    unfixed = sum(UNFIXED in (node.reason or "") for node in survey.nodes)
    if unfixed:
        yield f"{unfixed} do not run for want of fixed sizes: give them with --batch or --shape"
    if survey.checked_by != "kernels":
        yield f"{_count(len(survey.partitions), 'island') if survey.partitions else 'no island'}: {_fate(survey)}"
    yield f"integers {survey.integers.words}"
    if survey.without_integer_kernel:
        yield f"computed in float even where pairs are around: {', '.join(survey.without_integer_kernel)}"
    if survey.uneven:
        layers = _count(len(survey.uneven), "layer")
        yield f"{layers} with channels that are no multiple of {survey.channel_multiple}: lanes are wasted"
    yield from survey.notes


def _run(survey: TargetSurvey) -> str:
    """Say no more than was checked."""
    return "may run" if survey.checked_by == "names" else "run"


def _total(survey: TargetSurvey) -> int:
    return sum(share.nodes for share in (survey.runs, survey.refused, survey.unknown, survey.border))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _macs_words(survey: TargetSurvey) -> str:
    shares: tuple[TargetShare, ...] = (survey.runs, survey.refused, survey.unknown, survey.border)
    macs = [share.macs for share in shares]
    if None in macs:
        return "; their share of MACs is unknown"
    whole = sum(value or 0 for value in macs)
    return f": {format_percent((survey.runs.macs or 0) / whole, 1)} of MACs" if whole else ""


def _fate(survey: TargetSurvey) -> str:
    """How often data changes sides."""
    if not survey.partitions:
        return "everything runs on the CPU"
    crossings = [tensor for one in survey.partitions for tensor in (*one.enters, *one.leaves)]
    if len(survey.partitions) == 1 and survey.runs.nodes == _total(survey):
        return "the whole model"
    return f"{_bytes(crossings)}, cross between it and the CPU in every inference"


def refusal_lines(survey: TargetSurvey) -> Iterator[str]:
    """What does not run there, by operator and reason, the most MACs first, and which nodes these are.

    Pairs and activations that are one unit with a layer are told with that layer.
    """
    left = [node for node in survey.nodes if node.verdict in ("refused", "unknown")]
    layers = {node.anchor: node for node in left if node.within is None}
    groups: dict[tuple[str, str, str], list[TargetNode]] = defaultdict(list)
    for node in left:
        layer = layers.get(node.within or "", node)
        groups[layer.verdict, layer.op, _alike(layer.reason or "")].append(node)
    for (verdict, op, reason), nodes in sorted(groups.items(), key=_weight):
        own = [node for node in nodes if node.anchor in layers] or nodes
        around = _around(nodes, own)
        mark = "[yellow]unknown:[/yellow] " if verdict == "unknown" else ""
        macs = _macs(nodes)
        cost = f", {macs} MACs" if macs else ""
        yield f"  [bold]{len(own)} {escape(op)}[/bold]{around}{cost}: {mark}{escape(reason)}"
        yield f"    [dim]{escape(_which(own, len(layers)))}[/dim]"


def _alike(reason: str) -> str:
    """Return a reason without the size that is not fixed, which differs from node to node."""
    head, found, _ = reason.partition(UNFIXED)
    return head + found


def _around(nodes: Sequence[TargetNode], own: Sequence[TargetNode]) -> str:
    """What goes with the layers, by operator."""
    counts = Counter(node.op for node in nodes if node not in own)
    return f" with {', '.join(f'{count} {op}' for op, count in counts.most_common())}" if counts else ""


def _weight(item: tuple[tuple[str, str, str], list[TargetNode]]) -> tuple[bool, int, int]:
    (verdict, _, _), nodes = item
    return verdict == "unknown", -sum(node.macs or 0 for node in nodes), -len(nodes)


def _macs(nodes: Sequence[TargetNode]) -> str:
    values = [node.macs for node in nodes]
    if None in values:
        return "?"
    whole = sum(value or 0 for value in values)
    return format_count(whole) if whole else ""


def _which(nodes: Sequence[TargetNode], left: int) -> str:
    shown = [_name(node) for node in (nodes if left <= NAMED else nodes[:FEW])]
    more = len(nodes) - len(shown)
    return ", ".join((*shown, f"and {more} more (all of them with --json)") if more else shown)


def _name(node: TargetNode) -> str:
    return f"{node.anchor} (added by onnxruntime)" if node.inserted else node.anchor


def island_lines(survey: TargetSurvey) -> Iterator[str]:
    """The partitions in the order in which they run: what each holds, and what crosses its border."""
    order = sorted(enumerate(survey.partitions, 1), key=lambda one: -(one[1].macs or 0))[:MOST_ISLANDS]
    for index, one in sorted(order):
        macs = "unknown MACs" if one.macs is None else f"{format_count(one.macs)} MACs" if one.macs else "no MACs"
        span = one.first if one.first == one.last else f"{one.first} to {one.last}"
        yield f"  [bold]{index}[/bold]: {_count(one.nodes, 'node')}, {macs}, {escape(span)}"
        yield f"    [dim]enters: {_bytes(one.enters)}; leaves: {_bytes(one.leaves)}[/dim]"
    rest = len(survey.partitions) - len(order)
    if rest > 0:
        yield f"  and {_count(rest, 'smaller island')} (all of them with --json)"


def _bytes(crossings: Sequence[Crossing]) -> str:
    sizes = [one.bytes for one in crossings]
    size = "?" if None in sizes else format_bytes(sum(value or 0 for value in sizes))
    return f"{_count(len(crossings), 'tensor')}, {size}"


def fact_lines(survey: TargetSurvey) -> list[str]:
    """What is known of the target, and what the check did not see."""
    return [f"{fact.about}: {fact.words}" for fact in survey.facts]


def node_table(nodes: Sequence[TargetNode]) -> Table:
    """Nodes that were asked for, one line each."""
    table = plain_table("node", "operator", "MACs", "", "why", right=(2,))
    colours = {"runs": "green", "refused": "red", "unknown": "yellow"}
    for node in nodes:
        colour = colours.get(node.verdict, "dim")
        where = f"{node.verdict}, island {node.partition}" if node.partition else node.verdict
        table.add_row(
            escape(_name(node)),
            escape(node.op),
            _macs([node]),
            f"[{colour}]{where}[/{colour}]",
            escape(node.reason or ""),
        )
    return table
