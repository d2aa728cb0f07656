"""What a phone tells of itself: what it is, how hot it is, and which of its cores are fast.

Everything here is good to know and nothing has to be there: phones differ in what they let a shell read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxslim.devices.android_adb import Adb

_PROPERTIES = {
    "model": "ro.product.model",
    "maker": "ro.product.manufacturer",
    "soc": "ro.soc.model",
    "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
}
_EVER, _NOW = "cpuinfo_max_freq", "scaling_max_freq"
"""The highest clock of a core, and the highest that it is allowed at the moment, in kHz."""
_PROCESSOR, _SKIN = 0, 3
"""Types of temperatures in Android's thermal service."""
_NORMAL = 0
"""Its status when nothing is slowed down."""


@dataclass(frozen=True)
class Phone:
    """A phone, before anything was run on it."""

    abis: tuple[str, ...]
    """What it executes, the best first."""
    facts: Mapping[str, Any]
    keeper: tuple[str, ...]
    """Words in front of a command that keep it on the fastest cores."""


def describe(adb: Adb, threads: int) -> Phone:
    """Return what the phone says of itself; ``threads`` of its cores at least are to be kept to."""
    known = dict(re.findall(r"^\[(.+?)\]: \[(.*?)\]", adb.ask("getprop"), re.MULTILINE))
    abis = known.get("ro.product.cpu.abilist") or known.get("ro.product.cpu.abi") or ""
    facts: dict[str, Any] = {name: known[key] for name, key in _PROPERTIES.items() if known.get(key)}
    features = re.search(r"^Features\s*:(.*)", adb.ask("cat", "/proc/cpuinfo"), re.MULTILINE)
    if features:
        facts["cpu_features"] = features[1].split()
    speeds = _clocks(adb)[_EVER]
    if speeds:
        facts["core_mhz"] = [speeds[core] // 1000 for core in sorted(speeds)]
    cores = fastest(speeds, threads)
    mask = f"{sum(1 << core for core in cores):x}"
    keeper = ("taskset", mask) if cores and adb.shell("taskset", mask, "true").code == 0 else ()
    if keeper:
        facts["pinned_cores"] = list(cores)
    return Phone(tuple(filter(None, abis.split(","))), {"serial": adb.serial, **facts}, keeper)


def fastest(speeds: Mapping[int, int], threads: int) -> tuple[int, ...]:
    """Return the cores of the fastest kinds, as many kinds as hold ``threads`` cores.

    The scheduler starts a short process on a slow core and moves it later: that would be measured too.
    """
    chosen: list[int] = []
    for speed in sorted(set(speeds.values()), reverse=True):
        if len(chosen) < threads:
            chosen += [core for core, own in speeds.items() if own == speed]
    return tuple(sorted(chosen))


def temperatures(adb: Adb) -> dict[str, Any]:
    """Return what is known of heat: ``status`` (0 is normal), ``cpu_c``, ``skin_c``, and ``slowed_cores``."""
    text = adb.ask("dumpsys", "thermalservice")
    status = re.search(r"Thermal Status: (\d+)", text)
    current = text.partition("Current temperatures from HAL")[2].partition("\nCurrent cooling")[0] or text
    values = re.findall(r"mValue=(-?[\d.]+), mType=(\d+)", current)
    heat: dict[str, Any] = {} if status is None else {"status": int(status[1])}
    for name, kind in (("cpu_c", _PROCESSOR), ("skin_c", _SKIN)):
        found = [float(value) for value, of in values if int(of) == kind]
        heat |= {name: max(found)} if found else {}
    if "cpu_c" not in heat:
        heat |= _zones(adb)
    clocks = _clocks(adb)
    slowed = sorted(core for core, speed in clocks[_NOW].items() if speed < clocks[_EVER].get(core, speed))
    return {**heat, "slowed_cores": slowed}


def heat_warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each sign that the phone was slowing itself down."""
    lines = []
    status = max(heat.get("status", _NORMAL) for heat in (before, after))
    if status > _NORMAL:
        lines.append(f"the phone was hot (thermal status {status}): times are too long; let it cool and measure again")
    if after.get("slowed_cores"):
        cores = ", ".join(str(core) for core in after["slowed_cores"])
        lines.append(f"the phone holds cores {cores} below their full clock: let it cool, or leave battery saving")
    return lines


def _zones(adb: Adb) -> dict[str, float]:
    """Return the highest temperature of a processor in the kernel's own thermal zones."""
    lines = _files(adb, *(f"/sys/class/thermal/thermal_zone*/{name}" for name in ("type", "temp")))
    kinds = {zone: value for zone, name, value in lines if name == "type"}
    values = [int(value) for zone, name, value in lines if name == "temp" and _is_cpu(kinds.get(zone, ""), value)]
    return {"cpu_c": max(values) / 1000} if values else {}


def _is_cpu(kind: str, value: str) -> bool:
    return value.lstrip("-").isdigit() and re.search(r"cpu|soc|big|little|tsens", kind, re.IGNORECASE) is not None


def _clocks(adb: Adb) -> dict[str, dict[int, int]]:
    """Return the clocks of all cores by kind."""
    found: dict[str, dict[int, int]] = {_EVER: {}, _NOW: {}}
    for core, name, value in _files(adb, "/sys/devices/system/cpu/cpu*/cpufreq/*_max_freq"):
        if name in found and value.isdigit():
            found[name][core] = int(value)
    return found


def _files(adb: Adb, *patterns: str) -> list[tuple[int, str, str]]:
    """Return (number in its folder's name, name, first line) of each file that matches and may be read."""
    text = adb.shell("sh", "-c", f"grep -H . {' '.join(patterns)} 2>/dev/null").output
    lines = re.findall(r"^/\S*?(?:cpu|zone)(\d+)/\S*?(\w+):(.*)$", text, re.MULTILINE)
    return [(int(number), name, value.strip()) for number, name, value in lines]
