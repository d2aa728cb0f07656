"""ARM without a phone: instructions of each layer, counted while onnxruntime's own ARM kernels run in an emulator.

onnxruntime's wheel for ARM runs under qemu's user mode emulation, so that the graph is optimized, laid out and computed
as on ARM, bit for bit; a plugin counts. Counts repeat to within a thousandth on any machine, whatever else that does.
They are no times: a processor executes several instructions at once and waits for memory, so a ratio of counts follows
the ratio of times to within a few percent for changes of shape and a quarter for changes of type.

``arm`` is a Cortex-A76, ``arm:NAME`` another of ``arm_cpus``. ``onnxslim device setup arm`` fetches what it takes.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.devices.arm_counts import Counted, Event, Spent
from onnxslim.devices.arm_cpus import CPUS, Cpu, cpu_named
from onnxslim.devices.arm_emulator import Emulation
from onnxslim.devices.arm_home import Home, ready_home
from onnxslim.devices.arm_job import MESSAGES, Found, Order, work_through, write_models, write_probes
from onnxslim.devices.arm_kinds import KINDS
from onnxslim.devices.arm_overhead import Overhead
from onnxslim.devices.arm_preparing import prepare
from onnxslim.devices.base import Device, DeviceResult, Job, Kind, LayerCount, Progress, Side
from onnxslim.errors import DeviceError
from onnxslim.runtime.profile import plain_name

BETWEEN = "between the nodes"
"""The row for what no node did: the runtime's own work, and handing over inputs and outputs."""
PATIENCE = 900.0
"""Seconds that loading, or one inference, may take: a billion multiplications in float take some fifteen."""


class ArmDevice(Device):
    """An emulated ARM processor.

    Args:
        cpu: its name, see ``arm_cpus``; the default is a Cortex-A76.
        home: where it is set up; the default is in the user's cache folder.
        patience: seconds that loading, or one inference, may take.

    Raises:
        DeviceError: no such processor.
    """

    name = "arm"

    def __init__(self, cpu: str = "", home: Path | None = None, patience: float = PATIENCE) -> None:
        self._cpu = cpu_named(cpu)
        self._home = None if home is None else Home(home)
        self._patience = patience

    def setup(self, progress: Progress) -> None:
        """Fetch the emulator, and Python and onnxruntime for ARM; immediate if they are there."""
        prepare(self._home, progress)

    def check(self) -> None:
        """Look whether it is set up."""
        ready_home(self._home)

    def measure(self, job: Job) -> DeviceResult:
        """Count one inference of each model, on one thread; ``seconds``, ``threads`` and ``seed`` change nothing.

        The first model has to run; another that onnxruntime refuses on ARM has ``refused``. Names in ``origin`` are
        anchors: first outputs of the model's own nodes.
        """
        home = ready_home(self._home)
        emulation = Emulation(home, self._cpu, self._patience)
        with tempfile.TemporaryDirectory(prefix="onnxslim-arm-") as name:
            own, orders = write_probes(Path(name)), write_models(Path(name), job.models, job.feed)
            heard = _ticks(f"arm {self._cpu.name}", MESSAGES * (len(own) + len(orders)), job.progress)
            found = work_through([*own, *orders], emulation, Path(name), heard)
        overhead = _overhead([found[order.name] for order in own])
        sides = tuple(_side(order, found[order.name], overhead) for order in orders)
        if sides[0].refused is not None:
            raise DeviceError(f"{orders[0].shown} does not run on ARM ({sides[0].refused}): see whether it runs here")
        spelling = self.name if self._cpu is CPUS[0] else f"{self.name}:{self._cpu.name}"
        return DeviceResult(spelling, Kind.COUNTED, sides, _facts(home, self._cpu, job.threads))


def _ticks(what: str, total: int, progress: Progress) -> Callable[[], None]:
    """Return what is to be called at each of ``total`` steps; fewer come where a model is refused."""
    done = itertools.count(1)
    return lambda: progress(what, min(next(done), total), total)


def _overhead(found: list[Found]) -> Overhead:
    counts = [each.counted for each in found if each.counted is not None]
    if len(counts) != len(found):
        raise DeviceError(f"onnxruntime refuses the probes of this tool ({found[0].refused}): set the device up again")
    return Overhead.fit(counts)


def _side(order: Order, found: Found, overhead: Overhead) -> Side:
    if found.counted is None:
        return Side(refused=found.refused)
    rows = layer_counts(found.counted, overhead.suiting(found.counted), order.anchors)
    return Side(instructions=round(float(found.counted.plain.sum())), layers=rows, outputs=found.outputs)


def layer_counts(counted: Counted, overhead: Overhead, anchors: frozenset[str]) -> tuple[LayerCount, ...]:
    """Return a row for each node in order of execution, without what the profiler cost, and one for the rest."""
    own = [
        np.maximum(spent - overhead.of_node(event), 0)
        for event, spent in zip(counted.events, counted.spent, strict=True)
    ]
    rows = [_row(event, spent, anchors) for event, spent in zip(counted.events, own, strict=True)]
    rest = counted.profiled - overhead.of_run(counted) - sum(own, np.zeros(len(KINDS)))
    kinds = _by_kind(np.maximum(rest, 0))
    return (*rows, LayerCount(BETWEEN, "", None, sum(kinds.values()), kinds))


def _row(event: Event, spent: Spent, anchors: frozenset[str]) -> LayerCount:
    origin = next((name for name in (event.name, plain_name(event.name)) if name in anchors), None)
    kinds = _by_kind(spent)
    return LayerCount(event.name, event.op, origin, sum(kinds.values()), kinds)


def _by_kind(spent: Spent) -> dict[str, int]:
    return {kind.value: round(float(count)) for kind, count in zip(KINDS, spent, strict=True)}


def _facts(home: Home, cpu: Cpu, threads: int) -> Mapping[str, Any]:
    manifest = home.manifest()
    versions = {package["name"]: package["version"] for package in manifest["packages"]}
    return {
        "cpu": cpu.name,
        "features": cpu.summary,
        "onnxruntime": manifest["onnxruntime"],
        "qemu": versions["qemu-user"],
        "warnings": ["ARM instructions are counted on one thread"] if threads > 1 else [],
    }
