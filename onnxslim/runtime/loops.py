"""Models with a Loop: nothing else can make a run endless, and nothing but values decides whether it does.

onnxruntime looks between nodes whether it shall stop, inside loops too; a timer tells it to. (A body without nodes it
would not leave: :mod:`onnxslim.ir.guards_operators` refuses one that nothing bounds.) Models without loops are known by
their bytes, of which weights are stepped over.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from onnxslim.errors import OnnxslimError

IMPATIENT = 4.0
"""Seconds for a run on values that nobody chose, which may make a loop endless."""
PATIENT = 600.0
"""Seconds for a run on samples that somebody gave."""

LOOPS = ("Loop", "Scan")

_GRAPH, _WEIGHTS = 7, (5, 15)
"""Numbers of fields from onnx.proto: a model's graph, a graph's initializers and sparse initializers."""


class Endless(OnnxslimError):
    """A run took longer than it may; the message names the loops."""


def loops_of(source: bytes | Path) -> tuple[str, ...]:
    """Return every Loop and Scan of a model that onnxruntime loads, with its first output."""
    if isinstance(source, bytes):
        return _named(onnx.load_model_from_string(source)) if _mentioned(source) else ()
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if not _mentioned(data):
            return ()
    try:
        return _named(onnx.load_model(str(source), load_external_data=False))
    except (DecodeError, ValueError):  # onnxruntime's own format
        return ("Loop",)


def _mentioned(data: bytes | mmap.mmap) -> bool:
    try:
        parts = list(_without_weights(data))
    except IndexError:  # onnxruntime's own format, which is no protobuf
        parts = [(0, len(data))]
    return any(data.find(name.encode(), start, end) >= 0 for start, end in parts for name in LOOPS)


def _without_weights(data: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where the fields of a model are, and in place of a graph those of the graph but its weights."""
    for number, payload, end in _fields(data, 0, len(data)):
        if number != _GRAPH:
            yield payload, end
            continue
        yield from ((start, stop) for inner, start, stop in _fields(data, payload, end) if inner not in _WEIGHTS)


def _fields(data: bytes | mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, first byte of the payload, first byte after it) of each field of a message.

    Raises:
        IndexError: it is no such message.
    """
    while position < end:
        tag, position = _varint(data, position)
        start, kind = position, tag & 7
        if kind == 2:
            length, start = _varint(data, position)
            position = start + length
        elif kind == 0:
            _, position = _varint(data, position)
        else:
            position += {1: 8, 5: 4}.get(kind, end + 1)
        if position > end:
            raise IndexError
        yield tag >> 3, start, position


def _varint(data: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _named(model: onnx.ModelProto) -> tuple[str, ...]:
    found: list[str] = []
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        for node in stack.pop().node:
            if node.op_type in LOOPS:
                found.append(f"{node.op_type} {next(iter(node.output), '')!r}")
            stack.extend(attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)
    return tuple(found)


def run_limited(
    session: ort.InferenceSession, names: list[str], feed: dict[str, Any], loops: Sequence[str], seconds: float
) -> Sequence[Any]:
    """Run a model that holds ``loops``, for some time.

    Raises:
        Endless: it took more than ``seconds``.
        Exception: whatever onnxruntime raises.
    """
    options = ort.RunOptions()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        outputs: Sequence[Any] = session.run(names, feed, options)
    except Exception as error:  # of onnxruntime's family, which shares no other base
        if not options.terminate:
            raise
        where = loops[0] if len(loops) == 1 else f"one of {len(loops)} loops ({', '.join(loops[:3])})"
        raise Endless(
            f"{where} goes on for more than {seconds:g} seconds: give samples with --data on which it ends"
        ) from error
    finally:
        timer.cancel()
    return outputs
