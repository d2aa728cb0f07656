"""A headless Chromium with onnxruntime-web: WebAssembly on this machine's processor.

The models race in one page as they do on the host: interleaved in random order, each timed sample after a run that
does not count, the first model twice. Times are of the page's clock; outputs come back to be compared. Numbers of
this machine: ratios carry over to other browsers far better than milliseconds.
"""

from __future__ import annotations

import json
import queue
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.devices.base import Array, Device, DeviceResult, Job, Kind, Progress, Side
from onnxslim.devices.model_files import ModelFiles, model_files
from onnxslim.devices.web_browser import Browser, find_browser, is_sandboxed
from onnxslim.devices.web_packages import FILES, PACKAGE, WebPackage, find_package, install
from onnxslim.devices.web_server import Gone, PageServer, Share, Source
from onnxslim.errors import DeviceError, one_line

LEAST_ROUNDS, MOST_ROUNDS = 15, 400
WARMUP_RUNS, WARMUP_MS = 5, 500
BATCHES, BATCH_MS = 5, 0.5
"""A sample is the quickest of so many batches, each of as many runs as take so long; the clock's steps are 5 µs."""
ORDER = "interleaved, in a random order that the seed draws for each round"
PATIENCE = 300.0
"""Seconds without a word from the page, after which it is given up."""

_TYPES = {
    "bool": "bool",
    "float16": "float16",
    "float32": "float32",
    "float64": "float64",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""Types of tensors by those of arrays; text is not among them."""


class WebDevice(Device):
    """A browser on this machine.

    Args:
        browser: Chromium or Chrome; else what ``CHROME`` names, or what is found.
        package: a folder with onnxruntime-web as npm installs it; else the one that :meth:`setup` made.
        patience: seconds that the page may be silent.
    """

    name = "web"

    def __init__(self, browser: Path | None = None, package: Path | None = None, patience: float | None = None) -> None:
        self._browser = browser
        self._package = package
        self._patience = PATIENCE if patience is None else patience

    def setup(self, progress: Progress) -> None:
        """Fetch onnxruntime-web with npm, and check that there is a browser."""
        find_browser(self._browser)
        install(progress)

    def check(self) -> None:
        """Look whether there are a browser and onnxruntime-web."""
        find_browser(self._browser)
        find_package(self._package)

    def measure(self, job: Job) -> DeviceResult:
        """Run the job.

        Raises:
            ModelError: one of the models cannot be sent.
        """
        models = [model_files(path, job.feed) for path in job.models]
        executable, package = find_browser(self._browser), find_package(self._package)
        handed = _handed_out(models, job, package)
        with PageServer(handed) as server, Browser(executable) as browser:
            browser.open(server.url())
            told = _listen(server, browser, job.progress, self._patience)
        if "error" in told:
            raise _page_fault(told["error"], job.models)
        try:
            return self._result(told, server.outputs, package, job)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DeviceError(
                f"what the page posted is not understood ({one_line(error)}): use {PACKAGE} as setup installs it"
            ) from None

    def _result(
        self, told: Mapping[str, Any], outputs: Mapping[str, bytes], package: WebPackage, job: Job
    ) -> DeviceResult:
        sides = tuple(_side(side, outputs) for side in told["sides"])
        twin = tuple(float(value) for value in told["twinMs"])
        if len(sides) != len(job.models) or any(len(side.times_ms) != len(twin) for side in sides) or not twin:
            raise ValueError("rounds are missing")
        isolated = bool(told["isolated"])
        facts = {
            "onnxruntime_web": told.get("version") or package.version,
            "browser": str(told["userAgent"]),
            "clock": "wall clock of the page, in steps of " + ("5 µs" if isolated else "100 µs"),
            "threads": job.threads,
            "sandbox": is_sandboxed(),
            "sample": f"the quickest of {BATCHES} batches",
            "runs_per_batch": list(told["runs"]),
            "order": ORDER,
            "seed": job.seed,
            "rounds": len(twin),
            "warnings": [] if isolated else ["the browser did not isolate the page: its clock is coarse"],
        }
        return DeviceResult(self.name, Kind.MEASURED, sides, facts, twin)


def _orders(job: Job) -> list[list[int]]:
    """Return the order of each round that there may be; the last arm is the first model's twin."""
    draw = random.Random(job.seed)  # noqa: S311  (an order, not a secret)
    arms = len(job.models) + 1
    return [draw.sample(range(arms), arms) for _ in range(MOST_ROUNDS)]


def _handed_out(models: Sequence[ModelFiles], job: Job, package: WebPackage) -> dict[str, Source]:
    """Return everything that the page may ask for, by place."""
    here = Path(__file__).parent
    handed: dict[str, Source] = {"": here / "web_page.html", "web_page.mjs": here / "web_page.mjs"}
    handed |= {f"ort/{name}": package.dist / name for name in FILES}
    feed = []
    for index, (name, value) in enumerate(job.feed.items()):
        kind = _TYPES.get(value.dtype.name)
        if kind is None:
            raise DeviceError(f"input {name!r} is of type {value.dtype.name}, which no page takes: use another device")
        place = f"feed/{index}"
        handed[place] = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        feed.append({"name": name, "type": kind, "dims": list(value.shape), "place": place})
    described = []
    for index, model in enumerate(models):
        places = {name: f"data/{index}/{number}" for number, name in enumerate(model.data)}
        handed |= {f"model/{index}": model.path} | {places[name]: file for name, file in model.data.items()}
        data = [{"path": name, "place": place} for name, place in places.items()]
        described.append({"place": f"model/{index}", "inputs": list(model.inputs), "data": data})
    told = {"threads": job.threads, "seconds": job.seconds, "least": LEAST_ROUNDS, "orders": _orders(job)}
    told |= {"warmupRuns": WARMUP_RUNS, "warmupMs": WARMUP_MS, "batches": BATCHES, "batchMs": BATCH_MS}
    handed["job.json"] = json.dumps({**told, "feed": feed, "models": described}).encode()
    return handed


def _listen(server: PageServer, browser: Browser, progress: Progress, patience: float) -> Mapping[str, Any]:
    """Return what the page has to tell in the end."""
    heard = time.monotonic()
    while True:
        try:
            event = server.events.get(timeout=0.2)
        except queue.Empty:
            event = None
        if isinstance(event, Share):
            heard = time.monotonic()
            progress("measuring", int(100 * min(max(event.value, 0.0), 1.0)), 100)
        elif isinstance(event, Gone):
            raise DeviceError("the page crashed: all models together may want more than its 4 GB: try fewer at once")
        elif event is not None:
            return event
        elif (epitaph := browser.epitaph()) is not None:
            raise DeviceError(f"the browser ended before it measured: {epitaph}: check that it runs by itself")
        elif time.monotonic() - heard > patience:
            raise DeviceError(f"the page said nothing for {patience:.0f} s: the models are too slow for a browser here")


def _page_fault(error: Mapping[str, Any], models: Sequence[Path]) -> DeviceError:
    stage, said = str(error.get("stage", "")), str(error.get("message", ""))
    line = next((line.strip() for line in said.splitlines() if line.strip()), "no reason")
    number = stage.removeprefix("model ")
    if number.isdigit() and int(number) < len(models):
        return DeviceError(f"{PACKAGE} does not run {models[int(number)]}: {line}: measure it on another device")
    return DeviceError(f"the page failed while {stage}: {line}: run `onnxslim device setup web` again")


def _side(told: Mapping[str, Any], bodies: Mapping[str, bytes]) -> Side:
    outputs = {entry["name"]: _array(entry, bodies[entry["place"]]) for entry in told["outputs"] if entry["place"]}
    times = tuple(float(value) for value in told["timesMs"])
    return Side(times_ms=times, load_ms=float(told["loadMs"]), outputs=outputs)


def _array(entry: Mapping[str, Any], body: bytes) -> Array:
    return np.frombuffer(body, np.dtype(_TYPES[entry["type"]]).newbyteorder("<")).reshape(entry["dims"])
