"""What of a model runs on a target, as a JSON document of its own, in the manner of the report's parts."""

from __future__ import annotations

from typing import Literal

from onnxslim.report.base import Count, Part

Word = Literal["runs", "refused", "unknown", "border", "gone"]


class TargetNode(Part):
    """What becomes of one node."""

    anchor: str
    op: str
    verdict: Word
    """`refused`: it runs on the CPU. `border`: a pair at the model's inputs or outputs that the target leaves to the
    CPU unless told otherwise. `gone`: onnxruntime takes it out of the graph when it loads the model."""
    reason: str | None = None
    partition: Count | None = None
    """Number of the partition that it runs in, from 1; absent for what runs in none."""
    macs: Count | None = None
    within: str | None = None
    """The layer that it is taken together with or not at all: of pairs, and of activations between."""
    inserted: bool | None = None
    """Whether onnxruntime added it; it is then named after what it writes."""


class TargetShare(Part):
    """Nodes with one verdict."""

    nodes: Count
    macs: Count | None = None
    """Absent where a shape is unknown."""


class Crossing(Part):
    """A tensor that crosses a partition's border."""

    tensor: str
    dtype: str | None = None
    bytes: Count | None = None
    """At batch 1; absent where its size is unknown."""


class TargetPartition(Part):
    """Nodes that run on the target without coming back to the CPU."""

    nodes: Count
    macs: Count | None = None
    first: str
    last: str
    enters: tuple[Crossing, ...]
    leaves: tuple[Crossing, ...]


class Known(Part):
    """A fact about the target."""

    about: str
    words: str
    source: str


class TargetSurvey(Part):
    """What of a model runs on a target."""

    target: str
    what: str
    checked_by: Literal["rules", "names", "kernels"]
    """`rules`: conditions on types, ranks, constants and attributes. `names`: onnxruntime's own checker, which looks
    at operators' names and fixed shapes only. `kernels`: onnxruntime loads the model with the same kernels."""
    basis: str
    graph: Literal["loaded", "file"]
    """`loaded`: as onnxruntime hands it to providers. `file`: as in the file, where onnxruntime did not load it."""
    opset: Count
    runs: TargetShare
    refused: TargetShare
    unknown: TargetShare
    border: TargetShare
    gone: Count
    partitions: tuple[TargetPartition, ...]
    nodes: tuple[TargetNode, ...]
    integers: Known
    without_integer_kernel: tuple[str, ...] = ()
    """Operators of this model that the target computes in float only."""
    uneven: tuple[str, ...] = ()
    """Layers that run there with a number of channels that is no multiple of `channel_multiple`."""
    channel_multiple: Count
    facts: tuple[Known, ...]
    blind_spots: tuple[str, ...]
    notes: tuple[str, ...] = ()
