"""A phone, through adb and the user's own ``onnxruntime_perf_test``.

The models run one after the other in short bursts, in an order drawn anew for each round, so that a phone that gets
warm slows all alike; the first model is an arm twice, which tells how much of a difference is noise. A round's time of
a model is the median of its burst. perf_test returns no outputs, so numbers are not compared on a phone.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxslim.devices.android_adb import Adb, Reply, find_adb
from onnxslim.devices.android_perf_test import (
    BINARY,
    BUILD,
    VARIABLE,
    Burst,
    arguments,
    check_abi,
    check_binary,
    libraries,
    read_burst,
    read_nodes,
)
from onnxslim.devices.android_phone import Phone, describe, heat_warnings, temperatures
from onnxslim.devices.base import Device, DeviceResult, Job, Kind, Progress, Side
from onnxslim.devices.model_files import ModelFiles, model_files
from onnxslim.errors import DeviceError
from onnxslim.runtime.profile import NodeTime, name_by_anchor

LEAST_ROUNDS, MOST_ROUNDS = 9, 200
BURST_MS = 200.0
"""How long the runs of one start of perf_test should take together: longer and the phone's clocks have drifted."""
FEWEST, MOST = 3, 50
"""Runs of one burst."""
PATIENCE = 300
"""Seconds that one start of perf_test may take."""
PROFILED_RUNS = 5
PROFILED_BYTES = 256 * 2**20
"""Larger models are not sent once more to be profiled."""
ORDER = "interleaved, in a random order that the seed draws for each round"
HOME = "/data/local/tmp"
"""Where a shell may write and execute on any Android."""


class AndroidDevice(Device):
    """A phone with USB debugging on.

    Args:
        serial: as ``adb devices`` lists it; needed only where several are attached (or ``ANDROID_SERIAL`` names it).
        perf_test: ``onnxruntime_perf_test`` built for the phone; else the file that ``ONNXSLIM_PERF_TEST`` names.
        adb: adb itself; else the one on PATH or in the SDK.
    """

    name = "android"

    def __init__(self, serial: str | None = None, perf_test: Path | None = None, adb: Path | None = None) -> None:
        self._serial = serial
        self._perf_test = perf_test
        self._adb = adb

    def setup(self, progress: Progress) -> None:
        """Check that phone and binary fit; neither can be had from anywhere by this tool."""
        self.check()
        progress("android", 1, 1)

    def check(self) -> None:
        """Look whether phone and binary are there, and fit."""
        binary = self._binary()
        adb = Adb.connect(find_adb(self._adb), self._serial)
        check_abi(binary, check_binary(binary), describe(adb, 1).abis)

    def measure(self, job: Job) -> DeviceResult:
        """Run the job; whatever happens, what was put on the phone is taken away again.

        Raises:
            ModelError: one of the models cannot be sent.
        """
        models = [model_files(path, job.feed) for path in job.models]
        binary = self._binary()
        abi = check_binary(binary)
        adb = Adb.connect(find_adb(self._adb), self._serial)
        phone = describe(adb, job.threads)
        check_abi(binary, abi, phone.abis)
        warnings: list[str] = []
        with _workplace(adb, warnings) as place:
            bench = _Bench(adb, place, phone, models, job)
            bench.send(binary)
            before = temperatures(adb)
            race = bench.race()
            after = temperatures(adb)
            nodes = bench.profiles(warnings)
        facts = {
            **phone.facts,
            "abi": abi,
            "perf_test_sha256": hashlib.sha256(binary.read_bytes()).hexdigest(),
            "clock": "wall clock",
            "order": ORDER,
            "seed": job.seed,
            "rounds": len(race.order),
            "runs_per_round": list(race.runs),
            "peak_rss_bytes": list(race.peaks),
            "thermal": {"before": before, "after": after},
            "warnings": [*heat_warnings(before, after), *warnings],
        }
        sides = [
            Side(times_ms=tuple(times), load_ms=load, nodes=own)
            for times, load, own in zip(race.times_ms, race.loads_ms, nodes, strict=False)
        ]
        name = self.name if self._serial is None else f"{self.name}:{self._serial}"
        return DeviceResult(name, Kind.MEASURED, tuple(sides), facts, tuple(race.times_ms[-1]))

    def _binary(self) -> Path:
        named = self._perf_test or os.environ.get(VARIABLE)
        if not named:
            raise DeviceError(f"no {BINARY} for the phone: {BUILD}")
        return Path(named)


@contextmanager
def _workplace(adb: Adb, warnings: list[str]) -> Iterator[str]:
    """Make a folder on the phone, and take it away again, on Ctrl-C too; where that fails, it is a warning."""
    place = f"{HOME}/onnxslim-{secrets.token_hex(6)}"
    try:
        made = adb.shell("mkdir", "-p", place)
        if made.code != 0:
            raise DeviceError(f"the phone {adb.serial} does not let us write: {made.said}: free some of its storage")
        yield place
    finally:
        try:
            removed = adb.shell("rm", "-rf", place).code == 0
        except DeviceError:  # what went wrong before is the fault to tell
            removed = False
        if not removed:
            warnings.append(f"{place} is still on the phone: remove it with `adb -s {adb.serial} shell rm -rf {place}`")


@dataclass(frozen=True)
class _Race:
    """What the bursts came to; the last arm is the first model's twin."""

    times_ms: list[list[float]]
    loads_ms: list[float | None]
    peaks: list[int | None]
    runs: list[int]
    order: list[list[int]]


class _Bench:
    """Models on one phone, in a folder that is ours."""

    def __init__(self, adb: Adb, place: str, phone: Phone, models: Sequence[ModelFiles], job: Job) -> None:
        self._adb = adb
        self._place = place
        self._phone = phone
        self._models = models
        self._job = job

    def send(self, binary: Path) -> None:
        """Put the binary, the models and their inputs there."""
        steps = len(self._models) + 1
        self._adb.push([binary], f"{self._place}/{BINARY}")
        for library in libraries(binary):
            self._adb.push([library], f"{self._place}/{library.name}")
        self._command("chmod", "755", f"{self._place}/{BINARY}")
        self._job.progress("sending", 1, steps)
        for index, model in enumerate(self._models):
            self._send_model(index, model)
            self._job.progress("sending", index + 2, steps)

    def _send_model(self, index: int, model: ModelFiles) -> None:
        inputs = f"{self._folder(index)}/test_data_set_0"
        self._command("mkdir", "-p", inputs)
        self._adb.push([model.path], self._file(index))
        for name, file in model.data.items():
            if "/" in name:  # perf_test would take the folder for inputs
                raise DeviceError(f"{model.path}: external data lies in a folder ({name}): put it beside the model")
            self._adb.push([file], f"{self._folder(index)}/{name}")
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"input_{number}.pb" for number in range(len(model.inputs))]
            for file, name in zip(files, model.inputs, strict=True):
                file.write_bytes(onnx.numpy_helper.from_array(self._job.feed[name], name).SerializeToString())
            if files:
                self._adb.push(files, f"{inputs}/")

    def race(self) -> _Race:
        """Run all models round after round until the time is up."""
        firsts = [self._burst(index, FEWEST) for index in range(len(self._models))]
        runs = [min(max(math.ceil(BURST_MS / first.median_ms), FEWEST), MOST) for first in firsts]
        arms = [*range(len(self._models)), 0]
        race = _Race([[] for _ in arms], [b.load_ms for b in firsts], [b.peak_bytes for b in firsts], runs, [])
        draw = random.Random(self._job.seed)  # noqa: S311  (an order, not a secret)
        started = time.monotonic()
        while len(race.order) < MOST_ROUNDS:
            spent = time.monotonic() - started
            if len(race.order) >= LEAST_ROUNDS and spent > self._job.seconds:
                break
            race.order.append(draw.sample(range(len(arms)), len(arms)))
            for arm in race.order[-1]:
                race.times_ms[arm].append(self._burst(arms[arm], runs[arms[arm]]).median_ms)
            share = max(len(race.order) / MOST_ROUNDS, min(1.0, spent / self._job.seconds))
            self._job.progress("measuring", int(100 * share), 100)
        return race

    def profiles(self, warnings: list[str]) -> list[tuple[NodeTime, ...]]:
        """Return the nodes' times of each model; a fault is a warning, since the models' times are there already."""
        nodes: list[tuple[NodeTime, ...]] = []
        for index, model in enumerate(self._models):
            try:
                nodes.append(self._profile(index, model))
            except DeviceError as error:
                nodes.append(())
                warnings.append(f"no times of layers of {model.path.name}: {error}")
        return nodes

    def _profile(self, index: int, model: ModelFiles) -> tuple[NodeTime, ...]:
        """Run a copy whose nodes have the names of their outputs, since names of nodes may be empty."""
        if model.path.suffix == ".ort" or model.path.stat().st_size > PROFILED_BYTES:
            return ()
        proto = onnx.load_model(str(model.path), load_external_data=False)
        anchors = name_by_anchor(proto.graph)
        with tempfile.TemporaryDirectory() as folder:
            renamed, profile = Path(folder) / "model.onnx", Path(folder) / "profile.json"
            renamed.write_bytes(proto.SerializeToString())
            self._adb.push([renamed], self._file(index))
            reply = self._perf_test(index, PROFILED_RUNS, ["-p", f"{self._folder(index)}/profile"])
            read_burst(reply, f"m{index}", model.path)
            names = [name for name in self._command("ls", self._folder(index)).output.split() if "profile" in name]
            if not names:
                raise DeviceError(f"{BINARY} wrote no profile: {BUILD}")
            self._adb.pull(f"{self._folder(index)}/{names[0]}", profile)
            return read_nodes(profile, anchors)

    def _burst(self, index: int, runs: int) -> Burst:
        return read_burst(self._perf_test(index, runs), f"m{index}", self._models[index].path)

    def _perf_test(self, index: int, runs: int, extra: Sequence[str] = ()) -> Reply:
        """Start perf_test once and print what it wrote into its file, which stands for the next to come."""
        result = f"{self._place}/result"
        words = arguments(self._file(index), self._job.threads, runs, extra)
        # the words are the script's own arguments, so that nothing in them is read by the shell
        script = f'"$@"; code=$?; cat {result} 2>/dev/null; rm -f {result}; exit $code'
        limit = ["timeout", "-s", "KILL", str(PATIENCE)]
        environment = ["env", f"LD_LIBRARY_PATH={self._place}", "ORT_DISABLE_TELEMETRY=1"]
        command = [*environment, *limit, *self._phone.keeper, f"{self._place}/{BINARY}", *words, result]
        return self._adb.shell("sh", "-c", script, "sh", *command, patience=PATIENCE + 30)

    def _command(self, *words: str) -> Reply:
        reply = self._adb.shell(*words)
        if reply.code != 0:
            raise DeviceError(f"the phone {self._adb.serial} does not do `{words[0]}`: {reply.said}: free its storage")
        return reply

    def _folder(self, index: int) -> str:
        return f"{self._place}/m{index}"

    def _file(self, index: int) -> str:
        return f"{self._folder(index)}/model.{'ort' if self._models[index].path.suffix == '.ort' else 'onnx'}"
