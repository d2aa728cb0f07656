"""From the plugin's records and onnxruntime's profile to instructions of nodes.

Both count with one clock, so the beginning and the end of each node in the profile are records of the plugin, to the
instruction: what lies between them is what the node took, by kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.devices.arm_kinds import KINDS
from onnxslim.errors import DeviceError

EPOCH = 1_700_000_000 * 10**9
"""Nanoseconds at which the emulated clock starts, as ``counter.c`` has it."""
NANOSECONDS = 1000
"""Of the emulated clock for each instruction."""

Spent = npt.NDArray[np.float64]
"""Instructions of each kind, in the order of KINDS."""


def instructions_at(nanoseconds: int) -> int:
    """Return how many instructions had been executed when the emulated clock showed ``nanoseconds``."""
    return (nanoseconds - EPOCH) // NANOSECONDS


class Log:
    """The plugin's records: at each reading of the clock, all instructions until then, and those of each kind."""

    def __init__(self, records: npt.NDArray[np.uint64]) -> None:
        self._totals = records[:, 0].astype(np.int64)
        self._kinds = records[:, 1:].astype(np.float64)

    @classmethod
    def read(cls, path: Path) -> Log:
        """Read the file that the plugin wrote."""
        words = np.fromfile(path, "<u8")
        whole = len(words) // (1 + len(KINDS)) * (1 + len(KINDS))
        return cls(words[:whole].reshape(-1, 1 + len(KINDS)))

    def between(self, start: int, end: int) -> Spent:
        """Return what was executed between two readings of the clock.

        Raises:
            DeviceError: the clock was not read then: profile and plugin do not go together.
        """
        return self._at(end) - self._at(start)

    def _at(self, total: int) -> Spent:
        index = int(np.searchsorted(self._totals, total))
        if index == len(self._totals) or self._totals[index] != total:
            raise DeviceError(
                "onnxruntime's profile and the counted instructions do not go together: "
                "make room for temporary files, and measure again"
            )
        kinds: Spent = self._kinds[index]
        return kinds


@dataclass(frozen=True)
class Event:
    """One run of one node, from ``start`` to ``end`` in instructions."""

    name: str
    op: str
    start: int
    end: int
    tensors: int
    """That go in and out, and ``characters``: of their types and shapes as the profiler writes them down."""
    characters: int
    inner: tuple[Event, ...] = ()
    """Nodes of its subgraphs."""


def read_events(text: str, began: int) -> list[Event]:
    """Return the nodes of the main graph in a profile, in order of execution; those of subgraphs are within theirs.

    Args:
        text: the profile.
        began: instructions at its time 0.
    """
    found: list[tuple[Event, list[Event]]] = []
    for raw in sorted(filter(_is_node, json.loads(text)), key=lambda event: (event["ts"], -event["dur"])):
        event = _event(raw, began)
        if found and event.start < found[-1][0].end:
            found[-1][1].append(event)
        else:
            found.append((event, []))
    return [replace(event, inner=tuple(inner)) for event, inner in found]


def _is_node(event: dict[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")


def _event(raw: dict[str, Any], began: int) -> Event:
    arguments = raw["args"]
    shapes = [*arguments.get("input_type_shape", ()), *arguments.get("output_type_shape", ())]
    start = began + int(raw["ts"])
    name = str(raw["name"]).removesuffix("_kernel_time")
    return Event(name, str(arguments["op_name"]), start, start + int(raw["dur"]), len(shapes), len(json.dumps(shapes)))


@dataclass(frozen=True)
class Counted:
    """What was counted of one model."""

    profiled: Spent
    """One inference while the profiler ran, and ``plain``: one while it did not."""
    plain: Spent
    events: tuple[Event, ...]
    """Of the one while the profiler ran."""
    spent: tuple[Spent, ...]
    """Of each of them."""

    @property
    def tensors(self) -> int:
        """Return those of all events, subgraphs' included, and so ``characters`` and ``nodes``."""
        return sum(event.tensors for event in every(self.events))

    @property
    def characters(self) -> int:
        """Return what the profiler wrote of shapes."""
        return sum(event.characters for event in every(self.events))

    @property
    def nodes(self) -> int:
        """Return how many nodes ran."""
        return sum(1 for _ in every(self.events))


def every(events: Iterable[Event]) -> Iterable[Event]:
    """Yield events and those within them."""
    for event in events:
        yield event
        yield from event.inner


def counted(log: Log, found: Mapping[str, Any], profile: str) -> Counted:
    """Return what was counted of one model.

    Args:
        log: the plugin's.
        found: what the emulated script said of the model.
        profile: onnxruntime's.
    """
    profiled = [_span(span) for span in found["profiled"]]
    plain = min((_span(span) for span in found["plain"]), key=lambda span: span[1] - span[0])  # runs vary upwards only
    start, end = profiled[-1]
    events = tuple(e for e in read_events(profile, instructions_at(found["began"])) if start <= e.start < end)
    spent = tuple(log.between(event.start, event.end) for event in events)
    return Counted(log.between(start, end), log.between(*plain), events, spent)


def _span(span: Sequence[int]) -> tuple[int, int]:
    return instructions_at(span[0]), instructions_at(span[1])
