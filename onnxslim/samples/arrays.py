"""Samples that lie in arrays or in feeds written down as they are: one ``.npz``, many ``.npz``, Python objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import SampleError
from onnxslim.samples.folder import Listing
from onnxslim.samples.kinds import LABELS, Backend, Column, Feed, times
from onnxslim.samples.npz import read_feed, read_label

Labels = npt.NDArray[np.integer[Any]]


class ArrayBackend(Backend):
    """Arrays whose axis 0 counts samples, as one ``.npz`` or a mapping; sample i is ``a[i:i+1]`` of each.

    The arrays are loaded once, on the first read.
    """

    def __init__(self, columns: Mapping[str, Column], labels: Column | None, name: str) -> None:
        if not columns:
            raise SampleError(f"{name} holds no array for an input: name its arrays as the model's inputs")
        self.name = name
        self._columns = dict(columns)
        self._length = _common_length(self._columns, name)
        self._labels = None if labels is None else _checked_labels(labels, self._length, name)

    def __len__(self) -> int:
        return self._length

    @cached_property
    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {name: column.load() for name, column in self._columns.items()}

    def read(self, index: int) -> Feed:
        """Return copies of the rows, so that nobody writes into the data."""
        return {name: np.array(array[index : index + 1]) for name, array in self._arrays.items()}

    def label(self, index: int) -> int | None:
        """Return the sample's entry of ``labels``."""
        return None if self._labels is None else int(self._labels[index])


class FeedFiles(Backend):
    """A folder of ``.npz`` files, each one feed as it stands, with its optional scalar label."""

    def __init__(self, listing: Listing) -> None:
        self.name = f"{listing.root.name}/"
        self._listing = listing
        self._label = cache(self._read_label)

    def __len__(self) -> int:
        return len(self._listing.feeds)

    def read(self, index: int) -> Feed:
        """Read one file."""
        return read_feed(self._listing.root / self._listing.feeds[index], self.origin(index))[0]

    def label(self, index: int) -> int | None:
        """Return the file's own label; reads no other array of it."""
        return self._label(index)

    def origin(self, index: int) -> str:
        """Return the file's name below its folder."""
        return f"{self.name}{self._listing.feeds[index]}"

    def _read_label(self, index: int) -> int | None:
        return read_label(self._listing.root / self._listing.feeds[index], self.origin(index))


class FeedList(Backend):
    """Feeds that are in memory already."""

    def __init__(self, feeds: Sequence[tuple[Feed, int | None]], name: str) -> None:
        if not feeds:
            raise SampleError(f"{name} holds no feed: give at least one")
        self.name = name
        self._feeds = tuple(feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def read(self, index: int) -> Feed:
        """Return copies of one feed's arrays."""
        return {name: np.array(array) for name, array in self._feeds[index][0].items()}

    def label(self, index: int) -> int | None:
        """Return the label that came with the feed."""
        return self._feeds[index][1]


def as_column(array: npt.NDArray[Any]) -> Column:
    """Return an array in memory as a column."""
    return Column(array.dtype, array.shape, lambda: array)


def _common_length(columns: Mapping[str, Column], name: str) -> int:
    lengths: dict[str, int] = {}
    for key, column in columns.items():
        if not column.shape:
            raise SampleError(f"{name}: {key!r} is a scalar: axis 0 counts the samples")
        lengths[key] = column.shape[0]
    (first, length), *others = lengths.items()
    for key, other in others:
        if other != length:
            raise SampleError(
                f"{name}: {first!r} has {length} samples and {key!r} has {other}: axis 0 counts them in every array"
            )
    if length == 0:
        raise SampleError(f"{name} holds no sample: axis 0 of {first!r} has length 0")
    return length


def _checked_labels(column: Column, length: int, name: str) -> Labels:
    if column.dtype.kind not in "iu" or column.shape != (length,):
        raise SampleError(
            f"{name}: {LABELS!r} is {column.dtype} of shape {times(column.shape)}: "
            f"store {length} integers, one per sample"
        )
    return np.array(column.load())
