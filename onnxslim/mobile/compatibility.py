"""The oldest onnxruntime that runs what we write: pure data with sources.

Opsets and IR versions: onnxruntime's documentation, "ONNX Runtime compatibility", ONNX opset support. ORT format:
"ORT model format", Backwards compatibility; version 6 since 1.16 (microsoft/onnxruntime issue 20670).
"""

from __future__ import annotations

from collections.abc import Iterable

Release = tuple[int, int]

_OPSETS: tuple[tuple[int, Release], ...] = (
    (11, (1, 1)), (12, (1, 3)), (13, (1, 6)), (14, (1, 8)), (15, (1, 9)), (16, (1, 11)), (17, (1, 12)), (18, (1, 14)),
    (19, (1, 15)), (20, (1, 17)), (21, (1, 18)),
)  # fmt: skip
"""Newest opset, and the first release that has it."""

_IR_VERSIONS: tuple[tuple[int, Release], ...] = ((6, (1, 1)), (7, (1, 3)), (8, (1, 9)), (9, (1, 16)), (10, (1, 18)))

_ORT_FORMAT: Release = (1, 16)

_LONG_KNOWN = frozenset(
    f"com.microsoft:{name}"
    for name in (
        "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "BiasGelu", "FastGelu", "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat", "NhwcMaxPool", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
        "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean",
        "QLinearSigmoid", "QLinearSoftmax",
    )
)  # fmt: skip
"""Operators of onnxruntime's own that 1.16 has: its docs/ContribOperators.md; tried with 1.16.3."""


def oldest_runtime(opset: int, ir_version: int, operators: Iterable[str], current: str, *, ort_format: bool) -> str:
    """Return the oldest release, as ``1.16``, known to run a model.

    Args:
        opset: of the standard operators.
        ir_version: of the ONNX file.
        operators: as :func:`onnxslim.mobile.operators_of` names them.
        current: the release at work, which did run it: the answer where the tables know none older.
        ort_format: whether the model is in ORT format.
    """
    major, minor, *_ = (int(part) for part in current.split(".")[:2])
    unknown = (major, minor)
    needed = [_first(_OPSETS, opset, unknown), _first(_IR_VERSIONS, ir_version, unknown)]
    if ort_format:
        needed.append(_ORT_FORMAT)
    foreign = {name for name in operators if ":" in name}
    if foreign:
        needed.append(_ORT_FORMAT if foreign <= _LONG_KNOWN else unknown)
    return ".".join(str(part) for part in min(max(needed), unknown))


def _first(table: tuple[tuple[int, Release], ...], version: int, unknown: Release) -> Release:
    return next((release for newest, release in table if version <= newest), unknown)
