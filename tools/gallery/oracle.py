"""What pruning must give: the original in which the weights that read missing channels are zero.

Which channels are missing is found by value. Random (and trained) weights differ from one another, so those of the
pruned model can be looked up in the original's: along the axis of a weight that reads input channels, what is not
found again has been cut. Nothing here asks the analysis of coupled channels, which is on trial, or the plan; masking
activations instead would take a map from units to channels of tensors, and the only such map is the analysis's own.
Whatever it misses, couples wrongly or counts wrongly shows as a difference between two models that run by themselves.

What cannot show that way is a cut of other filters than the plan names, alike on all sides: ``cuts_as_planned``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
from onnx import numpy_helper

from onnxslim.ir import Model, Rewriter
from onnxslim.passes import PruneFilters
from onnxslim.passes.prune_filters import PrunePlan
from onnxslim.pipeline import PassContext
from tools.gallery.running import Array, apart, feed_of, run

Mask = npt.NDArray[np.bool_]
_FAN: dict[str, dict[int, int]] = {
    "Conv": {1: 1},
    "ConvTranspose": {1: 0},
    "Gemm": {1: 0, 0: 1},
    "MatMul": {1: -2, 0: -1},
    "LSTM": {1: 2, 2: 2},
    "GRU": {1: 2, 2: 2},
    "RNN": {1: 2, 2: 2},
}
"""By operator and input, the axis of a weight along which input channels are read; a Gemm may transpose it."""
_FILTERS = {"Conv": 0, "ConvTranspose": 1}


@dataclass(frozen=True)
class Verdict:
    """What became of a pruned model."""

    difference: float
    """From the oracle: the largest of any output, relative to its range; infinite where shapes or names differ."""
    layers: tuple[str, ...]
    """The layers whose weights are smaller than before, by their first output."""


def prune(model: Model, options: PruneFilters) -> tuple[Model, PrunePlan]:
    """Return a pruned copy of ``model``, not repaired, made from its plan as JSON; ``model`` learns shapes."""
    plan = PrunePlan.model_validate_json(options.plan(model, PassContext()).model_dump_json())
    pruned = model.copy()
    rewriter = Rewriter(pruned)
    options.apply(rewriter, plan, PassContext())
    rewriter.finish()
    return pruned, plan


def judge(original: onnx.ModelProto, pruned: onnx.ModelProto, feed: Mapping[str, Array] | None = None) -> Verdict:
    """Compare ``pruned`` with its oracle on ``feed``, by default random numbers.

    Raises:
        ValueError: a weight of ``pruned`` is no part of the original's.
    """
    expected, layers = zeroed(original, pruned)
    inputs = dict(feed or feed_of(original))
    return Verdict(apart(run(_opened(expected), inputs), run(_opened(pruned), inputs)), layers)


def zeroed(original: onnx.ModelProto, pruned: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return ``original`` with zeros where weights read what ``pruned`` lacks, and the layers with smaller weights.

    Raises:
        ValueError: a weight of ``pruned`` is no part of the original's.
    """
    result = onnx.ModelProto()
    result.CopyFrom(original)
    was, now = _constants(original), _constants(pruned)
    twins = {node.output[0]: node for node in pruned.graph.node}
    layers = []
    for node in result.graph.node:
        for slot, axis in _weights(node, was):
            whole, part = was[node.input[slot]], now[twins[node.output[0]].input[slot]]
            if whole.shape == part.shape:
                continue
            layers.append(node.output[0])
            kept = kept_indices(whole, part, node.output[0])[axis]
            _replace(result, node, slot, whole * kept.reshape([-1 if a == axis else 1 for a in range(whole.ndim)]))
    return result, tuple(dict.fromkeys(layers))


def kept_indices(whole: Array, part: Array, anchor: str) -> list[Mask]:
    """Return, for each axis, which indices of ``whole`` make up ``part``: those that share most values with it.

    Raises:
        ValueError: they do not make it up; names ``anchor``.
    """
    found = np.isin(whole, part)
    kept = []
    for axis, size in enumerate(part.shape):
        shared = found.sum(axis=tuple(a for a in range(whole.ndim) if a != axis))
        kept.append(np.isin(np.arange(len(shared)), np.argsort(-shared, kind="stable")[:size]))
    if not np.array_equal(whole[np.ix_(*kept)], part):
        raise ValueError(f"a weight of {anchor!r} is no part of the original's")
    return kept


def cuts_as_planned(original: onnx.ModelProto, pruned: onnx.ModelProto, plan: PrunePlan) -> int:
    """Check that plain convolutions lost just the filters that the plan names; return how many were looked at.

    Units are counted in the order of the first layer's filters: where a group has as many of the one as of the other,
    a unit is a filter.

    Raises:
        ValueError: a convolution lost others.
    """
    was, now = _constants(original), _constants(pruned)
    before, after = ({node.output[0]: node for node in proto.graph.node} for proto in (original, pruned))
    seen = 0
    for cut in plan.cuts:
        node = before[cut.anchor]
        axis = _FILTERS.get(node.op_type)
        if axis is None or was[node.input[1]].shape[axis] != cut.size:
            continue
        kept = kept_indices(was[node.input[1]], now[after[cut.anchor].input[1]], cut.anchor)[axis]
        if np.flatnonzero(~kept).tolist() != sorted(cut.remove):
            raise ValueError(f"{cut.anchor!r} lost other filters than the plan names")
        seen += 1
    return seen


def _opened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with what stands before a last Sigmoid or Tanh as an output of its own, instead of what follows.

    A saturated one hides differences, and one near 0 or 1 makes much of roundings.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    squashed = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in ("Sigmoid", "Tanh")}
    names = {value.name for value in model.graph.output}
    for value in result.graph.output:
        if squashed.get(value.name, value.name) not in names:
            value.CopyFrom(oh.make_empty_tensor_value_info(squashed[value.name]))
    return result


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _weights(node: onnx.NodeProto, constants: Mapping[str, Array]) -> list[tuple[int, int]]:
    """Return the inputs of ``node`` that are weights, with the axis along which each reads input channels."""
    found = []
    transposed = {attribute.name for attribute in node.attribute if attribute.name.startswith("trans") and attribute.i}
    for slot, axis in _FAN.get(node.op_type, {}).items():
        if slot >= len(node.input) or node.input[slot] not in constants:
            continue
        flipped = node.op_type == "Gemm" and ("transA", "transB")[slot] in transposed
        found.append((slot, (1 - axis if flipped else axis) % constants[node.input[slot]].ndim))
    return found


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, slot: int, values: Array) -> None:
    """Give ``node`` a weight of its own."""
    name = f"{node.output[0]}_zeroed_{slot}"
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    if model.ir_version < 4:
        model.graph.input.append(
            oh.make_tensor_value_info(name, oh.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        )
    node.input[slot] = name
