"""Ranges of inner tensors on samples: running minimum and maximum, in fixed memory whatever the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxslim.analysis.activations import stream
from onnxslim.ir import Model
from onnxslim.samples import Samples

Range = tuple[float, float]


def observe_ranges(
    model: Model,
    names: Sequence[str],
    samples: Samples,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Range | None]:
    """Return the smallest and largest value of each tensor over all samples; None where it is ever NaN or Inf.

    A tensor that is always empty is absent.
    """
    ranges: dict[str, Range | None] = {}
    for index, values in stream(model, names, samples, threads):
        for name, array in values.items():
            if array.size and ranges.get(name, (0.0, 0.0)) is not None:
                ranges[name] = _widen(ranges.get(name), float(np.min(array)), float(np.max(array)))
        if progress is not None:
            progress("calibrate", index + 1, len(samples))
    return ranges


def _widen(range_: Range | None, low: float, high: float) -> Range | None:
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    return (low, high) if range_ is None else (min(range_[0], low), max(range_[1], high))
