"""Who takes part in ``quantize``: our pipelines and the peers' settings, and what each is held to.

A new arm of ours is one line of ``OURS``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Tool(enum.Enum):
    """Whose code quantizes; the peers' run in virtual environments of their own."""

    OURS = "ours"
    ONNXRUNTIME = "onnxruntime"
    NNCF = "nncf"


class Grain(enum.Enum):
    """How many scales a weight has."""

    CHANNEL = "channel"
    TENSOR = "tensor"


class Bar(enum.Enum):
    """What an arm can be held to; the limits are the case's."""

    LOSS = "loss"
    """Points of top-1 against float, or decibels where there are no labels."""
    SQNR = "SQNR"
    """No less than the best peer's."""
    PEER = "peer"
    """The paired interval of top-1 against the best peer is not entirely below zero."""
    BYTES = "bytes"
    SECONDS = "seconds"
    """No more than onnxruntime's min/max takes for the same."""
    LATENCY = "latency"
    """The interval against the peers' fastest is not entirely worse."""


ALL_BARS = frozenset(Bar)
NO_RIVAL = ALL_BARS - {Bar.SQNR, Bar.PEER}


@dataclass(frozen=True)
class Arm:
    """One way to quantize.

    Args:
        spec: a pipeline of ours, words for onnxruntime (method, type of activations, grain), or NNCF's preset.
        grain: a peer is a rival of what is no finer than itself, or when it is per channel too.
        more: only with ``--all``.
        points: of top-1 that may be lost, by model, instead of the case's own limit; the arm is not for other models.
        models: that the arm is for; all where there are none.
    """

    name: str
    tool: Tool
    spec: str
    grain: Grain = Grain.CHANNEL
    bars: frozenset[Bar] = frozenset()
    more: bool = False
    points: Mapping[str, float] | None = None
    models: tuple[str, ...] = ()

    def fits(self, model: str) -> bool:
        """Whether the arm is for a model."""
        return (not self.models or model in self.models) and (self.points is None or model in self.points)


OURS = (
    Arm("ours", Tool.OURS, "insert-qdq", bars=ALL_BARS),
    Arm("ours, fast", Tool.OURS, "insert-qdq{rounding=nearest min-sqnr=0}", bars=NO_RIVAL),
    Arm("ours, best", Tool.OURS, "insert-qdq{ranges=auto rounding=second-order}", bars=ALL_BARS - {Bar.SECONDS}),
    Arm(
        "ours, per tensor",
        Tool.OURS,
        "insert-qdq{per-channel=false}",
        grain=Grain.TENSOR,
        bars=ALL_BARS - {Bar.LOSS, Bar.SECONDS},
    ),
    Arm(
        "ours, equalized tensor",
        Tool.OURS,
        "equalize,insert-qdq{per-channel=false}",
        grain=Grain.TENSOR,
        bars=frozenset({Bar.LOSS, Bar.SQNR, Bar.PEER}),
        points={"efficientnet_lite0": 1.5},
    ),
    Arm(  # where little can be integer, floats with small weights have the bytes, and exact passes the time
        "ours, small floats",
        Tool.OURS,
        "palettize{grid=kmeans bits=8}",
        bars=frozenset({Bar.LOSS, Bar.BYTES, Bar.LATENCY}),
        models=("ppocrv4_det",),
    ),
    Arm(
        "ours, 4-bit weights",
        Tool.OURS,
        "insert-qdq{weight-bits=4 min-sqnr=0},palettize",
        bars=frozenset({Bar.LOSS}),
        points={"efficientnet_lite0": 4.0, "resnet56_cifar10": 1.5},
    ),
)

PEERS = (
    Arm("onnxruntime", Tool.ONNXRUNTIME, "MinMax QUInt8 channel"),
    Arm("onnxruntime, tensor", Tool.ONNXRUNTIME, "MinMax QUInt8 tensor", grain=Grain.TENSOR),
    Arm("NNCF", Tool.NNCF, "default"),
    Arm("onnxruntime, S8", Tool.ONNXRUNTIME, "MinMax QInt8 channel", more=True),
    Arm("onnxruntime, S8, tensor", Tool.ONNXRUNTIME, "MinMax QInt8 tensor", grain=Grain.TENSOR, more=True),
    Arm("onnxruntime, entropy", Tool.ONNXRUNTIME, "Entropy QUInt8 channel", more=True),
    Arm("onnxruntime, percentile", Tool.ONNXRUNTIME, "Percentile QUInt8 channel", more=True),
)

CLOCKED = PEERS[0]
"""Whose seconds ours are held to."""


def rivals(arm: Arm) -> tuple[str, ...]:
    """Return the names of the peers that ``arm`` is compared to: all of them, or the same grain's if per tensor."""
    return tuple(peer.name for peer in PEERS if arm.grain is Grain.CHANNEL or peer.grain is arm.grain)
