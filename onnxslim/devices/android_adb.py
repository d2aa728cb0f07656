"""A phone through adb: the few verbs that measuring takes, with time limits, and faults as one line.

Arguments travel as lists, never through a shell of this machine. What the phone's shell runs is quoted for it, since
adb hands it over as one line of text. Old phones do not send exit codes, so the shell says them itself; where it does
not get to that, the phone went away.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxslim.errors import DeviceError

PATIENCE = 30.0
"""Seconds that a short question may take."""
SLOWEST = 500_000
"""Bytes a second that a slow cable or a weak radio still carries."""

_MARK = "onnxslim-exit:"

_MENDS = {
    "unauthorized": "unlock its screen and allow USB debugging for this computer",
    "authorizing": "unlock its screen and allow USB debugging for this computer",
    "offline": "unplug it and plug it in again, or run `adb reconnect offline`",
    "no permissions": "let this user open it (udev rules: developer.android.com/tools/device), or run adb as root",
    "recovery": "start Android on it",
    "sideload": "start Android on it",
    "bootloader": "start Android on it",
}
"""What to do about each state of a device, by the words that adb has for it."""

_AWAY = "went away: check the cable, and that it stays awake"
_FAULTS = (
    (r"No space left on device$", "is full: free some of its storage; the models go to /data/local/tmp"),
    (r"Read-only file system$", "has its storage read-only: restart it"),
    (r"Permission denied$", "denies access to /data/local/tmp: check that `adb shell` may write there"),
    (r"device (still )?(unauthorized|authorizing)", f"is unauthorized: {_MENDS['unauthorized']}"),
    (r"device offline", f"is offline: {_MENDS['offline']}"),
    (r"device '.*' not found|no devices|^(adb: )?error: closed$", _AWAY),
)
"""What adb says where it fails (file names are in it too, so words alone would not do), and what that means."""


@dataclass(frozen=True)
class Reply:
    """What a command on the phone came to."""

    code: int
    output: str
    errors: str

    @property
    def said(self) -> str:
        """Return the last line that is not empty, errors first."""
        lines = [line.strip() for text in (self.output, self.errors) for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def find_adb(named: Path | None = None) -> str:
    """Return adb's path: as named, on PATH, or in the SDK.

    Raises:
        DeviceError: there is none.
    """
    homes = [os.environ[key] for key in ("ANDROID_HOME", "ANDROID_SDK_ROOT") if os.environ.get(key)]
    places = [str(named)] if named else ["adb", *(str(Path(home) / "platform-tools" / "adb") for home in homes)]
    found = next((path for place in places if (path := shutil.which(place))), None)
    if found is None:
        where = f"{named} is not there" if named else "adb is not installed"
        raise DeviceError(f"{where}: install Android's platform-tools (Debian, Ubuntu: apt install adb)")
    return found


class Adb:
    """One phone.

    Args:
        executable: adb itself.
        serial: the phone, as ``adb devices`` lists it.
    """

    def __init__(self, executable: str, serial: str) -> None:
        self._executable = executable
        self.serial = serial

    @classmethod
    def connect(cls, executable: str, serial: str | None) -> Adb:
        """Return the phone ``serial``, or the only one that is ready.

        Raises:
            DeviceError: none, several, or one that does not let us in.
        """
        return cls(executable, _choose(_attached(executable), serial or os.environ.get("ANDROID_SERIAL")))

    def shell(self, *words: str, patience: float = PATIENCE) -> Reply:
        """Run a command on the phone.

        Raises:
            DeviceError: it took longer than ``patience`` seconds, or the phone went away. Exit codes raise nothing.
        """
        done = self._adb("shell", f"{shlex.join(words)}; echo {_MARK}$?", patience=patience)
        output, mark, code = done.stdout.replace("\r\n", "\n").rpartition(_MARK)
        if not mark or not code.strip().isdigit():
            raise self._fault(done)
        return Reply(int(code), output, done.stderr)

    def ask(self, *words: str) -> str:
        """Return what a command prints, and nothing where it fails: for what is good to know."""
        reply = self.shell(*words)
        return reply.output if reply.code == 0 else ""

    def push(self, files: Sequence[Path], place: str) -> None:
        """Copy files to ``place``: a folder of the phone, or for a single file, its new name.

        Raises:
            DeviceError: it does not fit, is not allowed, or takes too long.
        """
        size = sum(file.stat().st_size for file in files)
        # a relative name that starts with a dash would be an option
        done = self._adb("push", *(str(file.absolute()) for file in files), place, patience=60 + size / SLOWEST)
        if done.returncode != 0:
            raise self._fault(done)

    def pull(self, place: str, file: Path) -> None:
        """Copy one file of the phone to ``file``.

        Raises:
            DeviceError: it is not there, or takes too long.
        """
        done = self._adb("pull", place, str(file.absolute()), patience=600)
        if done.returncode != 0 or not file.is_file():
            raise self._fault(done)

    def _adb(self, *words: str, patience: float) -> subprocess.CompletedProcess[str]:
        return _run([self._executable, "-s", self.serial, *words], patience, self.serial)

    def _fault(self, done: subprocess.CompletedProcess[str]) -> DeviceError:
        text = "\n".join((done.stdout, done.stderr)).strip()
        said = next((meaning for words, meaning in _FAULTS if re.search(words, text, re.MULTILINE)), None)
        if said is None:
            line = text.splitlines()[-1].strip() if text else f"adb ended with exit code {done.returncode}"
            said = f"does not do its work: {line}: check that `adb -s {self.serial} shell` works"
        return DeviceError(f"the phone {self.serial} {said}")


def _run(command: Sequence[str], patience: float, who: str) -> subprocess.CompletedProcess[str]:
    """Run adb in a session of its own: Ctrl-C is ours to handle, and there may be something to clean up."""
    try:
        return subprocess.run(  # noqa: S603  (adb, as the user has it)
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=patience,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"the phone {who} did not answer adb within {patience:.0f} s: check the cable, and that it stays awake"
        ) from None
    except OSError as error:
        raise DeviceError(f"{command[0]} does not run: {error.strerror or error}: install adb again") from None


def _attached(executable: str) -> dict[str, str]:
    """Return the state of each device that adb knows."""
    done = _run([executable, "devices"], PATIENCE, "list")
    if done.returncode != 0:
        line = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise DeviceError(f"adb lists no devices: {line}: run `adb kill-server` and try again")
    pairs = (line.partition("\t") for line in done.stdout.splitlines())
    return {serial.strip(): state.strip() for serial, tab, state in pairs if tab}


def _choose(devices: dict[str, str], wanted: str | None) -> str:
    listed = ", ".join(devices) or "none"
    if wanted is not None:
        if wanted not in devices:
            raise DeviceError(f"no device {wanted}: adb knows {listed}: connect it, or run `adb connect HOST:PORT`")
        chosen = wanted
    else:
        ready = [serial for serial, state in devices.items() if state == "device"]
        if len(ready) > 1:
            raise DeviceError(f"several Android devices ({', '.join(ready)}): name one, as in android:{ready[0]}")
        if not devices:
            raise DeviceError("no Android device: connect one that has USB debugging on; `adb devices` lists them")
        chosen = ready[0] if ready else next(iter(devices))
    state = devices[chosen]
    if state != "device":
        mend = next((mend for words, mend in _MENDS.items() if state.startswith(words)), "start Android on it")
        raise DeviceError(f"the phone {chosen} is {state.partition(' (')[0]}: {mend}")
    return chosen
