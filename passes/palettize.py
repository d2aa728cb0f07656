"""palettize: weights take few bits in the file, and are floats again as soon as onnxruntime has loaded it.

Given   y = Conv(x, W), Gemm, MatMul, ConvTranspose, LSTM, GRU, RNN or Gather, with W constant
Result  y = Conv(x, Ŵ),  Ŵ = levels[index] · scale, computed by Cast, Gather, Reshape and Mul of constants

with a scale for each output channel and levels that a grid of whole numbers has, or that k-means finds (``_palette``,
with sources). Indices of fewer than 8 bits are packed, where that pays (``_palette_graph``).

onnxruntime folds such nodes into constants at load, from its basic level on (the default is above it), and keeps its
prepacked layouts: inference is that of a float model, in time and in memory; only the file, its download and its place
on the device are smaller. DequantizeLinear it would keep, and run in every inference. For the same reason nothing is
gained in the ORT format, which stores what was folded.

With samples, layers are fitted to what they compute on them (``_palette_fit``), which takes the place of training: a
ResNet-56 of 80.4 % in int4, 14 % of its bytes, has 78.5 % to the nearest and 80.4 % fitted (1,000 images of CIFAR-10).

Float16 may come first, not after it: it would compute the expansion in halves, which x86 has no kernels to fold with.

Left alone, with the reason:

1. weights that are computed or that a caller may override, neither float32 nor float16, or with NaN, Inf or numbers
   near the largest of their type;
2. weights that another operator reads too, that the model returns, or that lie in or are read by subgraphs;
3. weights that are too small, or would not be smaller;
4. layers that the options exclude.

Integer weights, in front of DequantizeLinear, are packed without loss where their numbers need fewer bits than 8
(``_palette_integers``): ``insert-qdq{weight-bits=4},palettize`` has the file of 4 bits and runs as 8 do.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from onnxslim.analysis.recurrent_inputs import linear_part
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Rewriter, anchor_of, array_of, attribute, is_standard, selects
from onnxslim.passes._forms import set_bias
from onnxslim.passes._palette import MOST_BITS, GridChoice
from onnxslim.passes._palette_choice import LARGEST, Candidate, Weights, weights_of
from onnxslim.passes._palette_fit import POSITIONS, Fitted, fitted_palettes, nearest_palette
from onnxslim.passes._palette_graph import Expander, stored_bytes
from onnxslim.passes._palette_integers import integer_weights
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option


class Fit(enum.Enum):
    """Whether palettes are fitted to samples."""

    AUTO = "auto"
    """If there are any."""
    OFF = "off"


class Stored(BaseModel):
    """How one weight is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: GridChoice
    bits: int = Field(ge=1, le=MOST_BITS)
    """Of an index; only k-means has a choice."""


class FitPlan(BaseModel):
    """On what weights are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(ge=1)
    positions: int = Field(default=POSITIONS, ge=1)


class PalettePlan(Plan):
    """How each weight is stored, by its name, in order."""

    weights: dict[str, Stored]
    packed: dict[str, int] = Field(default_factory=dict)
    """Bits of integer weights that need fewer than they have, by name."""
    fit: FitPlan | None = None
    """None: each weight goes to the nearest."""
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
    fit: Fit = option(Fit.AUTO, "fit layers to what they compute on the samples: auto if there are any, or off")
    samples: int = option(256, "how many calibration samples to fit to")
    min_size: int = option(1024, "leave weights with fewer elements")
    only: tuple[str, ...] = option((), "palettize only layers that match these patterns, e.g. conv*|fc?")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns")

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if not 1 <= self.bits <= MOST_BITS:
            raise SpecError(f"option 'bits' of {self.name} is {self.bits}: give 1 to {MOST_BITS}")
        for name, count, least in (("samples", self.samples, 1), ("min-size", self.min_size, 0)):
            if count < least:
                raise SpecError(f"option {name!r} of {self.name} is {count}: give {least} or more")

    def plan(self, model: Model, context: PassContext) -> PalettePlan:
        """Choose weights."""
        weights = _weights_with_constants(model)
        chosen = {}
        stored = Stored(grid=self.grid, bits=self.grid.bits(self.bits))
        refused = list(weights.refused)
        for name, candidate in weights.found.items():
            reason = self._why_not(candidate, stored.bits)
            if reason is None:
                chosen[name] = stored
            else:
                refused.append((anchor_of(candidate.readers[0]), reason))
        fit = self._fit_plan(context) if chosen else None
        return PalettePlan(weights=chosen, packed=self._packed(model), fit=fit, refused=tuple(refused))

    def _packed(self, model: Model) -> dict[str, int]:
        return {
            name: weight.bits
            for name, weight in integer_weights(model).items()
            if weight.pays
            and weight.elements >= self.min_size
            and all(selects(node, self.only, self.exclude) for node in weight.layers)
        }

    def _fit_plan(self, context: PassContext) -> FitPlan | None:
        if self.fit is Fit.OFF or context.samples is None:
            return None
        return FitPlan(samples=len(context.samples.take(self.samples)))

    def _why_not(self, candidate: Candidate, bits: int) -> str | None:
        if not all(selects(node, self.only, self.exclude) for node in candidate.readers):
            return "excluded by the options"
        elements = candidate.elements
        if elements < max(1, self.min_size):
            return f"its weight has {elements} elements, fewer than min-size ({self.min_size})"
        if stored_bytes(elements, candidate.scales, bits) >= candidate.dtype.itemsize * elements:
            return "its weight would not be smaller"
        return _unfit(candidate)

    def apply(self, rewriter: Rewriter, plan: PalettePlan, context: PassContext) -> None:
        """Store each weight as ``plan`` says.

        Raises:
            PassError: the plan names a weight that this model has not, or that cannot be stored so; or activations are
                not finite.
            SpecError: the plan was made with samples, and there are none.
        """
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        expander = Expander(rewriter)
        _pack(rewriter.model, plan.packed, expander)
        if not plan.weights:
            return
        _store_constants(rewriter, plan.weights)
        found = weights_of(rewriter.model).found
        for name in plan.weights:
            if name not in found or not found[name].elements or _unfit(found[name]):
                raise PassError(f"the plan does not fit the model: no weight {name!r} that palettize can store")
        for name, made in self._made(rewriter.model, plan, found, context):
            node = found[name].readers[0]
            if made.bias is not None:
                set_bias(linear_part(node), made.bias, rewriter)
            expander.write(found[name].weight, made.palette)

    def _made(
        self, model: Model, plan: PalettePlan, found: Mapping[str, Candidate], context: PassContext
    ) -> Iterator[tuple[str, Fitted]]:
        wanted = {name: (each.grid, each.grid.bits(each.bits)) for name, each in plan.weights.items()}
        fitted: dict[str, Fitted] = {}
        if plan.fit is not None:
            samples = context.require_samples(self.name).take(plan.fit.samples)
            fitted = fitted_palettes(model, wanted, samples, plan.fit.positions, context)
        for done, (name, how) in enumerate(wanted.items()):
            context.progress(self.name, done, len(wanted))
            yield name, fitted.pop(name) if name in fitted else Fitted(nearest_palette(found[name], how))


def _weights_with_constants(model: Model) -> Weights:
    """Return the weights of ``model``, those in Constant nodes too."""
    held = [node.outputs[0].name for node in model.graph.nodes if is_standard(node, "Constant")]
    if held:
        model = model.copy()
        _store_constants(Rewriter(model), held)
    return weights_of(model)


def _pack(model: Model, packed: Mapping[str, int], expander: Expander) -> None:
    """Pack integer weights, by name, in so many bits.

    Raises:
        PassError: the model has no such weight, or it takes more.
    """
    integers = integer_weights(model) if packed else {}
    for name, bits in packed.items():
        if name not in integers or not integers[name].bits <= bits < MOST_BITS:
            raise PassError(f"the plan does not fit the model: no integer weight {name!r} of {bits} bits")
        expander.pack(integers[name].tensor, bits)


def _store_constants(rewriter: Rewriter, names: Iterable[str]) -> None:
    """Make initializers of the Constant nodes that compute tensors called ``names``."""
    chosen = set(names)
    for node in list(rewriter.model.graph.nodes):
        value = attribute(node, "value") if is_standard(node, "Constant") else None
        if value is not None and node.outputs[0].name in chosen and rewriter.fold(node.outputs[0], value):
            rewriter.remove(node)
    rewriter.finish()


def _unfit(candidate: Candidate) -> str | None:
    """Return why the values cannot be stored on any grid."""
    values = array_of(candidate.weight)
    assert values is not None  # noqa: S101  (it is a constant)
    largest = float(np.maximum(values.max(), -values.min()))
    if not np.isfinite(largest):
        return "its weight has NaN or Inf"
    limit = LARGEST[candidate.dtype]
    return f"its weight has numbers beyond {limit:g}" if largest > limit else None
