"""Judging a unit by what a target accepts: accepted, refused or unknown, with the reason in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from onnxslim.ir import Constant, Tensor, attribute, dims_of, producer
from onnxslim.mobile.partition_special import SPECIAL
from onnxslim.mobile.partition_units import DEQUANTIZE, Unit, is_stored, kind_of, kind_of_quantized
from onnxslim.targets.conditions import (
    OUTPUT,
    Absent,
    Attribute,
    Check,
    Condition,
    Fixed,
    Given,
    Grid,
    Grids,
    Operator,
    Outputs,
    Ranks,
    Stored,
    Types,
    Values,
    Versions,
)

Answer = tuple[bool | None, str]
"""Accepted, refused or unknown; and why, where it is not accepted."""
FINE: Answer = (True, "")

_FEW_GRIDS = 3
"""What is taken is told up to here."""
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Site:
    """A unit with the version of its operator's definition; None where onnx does not know the operator."""

    unit: Unit
    version: int | None
    opset: int
    """Of the model."""


def judge(site: Site, operator: Operator) -> Answer:
    """Return whether a target takes a unit: the first refusal decides, otherwise the first doubt."""
    if operator.doubt is not None:
        return None, operator.doubt
    grouped = site.unit.is_group
    if grouped and operator.paired is None:
        return False, "there is no integer kernel for it"
    beside = operator.paired or () if grouped else operator.plain
    return first_of(_judge(site, condition) for condition in (*operator.always, *beside))


def first_of(answers: Iterable[Answer]) -> Answer:
    """Return the first refusal, otherwise the first doubt, otherwise that all is fine."""
    doubt = FINE
    for answer in answers:
        if answer[0] is False:
            return answer
        if answer[0] is None and doubt is FINE:
            doubt = answer
    return doubt


def _judge(site: Site, condition: Condition) -> Answer:
    if isinstance(condition, Check):
        return SPECIAL[condition](site.unit, site.version)
    answer: Answer = _JUDGES[type(condition)](site, condition)
    return answer


def _given(site: Site, condition: Given) -> Answer:
    absent = site.unit.behind(condition.of) is None
    return (None, f"{_what(site, condition.of)} is left out, of which nothing is known") if absent else FINE


def _absent(site: Site, condition: Absent) -> Answer:
    return FINE if site.unit.behind(condition.of) is None else (False, f"it has {_what(site, condition.of)}")


def _outputs(site: Site, condition: Outputs) -> Answer:
    used = [tensor for tensor in site.unit.node.outputs if tensor.name]
    return FINE if len(used) <= condition.most else (False, f"it has {len(used)} outputs: {condition.most} can be made")


def _what(site: Site, index: int) -> str:
    """Return what an input is, in words."""
    if index == OUTPUT:
        return "its output"
    if site.unit.node.op in _WEIGHTED and index in (1, 2):
        return "its weights" if index == 1 else "its bias"
    return "its input" if index == 0 else f"input {index + 1}"


def _said(values: Values) -> str:
    """Return what is accepted, in words."""
    chosen = values.refused if values.allowed is None else values.allowed
    words = " or ".join(sorted(_word(value) for value in chosen or ()))
    return f"not {words}" if values.allowed is None else words


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return "×".join(str(one) for one in value)
    return "none" if value is None else str(value)


def _at(site: Site, index: int) -> Tensor | None:
    """Return an input, or the first output; None where it is absent."""
    if index != OUTPUT:
        return site.unit.behind(index)
    outputs = site.unit.node.outputs
    return outputs[0] if outputs else None


def _ruled(values: Values, value: object, subject: str, verb: str = "is") -> Answer:
    answer = values.judge(value)
    if answer:
        return FINE
    word = _word(value)
    if answer is False:
        return False, f"{subject} {verb} {word}, and it takes {_said(values)}"
    return None, f"{subject} {verb} {word}, of which nothing is known"


def _types(site: Site, condition: Types) -> Answer:
    tensor = site.unit.behind(condition.of)
    if tensor is None:
        return FINE
    kind = kind_of(tensor)
    what = _what(site, condition.of)
    if kind is None:
        return None, f"the type of {what} ({tensor.name!r}) is not known"
    return _ruled(condition.values, kind, what, "are" if what.endswith("weights") else "is")


def _ranks(site: Site, condition: Ranks) -> Answer:
    tensor = _at(site, condition.of)
    if tensor is None:
        return FINE
    dims = dims_of(tensor)
    what = _what(site, condition.of)
    if dims is None:
        return None, f"nobody knows how many dimensions {what} ({tensor.name!r}) has"
    answer = condition.values.judge(len(dims))
    if answer:
        return FINE
    has = f"{what} {'have' if what.endswith('weights') else 'has'} {len(dims)} dimensions"
    if answer is False:
        return False, f"{has}, and it takes {_said(condition.values)}"
    return None, f"{has}, of which nothing is known"


def _fixed(site: Site, condition: Fixed) -> Answer:
    if condition.of is not None:
        return _size_known(site.unit.behind(condition.of), _what(site, condition.of), condition.axes)
    node = site.unit.node
    inputs = ((site.unit.behind(index), _what(site, index)) for index in range(len(node.inputs)))
    outputs = ((tensor, "its output") for tensor in node.outputs if tensor.name)
    return first_of(
        answer
        for tensor, what in (*inputs, *outputs)
        for answer in (_size_known(tensor, what, None), _not_empty(tensor, what))
    )


def _size_known(tensor: Tensor | None, what: str, axes: tuple[int, ...] | None) -> Answer:
    if tensor is None or isinstance(tensor, Constant):
        return FINE
    dims = dims_of(tensor)
    if dims is None:
        return False, f"the size of {what} is not fixed: nothing is known of its dimensions"
    chosen = range(len(dims)) if axes is None else axes
    loose = [axis for axis in chosen if -len(dims) <= axis < len(dims) and not isinstance(dims[axis], int)]
    shape = "×".join("?" if dim is None else str(dim) for dim in dims)
    return (False, f"the size of {what} is not fixed: {shape}") if loose else FINE


def _not_empty(tensor: Tensor | None, what: str) -> Answer:
    dims = None if tensor is None or isinstance(tensor, Constant) else dims_of(tensor)
    return (None, f"{what} is empty, of which nothing is known") if dims is not None and 0 in dims else FINE


def _stored(site: Site, condition: Stored) -> Answer:
    index, verdict = condition.of, False if condition.sure else None
    tensor = site.unit.behind(index)
    if tensor is None or is_stored(tensor):
        return FINE
    what = _what(site, index)
    maker = producer(tensor)
    if maker is None or maker.op != DEQUANTIZE:
        made = "an input of the model" if maker is None else f"computed by {maker.op}"
        plural = "are" if what.endswith("weights") else "is"
        return verdict, f"{what} {'must' if condition.sure else 'should'} be constant, and {plural} {made}"
    why = "" if site.unit.alone is None else f": {site.unit.alone}"
    return verdict, f"its pairs are no group, so that it is a float layer with computed weights{why}"


def _attribute(site: Site, condition: Attribute) -> Answer:
    node = site.unit.node
    if condition.unless is not None and condition.unless in node.attrs:
        return FINE
    value = _plain(attribute(node, condition.name, condition.default))
    if condition.every and isinstance(value, tuple):
        answers = [_ruled(condition.values, one, condition.name) for one in value]
        return first_of(answers)
    return _ruled(condition.values, value, condition.name)


def _plain(value: Any) -> object:
    """Return an attribute as something that can be compared."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _versions(site: Site, condition: Versions) -> Answer:
    version = site.version
    if version is None:
        return None, "onnx does not know its definition"
    if version < condition.first:
        return (
            False,
            f"the model's opset is {site.opset}, and it takes {site.unit.node.op} of {condition.first} and newer",
        )
    if condition.last is not None and version > condition.last:
        return None, f"the model's opset is {site.opset}, newer than its kernel ({condition.last})"
    return FINE


def _grids(site: Site, condition: Grids) -> Answer:
    """Compare types, where they are known, with every grid; a scale that is computed is none."""
    grids = _found(site)
    if isinstance(grids, tuple):
        return grids
    answers = [_matches(grid, grids) for grid in condition.allowed]
    if True in answers:
        return FINE
    told = _tell(grids)
    if None in answers:
        return None, f"{told}, of which nothing is known"
    if condition.refused is not None and not any(_matches(grid, grids) for grid in condition.refused):
        return None, f"{told}, of which nothing is known"
    takes = list(dict.fromkeys(_tell(grid) for grid in condition.allowed))
    few = len(takes) <= _FEW_GRIDS
    return False, f"{told}, and it takes {' or '.join(takes)}" if few else f"{told}, which it does not take"


def _found(site: Site) -> Grid | Answer:
    """Return the integers of a unit, or why they cannot be told."""
    unit = site.unit
    if unit.node.op == "QLinearConv":
        parts = [unit.behind(index) for index in (0, 3, 7)]
        many = _size(unit.behind(4)) != 1
        return Grid(str(kind_of(parts[0])), kind_of(parts[1]), kind_of(parts[2]), Values(frozenset({many})))
    for index in range(len(unit.node.inputs)):
        quantizer = unit.quantizer(index)
        if quantizer is not None and not all(is_stored(tensor) for tensor in quantizer.inputs[1:]):
            return False, f"the scale of {_what(site, index)} is computed"
    data = unit.behind(0)
    weighted = unit.node.op in _WEIGHTED
    maker = unit.quantizer(1) if weighted else None
    weights = kind_of(unit.behind(1)) if weighted else None
    out = kind_of_quantized(unit.after[0]) if unit.after else None
    if kind_of(data) is None:
        return None, "the type of its integers is not known"
    channels = maker is not None and _size(maker.inputs[1]) != 1
    return Grid(str(kind_of(data)), weights, out, Values(frozenset({channels})))


def _size(tensor: Tensor | None) -> int:
    if not isinstance(tensor, Constant):
        return 1
    size = 1
    for dim in tensor.shape:
        size *= int(dim)
    return size


def _matches(grid: Grid, found: Grid) -> bool | None:
    if grid.data != found.data or (grid.weights is not None and grid.weights != found.weights):
        return False
    if found.output is not None and found.output != (grid.output or grid.data):
        return False
    channels = next(iter(found.per_channel.allowed or ()), False)
    return True if grid.weights is None else grid.per_channel.judge(channels)


def _tell(grid: Grid) -> str:
    """Return integers in words."""
    out = "" if grid.output in (None, grid.data) else f" and {grid.output} output"
    if grid.weights is None:
        return f"{grid.data} values{out}"
    channels = " for each channel" if True in (grid.per_channel.allowed or ()) else ""
    return f"{grid.data} data with {grid.weights} weights{channels}{out}"


_JUDGES: dict[type[Condition], Callable[[Site, Any], Answer]] = {
    Types: _types,
    Ranks: _ranks,
    Fixed: _fixed,
    Stored: _stored,
    Given: _given,
    Absent: _absent,
    Attribute: _attribute,
    Outputs: _outputs,
    Versions: _versions,
    Grids: _grids,
}
