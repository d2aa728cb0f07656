"""How much the channels of inner tensors do on samples: mean squares and shares of values that are not zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.activations import stream
from onnxslim.errors import PassError
from onnxslim.ir import Model
from onnxslim.samples import Samples

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Activity:
    """What the channels of one tensor did over all samples."""

    energy: Floats
    """Mean square of each channel. Shape (channels,)."""
    alive: Floats
    """Share of its values that are not zero: one less the "average percentage of zeros" of Hu et al. 2016, "Network
    Trimming", §3.1. Shape (channels,)."""


def observe_activity(model: Model, axes: Mapping[str, int], samples: Samples, threads: int = 0) -> dict[str, Activity]:
    """Return the activity of tensors, each given with its channel axis. A tensor that is always empty is absent.

    Raises:
        PassError: a tensor holds NaN or Inf, or its number of channels changes with the sample.
        RuntimeRefusal: onnxruntime does not run the model on a sample.
    """
    sums: dict[str, list[Floats]] = {}
    counts: dict[str, int] = {}
    for _, values in stream(model, list(axes), samples, threads):
        for name, array in values.items():
            if not array.size:
                continue
            rows = np.moveaxis(array, axes[name], 0).reshape(array.shape[axes[name]], -1).astype(np.float64)
            found = [np.einsum("cr,cr->c", rows, rows), np.count_nonzero(rows, axis=1).astype(np.float64)]
            if not np.isfinite(found[0]).all():
                raise PassError(f"{name!r} holds NaN or Inf on the samples")
            held = sums.setdefault(name, [np.zeros(len(rows)), np.zeros(len(rows))])
            if len(held[0]) != len(rows):
                raise PassError(f"{name!r} has {len(held[0])} channels on one sample and {len(rows)} on another")
            sums[name] = [old + new for old, new in zip(held, found, strict=True)]
            counts[name] = counts.get(name, 0) + rows.shape[1]
    return {name: Activity(held[0] / counts[name], held[1] / counts[name]) for name, held in sums.items()}
