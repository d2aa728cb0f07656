"""What low rank is about: nodes that share a weight, what their forms cost, and what is decided about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.linear_layers import LinearLayer
from onnxslim.analysis.recurrent_inputs import linear_part
from onnxslim.ir import Node
from onnxslim.passes._forms import Form, Positions, elements, full, macs, own_macs, positions_of

UNTIMED = "onnxruntime does not run it by itself, so it cannot be timed"
"""Why a form is not used where the clock is asked and knows nothing."""


@dataclass(frozen=True)
class Decision:
    """A form for some nodes that share a weight, or why there is none."""

    nodes: Sequence[Node]
    form: Form | None
    full_rank: int = 0
    error: float = 0.0
    macs: float | None = None
    time: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Subject:
    """Nodes that share a weight, and what is known of them."""

    nodes: Sequence[Node]
    layer: LinearLayer
    positions: tuple[Positions, ...] | None
    """Of each node; None where a shape is unknown."""
    shape: tuple[int, ...] | None
    """Of the first node's input."""

    @property
    def anchor(self) -> str:
        return self.layer.anchor

    @property
    def own_macs(self) -> int:
        return sum(own_macs(self.layer, each) for each in self.positions or ())

    def macs(self, form: Form) -> int:
        return sum(macs(self.layer, form, each) for each in self.positions or ())

    def share(self, form: Form) -> float | None:
        """Return the multiply-accumulates of the nodes with ``form`` as a share of their own."""
        beside = self.layer.macs_beside * sum(each.inputs for each in self.positions or ())
        return (self.macs(form) + beside) / (self.own_macs + beside) if self.own_macs else None

    @property
    def moment_bytes(self) -> int:
        """What the second moments of its patches take."""
        return 8 * self.layer.groups * self.layer.width**2

    def bytes_saved(self, form: Form) -> int:
        """Return how many bytes fewer the stages hold."""
        layer = self.layer
        size = np.dtype(layer.weight.dtype).itemsize
        return int((layer.channels * layer.width - elements(layer, form)) * size)


def subject_of(nodes: Sequence[Node], shapes: Mapping[str, tuple[int, ...]]) -> Subject:
    """Return nodes that share a weight as a subject; ``shapes`` holds those that are known."""
    return Subject(nodes, linear_part(nodes[0]), *_known(nodes, shapes))


def _known(
    nodes: Sequence[Node], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Positions, ...] | None, tuple[int, ...] | None]:
    """Return the positions of all nodes and the first one's input shape; None where a shape is unknown."""
    found = []
    for node in nodes:
        layer = linear_part(node)
        given, made = shapes.get(layer.source), shapes.get(layer.target)
        if given is None or made is None:
            return None, None
        found.append(positions_of(layer, (given, made)))
    return tuple(found), shapes[nodes[0].inputs[0].name]


def why_no_gain(layer: LinearLayer, form: Form) -> str | None:
    """Return why ``form`` would not make the layer cheaper, None where it would."""
    most = full(layer, form.scheme)
    if form.rank >= most.rank and (form.inner or 0) >= (most.inner or 0):
        return f"rank {form.rank} is not below its full rank {most.rank}: nothing to gain"
    own = layer.channels * layer.width
    if elements(layer, form) < own:
        return None
    largest = 0 if form.inner else (own - 1) // elements(layer, Form(form.scheme, 1))
    cheaper = str(largest) if largest else "none"
    return f"rank {form.rank} of {most.rank} would not make it cheaper: {cheaper} would"


def told(form: Form) -> str:
    """Return what people call a form."""
    inner = "" if form.inner is None else f" and {form.inner}"
    return f"{form.scheme.value} of rank {form.rank}{inner}"


def slow(form: Form, time: float, share: float) -> str:
    """Return why a form does not pay, whose time and multiply-accumulates are these shares of the layer's."""
    return f"{told(form)} would take {time:.0%} of its time for {share:.0%} of its multiply-accumulates"
