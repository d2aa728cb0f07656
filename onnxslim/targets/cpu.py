"""The targets whose kernels are onnxruntime's own CPU kernels: on ARM, and on WebAssembly.

What loads on a CPU here runs there: kernels are registered by operator, version and type, the same for every processor
(onnxruntime core/providers/cpu/cpu_execution_provider.cc); only layouts that x86 alone has are kept out of files.
"""

from __future__ import annotations

from onnxslim.targets.base import Fact, Looks, Target

_COMPUTED = frozenset({
    "Conv", "MatMul", "Gemm", "Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax",
    "Concat", "Where",
})  # fmt: skip
"""Operators with an integer kernel: onnxruntime core/optimizer/qdq_transformer, qdq_selector_action_transformer.cc."""
_MOVED = frozenset({
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Resize", "Split",
    "DepthToSpace", "Expand", "Tile", "ReduceMax", "ArgMax", "Identity",
})  # fmt: skip
"""Operators that move or compare integers as they are: the same file, and tried with onnxruntime 1.32."""
_VANISHING = frozenset({"Relu", "Clip"})
"""Activations that vanish in the range of the pair after them."""
_OWN = frozenset({
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeLinear",
})  # fmt: skip
INTEGER_OPERATORS = _COMPUTED | _MOVED | _VANISHING | _OWN

ARM_CPU = Target(
    "arm-cpu", "onnxruntime's own CPU kernels on ARM", 8, "arm",
    "onnxruntime MLAS: NEON SGEMM and depthwise kernels work on 4 or 8 channels at a time",
    looks=Looks.KERNELS, integer_operators=INTEGER_OPERATORS, subgraphs=True,
    basis="by asking onnxruntime here",
    integers=Fact(
        "integers", "are quicker and smaller: 3 times fewer instructions on a cortex-a76, and a quarter of the bytes",
        "counted on an emulated cortex-a76: ResNet-18 and MobileNetV2",
    ),
    facts=(
        Fact("shapes", "may be dynamic", "core/providers/cpu"),
        Fact("operators", "every standard one up to the opset that onnxruntime knows", "docs/OperatorKernels.md"),
        Fact("activations", "8 bits; 16 bits are computed in float", "qdq_selector_action_transformer.cc"),
        Fact(
            "half precision", "is computed in float32 where there is no kernel, with Casts around",
            "core/optimizer/insert_cast_transformer.cc",
        ),
    ),
    blind=("asked of this machine's onnxruntime: a build with fewer operators runs less",),
)  # fmt: skip

WEB = Target(
    "web", "onnxruntime-web on WebAssembly", 8, "arm",
    "measured: int8 runs 1.3-1.8 times slower than float there, and saves only bytes",
    looks=Looks.KERNELS, integer_operators=INTEGER_OPERATORS, subgraphs=True,
    basis="by asking onnxruntime here",
    integers=Fact(
        "integers", "are for bytes only: 1.3 to 1.8 times slower than float there; for time, remove channels",
        "measured with onnxruntime-web 1.30",
    ),
    facts=(
        Fact("shapes", "may be dynamic", "onnxruntime.ai, docs/tutorials/web"),
        Fact("operators", "those of the CPU, compiled to WebAssembly", "onnxruntime.ai, docs/tutorials/web"),
        Fact("memory", "4 GiB at most, the model included", "WebAssembly, 32-bit memories"),
    ),
    blind=(
        "asked of this machine's onnxruntime: a reduced build for the web runs less",
        "WebGPU and WebNN are other providers, with lists of their own",
    ),
)  # fmt: skip
