"""Explaining what the big passes would find: channels that live and die together, and why some must stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxslim.analysis import infer_shapes
from onnxslim.analysis.channels import ChannelGroup, analyze_channels
from onnxslim.ir import Constant, selects
from onnxslim.pipeline import exact_fixed_point
from onnxslim.workflow.registry import exact_passes
from onnxslim.workflow.source import ModelLike, open_source


@dataclass(frozen=True)
class GroupSummary:
    """Channels that can only be removed together, in words and numbers."""

    anchor: str
    """First output of the first layer that makes them: what plans know the group by."""
    units: int
    """What is removed as a whole, or stays: mostly one channel, with all that is coupled to it."""
    prunable: int
    makers: tuple[str, ...]
    """Layers whose filters make the channels."""
    readers: tuple[str, ...]
    """Layers that read them."""
    tensors: tuple[str, ...]
    """Activations that carry them."""
    branches: tuple[int, ...]
    """Sizes of the parts that are made and read alike: branches of a Concat, stages of a network."""
    reasons: Mapping[str, int]
    """Why units must stay, and how many each reason holds."""

    def to_json(self) -> dict[str, Any]:
        """Return the group as plain values."""
        return asdict(self)


def run_channels(
    model: ModelLike, shapes: Mapping[str, Sequence[int]], batch: int | None, only: Sequence[str] = ()
) -> tuple[GroupSummary, ...]:
    """Return the groups of coupled channels of a model, after the exact passes, as pruning would find them.

    Args:
        only: patterns of layers; groups without one are left out.
    """
    source = open_source(model, shapes, batch)
    simplified = source.model.copy()
    exact_fixed_point(simplified, [cls() for cls in exact_passes()])
    infer_shapes(simplified)
    groups = analyze_channels(simplified).groups
    wanted = (g for g in groups if any(selects(layer.node, only, ()) for layer in (*g.producers, *g.readers)))
    return tuple(_summary(group) for group in wanted)


def _summary(group: ChannelGroup) -> GroupSummary:
    tensors = (d.tensor.name for d in group.dimensions if not isinstance(d.tensor, Constant))
    return GroupSummary(
        anchor=group.anchor,
        units=group.size,
        prunable=int((~group.held).sum()),
        makers=tuple(dict.fromkeys(layer.anchor for layer in group.producers)),
        readers=tuple(dict.fromkeys(layer.anchor for layer in group.readers)),
        tensors=tuple(dict.fromkeys(tensors)),
        branches=tuple(len(stratum) for stratum in group.strata),
        reasons=dict(group.reasons),
    )
