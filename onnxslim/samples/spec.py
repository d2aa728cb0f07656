"""The text of a preprocessing specification, value by value: reading, checking, writing."""

from __future__ import annotations

import difflib
import enum
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from onnxslim.errors import SampleError

_MAX_SIDE = 16384
_EXAMPLE = "resize=256,crop=224,scale=1/255,mean=0.485/0.456/0.406"


def pairs(text: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``key=value,key=value``.

    Raises:
        SampleError: no ``=``, an unknown key (with the nearest known one), or a key given twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise _error(f"has {part.strip()!r}, which is not KEY=VALUE: write it like {_EXAMPLE}")
        if key not in keys:
            raise _error(f"has an unknown key {key!r}: {_nearest(key, keys)}")
        if key in found:
            raise _error(f"gives {key!r} twice: keep one")
        found[key] = value
    return list(found.items())


def read_size(key: str, text: str) -> int | tuple[int, int]:
    """Read ``224`` or ``240x320`` (height x width)."""
    match = re.fullmatch(r"([0-9]{1,9})(?:[xX]([0-9]{1,9}))?", text)
    if match is None:
        raise _error(f"has {key}={text}: give pixels, as {key}=224 or {key}=240x320 (height x width)")
    first, second = match.groups()
    return int(first) if second is None else (int(first), int(second))


def read_values(key: str, text: str) -> tuple[float, ...]:
    """Read ``127`` or ``0.485/0.456/0.406``."""
    return tuple(_number(key, part, text) for part in text.split("/"))


def read_scale(key: str, text: str) -> tuple[float, ...]:
    """Read a scale: as :func:`read_values`, and two parts are a fraction, ``1/255``."""
    values = read_values(key, text)
    if len(values) != 2:
        return values
    if values[1] == 0:
        raise _error(f"has {key}={text}, a division by zero: give a fraction such as 1/255")
    return (values[0] / values[1],)


def reader_of(kind: type[enum.StrEnum]) -> Callable[[str, str], Any]:
    """Return a reader of one of ``kind``'s members, in any case."""

    def read(key: str, text: str) -> enum.StrEnum:
        if text.upper() in kind.__members__:
            return kind[text.upper()]
        raise _error(f"has {key}={text}: give one of {', '.join(kind.__members__)}")

    return read


def check_size(key: str, size: int | tuple[int, int] | None) -> None:
    """Raise SampleError unless every side is a sensible number of pixels."""
    if size is not None and not all(1 <= side <= _MAX_SIDE for side in both_sides(size)):
        raise _error(f"has {key}={size_text(size)}: give sides between 1 and {_MAX_SIDE} pixels")


def check_values(key: str, values: tuple[float, ...], channels: int) -> None:
    """Raise SampleError unless there is one finite value for all channels or one for each."""
    text = f"{key}={'/'.join(map(str, values))}"
    if len(values) not in (1, channels):
        wanted = "one value" if channels == 1 else f"one value, or {channels} as a/b/c"
        raise _error(f"has {len(values)} values in {text}: give {wanted}")
    if not all(map(math.isfinite, values)):
        raise _error(f"has {text}: give finite numbers")
    if key != "mean" and min(values) <= 0:
        raise _error(f"has {text}: {key} must be positive")


def both_sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a size, square where one side is given."""
    return size if isinstance(size, tuple) else (size, size)


def size_text(size: int | tuple[int, int]) -> str:
    """Write a size so that :func:`read_size` gives it back."""
    return f"{size[0]}x{size[1]}" if isinstance(size, tuple) else str(size)


def scale_text(values: tuple[float, ...]) -> str:
    """Write a scale so that :func:`read_scale` gives exactly it back; 1/255 stays a fraction."""
    plain = values_text(values)
    if len(values) != 1 or not 1e-6 < values[0] < 1:
        return plain
    fraction = f"1/{round(1 / values[0])}"
    return fraction if len(fraction) < len(plain) and read_scale("scale", fraction) == values else plain


def values_text(values: tuple[float, ...]) -> str:
    """Write values so that :func:`read_values` gives exactly the same numbers back."""
    return "/".join(f"{value:g}" if float(f"{value:g}") == value else repr(value) for value in values)


def _number(key: str, part: str, text: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise _error(f"has {key}={text}, and {part!r} is not a number: give {key}=0.5 or {key}=a/b/c") from None


def _nearest(key: str, keys: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(keys)}"


def _error(message: str) -> SampleError:
    return SampleError(f"--preprocess {message}")
