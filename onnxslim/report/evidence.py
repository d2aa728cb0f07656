"""The measured parts of the report: numerics, metric and latency of a candidate against its reference."""

from __future__ import annotations

from typing import Literal

from onnxslim.report.base import Claim, Count, Decibel, Fraction, Interval, NonNegative, Part, Source


class OutputNumerics(Part):
    """How far one output of the candidate is from the reference's, over all samples."""

    name: str
    finite: bool
    """False when the candidate has NaN or Inf that the reference lacks; the distances are then absent."""
    max_abs: NonNegative | None = None
    mean_abs: NonNegative | None = None
    max_rel: NonNegative | None = None
    cosine: float | None = None
    sqnr_db: Decibel | None = None
    """Signal to quantization-noise ratio in dB, capped at 200."""
    top1_agreement: Fraction | None = None
    """Fraction of samples with the same argmax over the last axis."""


class Metric(Part):
    """Accuracy of both models on the same labelled samples; fractions, higher is better."""

    name: str
    reference: float
    candidate: float
    drop: float
    """Reference minus candidate."""
    samples: Count
    interval: Interval | None = None
    """95 % interval of `drop`."""


class Reading(Part):
    """The same comparison with the candidate run by other kernels."""

    outputs: tuple[OutputNumerics, ...]
    metric: Metric | None = None


class LayerSqnr(Part):
    """How well one inner tensor is kept."""

    tensor: str
    sqnr_db: Decibel | None = None
    """In dB; absent when the tensor holds NaN or Inf."""


class Validation(Part):
    """Numerics and metric of a candidate. `outputs` and `metric` are by the operators' definition and decide."""

    samples: Count
    source: Source
    held_out: bool | None = None
    """False when the samples also calibrated the candidate; absent where nothing was calibrated."""
    outputs: tuple[OutputNumerics, ...]
    metric: Metric | None = None
    arm: Reading | None = None
    """An integer model as ARM's kernels compute it."""
    kernels: Reading | None = None
    """An integer model as this CPU's default kernels compute it."""
    layers: tuple[LayerSqnr, ...] = ()


class LatencyProtocol(Part):
    """How latency was measured."""

    threads: Count
    warmup: Count
    runs: Count
    order: str
    """For example "interleaved in seeded random order"."""
    clock: str
    """For example "thread_time_ns"."""


class LatencySide(Part):
    """Latency of one model."""

    p50_ms: NonNegative
    p90_ms: NonNegative | None = None
    p99_ms: NonNegative | None = None
    mean_ms: NonNegative | None = None
    load_ms: NonNegative | None = None
    """Time to create the session."""
    peak_rss_bytes: Count | None = None
    """Peak resident memory of a process that runs this model alone."""


class LayerLatency(Part):
    """Time of one node, in microseconds; a side that does not have the node is absent."""

    node: str
    op: str
    origin: str | None = None
    """The layer of the reference that it works for; absent for what the runtime inserted."""
    reference_us: NonNegative | None = None
    candidate_us: NonNegative | None = None
    share: Fraction | None = None
    """Fraction of the candidate's time."""


class DeviceSide(Part):
    """One model on a device. Emulated devices count instructions; real ones take time."""

    p50_ms: NonNegative | None = None
    load_ms: NonNegative | None = None
    instructions: Count | None = None
    """Per inference."""
    sqnr_db: Decibel | None = None
    """The device's outputs beside those of this machine's kernels, the worst of them; absent where it returns none."""
    placed: dict[str, Count] | None = None
    """How many nodes each processor of the device took, where it tells."""
    refused: str | None = None
    """Why the device does not run this model; all else is then absent."""


class DeviceLayer(Part):
    """One layer of the reference and what was made of it, or what the runtime inserted: instructions or time."""

    node: str
    op: str
    origin: str | None = None
    """The layer of the reference; absent for what the runtime inserted."""
    reference: Count | None = None
    """Instructions, where they were counted."""
    candidate: Count | None = None
    reference_us: NonNegative | None = None
    """Time, where it was measured: a profile's share of the median."""
    candidate_us: NonNegative | None = None
    kinds: dict[str, Count] | None = None
    """Of the candidate (of the reference where it is alone), by kind of instruction."""

    @property
    def before(self) -> float | None:
        """The reference's figure, whichever it is."""
        return self.reference_us if self.reference is None else self.reference

    @property
    def after(self) -> float | None:
        """The candidate's."""
        return self.candidate_us if self.candidate is None else self.candidate


class DeviceReading(Part):
    """Reference and candidate on one device."""

    name: str
    """As `--device` spells it."""
    reference: DeviceSide
    candidate: DeviceSide | None = None
    speedup: NonNegative | None = None
    """Reference divided by candidate: of time, or of instructions where those were counted."""
    interval: Interval | None = None
    """95 % interval of `speedup`."""
    claim: Claim | None = None
    """What is sure at 99 %; absent for counts, which are exact."""
    kind: Literal["measured", "emulated count", "emulated"] | None = None
    facts: dict[str, str] | None = None
    """What is to be known of the device: model, ABI, versions, temperatures."""
    warnings: tuple[str, ...] = ()
    disagrees: str | None = None
    """Where this machine's ratio is more than a quarter away, in words: by how much, and in which layers."""
    layers: tuple[DeviceLayer, ...] = ()


class Latency(Part):
    """Latency on this machine, the candidate beside its reference."""

    protocol: LatencyProtocol
    reference: LatencySide
    candidate: LatencySide | None = None
    speedup: NonNegative | None = None
    """Reference divided by candidate, paired."""
    interval: Interval | None = None
    """95 % interval of `speedup`."""
    stable: bool | None = None
    """False when the same model measured against itself did not come out even."""
    claim: Claim | None = None
    """What is sure at 99 %, beyond 2 % and beyond what the reference differed from itself."""
    layers: tuple[LayerLatency, ...] = ()
    devices: tuple[DeviceReading, ...] = ()
