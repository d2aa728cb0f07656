"""Two reports: one with every part, shaped like EfficientNet-Lite0 made int8, and the smallest one allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from onnxslim.report.schema import Report

HOSTILE = "<script>alert(1)</script>|`x`"
# (expansion, channels, repeats, stride, kernel) of EfficientNet-Lite0's stages, after a 32-channel stem
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def _conv(anchor: str, cin: int, cout: int, kernel: int, size: int, group: int = 1) -> dict[str, Any]:
    params = cout * (cin // group) * kernel * kernel + cout
    macs = cout * (cin // group) * kernel * kernel * size * size
    alive = 4 * (cin + cout) * size * size
    return {
        "anchor": anchor,
        "op": "Conv",
        "bytes": 4 * params,
        "params": params,
        "macs": macs,
        "activation_bytes": alive,
    }


def _efficientnet() -> Iterator[dict[str, Any]]:
    yield _conv("stem/Relu6:0", 3, 32, 3, 112)
    cin, size = 32, 112
    for stage, (expansion, cout, repeats, stride, kernel) in enumerate(STAGES):
        for repeat in range(repeats):
            name, inner = f"blocks_{stage}_{repeat}", cin * expansion
            if expansion > 1:
                yield _conv(f"{name}/expand:0", cin, inner, 1, size)
            size //= stride if repeat == 0 else 1
            yield _conv(f"{name}/depthwise:0", inner, inner, kernel, size, group=inner)
            yield _conv(f"{name}/project:0", inner, cout, 1, size)
            cin = cout
    yield _conv("head/Relu6:0", 320, 1280, 1, 7)
    yield {"anchor": "pool", "op": "GlobalAveragePool", "bytes": 0, "params": 0, "macs": 0, "activation_bytes": 256000}
    yield {
        "anchor": HOSTILE,
        "op": "Gemm",
        "bytes": 5124000,
        "params": 1281000,
        "macs": 1280000,
        "activation_bytes": 9120,
    }


def _smaller(layer: dict[str, Any]) -> dict[str, Any]:
    keep = 0.9 if "expand" in layer["anchor"] or "depthwise" in layer["anchor"] else 1.0
    return {
        **layer,
        "params": int(layer["params"] * keep),
        "bytes": int(layer["bytes"] * keep * 0.262),
        "macs": int(layer["macs"] * keep),
        "activation_bytes": int(layer["activation_bytes"] * keep / 4),
    }


def _model(path: str, digest: str, layers: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "path": path,
        "sha256": digest * 64,
        "bytes": sum(layer["bytes"] for layer in layers) + 21_000,
        "nodes": 2 * len(layers),
        "params": sum(layer["params"] for layer in layers),
        "macs": sum(layer["macs"] for layer in layers),
        "peak_activation_bytes": max(layer["activation_bytes"] for layer in layers),
        "peak": {"anchor": HOSTILE, "tensors": [{"name": HOSTILE, "bytes": 600_000}, {"name": "input", "bytes": 9000}]},
        "opset": 17,
        "layers": layers,
        **more,
    }


def _numerics(sqnr_db: float, agreement: float) -> dict[str, Any]:
    return {
        "name": "probabilities",
        "finite": True,
        "max_abs": 0.0913,
        "mean_abs": 0.00014,
        "max_rel": 0.31,
        "cosine": 0.9987,
        "sqnr_db": sqnr_db,
        "top1_agreement": agreement,
    }


def _metric(candidate: float, interval: tuple[float, float]) -> dict[str, Any]:
    return {
        "name": "top1",
        "reference": 0.883,
        "candidate": candidate,
        "drop": round(0.883 - candidate, 4),
        "samples": 300,
        "interval": interval,
    }


def _passes(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    start = {"bytes": before["bytes"], "params": before["params"] + 42016, "macs": before["macs"]}
    exact = {**start, "params": before["params"], "bytes": before["bytes"] - 168_064}
    slim = {"bytes": int(exact["bytes"] * 0.94), "params": after["params"], "macs": after["macs"]}
    final = {**slim, "bytes": after["bytes"]}
    record = {"status": "unchanged", "edits": 0, "skipped": [], "seconds": 0.02, "before": exact, "after": exact}
    place = {"anchor": "blocks_6_0/project:0", "reason": "the channels reach a graph output"}
    coupled = [{"anchor": f"blocks_{i}_0/project:0", "reason": "coupled with a residual sum"} for i in range(1, 6)]
    return [
        {**record, "name": "fold-constants", "spec": "fold-constants", "before": start},
        {**record, "name": "drop-identities", "spec": "drop-identities", "reason": "no identities"},
        {
            **record,
            "name": "fuse-batchnorm",
            "spec": "fuse-batchnorm",
            "status": "kept",
            "edits": 49,
            "seconds": 0.31,
            "before": start,
            "validation": {"samples": 8, "source": "data", "outputs": [{**_numerics(118.2, 1.0), "max_abs": 1.2e-7}]},
        },
        {
            **record,
            "name": "prune-filters",
            "spec": "prune-filters{macs=0.9 criterion=obs}",
            "status": "kept",
            "edits": 30,
            "seconds": 74.2,
            "after": slim,
            "skipped": [*coupled, place],
            "validation": {
                "samples": 300,
                "source": "data",
                "held_out": True,
                "outputs": [_numerics(24.1, 0.953)],
                "metric": _metric(0.88, (-0.008, 0.014)),
            },
        },
        {
            **record,
            "name": "factor-low-rank",
            "spec": "factor-low-rank{ratio=0.5}",
            "status": "rolled_back",
            "edits": 1,
            "seconds": 12.9,
            "before": slim,
            "after": {**slim, "bytes": slim["bytes"] - 2_100_000, "params": slim["params"] - 530_000},
            "reason": "drop of 3.1 points is over --max-drop 1%",
            "skipped": [{"anchor": HOSTILE, "reason": f"the weight of {HOSTILE} is shared"}],
        },
        {
            **record,
            "name": "insert-qdq",
            "spec": "insert-qdq{weights=per-channel}",
            "status": "kept",
            "edits": 151,
            "seconds": 21.6,
            "before": slim,
            "after": final,
        },
    ]


def _validation() -> dict[str, Any]:
    outputs = [_numerics(21.7, 0.947), {**_numerics(33.9, 0.99), "name": "features"}]
    return {
        "samples": 300,
        "source": "data",
        "held_out": True,
        "outputs": outputs,
        "metric": _metric(0.879, (-0.0067, 0.0143)),
        "arm": {"outputs": [_numerics(21.6, 0.943)], "metric": _metric(0.8767, (-0.004, 0.017))},
        "kernels": {"outputs": [_numerics(9.8, 0.871)], "metric": _metric(0.833, (0.027, 0.073))},
        "layers": [{"tensor": f"blocks_{i}_0/expand:0", "sqnr_db": 38.0 - 3 * i} for i in range(1, 7)],
    }


def _latency(layers: list[dict[str, Any]]) -> dict[str, Any]:
    side = {"p50_ms": 24.31, "p90_ms": 25.02, "p99_ms": 27.9, "mean_ms": 24.5, "load_ms": 61.2}
    fast = {"p50_ms": 12.74, "p90_ms": 13.1, "p99_ms": 14.4, "mean_ms": 12.8, "load_ms": 48.8}
    total = sum(layer["macs"] for layer in layers)
    rows: list[dict[str, Any]] = [
        {
            "node": layer["anchor"],
            "op": "QLinearConv",
            "origin": layer["anchor"],
            "reference_us": round(24310 * layer["macs"] / total, 1),
            "candidate_us": round(12740 * layer["macs"] / total, 1),
            "share": round(layer["macs"] / total, 4),
        }
        for layer in layers
        if layer["op"] == "Conv"
    ]
    rows.append({"node": "reorder_17", "op": "ReorderOutput", "candidate_us": 110.0, "share": 0.0086})
    order = "interleaved, seeded random order"
    return {
        "protocol": {"threads": 1, "warmup": 5, "runs": 50, "order": order, "clock": "thread_time_ns"},
        "reference": {**side, "peak_rss_bytes": 142_000_000},
        "candidate": {**fast, "peak_rss_bytes": 97_000_000},
        "speedup": 1.904,
        "interval": [1.86, 1.95],
        "stable": True,
        "layers": rows,
        "devices": [
            {
                "name": "arm",
                "reference": {"instructions": 2_410_000_000},
                "candidate": {"instructions": 830_000_000},
                "speedup": 2.9,
                "interval": [2.89, 2.91],
            }
        ],
    }


def _frame() -> dict[str, Any]:
    return {
        "schema": 1,
        "tool": {"name": "onnxslim", "version": "0.1.0"},
        "created": "2025-11-23T04:31:00Z",
        "command": "onnxslim optimize efficientnet_lite0.onnx -o out.onnx --data calib --max-drop 1%",
        "environment": {
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "python": "3.11.9",
            "onnx": "1.23.0",
            "onnxruntime": "1.32.0",
        },
    }


@pytest.fixture
def full_document() -> dict[str, Any]:
    """A document with every part of schema 1."""
    layers = list(_efficientnet())
    before = _model("efficientnet_lite0.onnx", "a", layers)
    ort = {"path": "out.ort", "bytes": 5_310_000}
    operators = ["Conv", "DequantizeLinear", "Gemm", "QuantizeLinear"]
    grids = [{"tensor": name, "low": -1.5, "high": 6.0, "step": 0.03, "type": "uint8"} for name in ("input", HOSTILE)]
    parts = [_smaller(layer) for layer in layers]
    parts.append(
        {**parts[-1], "anchor": f"{HOSTILE}_scale", "op": "QuantizeLinear", "origin": HOSTILE, "macs": 0, "bytes": 5}
    )
    after = _model("out.onnx", "b", parts, ranges=grids, ort=ort, operators=operators)
    return {
        **_frame(),
        "seed": 0,
        "input": before,
        "output": after,
        "passes": _passes(before, after),
        "validation": _validation(),
        "latency": _latency(layers),
        "budget": [
            {"name": "max-drop", "limit": "1%", "observed": 0.004, "verdict": "met"},
            {"name": "max-size", "limit": "4MB", "observed": after["bytes"], "verdict": "missed"},
            {"name": "max-latency", "limit": "60%", "observed": 0.525, "verdict": "met"},
            {"name": "min-sqnr", "limit": 20, "verdict": "unknown"},
        ],
    }


@pytest.fixture
def minimal_document() -> dict[str, Any]:
    """The least a document may hold: `inspect` on a model whose shapes are unknown."""
    layer = {"anchor": "y", "op": "Conv", "bytes": 400, "params": 100}
    model = {"sha256": "c" * 64, "bytes": 512, "nodes": 1, "params": 100, "opset": 13, "layers": [layer]}
    return {**_frame(), "input": model}


@pytest.fixture
def full(full_document: dict[str, Any]) -> Report:
    return Report.model_validate(full_document)


@pytest.fixture
def minimal(minimal_document: dict[str, Any]) -> Report:
    return Report.model_validate(minimal_document)
