"""Feeding and running the models of the gallery, and saying how far apart two of them are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxslim.ir import Model
from onnxslim.runtime import Level, Session, SessionConfig

Array = npt.NDArray[Any]
BATCH = 2
LENGTH = 96
"""Of every other dimension that is open."""


def feed_of(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    """Return random inputs: noise around a level for each first pair of axes, as images are; two for an open batch."""
    random = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        if value.name not in weights:
            dims = value.type.tensor_type.shape.dim
            shape = [dim.dim_value or (LENGTH if axis else BATCH) for axis, dim in enumerate(dims)]
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            level = random.standard_normal([size if axis < 2 else 1 for axis, size in enumerate(shape)])
            feed[value.name] = (level + random.standard_normal(shape)).astype(kind)
    return feed


def run(model: onnx.ModelProto | Model, feed: dict[str, Array]) -> dict[str, Array]:
    """Run with optimizations off: operators as they are defined."""
    source = model.to_bytes() if isinstance(model, Model) else model
    outputs = Session(source, SessionConfig(level=Level.NONE)).run(feed)
    return {name: np.asarray(value) for name, value in outputs.items()}


def apart(before: dict[str, Array], after: dict[str, Array]) -> float:
    """Return the largest difference of any output, relative to its range, or to its size where it hardly varies.

    Infinite where names, shapes or types differ, or one side is not finite.
    """
    if list(before) != list(after):
        return np.inf
    return max(_apart(before[name], after[name]) for name in before)


def _apart(a: Array, b: Array) -> float:
    if a.shape != b.shape or a.dtype != b.dtype or not np.isfinite(a).all() or not np.isfinite(b).all():
        return np.inf
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else np.inf
    wide, other = a.astype(np.float64), b.astype(np.float64)
    span = max(float(np.ptp(wide)), 0.1 * float(np.abs(wide).max())) or 1.0
    return float(np.abs(wide - other).max()) / span
