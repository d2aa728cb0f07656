"""Which operators an execution provider takes together with the pairs of QuantizeLinear and DequantizeLinear around.

onnxruntime calls that a node unit. Source: core/optimizer/qdq_transformer/selectors_actions/shared/utils.cc (which
operator has which rule) and qdq_selectors.cc (the rules).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Group(enum.Enum):
    """What must hold of the pairs around an operator."""

    MOVE = "move"
    """One pair before it and one after, with the same type, scale and zero point: values are not changed."""
    INDEX = "index"
    """A pair before it; its output is an index."""
    ONE = "one"
    """One pair before it and one after, of the same type."""
    ALL = "all"
    """A pair before every input and one after, all of the same type."""
    SPLIT = "split"
    """A pair before it and one after every output, of the same type."""
    LAYER = "layer"
    """A pair before every input and one after, which has the type of the data; a bias is int32."""
    MATMUL = "matmul"
    """The same without a bias."""
    GEMM = "gemm"
    """The same, where no pair need follow."""
    NORM = "norm"
    """A pair before every input and one after, which has the type of the data."""
    COMPARE = "compare"
    """Pairs of the same type before both inputs."""
    WHERE = "where"
    """Pairs of the same type before both values and after."""
    FOLDABLE = "foldable"
    """Pairs before the data, scale and bias, perhaps before mean and variance, and one after, of the data's type."""
    PAD = "pad"
    """A pair before the data, perhaps one before the padding value, and one after, of the same type."""


def _each(group: Group, *names: str) -> dict[str, Group]:
    return dict.fromkeys(names, group)


GROUPS: Mapping[str, Group] = {
    **_each(
        Group.MOVE, "Gather", "Reshape", "Expand", "Flatten", "Transpose", "MaxPool", "Resize", "Squeeze", "Unsqueeze",
        "Tile", "TopK",
    ),
    **_each(Group.INDEX, "ArgMax", "ArgMin"),
    **_each(
        Group.ONE, "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu", "ReduceMean", "ReduceMin",
        "ReduceMax", "ReduceProd", "ReduceSum", "Relu", "Gelu", "Elu", "HardSwish", "Sigmoid", "Slice", "LogSoftmax",
        "Softmax", "Sqrt", "Atan", "Asin", "Sin", "Cos", "Sign", "Tanh", "Exp", "Log", "LRN", "Ceil", "Floor", "Round",
        "Abs", "Neg", "DepthToSpace", "SpaceToDepth", "Clip", "LpNormalization", "CumSum",
    ),
    **_each(Group.ALL, "Add", "Div", "Mul", "Pow", "Sub", "PRelu", "GridSample", "Concat", "Max", "Min"),
    **_each(Group.SPLIT, "Split"),
    **_each(Group.LAYER, "Conv", "ConvTranspose"),
    **_each(Group.MATMUL, "MatMul"),
    **_each(Group.GEMM, "Gemm"),
    **_each(Group.NORM, "InstanceNormalization", "LayerNormalization", "RMSNormalization"),
    **_each(Group.COMPARE, "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    **_each(Group.WHERE, "Where"),
    **_each(Group.PAD, "Pad"),
    **_each(Group.FOLDABLE, "BatchNormalization"),
}  # fmt: skip
"""By operator; an operator that is absent is never taken together with pairs."""

QNN_GROUPS: Mapping[str, Group] = {
    **GROUPS,
    **_each(Group.ONE, "HardSigmoid", "Reciprocal", "Softplus", "ReduceL2", "ReduceLogSumExp", "GatherElements"),
    **_each(Group.WHERE, "ScatterElements"),
}  # fmt: skip
"""Qualcomm's provider has its own code for this, and takes more: tried with onnxruntime-qnn 2.7.0."""

VERSIONS: Mapping[str, frozenset[int]] = {"MaxPool": frozenset({12})}
"""Versions of the definition, where only some have the rule."""
