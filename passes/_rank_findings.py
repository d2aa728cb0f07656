"""What a survey of ranks finds, layer by layer: plain values, JSON out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

ErrorOf = Literal["output", "weights"]
"""What errors and energies are fractions of: a layer's output on the samples, or its weights; both squared."""


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpectrumPoint(_Told):
    """What the first ``rank`` singular values keep."""

    rank: int
    energy: float
    """Fraction of the sum of all squared singular values."""


class RankPoint(_Told):
    """One form: its ranks, what it costs and what it loses."""

    rank: int
    inner: int | None = None
    """Tucker's rank of the inputs."""
    macs: float | None
    """Share of the layer's multiply-accumulates; None where shapes are unknown."""
    bytes: float
    """Share of the layer's bytes, without its bias."""
    error: float
    """Fraction lost: of what, :attr:`LayerSurvey.error_of` says."""


class RankCurve(_Told):
    """Forms of one scheme, the cheapest first; those that cost more and lose more than another are left out."""

    scheme: str
    points: tuple[RankPoint, ...]


class RankOption(RankPoint):
    """The form that loses least at about a share of the layer's cost."""

    scheme: str
    time: float | None = None
    """Share of the layer's time; None where it was not measured."""
    pays: bool | None = None
    """Whether factor-low-rank would use it, by its time; None where that was not measured."""
    why: str | None = None
    """Why it does not pay, or was not timed."""


class LayerSurvey(_Told):
    """One layer, or several nodes that share a weight."""

    anchor: str
    op: str
    also: tuple[str, ...] = ()
    """Anchors of other nodes with the same weight; counted in ``macs``."""
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    full_rank: int
    macs: int | None
    bytes: int
    """Of the weight."""
    microseconds: float | None = None
    """Median time of one inference, on one thread, in onnxruntime's profile of the whole model."""
    error_of: ErrorOf
    spectrum: tuple[SpectrumPoint, ...]
    """Ranks in geometric steps, the last of which is the full one."""
    rank_90: int
    """The smallest rank whose singular values keep 90 %."""
    rank_99: int
    vbmf: int | None
    """The rank of the signal in the weights, by variational Bayes; None where the layer is too large to ask."""
    curves: tuple[RankCurve, ...]
    options: tuple[RankOption, ...]
    """At most three, the most expensive first; none where no form is cheaper than the layer."""


class RefusedLayer(_Told):
    """A layer that cannot be factorized, and why."""

    anchor: str
    reason: str


class RankSurvey(_Told):
    """All layers, in the order of execution."""

    error_of: ErrorOf
    """``weights`` without samples. With them, ``output``; but a layer's own word holds: see :class:`LayerSurvey`."""
    samples: int | None
    clock: Literal["on", "off"]
    layers: tuple[LayerSurvey, ...]
    refused: tuple[RefusedLayer, ...]
