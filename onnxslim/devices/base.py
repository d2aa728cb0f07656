"""What every device takes and returns."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # what says the time of a node brings onnxruntime with it
    from onnxslim.runtime.profile import NodeTime

Progress = Callable[[str, int, int], None]
Array = npt.NDArray[np.generic]


class Kind(enum.Enum):
    """How a figure came about. Reports say it beside the figure."""

    MEASURED = "measured"
    """A clock beside a processor."""
    COUNTED = "emulated count"
    """Instructions that an emulator executed: exact, and no time."""
    EMULATED = "emulated"
    """What an emulator computed and where it put the nodes: neither a time nor a count."""


@dataclass(frozen=True)
class Job:
    """Models to measure on one feed; the first is the reference."""

    models: Sequence[Path]
    feed: Mapping[str, Array]
    seconds: float = 15.0
    threads: int = 1
    seed: int = 0
    progress: Progress = lambda what, done, total: None


@dataclass(frozen=True)
class LayerCount:
    """Instructions of one node."""

    node: str
    op: str
    origin: str | None
    """The layer of the model that it comes from; None for what the runtime inserted."""
    instructions: int
    classes: Mapping[str, int] = field(default_factory=dict)
    """By kind of instruction."""


@dataclass(frozen=True)
class Side:
    """One model on a device."""

    times_ms: tuple[float, ...] = ()
    """Of each round, in order, so that sides can be paired; empty where nothing is timed."""
    load_ms: float | None = None
    instructions: int | None = None
    """Of one inference."""
    layers: tuple[LayerCount, ...] = ()
    outputs: Mapping[str, Array] = field(default_factory=dict)
    """Of the last run, to be compared with the host's."""
    placed: Mapping[str, int] = field(default_factory=dict)
    """How many nodes each processor of the device took, where it tells."""
    nodes: tuple[NodeTime, ...] = ()
    """Time of each node, from a profiled run apart from the timed ones, where the device tells."""
    refused: str | None = None
    """Why the device does not run this model, where others of the job do run; all else is then empty."""


@dataclass(frozen=True)
class DeviceResult:
    """All models of a job on one device."""

    name: str
    """As ``--device`` spells it."""
    kind: Kind
    sides: tuple[Side, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is to be known of the device: model, ABI, versions, temperatures; ``warnings`` is a list of lines."""
    twin_ms: tuple[float, ...] = ()
    """The first model's times once more, as an arm of its own (A/A): how much of a difference is noise."""


class Device(ABC):
    """One place to measure on.

    Raises of all methods:
        DeviceError: it is not there, not set up, or gave up; one line that says how to mend it.
    """

    name: ClassVar[str]

    @abstractmethod
    def setup(self, progress: Progress) -> None:
        """Prepare what this tool can prepare; what only the user can provide is a DeviceError that says how."""

    @abstractmethod
    def check(self) -> None:
        """Look, before long work, whether what it takes is there; fetch nothing."""

    @abstractmethod
    def measure(self, job: Job) -> DeviceResult:
        """Run the job."""
