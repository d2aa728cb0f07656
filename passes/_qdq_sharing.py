"""Which tensors share one grid, so that what only moves or joins values moves integers as they are.

1. What only moves values hands on the grid of what it moves: there are no other values.
2. Concat: inputs that nobody else reads get the grid of the result. They end on it anyway, and are rounded once instead
   of twice.
3. Concat: of other inputs, those whose range is much like the result's, which costs their other readers at most a bit.
   The rest keep a finer grid of their own, from which the kernel of Concat rounds again (a table of 256 entries).

(Every target's Concat is quickest, and of some the only one, where all grids are one: LiteRT's "8-bit quantization
specification" requires it.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnxslim.analysis.range_choice import Range
from onnxslim.ir import Node, Tensor, producer
from onnxslim.passes._qdq_choice import MOVING, final_output, variable_inputs

MOST = 2.0
"""How much wider a range may become for tensors that others read too: a bit."""


def moved_from(nodes: Sequence[Node]) -> dict[str, str]:
    """Return what each result of a node that only moves values is moved from, by name."""
    return {out.name: node.inputs[0].name for node in nodes if node.op in MOVING for out in node.outputs}


def source_of(name: str, moved: Mapping[str, str]) -> str:
    """Return the tensor whose values ``name`` has, through all that only moves them."""
    while name in moved:
        name = moved[name]
    return name


@dataclass
class _Class:
    """Tensors that share a range."""

    range: Range
    least: float
    """Width of the narrowest range of those in it that others read too."""
    names: set[str] = field(default_factory=set)


def shared_ranges(nodes: Sequence[Node], ranges: Mapping[str, Range], returned: Collection[str]) -> dict[str, Range]:
    """Return ``ranges`` with one for all tensors that a Concat joins on one grid.

    Args:
        nodes: that become integer, in order.
        ranges: of their tensors, by name.
        returned: names of the graph's outputs.
    """
    moved = moved_from(nodes)
    classes: dict[str, _Class] = {}

    def class_of(name: str) -> _Class:
        return classes.setdefault(name, _Class(ranges[name], _width(ranges[name]), {name}))

    for node in reversed(nodes):
        if node.op != "Concat":
            continue
        result = class_of(final_output(node).name)
        for tensor in variable_inputs(node):
            own = class_of(source_of(tensor.name, moved))
            alone = _read_once(tensor, moved, returned) and len(own.names) == 1
            joined = result.range if alone else _hull(own.range, result.range)
            least = result.least if alone else min(own.least, result.least)
            if own is result or _width(joined) > MOST * least:
                continue
            result.range, result.least = joined, least
            result.names |= own.names
            classes.update(dict.fromkeys(own.names, result))
    return {**ranges, **{name: found.range for name, found in classes.items()}}


def _read_once(tensor: Tensor, moved: Mapping[str, str], returned: Collection[str]) -> bool:
    """Whether nobody but one node reads the values of ``tensor``, through all that only moves them."""
    return all(len(one.outputs) == 1 and one.name not in returned for one in _back(tensor, moved))


def _back(tensor: Tensor, moved: Mapping[str, str]) -> Iterator[Tensor]:
    yield tensor
    while tensor.name in moved:
        maker = producer(tensor)
        if maker is None:
            return
        tensor = maker.inputs[0]
        yield tensor


def _width(range_: Range) -> float:
    low, high = range_
    return max(high, 0.0) - min(low, 0.0)


def _hull(one: Range, other: Range) -> Range:
    return min(one[0], other[0]), max(one[1], other[1])
