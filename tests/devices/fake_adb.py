"""An adb whose phone is a folder, for tests: run as a program by what :func:`install` writes.

``FAKE_PHONE`` names the folder and ``FAKE_ADB`` a scenario. The phone's files are below the folder, its commands are
this machine's, and a pushed program of Android becomes a script that plays ``onnxruntime_perf_test``: its times follow
from the size of the model. Every call is a line in ``log``, its words after tabs. It is started a thousand times, so it
imports next to nothing until it has to.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

SERIAL = "FAKE01"
STATES = {
    "none": "",
    "two": f"{SERIAL}\tdevice\nFAKE02\tdevice\n",
    "offline": f"{SERIAL}\toffline\n",
    "unauthorized": f"{SERIAL}\tunauthorized\n",
    "forbidden": f"{SERIAL}\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://x]\n",
    "recovery": f"{SERIAL}\trecovery\n",
}
PROPERTIES = """[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.product.cpu.abilist]: [arm64-v8a,armeabi-v7a]
[ro.product.manufacturer]: [Acme]
[ro.product.model]: [Pretend 8]
[ro.soc.model]: [AC8000]
"""
THERMAL = """IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=99.0, mType=0, mName=old, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=41.5, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue=43.5, mType=0, mName=CPU7, mStatus=0}}
\tTemperature{{mValue=33.25, mType=3, mName=skin, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=cpu}}
"""
CORES_KHZ = [1_800_000] * 4 + [2_400_000] * 3 + [3_000_000]


# ---- what tests call ---------------------------------------------------------------------------------------------


def install(folder: Path) -> tuple[Path, Path]:
    """Write an adb and an empty phone into ``folder``; return both."""
    adb, phone = folder / "bin" / "adb", folder / "phone"
    _script(str(adb), f'exec "{sys.executable}" -I -S "{__file__}" "$@"')
    tools = phone / "system" / "bin"
    for name in ("getprop", "dumpsys"):
        _script(str(tools / name), f'exec "{sys.executable}" -I -S "{__file__}" --{name} "$@"')
    _script(str(tools / "taskset"), '[ "$FAKE_ADB" = silent ] && exit 127; shift; exec "$@"')
    (phone / "data" / "local" / "tmp").mkdir(parents=True)
    (phone / "proc").mkdir()
    (phone / "proc" / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    for core, speed in enumerate(CORES_KHZ):
        place = phone / "sys" / "devices" / "system" / "cpu" / f"cpu{core}" / "cpufreq"
        place.mkdir(parents=True)
        (place / "cpuinfo_max_freq").write_text(f"{speed}\n")
        (place / "scaling_max_freq").write_text(f"{speed}\n")
    return adb, phone


def program(machine: int = 183, loader: bytes = b"/system/bin/linker64") -> bytes:
    """Return the first bytes of a program, for AArch64 by default."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + machine.to_bytes(2, "little") + bytes(100) + loader


def calls(phone: Path) -> list[tuple[str, list[str]]]:
    """Return what was asked of the phone: ``adb`` or ``perf_test``, and its arguments."""
    lines = (line.split("\t") for line in (phone / "log").read_text().splitlines())
    return [(words[0], words[1:]) for words in lines]


def _script(path: str, line: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\n{line}\n")
    os.chmod(path, 0o700)


# ---- the program -------------------------------------------------------------------------------------------------


def _main(arguments: list[str]) -> int:
    phone, scenario = os.environ["FAKE_PHONE"], os.environ.get("FAKE_ADB", "")
    played = {"--perf-test": _perf_test, "--getprop": _getprop, "--dumpsys": _dumpsys}
    if arguments and arguments[0] in played:
        return played[arguments[0]](phone, scenario, arguments[1:])
    _log(phone, "adb", arguments)
    if scenario == "server":
        return _fail("adb: failed to start daemon")
    if arguments == ["devices"]:
        sys.stdout.write("* daemon not running; starting now at tcp:5037\nList of devices attached\n")
        sys.stdout.write(STATES.get(scenario, f"{SERIAL}\tdevice\n") + "\n")
        return 0
    assert arguments[0] == "-s", arguments
    verbs = {"shell": _shell, "push": _push, "pull": _pull}
    return verbs[arguments[2]](phone, scenario, arguments[3:])


def _shell(phone: str, scenario: str, arguments: list[str]) -> int:
    import subprocess

    (line,) = arguments
    if scenario == "hangs":
        subprocess.run(["sleep", "60"], check=False)
    if scenario == "gone" and "onnxruntime_perf_test" in line and "timeout" in line:
        return _fail(f"adb: device '{SERIAL}' not found")
    if scenario == "sticky" and line.startswith("rm "):
        return _fail(f"adb: device '{SERIAL}' not found")
    for place in ("/data/local/tmp", "/proc/", "/sys/"):
        line = line.replace(place, f"{phone}{place}")
    environment = {**os.environ, "PATH": f"{phone}/system/bin:{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False, env=environment)
    ending = "\r\n" if scenario == "old" else "\n"  # phones before Android 7 have a terminal in between
    sys.stdout.write(done.stdout.replace(phone, "").replace("\n", ending))
    sys.stderr.write(done.stderr.replace(phone, ""))
    return done.returncode


def _push(phone: str, scenario: str, arguments: list[str]) -> int:
    *sources, target = arguments
    if scenario in ("full", "denied") and any(source.endswith(".onnx") for source in sources):
        reason = "No space left on device" if scenario == "full" else "Permission denied"
        return _fail(f"adb: error: failed to copy '{sources[0]}' to '{target}': remote write failed: {reason}")
    for source in sources:
        place = f"{phone}{target}{os.path.basename(source) if target.endswith('/') else ''}"
        if not os.path.isdir(os.path.dirname(place)):
            return _fail(f"adb: error: failed to copy '{source}': remote couldn't create file: No such file")
        content = _copy(source, place)
        if content[:4] == b"\x7fELF" and not place.endswith(".so"):
            _script(place, f'exec "{sys.executable}" -I -S "{__file__}" --perf-test "$@"')
        kept = f"{phone}/kept/{place.removeprefix(f'{phone}/data/local/tmp/').partition('/')[2]}"
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        if not os.path.exists(kept):  # what is sent once more has other names
            _copy(source, kept)
    return 0


def _copy(source: str, target: str) -> bytes:
    with open(source, "rb") as file:
        content = file.read()
    with open(target, "wb") as file:
        file.write(content)
    return content


def _pull(phone: str, scenario: str, arguments: list[str]) -> int:
    source, target = arguments
    content = _copy(f"{phone}{source}", target)
    if scenario == "torn":
        with open(target, "wb") as file:
            file.write(content[: len(content) // 2])
    return 0


def _getprop(phone: str, scenario: str, arguments: list[str]) -> int:
    sys.stdout.write("" if scenario == "silent" else PROPERTIES)
    return 0


def _dumpsys(phone: str, scenario: str, arguments: list[str]) -> int:
    if scenario == "silent":
        return _fail("Can't find service: thermalservice")
    sys.stdout.write(THERMAL.format(status=2 if scenario == "hot" else 0))
    return 0


def _perf_test(phone: str, scenario: str, arguments: list[str]) -> int:
    _log(phone, "perf_test", arguments)
    *options, model, result = arguments
    if scenario == "segfault":
        os.kill(os.getpid(), 11)
    if scenario == "refuses":
        sys.stdout.write("Setting intra_op_num_threads to 1\n")
        return _fail("Load model from m0/model.onnx failed: Unsupported model IR version: 99\n\nsee the help", 255)
    if scenario == "unlinked":
        return _fail('CANNOT LINK EXECUTABLE "x": library "libonnxruntime.so" not found: needed by main executable')
    if scenario == "format":
        return _fail("sh: onnxruntime_perf_test: not executable: 64-bit ELF file", 126)
    if scenario == "babbles":
        sys.stdout.write("All is well\n")
        return 0
    if scenario == "flags":
        return _fail("ERROR: Unknown command line flag 'y'", 1)
    runs = int(options[options.index("-r") + 1])
    folder = os.path.dirname(model)
    if not os.path.exists(f"{folder}/test_data_set_0/input_0.pb"):
        return _fail("there is no test data for model", 255)
    seconds = os.path.getsize(model) / 1e6
    times = [seconds * (1 + 0.01 * (run % 3)) for run in range(runs)]
    with open(result, "a") as file:
        file.writelines(f"{folder[-2:]},{value:g},52428800,99,{run}\n" for run, value in enumerate(times))
    sys.stdout.write(
        f"Setting intra_op_num_threads to 1\nSession creation time cost: 0.0125 s\nFirst inference time cost: 2 ms\n"
        f"Total inference requests: {runs}\nAverage inference time cost total: {sum(times) / runs * 1e3:f} ms\n"
    )
    if "-p" in options:
        _profile(f"{options[options.index('-p') + 1]}_2026.json", runs)
    return 0


def _profile(path: str, runs: int) -> None:
    import json

    node = {"cat": "Node", "name": "h_nchwc_kernel_time", "dur": 30, "args": {"op_name": "Conv"}}
    other = {"cat": "Node", "name": "reorder_token_7_kernel_time", "dur": 4, "args": {"op_name": "ReorderInput"}}
    session = {"cat": "Session", "name": "model_run", "dur": 40, "args": {}}
    first = [{**event, "dur": 5000} for event in (node, other)]
    with open(path, "w") as file:
        json.dump([session, *first, *([node, other] * runs)], file)


def _log(phone: str, who: str, arguments: list[str]) -> None:
    with open(f"{phone}/log", "a") as file:
        file.write("\t".join([who, *arguments]).replace("\n", " ") + "\n")


def _fail(line: str, code: int = 1) -> int:
    sys.stderr.write(line + "\n")
    return code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
