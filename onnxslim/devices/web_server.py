"""What the browser talks to: a server on this machine alone that hands out what is on a list and takes what is asked.

Nothing is looked up in a folder, so there is no path to escape from. Every address holds a secret, so that other
programs and other pages find nothing. COOP and COEP isolate the page, which gives it a clock of 5 µs and threads.
"""

from __future__ import annotations

import json
import queue
import re
import secrets
import select
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Source = Path | bytes
"""What is handed out: a file or bytes."""

_TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; connect-src 'self'; worker-src 'self' blob:"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
LARGEST = {"progress": 2**12, "result": 2**26, "outputs": 2**30}
"""Bytes of a body that is taken, by what it is."""
_MOST_OUTPUTS = 4096
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Gone:
    """The page closed its connection: it crashed, or was closed."""


@dataclass(frozen=True)
class Share:
    """How much of the time for measuring has passed."""

    value: float


Event = Gone | Share | Mapping[str, Any]
"""What the page tells; the result is a mapping."""


class PageServer:
    """Serves one job; use as a context manager.

    Args:
        files: what is handed out, by place.
    """

    def __init__(self, files: Mapping[str, Source]) -> None:
        self.files = files
        self.prefix = f"/{secrets.token_urlsafe(16)}/"
        self.events: queue.Queue[Event] = queue.Queue()
        self.outputs: dict[str, bytes] = {}
        self.done = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def host(self) -> str:
        """Return address and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, place: str = "") -> str:
        """Return the address of something that is handed out."""
        return f"http://{self.host}{self.prefix}{place}"

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, place: str, body: bytes) -> bool:
        """Take what the page posts; return whether it was asked for."""
        if place.startswith("outputs/"):
            self.outputs[place] = body
            return len(self.outputs) <= _MOST_OUTPUTS
        try:
            told = json.loads(body)
            self.events.put(Share(float(told["share"])) if place == "progress" else {**told})
        except (ValueError, TypeError, KeyError):
            return False
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # the page may hang in a request of its own

    def __init__(self, page: PageServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page = page

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that the browser drops when it ends."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Hand out what is on the list."""
        place = self._place()
        if place == "alive":
            self._wait_for_the_end()
        elif place is None or place not in self.server.page.files:
            self._answer(404)
        else:
            self._hand_out(self.server.page.files[place], _TYPES.get(Path(place or "page.html").suffix, ""))

    def do_POST(self) -> None:
        """Take what was asked for."""
        place = self._place()
        kind = re.fullmatch(r"(progress|result|outputs)(?:/\d{1,4}/\d{1,4})?", place or "")
        length = self.headers.get("Content-Length", "")
        if place is None or kind is None or ("/" in place) != (kind[1] == "outputs"):
            self._refuse(404)
        elif not length.isdigit() or int(length) > LARGEST[kind[1]]:
            self._refuse(413)
        else:
            self._answer(200 if self.server.page.take(place, self.rfile.read(int(length))) else 400)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: stderr is the user's."""

    def _place(self) -> str | None:
        """Return what is asked for; None for whoever does not know the secret, or came by another name."""
        page = self.server.page
        if self.headers.get("Host") != page.host or not self.path.startswith(page.prefix):
            return None
        return self.path.removeprefix(page.prefix)

    def _hand_out(self, source: Source, kind: str) -> None:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self._head(200, size, kind or "application/octet-stream")
        if isinstance(source, bytes):
            self.wfile.write(source)
            return
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self.wfile.write(chunk)

    def _wait_for_the_end(self) -> None:
        """Hold the connection until the page goes, or all is done."""
        self.close_connection = True
        self._head(200, None, "text/plain")
        while not self.server.page.done.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.1)
            if readable and not self._read_byte():
                self.server.page.events.put(Gone())
                return

    def _read_byte(self) -> bytes:
        """Return nothing where the connection was closed, or broken off."""
        try:
            return bytes(self.connection.recv(1))
        except OSError:
            return b""

    def _refuse(self, status: int) -> None:
        self.close_connection = True  # the body was not read
        self._answer(status)

    def _answer(self, status: int) -> None:
        self._head(status, 0, "text/plain")

    def _head(self, status: int, size: int | None, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close") if size is None else self.send_header("Content-Length", str(size))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
