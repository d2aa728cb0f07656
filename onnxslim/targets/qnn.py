"""What Qualcomm's HTP takes through the QNN execution provider: every row was tried.

Tried means: a model of one node was given to onnxruntime-qnn 2.7.0 with onnxruntime 1.32, which emulates the HTP on x86
(soc_model 57), and the provider's own trace (enable_framework_op_trace) said what it took. 3,500 models: every
operator that onnx tests, by 1 to 6 dimensions, by type, and within pairs of uint8, int8, uint16 and int16. What was
tried and not taken is refused; where a session failed to load, refused too; what was not tried is unknown. Its
documentation, "QNN Execution Provider", Supported ONNX operators, lists the operators, and builder/opbuilder/*.cc
their conditions.
"""

from __future__ import annotations

from dataclasses import replace

from onnxslim.targets.base import Fact, Looks, Target
from onnxslim.targets.conditions import (
    BOOL,
    DOUBLE,
    FLOAT,
    HALF,
    INT8,
    INT16,
    INT32,
    INT64,
    OUTPUT,
    UINT8,
    UINT16,
    Absent,
    Attribute,
    Check,
    Condition,
    Fixed,
    Given,
    Grid,
    Grids,
    Operator,
    Operators,
    Outputs,
    Ranks,
    Stored,
    Types,
    Values,
    all_but,
    only,
    tried,
)
from onnxslim.targets.pairs import QNN_GROUPS

TRIED = "tried with onnxruntime-qnn 2.7.0"
_WINDOWS = f"{TRIED}; 6 dimensions alone are refused, but not in the windows of a Swin transformer"
_GRIDS = {"u8": UINT8, "s8": INT8, "u16": UINT16, "s16": INT16}
_PLAIN = {"f": FLOAT, "h": HALF, "i": INT32, "l": INT64, "b": BOOL}
_MOST = 6
_FLOATS = "f h"
_MANY = "f h i l"
_ALL = "u8 s8 u16 s16"


def _ranks(most: int, least: int = 1, of: int = 0, *, sure: bool = True) -> Ranks:
    """Return a range of ranks; those beside it were refused, unless a pattern takes what one operator does not."""
    others = (rank for rank in range(1, _MOST + 1) if not least <= rank <= most)
    return Ranks(tried(*range(least, most + 1), refused=tuple(others) if sure else ()), of)


def _types(kinds: str, refused: str = "") -> Types:
    return Types(tried(*(_PLAIN[k] for k in kinds.split()), refused=(DOUBLE, *(_PLAIN[k] for k in refused.split()))))


def _grids(taken: str, refused: bool = True) -> Grids:
    """Return the integers of operators without weights; those of four that are left out were refused, or not tried."""
    left = [Grid(name) for key, name in _GRIDS.items() if key not in taken.split()] if refused else []
    return Grids(tuple(Grid(_GRIDS[key]) for key in taken.split()), tuple(left))


def _row(
    ranks: int, plain: str, grids: str | None = None, *more: Condition, refused: str = "", paired: int | None = None
) -> Operator:
    """Return a row: taken up to ``ranks`` dimensions in ``plain`` types; up to ``paired`` within pairs of ``grids``."""
    inside = None if grids is None else (_ranks(paired or ranks), _grids(grids))
    return Operator(TRIED, (_FIXED, *more), (_ranks(ranks), _types(plain, refused)), inside)


def _scalars(operators: Operators) -> Operators:
    """Return rows that take tensors without dimensions too."""
    return {
        name: replace(row, plain=_from_zero(row.plain), paired=row.paired and _from_zero(row.paired))
        for name, row in operators.items()
    }


def _from_zero(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    return tuple(
        replace(one, values=replace(one.values, allowed=(one.values.allowed or frozenset()) | {0}))
        if isinstance(one, Ranks)
        else one
        for one in conditions
    )


_FIXED = Fixed(of=None)
_STORED = Stored(1)


def _elementwise() -> Operators:
    three = "u8 s8 u16"
    up_to_four = ("Atan", "Ceil", "Cos", "Floor", "Log", "Round", "Sign", "Sin")
    all_grids = ("Elu", "HardSwish", "Selu", "Softplus", "Sqrt", "Tan", "Tanh")
    compared = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    return {
        **{name: _row(4, _FLOATS, three) for name in up_to_four},
        **{name: _row(4, _FLOATS, _ALL) for name in all_grids},
        **{name: _row(5, _FLOATS, _ALL) for name in ("Sigmoid", "Softmax", "ThresholdedRelu", "Reciprocal", "IsNaN")},
        **{name: _row(5, _MANY, _ALL) for name in ("Add", "Sub", "Mul", "Div", *compared)},
        **{name: Operator(TRIED, (_FIXED,), (_types("b"),)) for name in ("And", "Or", "Xor", "Not")},
        "Abs": _row(5, _MANY, three),
        "Exp": _row(5, _FLOATS, three),
        "Gelu": _row(5, _FLOATS, _ALL, paired=4),
        "HardSigmoid": _row(4, _FLOATS, "u8 u16", paired=5),
        "Identity": _row(5, _MANY),
        "LeakyRelu": _row(5, _FLOATS, "u8 u16"),
        "LogSoftmax": _row(4, _FLOATS, "u8 u16"),
        "Neg": _row(4, _FLOATS, "u8 u16", refused="i l"),
        "Relu": _row(5, _FLOATS, _ALL, refused="i l"),
        "Asin": Operator(
            TRIED, (_FIXED, _ranks(4)), (Types(all_but(FLOAT, HALF)),), (_grids(three),), note="within pairs alone"
        ),
        "Clip": _row(5, "f h i", three, Stored(1), Stored(2)),
        "Pow": _row(5, _FLOATS, three, Types(tried(FLOAT, HALF, *_GRIDS.values()), 1), refused="i l"),
        "Max": _row(4, _MANY, _ALL, Given(1), paired=5),
        "Min": _row(4, _MANY, three, Given(1), paired=5),
        "PRelu": Operator(
            TRIED, (_FIXED,), (_ranks(5), _types(_FLOATS, "i l")), (_ranks(5), _grids("u8 s8", refused=False))
        ),
        "Sum": _row(5, _FLOATS, None, Given(1)),
        "Mean": _row(5, "f", None, Given(1)),
        "Mod": Operator(TRIED, (_FIXED, Attribute("fmod", only(0), 0)), (_ranks(5), _types("i l"))),
        "com.microsoft:Gelu": _row(4, "f"),
        "com.microsoft:QuickGelu": _row(4, "f"),
    }


def _moving() -> Operators:
    every = f"{_MANY} b"
    images = Operator(
        f"{TRIED}; other types fail when the session is made", (_FIXED,),
        (_ranks(4, 4), Types(only(FLOAT, HALF))), (_ranks(4, 4), _grids("u8 s8 u16")),
    )  # fmt: skip
    to_five = _ranks(5, of=OUTPUT)
    window = (_ranks(5, sure=False), _types(every)), (_ranks(5, sure=False), _grids(_ALL))
    return {
        "Slice": _row(5, every, _ALL, *(Stored(index) for index in range(1, 5)), to_five),
        "Split": _row(5, every, _ALL, Stored(1), to_five),
        "Concat": _row(5, every, _ALL, to_five),
        "Squeeze": _row(5, every, _ALL, to_five),
        "Transpose": Operator(_WINDOWS, (_FIXED,), (_ranks(5, sure=False), _types("f h i b", "l")), window[1]),
        "Reshape": Operator(_WINDOWS, (_FIXED, _ranks(5, of=OUTPUT, sure=False)), *window),
        "Flatten": _row(5, every, _ALL),
        "Unsqueeze": _row(4, every, _ALL, to_five),
        "Gather": _row(5, every, _ALL, Stored(1, sure=False), to_five),
        "Tile": _row(5, every, "u8 s8 u16", Stored(1), to_five),
        "Expand": _row(4, every, "u8 s8 u16", Stored(1), to_five),
        "Where": Operator(
            TRIED, (_FIXED,), (_ranks(5, of=1), Types(tried(FLOAT, HALF, INT32, INT64, refused=(DOUBLE, BOOL)), 1)),
            (_ranks(5, of=1), _grids(_ALL)),
        ),
        "Pad": _row(
            5, _FLOATS, _ALL, Stored(1), Stored(2), Absent(3),
            Attribute("mode", tried("constant", "reflect", "edge", refused=("wrap",)), "constant"), refused="i l b",
        ),
        "GatherElements": _row(5, every, "u8 u16", Stored(1, sure=False)),
        "GatherND": _row(4, "f h i", None, Stored(1, sure=False), refused="l b"),
        "ScatterND": _row(5, _FLOATS, None, Stored(1, sure=False)),
        "ScatterElements": _row(4, _FLOATS, "u8 u16", Stored(1, sure=False)),
        "DepthToSpace": images,
        "SpaceToDepth": images,
        "Cast": _row(5, every, None, Attribute("to", tried(1, 6, 10))),
        "ArgMax": _row(4, _MANY, "u8 s8 u16", Attribute("select_last_index", only(0), 0)),
        "ArgMin": _row(4, _FLOATS, "u8 s8 u16", Attribute("select_last_index", only(0), 0), refused="i l"),
        "TopK": _row(4, _MANY, _ALL, Stored(1)),
        "CumSum": _row(4, _MANY, "u8 u16", Stored(1)),
    }  # fmt: skip


def _reducing() -> Operators:
    axes = (_STORED, Attribute("noop_with_empty_axes", tried(0, refused=(1,)), 0))
    return {
        "ReduceMean": _row(5, _FLOATS, _ALL, *axes, refused="i l b"),
        "ReduceSum": _row(5, _MANY, _ALL, *axes),
        "ReduceMax": _row(5, _MANY, _ALL, *axes, refused="b"),
        "ReduceMin": _row(5, _MANY, "u8 s8 u16", *axes, refused="b"),
        "ReduceL2": _row(4, _FLOATS, _ALL, *axes, refused="i l"),
        "ReduceLogSumExp": _row(4, _FLOATS, None, *axes, refused="i l"),
    }


_CHANNELS = only(True, False)
_WEIGHTED = (
    Grid(UINT8, UINT8), Grid(UINT8, INT8, per_channel=_CHANNELS), Grid(INT8, INT8, per_channel=_CHANNELS),
    Grid(UINT16, UINT8), Grid(UINT16, INT8, per_channel=_CHANNELS), Grid(UINT16, INT16, per_channel=_CHANNELS),
    Grid(INT16, INT8, per_channel=_CHANNELS),
)  # fmt: skip
_WIDE = Grid(INT16, INT16, per_channel=_CHANNELS)
_PADS = Attribute("auto_pad", only("NOTSET", "SAME_LOWER", "SAME_UPPER", "VALID"), "NOTSET")
_UNDILATED = Attribute("dilations", only(1), 1, every=True)


def _layers() -> Operators:
    floats = (_types(_FLOATS),)
    spatial = Ranks(only(3, 4, 5))
    return {
        "Conv": Operator(
            f"{TRIED}; builder/opbuilder/conv_op_builder.cc", (_FIXED, spatial, _PADS), floats,
            (Grids((*_WEIGHTED, Grid(UINT16, UINT16)), (_WIDE,)), Check.NARROW_PRODUCT),
        ),
        "ConvTranspose": Operator(
            f"{TRIED}; builder/opbuilder/conv_op_builder.cc", (_FIXED, spatial, _PADS, _UNDILATED), floats,
            (Grids((*_WEIGHTED, Grid(UINT16, UINT16)), (_WIDE,)), Stored(1, sure=False)),
            note="a scale for each channel lies along axis 1 of the weights",
        ),
        "MatMul": Operator(
            TRIED, (_FIXED, _ranks(5), _ranks(5, of=1), Check.MATMUL_RANKS), floats,
            (Grids((*_WEIGHTED, Grid(UINT16, UINT16)), (_WIDE,)), Check.NARROW_PRODUCT),
        ),
        "Gemm": Operator(
            f"{TRIED}; builder/opbuilder/gemm_op_builder.cc",
            (_FIXED, Attribute("alpha", only(1.0), 1.0), Attribute("beta", only(1.0, 0.0), 1.0), Check.OWN_WEIGHTS),
            floats,
            (Grids(_WEIGHTED, (_WIDE, Grid(UINT16, UINT16))), Check.NARROW_PRODUCT, Check.QUANTIZED_OUTPUT),
        ),
        "MaxPool": _pool(only(3, 4), _ALL),
        "AveragePool": _pool(only(3, 4, 5), "u8 s8 u16"),
        "GlobalAveragePool": _pool(only(3, 4, 5), "u8 s8 u16"),
        "GlobalMaxPool": _pool(only(3, 4), _ALL),
        "LpPool": Operator(
            TRIED, (_FIXED, Ranks(only(3, 4)), Attribute("ceil_mode", only(0), 0), Attribute("p", only(1, 2), 2),
                    _UNDILATED, _types("f")),
        ),
        "Resize": Operator(
            f"{TRIED}; builder/opbuilder/resize_op_builder.cc; int16 fails when the session is made, but for linear",
            (
                _FIXED, Ranks(only(3, 4, 5)), Attribute("mode", tried("nearest", "linear", "cubic"), "nearest"),
                Attribute("coordinate_transformation_mode", tried("half_pixel", "pytorch_half_pixel", "align_corners",
                                                                  "asymmetric"), "half_pixel"),
                Attribute("antialias", tried(0), 0), Attribute("axes", tried(None)), Check.NEAREST,
                Stored(2, sure=False), Stored(3, sure=False),
            ),
            floats, (_grids("u8 s8 u16"),),
        ),
        "GridSample": Operator(
            f"{TRIED}; int8 and int16 fail when the session is made",
            (_FIXED, Ranks(tried(4)), Attribute("mode", only("linear", "bilinear", "nearest"), "linear")),
            (_types("f"),), (_grids("u8 u16"),),
        ),
    }  # fmt: skip


def _pool(ranks: Values, grids: str) -> Operator:
    source = f"{TRIED}; builder/opbuilder/pool_op_builder.cc; int16 averages fail when the session is made"
    return Operator(source, (_FIXED, Ranks(ranks), Outputs(1), _PADS, _UNDILATED), (_types(_FLOATS),), (_grids(grids),))


def _normalizing() -> Operators:
    recurrent = Operator(
        TRIED, (_FIXED, Ranks(only(3)), Attribute("layout", only(0), 0), Attribute("activations", tried(None)),
                Attribute("clip", tried(None)), Absent(4), Stored(1, sure=False), Stored(2, sure=False), _types("f")),
    )  # fmt: skip
    return {
        "BatchNormalization": Operator(
            TRIED, (_FIXED, _ranks(4, 2), *(Stored(index) for index in range(1, 5)), Outputs(1)), (_types(_FLOATS),),
            (_grids("u8 u16"),),
        ),
        "InstanceNormalization": Operator(
            f"{TRIED}; int8 and int16 fail when the session is made", (_FIXED, Ranks(only(3, 4))),
            (_types(_FLOATS),), (_grids("u8 u16"),),
        ),
        "LayerNormalization": _row(4, _FLOATS, "u8 s8", Check.LAST_AXIS, Outputs(1)),
        "RMSNormalization": _row(4, "f", "u8 u16 s16", Check.LAST_AXIS),
        "LpNormalization": _row(4, "f", _ALL, Attribute("p", only(2), 2)),
        "LRN": Operator(f"{TRIED}; other integers fail", (_FIXED, Ranks(tried(4))), (_types("f"),), (_grids("u8"),)),
        "LSTM": recurrent,
        "GRU": recurrent,
        "QuantizeLinear": _pair(OUTPUT),
        "DequantizeLinear": _pair(0),
    }  # fmt: skip


def _pair(integers: int) -> Operator:
    values = tried(UINT8, INT8, UINT16, INT16, INT32)
    return Operator(TRIED, (_FIXED, _ranks(5, sure=False), Check.SCALAR_PAIR), (Types(values, integers),))


_LISTED = (
    "ai.onnx.ml:ArrayFeatureExtractor", "Attention", "Bernoulli", "ConvInteger", "DynamicQuantizeLinear", "Einsum",
    "GroupNormalization", "If", "Inverse", "MatMulInteger", "MaxRoiPool", "NonMaxSuppression", "NonZero", "OneHot",
    "QLinearConv", "QLinearMatMul", "RandomNormalLike", "RandomUniformLike", "Range", "RoiAlign", "RotaryEmbedding",
    "STFT", "Shape", "Swish", "Upsample", "com.microsoft:DequantizeLinear", "com.microsoft:FusedMatMul",
    "com.microsoft:GroupQueryAttention", "com.microsoft:MatMulNBits", "com.microsoft:QuantizeLinear",
    "com.microsoft:RotaryEmbedding", "com.microsoft:SimplifiedLayerNormalization",
)  # fmt: skip
_UNTRIED = Operator(
    "QNN Execution Provider, Supported ONNX operators", doubt="the provider lists it, and it was not tried in detail"
)
OPERATORS: Operators = {
    **_scalars(_elementwise()), **_moving(), **_reducing(), **_layers(), **_normalizing(),
    **dict.fromkeys(_LISTED, _UNTRIED),
    "Erf": Operator(f"{TRIED}; Supported operator fusions", (_FIXED, Check.GELU_ERF), (_types("f"),)),
}  # fmt: skip
"""Everything else was tried and is left to the CPU."""

QNN = Target(
    "qnn", "Qualcomm's HTP through the QNN execution provider", 32, "arm",
    "onnxruntime QNN provider documentation: fixed shapes, QDQ models, activations of 8 or 16 bits",
    wide_activations=True, integer_ends=True, block_kernels=False, transposed_convolutions=True,
    fixed_from=0,
    looks=Looks.RULES, operators=OPERATORS, groups=QNN_GROUPS, lonely=frozenset({"QuantizeLinear", "DequantizeLinear"}),
    border="the CPU quantizes and dequantizes the model's inputs and outputs, unless offload_graph_io_quantization=0",
    basis="by rules tried on an emulated HTP",
    integers=Fact(
        "integers", "are what it is built for: weights of 8 bits, activations of 8 or 16",
        "QNN Execution Provider, Model requirements",
    ),
    facts=(
        Fact("shapes", "must be fixed, the batch too", "QNN Execution Provider, Model requirements"),
        Fact(
            "float", "float32 is computed in float16 (enable_htp_fp16_precision=1, the default)",
            "QNN Execution Provider, Configuration Options",
        ),
        Fact("pairs", "a Gemm with pairs whose output stays in float is not taken: quantize the outputs too", TRIED),
        Fact("subgraphs", "Loop and Scan are left to the CPU", "QNN Execution Provider, Model requirements"),
        Fact("memory", "is the device's: every crossing copies", "QNN Execution Provider"),
    ),
    blind=(
        "patterns of several operators that the provider fuses (GELU, channel shuffle and others) are not looked for",
        "a chip's own limits: the answers are of an emulated HTP (soc_model 57)",
        "nodes of subgraphs, and whether the chip's memory holds the model",
    ),
)  # fmt: skip
