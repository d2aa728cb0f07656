"""The part of the report about integers at run time: which layers onnxruntime runs by integer kernels, which not."""

from __future__ import annotations

from typing import Literal

from onnxslim.report.base import Count, NonNegative, Part


class Share(Part):
    """Layers that run in one way."""

    layers: Count
    """Those with a kernel of their own."""
    macs: Count | None = None
    """Absent where a shape is unknown."""
    time_us: NonNegative | None = None


class LayerPlacement(Part):
    """Where one layer runs."""

    anchor: str
    op: str
    place: Literal["integer", "moved", "float"]
    """By an integer kernel; moved or compared as the integers it reads; or in float."""
    kernel: str
    """The operator that runs it, as onnxruntime names it."""
    within: str | None = None
    """The layer in whose kernel it disappeared; absent for one with a kernel of its own."""
    why: (
        Literal[
            "refused",
            "no_kernel",
            "weights",
            "input",
            "output",
            "between",
            "surroundings",
            "unfused",
            "rounded_at_load",
        ]
        | None
    ) = None
    """What keeps it in float, as a kind of reason; `rounded_at_load` is of an integer layer whose weights are float in
    the file, of which onnxruntime makes int8 by itself."""
    reason: str | None = None
    """The same in words."""
    macs: Count | None = None
    time_us: NonNegative | None = None
    conversion_us: NonNegative | None = None
    """Time of the QuantizeLinear and DequantizeLinear around a layer in float."""


class WastedOperator(Part):
    """What is run at every inference and computes nothing new."""

    waste: Literal["constant", "made_integer", "requantized", "rounded"]
    """A constant dequantized anew; the same of a float one that onnxruntime itself made int8 of at load; integers made
    float to become integers; floats rounded to stay float."""
    tensor: str
    reader: str
    time_us: NonNegative | None = None


class Inserted(Part):
    """What onnxruntime put there to change layouts, by operator."""

    op: str
    count: Count
    time_us: NonNegative


class SlowerLayers(Part):
    """Layers whose integer kernels took longer than the reference did for the same layers, on this machine."""

    anchors: tuple[str, ...]
    kernels: tuple[str, ...]
    reference_us: NonNegative
    time_us: NonNegative


class Placement(Part):
    """How onnxruntime's CPU kernels run a quantized model. Times are of one inference on this machine, one thread."""

    integer: Share
    moved: Share
    float: Share
    total_us: NonNegative | None = None
    """Of all nodes; absent where nothing was timed."""
    conversion_us: NonNegative | None = None
    """Of all QuantizeLinear and DequantizeLinear that are left."""
    layers: tuple[LayerPlacement, ...]
    wasted: tuple[WastedOperator, ...] = ()
    inserted: tuple[Inserted, ...] = ()
    slower: tuple[SlowerLayers, ...] = ()
    """Where integers lose time, by this CPU's kernels."""
