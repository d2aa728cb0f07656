"""Large models on the wire: protobuf messages read without their weights and written with them, tensor by tensor.

protobuf builds a message in memory as a whole, several times over for a model of gigabytes. The wire format is simple
enough to step through (https://protobuf.dev/programming-guides/encoding): fields, each a tag (number, wire type) and a
payload; a payload of wire type 2 begins with its length. Only messages that may hold weights are stepped into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import onnx
from google.protobuf.message import DecodeError

from onnxslim.ir.weights import SMALL_TENSOR, Bytes, is_marked, mark

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR = range(5)
_INSIDE = {
    _MODEL: {7: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR},
}
"""Fields that lead to weights, by kind of message: numbers from onnx.proto."""

_RAW_DATA = 9
_LENGTH_DELIMITED = 2


def without_weights(view: memoryview, location: str) -> bytes:
    """Return the serialized ModelProto ``view`` with every larger tensor marked as being in ``location``.

    Raises:
        DecodeError: it is not a whole message.
    """
    return b"".join(_strip(view, 0, len(view), _MODEL, location))


def _strip(view: memoryview, start: int, end: int, kind: int, location: str) -> Iterator[bytes]:
    """Yield the message in pieces, of which the unchanged ones are as long as possible."""
    unchanged = start
    for number, begin, payload, after in _fields(view, start, end):
        inside = _INSIDE[kind].get(number)
        if inside is None or after - payload <= SMALL_TENSOR:
            continue
        parts = list(
            _tensor(view, payload, after, location)
            if inside == _TENSOR
            else _strip(view, payload, after, inside, location)
        )
        yield bytes(view[unchanged:begin])
        yield _tag(number) + _varint(sum(map(len, parts)))
        yield from parts
        unchanged = after
    yield bytes(view[unchanged:end])


def _tensor(view: memoryview, start: int, end: int, location: str) -> Iterator[bytes]:
    """Yield a TensorProto, with its raw data, if that is large, replaced by its place."""
    unchanged = start
    for number, begin, payload, after in _fields(view, start, end):
        if number == _RAW_DATA and after - payload > SMALL_TENSOR:
            yield bytes(view[unchanged:begin])
            elsewhere = onnx.TensorProto()
            mark(elsewhere, location, payload, after - payload)
            yield elsewhere.SerializeToString()
            unchanged = after
    yield bytes(view[unchanged:end])


def _fields(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, first byte of the tag, first byte of the payload, first byte after it) of each field."""
    position = start
    while position < end:
        tag, payload = _read_varint(view, position, end)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, payload = _read_varint(view, payload, end)
            after = payload + length
        elif kind == 0:
            _, after = _read_varint(view, payload, end)
        else:
            after = payload + {1: 8, 5: 4}.get(kind, end + 1)
        if after > end:
            raise DecodeError("a field ends beyond its message")
        yield tag >> 3, position, payload, after
        position = after


def _read_varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DecodeError("a number has no end")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED)


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take ``data``."""

    def tell(self) -> int:
        """Return how many bytes were taken."""


def write_whole(file: Sink, model: onnx.ModelProto, data_of: Callable[[onnx.TensorProto], Bytes]) -> None:
    """Write ``model`` into one file, the data of marked initializers of the main graph from ``data_of``.

    Field order differs from protobuf's (the graph comes last), which every reader accepts.
    """
    pieces = list(_tensor_heads(model.graph.initializer))
    rest = onnx.GraphProto()
    rest.CopyFrom(model.graph)
    del rest.initializer[:]
    graph = rest.SerializeToString(deterministic=True)
    frame = onnx.ModelProto()
    frame.CopyFrom(model)
    frame.ClearField("graph")
    file.write(frame.SerializeToString(deterministic=True))
    file.write(_tag(7) + _varint(len(graph) + sum(len(head) + length for head, length, _ in pieces)))
    file.write(graph)
    for head, length, tensor in pieces:
        file.write(head)
        if length:
            file.write(data_of(tensor).data)


def _tensor_heads(tensors: Iterable[onnx.TensorProto]) -> Iterator[tuple[bytes, int, onnx.TensorProto]]:
    """Yield each initializer's bytes up to the data that follows, the length of that data, and the tensor."""
    for tensor in tensors:
        if not is_marked(tensor):
            body = tensor.SerializeToString(deterministic=True)
            yield _tag(5) + _varint(len(body)) + body, 0, tensor
            continue
        bare = onnx.TensorProto()
        bare.CopyFrom(tensor)
        bare.ClearField("data_location")
        del bare.external_data[:]
        length = next(int(entry.value) for entry in tensor.external_data if entry.key == "length")
        body = bare.SerializeToString(deterministic=True) + _tag(_RAW_DATA) + _varint(length)
        yield _tag(5) + _varint(len(body) + length) + body, length, tensor
