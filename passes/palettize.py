"""palettize: weights take few bits in the file, and are floats again as soon as onnxruntime has loaded it.

Given   y = Conv(x, W), Gemm, MatMul, ConvTranspose, LSTM, GRU, RNN or Gather, with W constant in float32
Result  y = Conv(x, Ŵ),  Ŵ = levels[index] · scale, computed by Cast, Gather, Reshape and Mul of constants

with a scale for each output channel and levels that a grid of whole numbers has, or that k-means finds (``_palette``,
with sources). Indices of fewer than 8 bits are packed, where that pays (``_palette_graph``).

onnxruntime folds such nodes into constants at load, from its basic level on (the default is above it), and keeps its
prepacked layouts: inference is that of a float model, in time and in memory; only the file, its download and its place
on the device are smaller. DequantizeLinear it would keep, and run in every inference. For the same reason nothing is
gained in the ORT format, which stores what was folded.

Left alone, with the reason:

1. weights that are computed or that a caller may override, that are not float32, and NaN, Inf or numbers beyond 1e37;
2. weights that another operator reads too, that the model returns, or that lie in or are read by subgraphs;
3. weights that are too small, or would not be smaller;
4. layers that the options exclude; of integer models, whatever is integer already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Rewriter, anchor_of, array_of, selects
from onnxslim.passes._palette import MOST_BITS, GridChoice, palette_of
from onnxslim.passes._palette_choice import Candidate, weights_of
from onnxslim.passes._palette_graph import Expander, stored_bytes
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option

LARGEST = 1e37
"""Weights beyond it are left: levels times scale might not be finite."""


class Stored(BaseModel):
    """How one weight is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: GridChoice
    bits: int = Field(ge=1, le=MOST_BITS)
    """Of an index; only k-means has a choice."""


class PalettePlan(Plan):
    """How each weight is stored, by its name, in order."""

    weights: dict[str, Stored]
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class Palettize(PlannedPass[PalettePlan]):
    """Store weights in few bits; onnxruntime expands them at load, so inference stays that of floats."""

    name = "palettize"
    effect = Effect.APPROXIMATE
    plan_type = PalettePlan

    grid: GridChoice = option(
        GridChoice.INT8, "levels of weights: int8, int4, kmeans (a codebook for each weight), or sign (two levels)"
    )
    bits: int = option(4, "of grid=kmeans: a codebook has 2^bits levels, 1 to 8")
    min_size: int = option(1024, "leave weights with fewer elements")
    only: tuple[str, ...] = option((), "palettize only layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns")

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if not 1 <= self.bits <= MOST_BITS:
            raise SpecError(f"option 'bits' of {self.name} is {self.bits}: give 1 to {MOST_BITS}")
        if self.min_size < 0:
            raise SpecError(f"option 'min-size' of {self.name} is {self.min_size}: give 0 or more")

    def plan(self, model: Model, context: PassContext) -> PalettePlan:
        """Choose weights."""
        weights = weights_of(model)
        chosen = {}
        stored = Stored(grid=self.grid, bits=self.grid.bits(self.bits))
        refused = list(weights.refused)
        for name, candidate in weights.found.items():
            reason = self._why_not(candidate, stored.bits)
            if reason is None:
                chosen[name] = stored
            else:
                refused.append((anchor_of(candidate.readers[0]), reason))
        return PalettePlan(weights=chosen, refused=tuple(refused))

    def _why_not(self, candidate: Candidate, bits: int) -> str | None:
        if not all(selects(node, self.only, self.exclude) for node in candidate.readers):
            return "excluded by the options"
        elements = candidate.elements
        if elements < max(1, self.min_size):
            return f"its weight has {elements} elements, fewer than min-size ({self.min_size})"
        scales = int(np.prod([int(candidate.weight.shape[axis]) for axis in candidate.axes], dtype=np.int64))
        if stored_bytes(elements, scales, bits) >= 4 * elements:
            return "its weight would not be smaller"
        return _unfit(candidate)

    def apply(self, rewriter: Rewriter, plan: PalettePlan, context: PassContext) -> None:
        """Store each weight as ``plan`` says.

        Raises:
            PassError: the plan names a weight that this model has not, or that cannot be stored so.
        """
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        found = weights_of(rewriter.model).found
        expander = Expander(rewriter)
        for done, (name, stored) in enumerate(plan.weights.items()):
            context.progress(self.name, done, len(plan.weights))
            if name not in found or not found[name].elements or _unfit(found[name]):
                raise PassError(f"the plan does not fit the model: no weight {name!r} that palettize can store")
            values = array_of(found[name].weight)
            assert values is not None  # noqa: S101  (it is a constant)
            bits = stored.grid.bits(stored.bits)
            expander.write(found[name].weight, palette_of(values, found[name].axes, stored.grid, bits))


def _unfit(candidate: Candidate) -> str | None:
    """Return why the values cannot be stored on any grid."""
    values = array_of(candidate.weight)
    if values is None or not np.isfinite(values).all():
        return "its weight has NaN or Inf"
    return f"its weight has numbers beyond {LARGEST:g}" if np.abs(values).max(initial=0) > LARGEST else None
