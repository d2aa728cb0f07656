"""What equalize decides: which channels can be scaled, what samples show of them, and the scales that follow."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis.channel_peaks import Peaks, observe_peaks
from onnxslim.analysis.equalizable import Cap, Equalizable, Group, analyze_scales
from onnxslim.errors import PassError
from onnxslim.ir import Model, Rewriter, anchor_of, selects
from onnxslim.passes._equalize import Bounds, Floats, balanced, free
from onnxslim.passes._equalize_absorb import Absorb, Absorbed, links, shifted
from onnxslim.passes._equalize_clips import ClipChange, Decision, Relu6, decided
from onnxslim.passes._equalize_trial import gridded
from onnxslim.pipeline import PassContext, Plan

LEAST = 0.05
"""log2 of a scale below which a group counts as balanced already."""

Refusals = list[tuple[str, str]]
"""(anchor, reason)."""


class Scales(enum.Enum):
    """Which numbers scales may be."""

    EXACT = "exact"
    POWER_OF_TWO = "power-of-two"


class GroupScales(BaseModel):
    """The scales of one group of channels, known by the first layer that makes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    layers: tuple[str, ...]
    log2: tuple[float, ...]
    """Of each unit, in the order of the layers' filters."""


class EqualizePlan(Plan):
    """The constants that move, the scales of all groups, the Clips that change for them, and what was left alone."""

    absorbed: tuple[Absorbed, ...] = ()
    """In the model's order, before anything is scaled."""
    groups: tuple[GroupScales, ...]
    clips: tuple[ClipChange, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""
    tried: tuple[tuple[str, float], ...] = ()
    """What was done about Clips, and the dB of the outputs that int8 kept then."""


@dataclass(frozen=True)
class Wishes:
    """What the user asks for."""

    scales: Scales
    strength: float
    absorb: Absorb
    samples: int
    only: tuple[str, ...]
    exclude: tuple[str, ...]


class Study:
    """A model whose shapes are inferred, and what is known of its channels."""

    def __init__(self, model: Model, wishes: Wishes, context: PassContext) -> None:
        self._model, self._wishes = model, wishes
        self._scales = analyze_scales(model)
        self._nodes = {anchor_of(node): node for node in model.graph.nodes}
        self._counted = gridded(model, self._scales)
        found = () if wishes.absorb is Absorb.OFF else links(Rewriter(model))
        self._links = [link for link in found if selects(link.node, wishes.only, wishes.exclude)]
        self._peaks = self._observed(context)
        self._absorbed: list[Absorbed] = []
        self._refused: Refusals = []
        self._take_constants()

    def _observed(self, context: PassContext) -> dict[str, Peaks]:
        """Return extremes of tensors that get a grid, that Clips read or constants leave; none without samples."""
        scales = self._scales
        wanted = self._counted | {cap.node.inputs[0].name for cap in scales.caps}
        shapes = {name: labels.shape for name, labels in scales.tensors.items() if name in wanted}
        shapes.update({tensor.name: link.shape for link in self._links for tensor in link.tensors})
        if context.samples is None or not shapes:
            return {}
        samples = context.samples.take(self._wishes.samples)
        return observe_peaks(self._model, shapes, samples, context.threads, context.progress)

    # ---- constants ---------------------------------------------------------------------------------------

    def _take_constants(self) -> None:
        for link in self._links:
            if any(tensor.name not in self._peaks for tensor in link.tensors):
                continue
            constants = link.constants(self._peaks).astype(np.float32).astype(np.float64)
            if constants.any() and link.reason is not None:
                self._refused.append((link.anchor, f"no constant moves on: {link.reason}"))
            elif constants.any():
                self._peaks.update(shifted(link, constants, self._peaks))
                self._absorbed.append(Absorbed(anchor=link.anchor, constants=tuple(constants.tolist())))

    # ---- scales ------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many scales there are to choose."""
        return self._scales.size

    @property
    def cuts(self) -> bool:
        """Whether a Clip between channels that could be scaled cuts some of them on the samples."""
        return any(made.reason is not None for _, made in self._decided(Relu6.KEEP))

    def planned(self, relu6: Relu6) -> EqualizePlan:
        """Return the scales that balance, with this done about Clips."""
        scales, bounds, clips = self._scales, free(self._scales), {}
        refused = list(self._refused)
        for cap, made in self._decided(relu6):
            bounds.narrow(cap.labels, made.low, made.high)
            if made.reason is not None:
                refused.append((cap.anchor, made.reason))
            if made.kind is not None:
                clips[cap.anchor] = made.kind
        refused += self._hold(bounds)
        peaks = {name: seen for name, seen in self._peaks.items() if name in self._counted}
        groups = tuple(self._groups(balanced(scales, bounds, peaks, self._wishes.strength), bounds))
        logs = logs_of(scales, groups)
        moved = {cap.anchor for cap in scales.caps if logs[cap.labels].any()}
        return EqualizePlan(
            absorbed=tuple(self._absorbed),
            groups=groups,
            clips=tuple(ClipChange(anchor=anchor, kind=kind) for anchor, kind in clips.items() if anchor in moved),
            refused=tuple(refused),
        )

    def _decided(self, relu6: Relu6) -> Iterator[tuple[Cap, Decision]]:
        for cap in self._scales.caps:
            if (cap.labels >= 0).any():
                yield cap, decided(cap, relu6, self._peaks, self._model.opset)

    def _hold(self, bounds: Bounds) -> Iterator[tuple[str, str]]:
        """Yield groups that stay as a whole, and why; hold them."""
        read = np.zeros(self._scales.size + 1, np.bool_)
        for part in self._scales.weights:
            read[part.into] = True
        for group in self._scales.groups:
            reason = self._why_not(group, read)
            if reason is not None:
                bounds.low[group.units] = bounds.high[group.units] = 0.0
                yield group.anchor, reason
        yield from self._scales.left

    def _why_not(self, group: Group, read: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> str | None:
        own = [self._nodes[anchor] for anchor in group.layers]
        if not group.units.size:
            return "; ".join(group.reasons)
        if not any(selects(node, self._wishes.only, ()) for node in own):
            return "excluded by the options"
        if not all(selects(node, (), self._wishes.exclude) for node in own):
            return "excluded by the options"
        return None if read[group.units].any() else "no layer with weights reads its channels"

    def _groups(self, logs: Floats, bounds: Bounds) -> Iterator[GroupScales]:
        if self._wishes.scales is Scales.POWER_OF_TWO:
            logs = np.clip(np.round(logs), np.ceil(bounds.low), np.floor(bounds.high))
        for group in self._scales.groups:
            own = np.round(logs[group.units], 6) + 0.0
            if np.abs(own).max(initial=0.0) >= LEAST:
                yield GroupScales(anchor=group.anchor, layers=group.layers, log2=tuple(own.tolist()))


def logs_of(scales: Equalizable, groups: tuple[GroupScales, ...]) -> Floats:
    """Return log2 of each unit's scale as planned, and a 0 at the end. Shape (units + 1,).

    Raises:
        PassError: the model has no such channels.
    """
    known = {group.anchor: group for group in scales.groups}
    logs = np.zeros(scales.size + 1)
    for planned in groups:
        group = known.get(planned.anchor)
        if group is None or group.units.size != len(planned.log2):
            found = f"the plan scales {len(planned.log2)} channels of {planned.anchor!r}"
            raise PassError(f"{found}, which the model lacks")
        logs[group.units] = planned.log2
    return logs
