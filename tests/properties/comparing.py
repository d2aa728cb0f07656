"""Running models as their operators are defined, and saying how far two of them are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from properties.builder import Array

from onnxslim.ir import Model
from onnxslim.runtime import Level, Session, SessionConfig

TOLERANCE = {"float32": 1e-5, "float64": 1e-11, "float16": 2e-2}
"""Of an output's range: what an exact rewrite may change, by the type that the graph computes in."""
AMPLIFIED = 30.0
"""How many roundings of the inputs a rewrite may be worth, where the graph amplifies one beyond the tolerance."""


def run(model: Model | onnx.ModelProto | bytes, feed: dict[str, Array]) -> dict[str, Array]:
    """Run with optimizations off."""
    source = model.to_bytes() if isinstance(model, Model) else model
    return Session(source, SessionConfig(level=Level.NONE)).run(feed)


def apart(before: dict[str, Array], after: dict[str, Array]) -> dict[str, float]:
    """Return the largest difference of each output, relative to its range, or to a tenth of its size."""
    assert list(before) == list(after)
    return {name: _apart(name, np.asarray(before[name]), np.asarray(after[name])) for name in before}


def _apart(name: str, a: Array, b: Array) -> float:
    assert a.shape == b.shape, f"{name}: {a.shape} became {b.shape}"
    assert a.dtype == b.dtype, f"{name}: {a.dtype} became {b.dtype}"
    if a.dtype.kind != "f":
        return float(not np.array_equal(a, b))
    wide, other = a.astype(np.float64), b.astype(np.float64)
    assert np.array_equal(np.isfinite(wide), np.isfinite(other)), f"{name}: NaN or Inf at other places"
    whole = np.isfinite(wide)
    if not whole.any():
        return 0.0
    span = max(float(np.ptp(wide[whole])), 0.1 * float(np.abs(wide[whole]).max())) or 1.0
    return float(np.abs(wide - other)[whole].max()) / span


def assert_equal(before: onnx.ModelProto, after: Model, feed: dict[str, Array], dtype: str) -> None:
    """Compare all outputs.

    Some graphs amplify a rounding of their inputs beyond the tolerance, for instance where an output is the small
    difference of large numbers. There, and only there, the rewrite may differ by some such roundings.
    """
    expected = run(before, feed)
    worst = apart(expected, run(after, feed))
    limit = TOLERANCE[dtype]
    if max(worst.values()) <= limit:
        return
    amplified = _amplification(before, feed, expected, dtype)
    for name, value in worst.items():
        assert value <= max(limit, AMPLIFIED * amplified[name]), f"{name} is off by {value:.2g} of its range"


def _amplification(
    proto: onnx.ModelProto, feed: dict[str, Array], expected: dict[str, Array], dtype: str
) -> dict[str, float]:
    """Return what one rounding of all inputs and weights makes of each output, relative to its range."""
    worst: dict[str, Any] = dict.fromkeys(expected, 0.0)
    for seed in range(3):
        random = np.random.default_rng(seed)
        nudged = onnx.ModelProto()
        nudged.CopyFrom(proto)
        for tensor in nudged.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype == np.dtype(dtype) and (array != np.round(array)).any():  # scales of a Resize stay whole
                tensor.CopyFrom(onnx.numpy_helper.from_array(_nudge(array, random), tensor.name))
        moved = {n: _nudge(a, random) if a.dtype == np.dtype(dtype) else a for n, a in feed.items()}
        for name, value in apart(expected, run(nudged, moved)).items():
            worst[name] = max(worst[name], value)
    return worst


def _nudge(array: Array, random: np.random.Generator) -> Array:
    rounding = float(np.finfo(array.dtype).eps)
    moved = array * (1 + rounding * random.choice([-1.0, 0.0, 1.0], array.shape))
    return np.asarray(moved, array.dtype).reshape(array.shape)
