"""The parts of the report about models and passes: what is in them and what each pass did."""

from __future__ import annotations

from onnxslim.report.base import Count, Digest, NonNegative, Part, PassStatus, PathText
from onnxslim.report.evidence import Validation
from onnxslim.report.ranks import Factoring


class LayerSummary(Part):
    """One layer of a model, in the order of execution."""

    anchor: str
    """Its first output tensor, which names it everywhere."""
    op: str
    """Operator; outside the default domain as "com.microsoft:NAME"."""
    bytes: Count
    """Constants it owns, in bytes."""
    params: Count
    """Elements of these constants."""
    macs: Count | None = None
    """Multiply-accumulates at batch 1; absent where a shape is unknown."""
    activation_bytes: Count | None = None
    """Bytes of activations held while it runs, its inputs and outputs included."""
    origin: str | None = None
    """Of an output: the layer of the input that it works for, where that is not the one of its own name."""


class HeldTensor(Part):
    """A tensor that is held where most is."""

    name: str
    bytes: Count


class ActivationPeak(Part):
    """Where most activations are held at once."""

    anchor: str
    """The node."""
    tensors: tuple[HeldTensor, ...]
    """The largest first; they add up to `peak_activation_bytes`."""


class TensorRange(Part):
    """The real values that a quantized activation can take."""

    tensor: str
    low: float
    high: float
    step: NonNegative
    """Between neighbouring values; the largest, where channels have their own."""
    type: str
    """Of the integers: "uint8"."""
    channels: Count | None = None
    """How many have a range of their own; absent where one is for all."""


class ModelSummary(Part):
    """What is in a model file."""

    path: PathText | None = None
    """The file as the user named it; absent for a model that was handed over in memory."""
    sha256: Digest
    bytes: Count
    """The files on disk, external data included."""
    download_bytes: Count | None = None
    """The same, compressed as app stores deliver them (deflate); absent where that was not tried."""
    nodes: Count
    params: Count
    macs: Count | None = None
    """Multiply-accumulates at batch 1; absent where shapes are unknown."""
    peak_activation_bytes: Count | None = None
    """Most activations held at once: inputs to the end, integers as integers; without the workspace of kernels."""
    peak: ActivationPeak | None = None
    opset: Count
    """Opset of the default domain."""
    layers: tuple[LayerSummary, ...]
    ranges: tuple[TensorRange, ...] = ()
    """Of a quantized model, in the order of execution."""


class OrtFile(Part):
    """The ORT-format model beside the output."""

    path: PathText
    bytes: Count


class OutputSummary(ModelSummary):
    """What is in the written model, and what was emitted with it."""

    ort: OrtFile | None = None
    operators: tuple[str, ...] = ()
    """Operators a reduced build of the runtime must keep, when that list was emitted."""


class Totals(Part):
    """Size of a model between two passes."""

    bytes: Count
    """Constants, in bytes."""
    params: Count
    macs: Count | None = None


class Skipped(Part):
    """A place that a pass left alone, and why."""

    anchor: str
    reason: str


class PassRecord(Part):
    """What one pass did."""

    name: str
    spec: str
    """The pass with its options, as `--passes` takes it."""
    status: PassStatus
    edits: Count
    skipped: tuple[Skipped, ...]
    seconds: NonNegative
    before: Totals
    after: Totals | None = None
    """What the pass made, also where that was rolled back; absent when it failed before it made anything."""
    validation: Validation | None = None
    reason: str | None = None
    """Why it was rolled back, failed or had nothing to do."""
    ranks: Factoring | None = None
    """Of factor-low-rank: which layers it split, and into what."""
