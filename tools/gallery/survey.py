"""Which filters of a model pruning can reach, and what keeps the others.

Filters are those of convolutions, fully connected and recurrent layers; one is reached when the unit of channels that
it belongs to may go.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.channels import ChannelGroup, analyze_channels
from onnxslim.ir import Model

ALONE = "it has one channel only"


@dataclass(frozen=True)
class Survey:
    """What pruning can reach in a model."""

    filters: int
    reached: int
    groups: int
    reasons: Counter[str]
    """Why filters stay, with how many each reason keeps; one may be kept by several."""

    @property
    def share(self) -> float:
        """Filters that can be removed, as a share of all."""
        return self.reached / max(self.filters, 1)


def survey(model: Model) -> Survey:
    """Count the filters of ``model`` that can go, and why the others stay."""
    infer_shapes(model)
    groups = analyze_channels(model).groups
    reasons: Counter[str] = Counter()
    total = reached = 0
    for group in groups:
        free = _free(group)
        total += sum(layer.dimension.size for layer in group.producers)
        reached += sum(int(free[group.units[layer.dimension.key]].sum()) for layer in group.producers)
        reasons.update(_reasons(group))
    return Survey(total, reached, len(groups), +reasons)


def _free(group: ChannelGroup) -> npt.NDArray[np.bool_]:
    """Return which units may go."""
    return np.zeros(1, np.bool_) if group.size == 1 else ~group.held


def _reasons(group: ChannelGroup) -> dict[str, int]:
    """Return why filters of the group stay: as many as its units have on average."""
    filters = sum(layer.dimension.size for layer in group.producers)
    if group.size == 1 and not group.held.any():
        return {ALONE: filters}
    return {reason: round(count * filters / group.size) for reason, count in group.reasons.items()}
