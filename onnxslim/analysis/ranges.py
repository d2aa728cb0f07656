"""Ranges of inner tensors on samples: extremes or histograms, in fixed memory whatever the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.activations import reduced, stream
from onnxslim.analysis.histograms import Histogram
from onnxslim.ir import Model
from onnxslim.samples import Samples

Range = tuple[float, float]
Progress = Callable[[str, int, int], None]


def observe_ranges(
    model: Model, names: Sequence[str], samples: Samples, threads: int = 0, progress: Progress | None = None
) -> dict[str, Range | None]:
    """Return the smallest and largest value of each tensor over all samples; None where it is ever NaN or Inf.

    A tensor that is always empty is absent.
    """
    ranges: dict[str, Range | None] = {}
    for index, found in reduced(model, names, samples, _extremes, threads):
        for name, (low, high) in found.items():
            if ranges.get(name, (0.0, 0.0)) is not None:
                ranges[name] = _widen(ranges.get(name), low, high)
        if progress is not None:
            progress("calibrate", index + 1, len(samples))
    return ranges


def _extremes(values: Mapping[str, npt.NDArray[Any]]) -> dict[str, Range]:
    return {name: (float(array.min()), float(array.max())) for name, array in values.items() if array.size}


def observe_histograms(
    model: Model, names: Sequence[str], samples: Samples, threads: int = 0, progress: Progress | None = None
) -> dict[str, Histogram]:
    """Return a histogram of each tensor over all samples; one that met NaN or Inf says so by ``finite``.

    The samples are walked once, unless the tensors of a single one exceed ``activations.GROUP_BYTES``; then once for
    each group. A tensor that is always empty is absent.

    Raises:
        RuntimeRefusal: onnxruntime does not run the model on a sample.
    """
    histograms: dict[str, Histogram] = {}
    for name, array in _values(model, names, samples, threads, progress):
        histograms.setdefault(name, Histogram()).add(array)
    return histograms


def _values(
    model: Model, names: Sequence[str], samples: Samples, threads: int, progress: Progress | None
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield every tensor of every sample that is not empty."""
    for index, values in stream(model, names, samples, threads):
        yield from ((name, array) for name, array in values.items() if array.size)
        if progress is not None:
            progress("calibrate", index + 1, len(samples))


def _widen(range_: Range | None, low: float, high: float) -> Range | None:
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    return (low, high) if range_ is None else (min(range_[0], low), max(range_[1], high))
