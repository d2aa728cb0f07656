"""A headless Chromium of its own: an empty profile, no page but ours, no name that it could look up."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from onnxslim.errors import DeviceError

VARIABLE = "CHROME"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_ELSEWHERE = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)

_FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-breakpad",
    "--disable-dev-shm-usage",  # containers have a small /dev/shm
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # it talks to us and to nobody else
)


def find_browser(named: Path | None = None) -> str:
    """Return Chromium's path: as named, as ``CHROME`` says, on PATH, or where macOS keeps it.

    Raises:
        DeviceError: there is none.
    """
    asked = str(named) if named else os.environ.get(VARIABLE)
    places = [asked] if asked else [*NAMES, *_ELSEWHERE]
    found = next((path for place in places if (path := shutil.which(place))), None)
    if found is None:
        what = f"{asked} is not there" if asked else "no Chromium or Chrome is installed"
        raise DeviceError(f"{what}: install one (Debian, Ubuntu: apt install chromium), or name it in {VARIABLE}")
    return found


def is_sandboxed() -> bool:
    """Return whether Chromium can use its sandbox, which it cannot as root."""
    return not hasattr(os, "geteuid") or os.geteuid() != 0


class Browser:
    """A browser that shows one page, until the context ends."""

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self._folder = tempfile.TemporaryDirectory(prefix="onnxslim-web-", ignore_cleanup_errors=True)
        self._said = Path(self._folder.name) / "stderr"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Browser:
        return self

    def open(self, url: str) -> None:
        """Start it on ``url``.

        Raises:
            DeviceError: it cannot be executed.
        """
        flags = [*_FLAGS, *([] if is_sandboxed() else ["--no-sandbox"])]
        command = [self._executable, *flags, f"--user-data-dir={self._folder.name}/profile", url]
        try:
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(  # noqa: S603  (the user's browser)
                    command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
                )
        except OSError as error:
            raise DeviceError(f"{self._executable} does not run: {error.strerror or error}: install it again") from None

    def epitaph(self) -> str | None:
        """Return how it ended, None while it lives."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        text = self._said.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        faults = [line for line in lines if re.search(r"fatal|error|cannot|sandbox", line, re.IGNORECASE)]
        said = (faults or lines or [f"exit code {code}"])[-1]
        return re.sub(r"^\[[^\]]*\]\s*", "", said.strip())[:200]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._kill(self._process)
        self._folder.cleanup()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """End it with all of its processes, which share a group that is theirs alone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
