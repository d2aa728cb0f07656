"""What a target is: the facts that passes choose by, and what it accepts of every operator."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxslim.targets.conditions import Operators
from onnxslim.targets.pairs import Group


class Looks(enum.Enum):
    """How a target's nodes are checked, and so how far an answer can be trusted."""

    RULES = "rules"
    """By conditions on types, ranks, constants and attributes."""
    NAMES = "names"
    """By onnxruntime's own checker, which looks at operators' names and at whether shapes are fixed."""
    KERNELS = "kernels"
    """By onnxruntime itself, which has the target's kernels here."""


@dataclass(frozen=True)
class Fact:
    """Something worth knowing about a target, with its source."""

    about: str
    words: str
    source: str


@dataclass(frozen=True)
class Target:
    """One place a model can run."""

    name: str
    what: str
    channel_multiple: int
    """Channel counts and ranks that are multiples of this waste no vector lanes."""
    ort_platform: str
    """``target_platform`` of the ORT format: ``arm`` keeps x86-only layouts out of the file."""
    source: str
    activations: str = "uint8"
    """Integers that activations are quantized to: those that its kernels take, or are quickest with."""
    wide_activations: bool = False
    """Whether it computes with 16-bit activations as integers; elsewhere what 8 bits cannot hold stays in float."""
    integer_ends: bool = False
    """Whether a product that ends the model runs there only if its result is on a grid too; elsewhere it is float."""
    block_kernels: bool = True
    """Whether it runs MatMulNBits, onnxruntime's own operator for weights in blocks; elsewhere ONNX's pairs serve."""
    transposed_convolutions: bool = False
    """Whether it has an integer kernel for ConvTranspose."""
    fixed_from: int | None = None
    """The first dimension of inputs that must be fixed: 0 for all, 1 where the batch may vary; None: all may vary."""
    looks: Looks = Looks.KERNELS
    operators: Operators = field(default_factory=dict, hash=False)
    """Of a target that is checked by rules: all that it has."""
    integer_operators: frozenset[str] = frozenset()
    """Operators that it computes, moves or lets vanish as integers, where the check alone does not tell."""
    groups: Mapping[str, Group] = field(default_factory=dict, hash=False)
    """Operators that it takes together with the pairs around them."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Activations that it takes together with one of these operators before them, and not alone."""
    lonely: frozenset[str] = frozenset()
    """Operators that it does not take where they would be a partition by themselves."""
    border: str | None = None
    """Why it leaves QuantizeLinear of the model's inputs and DequantizeLinear of its outputs to the CPU."""
    subgraphs: bool | None = None
    """Whether it looks into subgraphs; None: nobody knows."""
    basis: str = ""
    """How it is known what runs there, in words."""
    integers: Fact | None = None
    """What 8 bits win there: bytes, time, or both."""
    facts: tuple[Fact, ...] = ()
    blind: tuple[str, ...] = ()
    """What the check does not see."""
