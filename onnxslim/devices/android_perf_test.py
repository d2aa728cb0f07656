"""onnxruntime's own ``onnxruntime_perf_test``: whether a binary fits a phone, how it is called, and what it writes.

Each model lies in a folder of its own, since perf_test takes every folder beside a model for a set of its inputs. It
runs once to warm up, then ``-r`` times, and appends one line for each of these runs to a file: folder, seconds, peak
memory, CPU usage, number.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxslim.devices.android_adb import Reply
from onnxslim.errors import DeviceError
from onnxslim.runtime.profile import NodeTime, plain_name

VARIABLE = "ONNXSLIM_PERF_TEST"
BINARY = "onnxruntime_perf_test"
BUILD = (
    "build it from onnxruntime's source: ./build.sh --android --android_abi arm64-v8a --android_api 27 "
    "--android_sdk_path SDK --android_ndk_path NDK --config Release --parallel, "
    f"and name build/Android/Release/{BINARY} in {VARIABLE}"
)
"""The one line that says how to get it: no package has it for Android."""

_MACHINES = {183: "arm64-v8a", 40: "armeabi-v7a", 62: "x86_64", 3: "x86", 243: "riscv64"}
_LIBRARIES = ("libonnxruntime*.so", "libc++_shared.so")
"""What a binary may need that was not linked into it, looked for beside it."""
_KILLED = 128
"""Exit codes above are this and the number of a signal."""
_STOPPED = (124, 128 + 9)
"""Exit codes of what ran for too long."""
_AGREES = 0.1
"""How far the mean of the single times may be from the mean that perf_test prints."""


@dataclass(frozen=True)
class Burst:
    """What one start of perf_test measured."""

    times_ms: tuple[float, ...]
    load_ms: float | None
    peak_bytes: int | None

    @property
    def median_ms(self) -> float:
        """Return the median of its runs."""
        return statistics.median(self.times_ms)


def check_binary(path: Path) -> str:
    """Return the ABI that ``path`` was built for.

    Raises:
        DeviceError: no such file, no program of Android.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DeviceError(f"{path} cannot be read ({error.strerror}): {BUILD}") from None
    if head[:4] != b"\x7fELF" or len(head) < 20:
        raise DeviceError(f"{path} is no program of Android: {BUILD}")
    if b"/ld-linux" in head or b"/ld-musl" in head:
        raise DeviceError(f"{path} was built for Linux, not for Android: {BUILD}")
    machine = int.from_bytes(head[18:20], "little")
    return _MACHINES.get(machine, f"machine {machine}")


def check_abi(path: Path, abi: str, abis: Sequence[str]) -> None:
    """Refuse a binary for another processor than the phone's; a phone that does not say is tried.

    Raises:
        DeviceError: with both.
    """
    if abis and abi not in abis:
        raise DeviceError(
            f"{path} is built for {abi} and the phone runs {', '.join(abis)}: build {BINARY} with "
            f"--android_abi {abis[0]}"
        )


def libraries(path: Path) -> list[Path]:
    """Return the libraries beside the binary that it may need."""
    return sorted(file for pattern in _LIBRARIES for file in path.parent.glob(pattern) if file.is_file())


def arguments(model: str, threads: int, runs: int, extra: Sequence[str] = ()) -> list[str]:
    """Return perf_test's arguments, without the file for its results."""
    fixed = ["-e", "cpu", "-m", "times", "-o", "99", "-y", "1"]
    return [*fixed, "-r", str(runs), "-x", str(threads), *extra, model]


def read_burst(reply: Reply, folder: str, model: Path) -> Burst:
    """Return what perf_test measured and wrote.

    Raises:
        DeviceError: it crashed, refused the model, or wrote what is not understood.
    """
    if reply.code != 0:
        raise _failure(reply, model)
    line = rf"^{re.escape(folder)},([\d.eE+-]+),(\d+),-?\d+,\d+$"
    found = re.findall(line, reply.output, re.MULTILINE)
    times = tuple(float(seconds) * 1e3 for seconds, _ in found)
    mean = re.search(r"Average (?:inference )?time cost(?: total)?:\s*([\d.eE+-]+) ms", reply.output)
    if not times or min(times) <= 0 or (mean and abs(statistics.fmean(times) / float(mean[1]) - 1) > _AGREES):
        raise DeviceError(f"what {BINARY} wrote is not understood ({reply.said!r}): {BUILD}")
    load = re.search(r"Session creation time cost:\s*([\d.eE+-]+) s", reply.output)
    return Burst(times, float(load[1]) * 1e3 if load else None, int(found[-1][1]) or None)


def _failure(reply: Reply, model: Path) -> DeviceError:
    text = reply.output + reply.errors
    library = re.search(r'library "(\S+)" not found', text)
    if library:
        return DeviceError(f"{BINARY} lacks {library[1]} on the phone: put it beside the binary, or link it statically")
    if reply.code in _STOPPED:
        return DeviceError(
            f"{BINARY} was stopped on {model.name}, for it took too long or the phone wanted its memory: fix smaller "
            "shapes with --shape"
        )
    if reply.code in (126, 127) or "not executable" in text:
        return DeviceError(f"the phone does not execute {BINARY} ({reply.said}): {BUILD}")
    if _KILLED < reply.code < _KILLED + 65:
        return DeviceError(
            f"{BINARY} crashed on {model.name} (signal {reply.code - _KILLED}): try a build of another onnxruntime, "
            "or a smaller model"
        )
    if "nknown command line flag" in text or "See 'onnxruntime_perf_test --help'" in text:
        return DeviceError(f"{BINARY} does not know our options ({reply.said}): {BUILD}")
    return DeviceError(f"{BINARY} does not run {model.name}: {_reason(text) or reply.said}: try a newer onnxruntime")


def _reason(text: str) -> str | None:
    """Return the line that says why, which need not be the last one."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if re.search(r"fail|error|not supported|no test data", line, re.I)), None)


def read_nodes(profile: Path, anchors: set[str]) -> tuple[NodeTime, ...]:
    """Return the nodes' times of a profile, whose nodes were named after ``anchors``.

    Raises:
        DeviceError: the profile is cut short, or none.
    """
    try:
        events = json.loads(profile.read_text(encoding="utf-8"))
        rows = [_row(event) for event in events if _is_kernel(event)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DeviceError(f"the profile that {BINARY} wrote is not understood: {BUILD}") from None
    times: dict[tuple[str, str], list[float]] = {}
    for name, op, spent in rows:
        times.setdefault((name, op), []).append(spent)
    return tuple(
        NodeTime(name, _anchor(name, anchors), op, statistics.median(spent[1:] or spent))  # the first one warms up
        for (name, op), spent in times.items()
    )


def _anchor(name: str, anchors: set[str]) -> str | None:
    return next((own for own in (name, plain_name(name)) if own in anchors), None)


def _is_kernel(event: Mapping[str, object]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")


def _row(event: Mapping[str, object]) -> tuple[str, str, float]:
    details = event["args"]
    op = details["op_name"] if isinstance(details, dict) else ""
    return str(event["name"]).removesuffix("_kernel_time"), str(op), float(str(event["dur"]))
