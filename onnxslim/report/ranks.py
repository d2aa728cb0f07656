"""The parts of the report about low rank: what it would do to each layer, and what it did."""

from __future__ import annotations

from typing import Literal

from onnxslim.report.base import Count, Fraction, NonNegative, Part


class LeftAlone(Part):
    """A layer that cannot be factorized, and why."""

    anchor: str
    reason: str


class SpectrumPoint(Part):
    """What the first `rank` singular values keep."""

    rank: Count
    energy: Fraction
    """Fraction of the sum of all squared singular values."""


class RankPoint(Part):
    """One form: its ranks, what it costs and what it loses."""

    rank: Count
    inner: Count | None = None
    """Tucker's rank of the inputs."""
    macs: NonNegative | None = None
    """Share of the layer's multiply-accumulates; absent where shapes are unknown."""
    bytes: NonNegative
    """Share of the layer's bytes, without its bias."""
    error: Fraction
    """Fraction lost, squared: of the layer's output or of its weights, as `error_of` says."""

    @property
    def cost(self) -> float:
        """What it costs: of the multiply-accumulates where they are known, otherwise of the bytes."""
        return self.bytes if self.macs is None else self.macs


class RankCurve(Part):
    """Forms of one scheme, the cheapest first."""

    scheme: str
    points: tuple[RankPoint, ...]


class RankOption(RankPoint):
    """The form that loses least at about a share of the layer's cost."""

    scheme: str
    time: NonNegative | None = None
    """Share of the layer's time; absent where it was not measured."""
    pays: bool | None = None
    """Whether factor-low-rank would use it, by its time; absent where that was not measured."""
    why: str | None = None
    """Why it does not pay, or was not timed."""


class LayerRanks(Part):
    """One layer, or several nodes that share a weight."""

    anchor: str
    op: str
    also: tuple[str, ...] = ()
    """Anchors of other nodes with the same weight, counted in `macs`."""
    weight_shape: tuple[Count, ...]
    input_shape: tuple[Count, ...] | None = None
    output_shape: tuple[Count, ...] | None = None
    full_rank: Count
    macs: Count | None = None
    """Multiply-accumulates; absent where shapes are unknown."""
    bytes: Count
    """Of the weight."""
    microseconds: NonNegative | None = None
    """Median time of one inference on one thread, in onnxruntime's profile of the whole model."""
    error_of: Literal["output", "weights"]
    spectrum: tuple[SpectrumPoint, ...]
    """Ranks in geometric steps, the last of which is the full one."""
    rank_90: Count
    """The smallest rank whose singular values keep 90 %."""
    rank_99: Count
    vbmf: Count | None = None
    """The rank of the signal in the weights, by variational Bayes; absent where the layer was too large to ask."""
    curves: tuple[RankCurve, ...]
    options: tuple[RankOption, ...]
    """At most three, the most expensive first; none where no form is cheaper than the layer."""


class RankSurvey(Part):
    """What low rank would do to each layer of the model, after the exact passes."""

    error_of: Literal["output", "weights"]
    """`output` with samples; but a layer that could not be fitted to them says `weights` itself."""
    samples: Count | None = None
    clock: Literal["on", "off"]
    layers: tuple[LayerRanks, ...]
    refused: tuple[LeftAlone, ...]


class FactoredLayer(Part):
    """How factor-low-rank decided about one layer."""

    anchor: str
    scheme: str
    rank: Count
    full_rank: Count
    inner: Count | None = None
    """Tucker's rank of the inputs."""
    error: NonNegative | None = None
    """What was expected to be lost, squared and relative: of the layer's output (its weights, without samples); of the
    model's outputs where layers shared a budget and there were samples."""
    macs: NonNegative | None = None
    """Share of the layer's multiply-accumulates that is left."""
    time: NonNegative | None = None
    """Share of the layer's time that is left, where it was measured."""


class Factoring(Part):
    """What factor-low-rank decided about the whole model."""

    layers: tuple[FactoredLayer, ...]
    macs: NonNegative | None = None
    """Share of the whole model's multiply-accumulates that is left, where it was timed."""
    time: NonNegative | None = None
    """Share of the whole model's time that was expected to be left."""
