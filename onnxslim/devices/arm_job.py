"""What goes into the emulated process and what comes out of it: files in one temporary folder.

All models of a job go into one process, after the probes that tell what the profiler costs; starting Python and
onnxruntime takes longer than many an inference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxslim.devices.arm_counts import Counted, Log, counted
from onnxslim.devices.arm_emulator import Emulation
from onnxslim.devices.arm_home import GUEST
from onnxslim.devices.arm_overhead import probes
from onnxslim.devices.base import Array
from onnxslim.devices.model_files import model_files
from onnxslim.errors import DeviceError, one_line
from onnxslim.runtime.profile import name_by_anchor

LOG = "counts.bin"
MESSAGES = 5
"""What the script says of each model: that it starts, has loaded it, ran it twice, and what it found."""

Said = Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """One model, as the script gets it: names of files are in the folder, but for ``data_folder``."""

    name: str
    file: str
    feed: str
    inputs: tuple[str, ...]
    """Names of the arrays in ``feed``, in their order."""
    optimized: bool = True
    data_folder: str | None = None
    """Where external data is."""
    shown: str = ""
    """As messages call it; not for the script."""
    anchors: frozenset[str] = field(default=frozenset())
    """Names of its nodes, which are those of their first outputs; not for the script."""

    def as_json(self) -> dict[str, Any]:
        """Return what the script reads."""
        names = ("name", "file", "feed", "inputs", "optimized", "data_folder")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Found:
    """What came of one model: counts and outputs, or why there are none."""

    counted: Counted | None = None
    outputs: Mapping[str, Array] = field(default_factory=dict)
    refused: str | None = None


def write_probes(folder: Path) -> list[Order]:
    """Write the graphs that tell what the profiler costs."""
    orders = []
    for index, probe in enumerate(probes()):
        name = f"probe-{index}"
        (value,) = probe.graph.input
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        (folder / f"{name}.onnx").write_bytes(probe.SerializeToString())
        np.savez(folder / f"{name}.npz", np.ones(shape, np.float32))
        orders.append(Order(name, f"{name}.onnx", f"{name}.npz", (value.name,), optimized=False, shown=name))
    return orders


def write_models(folder: Path, paths: Sequence[Path], feed: Mapping[str, Array]) -> list[Order]:
    """Write copies of the models whose nodes have the names of their first outputs, and what all are fed.

    Weights in files of their own stay where they are. A model in ORT format is taken as it is.

    Raises:
        ModelError: a model cannot be read, or an input is not fed.
    """
    np.savez(folder / "feed.npz", *(plain_text(array) for array in feed.values()))
    orders = []
    for index, path in enumerate(paths):
        files = model_files(path, feed)
        name = f"model-{index}"
        if path.suffix == ".ort":
            orders.append(Order(name, str(path.resolve()), "feed.npz", tuple(feed), shown=path.name))
            continue
        proto = onnx.load_model(str(path), load_external_data=False)
        anchors = frozenset(name_by_anchor(proto.graph))
        (folder / f"{name}.onnx").write_bytes(proto.SerializeToString())
        apart = str(path.resolve().parent) if files.data else None
        order = Order(name, f"{name}.onnx", "feed.npz", tuple(feed), True, apart, path.name, anchors)
        orders.append(order)
    return orders


def plain_text(array: Array) -> Array:
    """Return an array that can be stored without pickle: text as fixed-width text."""
    return array.astype(np.str_) if array.dtype == object else array


def work_through(
    orders: Sequence[Order], emulation: Emulation, folder: Path, heard: Callable[[], None] = lambda: None
) -> dict[str, Found]:
    """Run the script on all orders and return what came of each, by its name.

    Args:
        orders: what to measure; their files are in ``folder``.
        emulation: where.
        folder: a temporary folder.
        heard: called at each piece of news.

    Raises:
        DeviceError: it crashed or fell silent; says on which model.
    """
    (folder / "job.json").write_text(json.dumps([order.as_json() for order in orders]), encoding="utf-8")
    said = _listen(orders, emulation.run(GUEST / "measure.py", folder, LOG), heard)
    return _read_results(folder, orders, said)


def _listen(orders: Sequence[Order], words: Iterator[Said], heard: Callable[[], None]) -> dict[str, Said]:
    shown = {order.name: order.shown for order in orders}
    found: dict[str, Said] = {}
    current = None
    try:
        for said in words:
            current = said["model"]
            if "found" in said:
                found[current] = said["found"]
            heard()
    except DeviceError as error:
        where = f"{shown[current]}: " if current in shown else ""
        raise DeviceError(f"{where}{error}") from None
    return found


def _read_results(folder: Path, orders: Sequence[Order], said: Mapping[str, Said]) -> dict[str, Found]:
    log = Log.read(folder / LOG)
    return {order.name: _read_result(folder, log, said.get(order.name, {"refused": "no word"})) for order in orders}


def _read_result(folder: Path, log: Log, found: Said) -> Found:
    if "refused" in found:
        return Found(refused=one_line(DeviceError(found["refused"])))
    profile = (folder / found["profile"]).read_text(encoding="utf-8")
    with np.load(folder / found["file"], allow_pickle=False) as stored:
        outputs = {name: stored[f"arr_{i}"] for i, name in enumerate(found["outputs"])}
    return Found(counted(log, found, profile), outputs)
