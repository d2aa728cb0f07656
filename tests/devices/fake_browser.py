"""A browser for tests: a program that plays the page, so that the protocol is tried without Chromium.

``FAKE_BROWSER`` names a scenario. It fetches what the page would and posts times and outputs: each output is the feed,
as it came. ``FAKE_BROWSER_LOG`` is where it writes its own arguments and what it saw.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def install(folder: Path) -> Path:
    """Write the program into ``folder``; return it."""
    path = folder / "chromium"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    path.chmod(0o700)
    return path


def fetch(url: str, body: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
    """Return status, body and headers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as answer:  # noqa: S310
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def _main(arguments: list[str]) -> int:
    scenario, url = os.environ.get("FAKE_BROWSER", ""), arguments[-1]
    if scenario == "dies":
        sys.stderr.write("[12:0] starting\n[12:1:FATAL:zygote.cc(1)] No usable sandbox!\n#0 stack\n")
        return 1
    if scenario == "silent":
        time.sleep(60)
    if scenario == "crashes":
        _connect_and_leave(url)
        time.sleep(60)
    seen = {place: fetch(url + place) for place in ("", "web_page.mjs", "ort/ort.wasm.min.mjs", "job.json")}
    job = json.loads(seen["job.json"][1])
    log = {"arguments": arguments, "orders": job["orders"], "seen": {place: got[0] for place, got in seen.items()}}
    Path(os.environ["FAKE_BROWSER_LOG"]).write_text(json.dumps(log))
    told: dict[str, Any] = {"userAgent": "Pretend/1.0", "isolated": scenario != "coarse"}
    if scenario == "refuses":
        told["error"] = {"stage": "model 1", "message": "no kernel for Foo\nat wasm[1]"}
    elif scenario == "fails":
        told["error"] = {"stage": "starting", "message": "x is not there (404)"}
    elif scenario == "babbles":
        told["sides"] = [{"timesMs": "soon"}]
    else:
        told |= _measured(url, job, scenario)
    fetch(url + "result", json.dumps(told).encode())
    time.sleep(60)  # a browser stays until it is ended
    return 0


def _measured(url: str, job: dict[str, Any], scenario: str) -> dict[str, Any]:
    rounds = job["least"]
    sides = []
    for index, model in enumerate(job["models"]):
        sizes = [len(fetch(url + place)[1]) for place in (model["place"], *(data["place"] for data in model["data"]))]
        outputs = []
        for number, entry in enumerate(entry for entry in job["feed"] if entry["name"] in model["inputs"]):
            place = f"outputs/{index}/{number}"
            fetch(url + place, fetch(url + entry["place"])[1])
            outputs.append({**entry, "name": f"out_{entry['name']}", "place": place})
        outputs.append({"name": "text", "type": "string", "dims": [1], "place": None})
        sides.append({"loadMs": 5, "timesMs": [sum(sizes) / 1e3] * rounds, "outputs": outputs})
        fetch(url + "progress", json.dumps({"share": (index + 1) / 2}).encode())
    twin = [1.0] * (rounds - 1 if scenario == "uneven" else rounds)
    return {"sides": sides, "twinMs": twin, "runs": [1] * len(sides), "version": "9.9.9"}


def _connect_and_leave(url: str) -> None:
    """Open the page's lasting connection, and drop it as a page that crashes does."""
    parts = urllib.parse.urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        request = f"GET {parts.path}alive HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
        connection.sendall(request.encode())
        connection.recv(10)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
