"""The targets whose operators are in lists that come with onnxruntime, and are checked by its own checker.

Source: onnxruntime tools/python/util/mobile_helpers/usability_checker.py and the lists beside it, kept in step with the
providers' documentation by hand.
"""

from __future__ import annotations

from onnxslim.targets.base import Fact, Looks, Target

_BLIND = (
    "looked at operators' names and at shapes; not at types, constants or attributes",
    "float, float16 and integers get the same answer",
)

NNAPI = Target(
    "nnapi", "Android's NNAPI execution provider (deprecated since Android 15)", 8, "arm",
    "onnxruntime tools/usability_checker: op names of the NNAPI provider; fixed shapes",
    fixed_from=0, looks=Looks.NAMES,
    basis="by their operators' names",
    integers=Fact(
        "integers", "are quicker and smaller where a driver has them: uint8, QDQ or QLinear operators",
        "nnapi_supported_ops.md",
    ),
    facts=(
        Fact("shapes", "must be fixed", "usability_checker.py, check_nnapi_partitions"),
        Fact(
            "future", "deprecated by Google since Android 15: what a driver takes may end",
            "developer.android.com, NNAPI migration guide",
        ),
        Fact("memory", "is the device's: every crossing copies", "usability_checker.py, PartitioningInfo.suitability"),
    ),
    blind=(*_BLIND, "which of the nodes a phone's driver really takes is known on that phone alone"),
)  # fmt: skip

COREML = Target(
    "coreml", "Apple's Core ML execution provider", 8, "arm",
    "onnxruntime tools/usability_checker: op names of the Core ML provider; no Q/DQ at all",
    looks=Looks.NAMES,
    basis="by their operators' names",
    integers=Fact(
        "integers", "do not run there: QuantizeLinear and DequantizeLinear are left to the CPU, so that int8 saves "
        "bytes and costs time; float16 is its own type",
        "coreml_supported_mlprogram_ops.md",
    ),
    facts=(
        Fact(
            "shapes", "should be fixed, dynamic ones run slower; at most 5 dimensions",
            "usability_checker.py, check_shapes and check_coreml_partitions",
        ),
        Fact(
            "format", "MLProgram, of iOS 15 and newer (ModelFormat=MLProgram); the default, NeuralNetwork, has less",
            "coreml_supported_mlprogram_ops.md",
        ),
        Fact("memory", "is the device's: every crossing copies", "usability_checker.py, PartitioningInfo.suitability"),
    ),
    blind=(*_BLIND, "whether Core ML then computes on the Neural Engine, the GPU or the CPU is its own choice"),
)  # fmt: skip
