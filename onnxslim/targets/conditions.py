"""The words in which a target says what it accepts of an operator: plain data, judged in ``mobile/partition_rules.py``.

A condition has three answers. What a source rules out is refused; what it allows is accepted; what neither says is
unknown. So every set of values comes with a set of doubtful ones, and may name what is refused in place of allowed.
Inputs are counted from 0; within a group of pairs an input is the integer tensor before its DequantizeLinear.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

FLOAT, HALF, DOUBLE = "float32", "float16", "float64"
INT8, UINT8, INT16, UINT16 = "int8", "uint8", "int16", "uint16"
INT32, INT64, BOOL = "int32", "int64", "bool"
OUTPUT = -1
"""In place of an input's number: the first output."""


@dataclass(frozen=True)
class Values:
    """Which of many values are accepted.

    ``allowed`` None: all but the others. ``refused`` None: all but the others. One of the two is a set; a value in
    neither set, where both are, is unknown.
    """

    allowed: frozenset[object] | None = None
    unsure: frozenset[object] = frozenset()
    refused: frozenset[object] | None = None

    def judge(self, value: object) -> bool | None:
        """Return whether ``value`` is accepted, None where nobody knows."""
        if value in self.unsure:
            return None
        if self.allowed is not None and value in self.allowed:
            return True
        if self.refused is not None and value in self.refused:
            return False
        if self.allowed is None:
            return True
        return False if self.refused is None else None


def only(*values: object, unsure: tuple[object, ...] = ()) -> Values:
    """Return what accepts ``values`` and refuses all others."""
    return Values(frozenset(values), frozenset(unsure))


def tried(*values: object, refused: tuple[object, ...] = ()) -> Values:
    """Return what was tried: ``values`` were taken, ``refused`` were not, and nobody knows about others."""
    return Values(frozenset(values), refused=frozenset(refused))


def all_but(*values: object) -> Values:
    """Return what refuses ``values`` alone."""
    return Values(None, refused=frozenset(values))


@dataclass(frozen=True)
class Types:
    """The element type of an input; of a quantized one, of its integers."""

    values: Values
    of: int = 0


@dataclass(frozen=True)
class Ranks:
    """The number of an input's dimensions."""

    values: Values
    of: int = 0


@dataclass(frozen=True)
class Fixed:
    """Dimensions that must be known before running: those at ``axes``, or all."""

    axes: tuple[int, ...] | None = None
    of: int | None = 0
    """None: of every input and output, none of which may be empty."""


@dataclass(frozen=True)
class Stored:
    """An input that must be a constant of the model, behind DequantizeLinear or not; one that is absent may be."""

    of: int
    sure: bool = True
    """Whether one that is computed is refused, or else unknown."""


@dataclass(frozen=True)
class Given:
    """An optional input that must be there; without it nobody knows."""

    of: int


@dataclass(frozen=True)
class Absent:
    """An optional input that must not be there."""

    of: int


@dataclass(frozen=True)
class Attribute:
    """An attribute's value, or its default. A list is judged as a tuple, with ``every`` element by element."""

    name: str
    values: Values
    default: object = None
    unless: str | None = None
    """Not looked at where the node has this attribute."""
    every: bool = False


@dataclass(frozen=True)
class Outputs:
    """How many outputs a node may have."""

    most: int = 1


@dataclass(frozen=True)
class Versions:
    """Versions of the operator's definition: below ``first`` refused, above ``last`` unknown."""

    first: int = 1
    last: int | None = None


@dataclass(frozen=True)
class Grid:
    """Integers of a quantized layer: of its data, its weights and its output."""

    data: str
    weights: str | None = None
    output: str | None = None
    """None: those of the data."""
    per_channel: Values = field(default_factory=lambda: only(False))
    """Whether weights may have a scale for each channel."""


@dataclass(frozen=True)
class Grids:
    """Which integers a group of pairs may use."""

    allowed: tuple[Grid, ...]
    refused: tuple[Grid, ...] | None = None
    """None: all others; otherwise what is in neither is unknown."""


class Check(enum.Enum):
    """What takes more than a table: code in ``mobile/partition_special.py``."""

    LAST_AXIS = "last_axis"
    """The axis of a softmax is its last dimension."""
    BILINEAR = "bilinear"
    """A Resize that XNNPACK's bilinear kernel computes."""
    GEMM_BIAS = "gemm_bias"
    """A bias with one value for each column."""
    SOFTMAX_SCALE = "softmax_scale"
    """The pair after a softmax has scale 1/256 and zero point 0."""
    QUANTIZED_OUTPUT = "quantized_output"
    """A group of pairs ends in QuantizeLinear."""
    SCALAR_PAIR = "scalar_pair"
    """A QuantizeLinear or DequantizeLinear on its own has one scale, which is a constant."""
    NEAREST = "nearest"
    """A Resize to the nearest that QNN rounds the same way."""
    MATMUL_RANKS = "matmul_ranks"
    """Five dimensions are not multiplied by constants of two."""
    NARROW_PRODUCT = "narrow_product"
    """Weights that are computed meet data of 8 bits."""
    OWN_WEIGHTS = "own_weights"
    """No other node reads the weights."""
    GELU_ERF = "gelu_erf"
    """An Erf in the middle of a GELU in float."""


Condition = Types | Ranks | Fixed | Stored | Given | Absent | Attribute | Outputs | Versions | Grids | Check


@dataclass(frozen=True)
class Operator:
    """What a target accepts of one operator."""

    source: str
    """File or experiment that says so."""
    always: tuple[Condition, ...] = ()
    plain: tuple[Condition, ...] = ()
    """Of a node outside of pairs."""
    paired: tuple[Condition, ...] | None = None
    """Of a group of pairs; None: there is no integer kernel, and the group is refused."""
    doubt: str | None = None
    """Why nobody knows whether it runs, whatever the conditions say."""
    note: str | None = None


Operators = Mapping[str, Operator]
"""By operator, other domains as ``com.microsoft:NAME``."""
