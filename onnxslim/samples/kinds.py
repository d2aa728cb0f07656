"""The small types of this room: a feed, a sample, what a model wants, and what a place to read from can do."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxslim.errors import SampleError, one_line

Feed = dict[str, npt.NDArray[Any]]
"""One inference's inputs by name."""
Dim = int | str | None
IMAGES = "images"
"""The name of an array that goes to the model's only input, whatever that is called."""
LABELS = "labels"


class InputLike(Protocol):
    """Anything that says what a model wants as one input; None where the file does not say."""

    @property
    def name(self) -> str:
        """The input's name."""

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Its element type; ``object`` for strings."""

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """Its dimensions: an integer where fixed, a symbol or None where dynamic."""


@dataclass(frozen=True)
class InputSpec:
    """What a model wants as one input; None where the file does not say, a str or None for a dynamic dimension."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True)
class Sample:
    """One feed, its class where it is known, and where it came from (``calib.npz[17]``, a file's name)."""

    feed: Feed
    label: int | None
    origin: str


class Source(enum.StrEnum):
    """Whether numbers measured on the samples speak about real data."""

    DATA = "data"
    SYNTHETIC = "synthetic"


class Backend(ABC):
    """A place that samples are read from, addressed by 0-based index. Opening it decodes nothing."""

    name: str
    """What messages and reports call it; never an absolute path."""
    source: Source = Source.DATA

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Feed:
        """Return one feed in arrays of its own."""

    def label(self, index: int) -> int | None:
        """Return the class of one sample, None where it has none."""
        return None

    def origin(self, index: int) -> str:
        """Return what a message calls one sample."""
        return f"{self.name}[{index}]"

    def walk(self, order: Sequence[int]) -> Iterator[tuple[int, Feed]]:
        """Yield (index, feed) for every index of ``order``, in that order unless the source cannot seek."""
        for index in order:
            yield index, self.read(index)

    def bound(self, inputs: Sequence[InputLike]) -> Backend:
        """Return the backend for a model with these inputs."""
        return self


@dataclass(frozen=True)
class Column:
    """An array that is not loaded yet: its element type and shape are known, ``load`` brings the values."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], npt.NDArray[Any]]


def as_label(value: object, origin: str) -> int | None:
    """Return ``value`` as a class number; None stays None.

    Raises:
        SampleError: it is not one integer.
    """
    if value is None:
        return None
    array = _array(value, origin)
    if array.dtype.kind not in "iu" or array.size != 1:
        raise SampleError(f"{origin} has the label {value!r}: a label is one integer per sample")
    return int(array.reshape(())[()])


def as_feed(value: object, origin: str) -> tuple[Feed, int | None]:
    """Return what a user hands over as one sample: a mapping of arrays, or a pair of that and a label.

    Raises:
        SampleError: it is neither.
    """
    feed, label = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if isinstance(feed, Mapping) and all(isinstance(name, str) for name in feed):
        return {name: _array(array, origin) for name, array in feed.items()}, as_label(label, origin)
    raise SampleError(
        f"{origin} is a {type(feed).__name__}: a sample is a dict of arrays by input name, or (dict, label)"
    )


def _array(value: object, origin: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:  # a foreign object's own conversion may raise anything
        raise SampleError(
            f"{origin} holds a {type(value).__name__} that is no array ({one_line(error)}): give numpy arrays"
        ) from error


def reason(error: BaseException) -> str:
    """Return why a file cannot be used, without its path."""
    return getattr(error, "strerror", None) or one_line(error)


def generator(*key: int) -> np.random.Generator:
    """Return the random generator of a seed (and what else tells two streams apart).

    Raises:
        SampleError: the seed is negative.
    """
    if min(key) < 0:
        raise SampleError(f"the seed {key[0]} is negative: give 0 or more")
    return np.random.default_rng(key)


def times(shape: Sequence[Dim]) -> str:
    """Write a shape for a message: ``1x3x?x?``."""
    return "x".join(str(d) if isinstance(d, int) else "?" for d in shape) or "a scalar"
