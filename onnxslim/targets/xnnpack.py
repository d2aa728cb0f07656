"""What the XNNPACK execution provider accepts, read off onnxruntime's sources.

All files are of onnxruntime's core/providers/xnnpack: detail/node_support_checker.cc lists the operators, each one's
own file has its conditions, and xnnpack_execution_provider.cc registers the kernels, which fixes versions and types.
Where these disagree, or releases differ, the answer is "unknown".
"""

from __future__ import annotations

from onnxslim.targets.base import Fact, Looks, Target
from onnxslim.targets.conditions import (
    FLOAT,
    HALF,
    INT8,
    UINT8,
    Attribute,
    Check,
    Fixed,
    Given,
    Grid,
    Grids,
    Operator,
    Outputs,
    Ranks,
    Stored,
    Types,
    Versions,
    all_but,
    only,
)
from onnxslim.targets.pairs import GROUPS

_FLOATS = Types(only(FLOAT, unsure=(HALF,)))
"""Newer releases have kernels in half precision, on some builds for ARM only."""
_IMAGE = (Ranks(only(4)), Fixed((1, 2, 3)))
"""Kernels are made before running, for known channels, height and width."""
_PADDING = Attribute("auto_pad", only("NOTSET", "VALID", "SAME_UPPER"), "NOTSET", unless="pads")
_POOL_PADDING = Attribute("auto_pad", only("NOTSET", "VALID", "SAME_UPPER"), "NOTSET")
_POOL = (_POOL_PADDING, Attribute("ceil_mode", only(0), 0), Attribute("kernel_shape", all_but((1, 1))))
_SIGNED_CHANNELS = Grid(INT8, INT8, per_channel=only(True, False))

OPERATORS = {
    "Conv": Operator(
        "nn/conv_base.cc",
        (Versions(11, 21), *_IMAGE, Stored(1), Ranks(only(4), of=1), Stored(2), _PADDING),
        plain=(_FLOATS,),
        paired=(Grids((_SIGNED_CHANNELS, Grid(UINT8, UINT8))),),
    ),
    "ConvTranspose": Operator(
        "nn/conv_base.cc, nn/conv_transpose.cc",
        (Versions(11, 21), *_IMAGE, Stored(1), Ranks(only(4), of=1), Stored(2), _PADDING),
        plain=(_FLOATS,),
        paired=(Grids((Grid(INT8, INT8, per_channel=only(False, unsure=(True,))), Grid(UINT8, UINT8))),),
        note="with a scale for each channel the check passes, but no such kernel is made",
    ),
    "QLinearConv": Operator(
        "nn/conv_base.cc",
        (*_IMAGE, Stored(3), Ranks(only(4), of=3), *(Stored(k) for k in (1, 2, 4, 5, 6, 7, 8)), _PADDING),
        plain=(Grids((_SIGNED_CHANNELS, Grid(UINT8, UINT8))),),
    ),
    "MaxPool": Operator(
        "nn/max_pool.cc",
        (Versions(11, 21), *_IMAGE, Outputs(1), *_POOL),
        plain=(Types(only(FLOAT, UINT8, INT8, unsure=(HALF,))),),
        paired=(Grids((Grid(INT8), Grid(UINT8))),),
        note="kernels are registered from version 11 on",
    ),
    "AveragePool": Operator(
        "nn/average_pool.cc",
        (Versions(11, 18), *_IMAGE, *_POOL),
        plain=(_FLOATS, Attribute("count_include_pad", only(0), 0)),
        paired=(Grids((Grid(UINT8),)), Attribute("count_include_pad", only(1), 0)),
        note="in float the padding must not count, in pairs of uint8 it must; int8 has no kernel",
    ),
    "Softmax": Operator(
        "math/softmax.cc",
        (Fixed((-1,)), Check.LAST_AXIS),
        plain=(_FLOATS,),
        paired=(Grids((Grid(UINT8),)), Check.SOFTMAX_SCALE),
    ),
    "Resize": Operator(
        "tensor/resize.cc",
        (
            Versions(10),
            Ranks(only(4)),
            Fixed((1,)),
            Attribute("mode", only("linear"), "nearest"),
            Attribute("antialias", only(0), 0),
            Attribute("axes", only(None)),
            Attribute("keep_aspect_ratio_policy", only("stretch"), "stretch"),
            Attribute("extrapolation_value", only(0.0), 0.0),
            Attribute("exclude_outside", only(0), 0),
            Check.BILINEAR,
        ),
        plain=(Types(only(FLOAT, UINT8, INT8, unsure=(HALF,))),),
        paired=(Grids((Grid(INT8), Grid(UINT8))),),
    ),
    "Gemm": Operator(
        "math/gemm.cc",
        (
            Versions(7),
            Attribute("alpha", only(1.0), 1.0),
            Attribute("beta", only(1.0), 1.0),
            Stored(1),
            Stored(2),
            Ranks(only(1, 2)),
            Ranks(only(1, 2), of=1),
            Given(2),
            Check.GEMM_BIAS,
        ),
        plain=(_FLOATS,),
    ),
    "MatMul": Operator(
        "math/matmul.cc",
        (Ranks(only(1, 2, unsure=(3,))), Fixed(), Ranks(only(1, 2), of=1), Stored(1)),
        plain=(_FLOATS,),
        note="some releases take a batch of matrices, onnxruntime's documentation names two dimensions",
    ),
    "com.microsoft:QLinearAveragePool": Operator(
        "xnnpack_execution_provider.cc",
        doubt="the documentation lists it, but the provider's own check asks for operators of the standard only",
    ),
    "com.microsoft:QLinearSoftmax": Operator(
        "xnnpack_execution_provider.cc",
        doubt="the documentation lists it, but the provider's own check asks for operators of the standard only",
    ),
    "com.microsoft:QLinearConvTranspose": Operator(
        "xnnpack_execution_provider.cc",
        doubt="the documentation lists it, but the provider's own check asks for operators of the standard only",
    ),
}
"""Everything else is left to onnxruntime's CPU kernels."""

XNNPACK = Target(
    "xnnpack", "the XNNPACK execution provider", 8, "arm",
    "onnxruntime core/providers/xnnpack: S8S8, or U8U8 per tensor; 2-D; constant weights",
    activations="int8", transposed_convolutions=True,
    fixed_from=1, looks=Looks.RULES, operators=OPERATORS, groups=GROUPS,
    fused={"Relu": ("Conv", "MaxPool", "AveragePool"), "Clip": ("Conv", "MaxPool", "AveragePool")},
    subgraphs=True,
    basis="by rules read off onnxruntime's sources",
    integers=Fact(
        "integers", "are quicker and smaller: int8 weights and activations, or uint8 with one scale for each tensor",
        "nn/conv_base.cc, detail/utils.cc",
    ),
    facts=(
        Fact("shapes", "the batch may be dynamic; channels, height and width may not", "nn/conv_base.cc"),
        Fact("weights", "must be constants of the model; a Conv has two dimensions", "nn/conv_base.cc"),
        Fact("layout", "runs in NHWC: a Transpose is added wherever an island begins or ends", "nn/conv_base.cc"),
        Fact("activations", "Relu and Clip run within a float layer before them", "detail/node_support_checker.cc"),
        Fact("memory", "is the CPU's: crossing costs the Transpose alone", "xnnpack_execution_provider.cc"),
    ),
    blind=(
        "read off onnxruntime's sources: no onnxruntime on PyPI has the provider, so that nothing was tried",
        "kernels in half precision depend on release and build",
        "older releases of onnxruntime do not take a Relu or Clip between a layer and its QuantizeLinear",
    ),
)  # fmt: skip
