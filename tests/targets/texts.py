"""Models written as text for tests of what runs on a target, and their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxslim.analysis import infer_shapes
from onnxslim.ir import Model, anchor_of
from onnxslim.mobile.partition_check import Judged, judge_units
from onnxslim.targets import find_target

Told = dict[str, tuple[str, str]]
"""By the first output of a node: its verdict and the reason."""


def rows(table: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return a table for ``parametrize``; what a row is called comes first in it."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]


def proto(text: str, opset: int = 17) -> onnx.ModelProto:
    """Return a model; inputs of the text whose names begin with ``w`` become weights."""
    domains = f'"" : {opset}, "com.microsoft" : 1, "my.own" : 1'
    made = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{domains}]> g {text}")
    for value in [value for value in made.graph.input if value.name.startswith("w")]:
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [dim.dim_value for dim in kind.shape.dim]
        values = (np.arange(np.prod(shape, dtype=int)) % 7 - 3).reshape(shape).astype(dtype)
        made.graph.initializer.append(numpy_helper.from_array(values, value.name))
        made.graph.input.remove(value)
    return made


def network(text: str, opset: int = 17) -> Model:
    """Return a model with its shapes inferred."""
    model = Model.load(proto(text, opset))
    infer_shapes(model)
    return model


def judged(text: str, target: str, opset: int = 17) -> list[Judged]:
    """Return the verdict of a target's rules on every unit, as the text has it."""
    return judge_units(network(text, opset), find_target(target))


def told(text: str, target: str, opset: int = 17) -> Told:
    """Return verdict and reason of every node."""
    found = judged(text, target, opset)
    return {anchor_of(node): (one.verdict.value, one.reason) for one in found for node in one.unit.nodes}


def paired(
    layer: str,
    shape: str,
    made: str,
    kind: str = "uint8",
    *,
    more: str = "",
    weights: str = "",
    out: str | None = None,
) -> str:
    """Return a layer within pairs: ``layer`` reads ``d`` and writes ``c``.

    Args:
        shape: of the data, such as ``1,3,8,8``.
        made: shape of the output.
        kind: integers of the data.
        more: nodes before the layer, such as DequantizeLinear of its weights.
        weights: inputs that become weights.
        out: integers of the output; those of the data if left out.
    """
    zero = 128 if kind == "uint8" else 0
    return f"""({kind}[{shape}] x{weights}) => ({out or kind}[{made}] q)
    <float s = {{0.1}}, {kind} z = {{{zero}}}, {out or kind} zq = {{{zero if out in (None, kind) else 0}}}>
    {{ d = DequantizeLinear(x, s, z)
       {more}
       {layer}
       q = QuantizeLinear(c, s, zq) }}"""


def paired_conv(kind: str, weights: str, *, channels: bool, out: str | None = None, after: str = "") -> str:
    """Return Conv within pairs, with ``after`` between it and QuantizeLinear."""
    scale = "float[8] ws" if channels else "float ws"
    more = f"""e = DequantizeLinear<axis = 0>(w, {"ws" if channels else "s"})
       b = DequantizeLinear(wb, {"ws" if channels else "s"})"""
    layer = f"{'t' if after else 'c'} = Conv(d, e, b) {after}"
    given = f", {weights}[8,3,3,3] w, int32[8] wb" + (f", {scale}" if channels else "")
    return paired(layer, "1,3,8,8", "1,8,6,6", kind, more=more, weights=given, out=out)
