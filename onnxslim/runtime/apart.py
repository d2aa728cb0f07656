"""A session in a process of its own, for models so large that two of them, or one and its passes, would fill memory.

``python -m onnxslim.runtime.apart`` is the other process. Both sides speak in frames: a line of JSON, then the arrays
it announces, each in numpy's own format. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from onnxslim.errors import one_line
from onnxslim.runtime.sessions import Feed, Level, ModelData, Reading, RuntimeRefusal, Session, SessionConfig


class SessionApart:
    """A loaded model like :class:`Session`, whose memory is another process's. Use it in a ``with`` block.

    Raises:
        RuntimeRefusal: onnxruntime does not load it, or the process ended.
    """

    def __init__(self, model: ModelData, config: SessionConfig | None = None) -> None:
        settings = {name: getattr(value, "name", value) for name, value in asdict(config or SessionConfig()).items()}
        self._folder = tempfile.TemporaryDirectory(prefix="onnxslim-")
        if isinstance(model, bytes):
            data, model = model, Path(self._folder.name) / "model.onnx"
            model.write_bytes(data)
        self._process = subprocess.Popen(  # noqa: S603  (our own module)
            [sys.executable, "-m", "onnxslim.runtime.apart", json.dumps({"model": str(model), **settings})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._answer()
        except RuntimeRefusal:
            self.close()
            raise

    def run(self, feed: Feed) -> dict[str, Any]:
        """Return the outputs by name: arrays, or lists for sequence types.

        Raises:
            RuntimeRefusal: the feed does not fit, a kernel fails, or the process ended.
        """
        assert self._process.stdin is not None  # noqa: S101  (a pipe was asked for)
        try:
            write_frame(self._process.stdin, feed)
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        return self._answer()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  (a pipe was asked for)
        try:
            return read_frame(self._process.stdout)
        except EOFError:
            raise self._ended() from None

    def _ended(self) -> RuntimeRefusal:
        return RuntimeRefusal(f"the process that ran the model ended with {self._process.wait()}: out of memory?")


@contextlib.contextmanager
def open_session(model: ModelData, config: SessionConfig, *, apart: bool) -> Iterator[Session | SessionApart]:
    """Open a session here, or ``apart``: in another process, with its weights left mapped."""
    if not apart:
        yield Session(model, config)
        return
    with SessionApart(model, replace(config, mapped=True)) as session:
        yield session


# ---- frames ------------------------------------------------------------------------------------------------------


def write_frame(file: IO[bytes], values: dict[str, Any]) -> None:
    """Write named arrays, or lists of arrays."""
    heads = [[name, len(value) if isinstance(value, list) else None] for name, value in values.items()]
    _write_head(file, {"values": heads})
    for value in values.values():
        for array in value if isinstance(value, list) else [value]:
            plain = np.asarray(array)
            plain = plain.astype(str) if plain.dtype == object else plain
            np.lib.format.write_array(_Stream(file), plain, allow_pickle=False)


def read_frame(file: IO[bytes]) -> dict[str, Any]:
    """Read what :func:`write_frame` wrote.

    Raises:
        RuntimeRefusal: the other side wrote an error instead.
        EOFError: there is no frame, or only a part of one.
    """
    line = file.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    if "error" in head:
        raise RuntimeRefusal(head["error"])
    try:
        return {name: _read(file, count) for name, count in head["values"]}
    except ValueError:  # numpy's word for a file that ends too early
        raise EOFError from None


def _read(file: IO[bytes], count: int | None) -> Any:
    def read() -> Any:
        return np.lib.format.read_array(_Stream(file), allow_pickle=False)

    return read() if count is None else [read() for _ in range(count)]


class _Stream:
    """Reads and writes like a file but is none: numpy would ask a file for its position, which a pipe has not."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read = file.read
        self.write = file.write


def _write_head(file: IO[bytes], head: dict[str, Any]) -> None:
    file.write(json.dumps(head).encode() + b"\n")


# ---- the other process -------------------------------------------------------------------------------------------


def main(settings: str) -> None:
    """Load the model, then answer every feed with outputs, until there are no more."""
    feeds, answers = sys.stdin.buffer, sys.stdout.buffer
    job = json.loads(settings)
    model = Path(job.pop("model"))
    job["level"], job["reading"] = Level[job["level"]], Reading[job["reading"]]
    try:
        session = Session(model, SessionConfig(**job))
        write_frame(answers, {})
        answers.flush()
        while True:
            write_frame(answers, session.run(read_frame(feeds)))
            answers.flush()
    except EOFError:
        return
    except (RuntimeRefusal, MemoryError) as error:
        _write_head(answers, {"error": one_line(error)})
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
