"""The smallest and the largest value of each channel of inner tensors on samples, streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.activations import stream
from onnxslim.ir import Model
from onnxslim.samples import Samples

Floats = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Peaks:
    """Extremes of one tensor's channels over all samples. Both of the shape that was asked for."""

    low: Floats
    high: Floats

    @property
    def largest(self) -> Floats:
        """The largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def observe_peaks(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    samples: Samples,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Peaks]:
    """Return the extremes of tensors. One that is always empty, or ever NaN, Inf or of another rank, is absent.

    Args:
        model: of which they are inner tensors.
        shapes: by name, which broadcast against the tensors: each axis of size 1 is looked at as a whole.
        samples: what the model is run on.
        threads: of onnxruntime.
        progress: told of each sample.

    Raises:
        RuntimeRefusal: onnxruntime does not run the model on a sample.
    """
    found: dict[str, Peaks] = {}
    unfit: set[str] = set()
    for index, values in stream(model, list(shapes), samples, threads):
        for name, array in values.items():
            own = _peaks(array, shapes[name]) if array.size else None
            if array.size and own is None:
                unfit.add(name)
            elif own is not None:
                before = found.get(name, own)
                found[name] = Peaks(np.minimum(before.low, own.low), np.maximum(before.high, own.high))
        if progress is not None:
            progress("look at channels", index + 1, len(samples))
    return {name: peaks for name, peaks in found.items() if name not in unfit}


def _peaks(array: npt.NDArray[Any], shape: tuple[int, ...]) -> Peaks | None:
    if array.ndim != len(shape) or any(size not in (1, own) for size, own in zip(shape, array.shape, strict=True)):
        return None
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    low, high = (part.astype(np.float64) for part in (array.min(axes, keepdims=True), array.max(axes, keepdims=True)))
    return Peaks(low, high) if np.isfinite(low).all() and np.isfinite(high).all() else None
