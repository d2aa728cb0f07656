"""The one type that the rest of the package takes its feeds from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxslim.errors import SampleError
from onnxslim.runtime import IMPATIENT, PATIENT
from onnxslim.samples.arrays import FeedList, as_column
from onnxslim.samples.binding import fitted, preprocessed
from onnxslim.samples.generated import FeedFunction, FunctionBackend, Synthetic
from onnxslim.samples.kinds import (
    IMAGES,
    Backend,
    InputLike,
    Sample,
    Source,
    as_feed,
    generator,
)
from onnxslim.samples.opening import SYNTHETIC, open_arrays, open_path
from onnxslim.samples.preprocess import Preprocess

DEFAULT_SYNTHETIC_COUNT = 8
_FEWEST_TO_HOLD_OUT = 10


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Samples for one model or any: immutable, sized, read one at a time, the same at every walk.

    Nothing is decoded before it is walked over, except one sample by :meth:`for_inputs`, to refuse early.
    Build it with one of the class methods.
    """

    _backend: Backend
    _preprocess: Preprocess | None = None
    _order: tuple[int, ...] | None = None
    _inputs: tuple[InputLike, ...] | None = None

    # ---- where samples come from -------------------------------------------------------------------------

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        preprocess: str | Preprocess | None = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> Samples:
        """Open what ``--data`` names; the text ``synthetic`` waits for :meth:`for_inputs` to know the inputs.

        Args:
            path: an ``.npz``, a folder of images or of ``.npz`` feeds, ``module:callable``, or ``synthetic``.
            preprocess: how images become float tensors; text is parsed.
            seed: of the shuffle before ``limit``, and of synthetic values.
            limit: how many samples to use at most, drawn by a seeded shuffle; None for all, in order of name.
                It is the number of synthetic ones, 8 unless told.

        Raises:
            SampleError: nothing is there, it is no samples, or images come without ``preprocess``.
        """
        parsed = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
        if path == SYNTHETIC:
            return cls(Synthetic(None, DEFAULT_SYNTHETIC_COUNT if limit is None else limit, seed))
        samples = cls(open_path(path, parsed), parsed)
        return samples if limit is None else samples._drawn(limit, seed)

    @classmethod
    def from_arrays(
        cls,
        arrays: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]],
        labels: npt.NDArray[Any] | None = None,
        *,
        preprocess: str | Preprocess | None = None,
    ) -> Samples:
        """Take arrays whose axis 0 counts samples: one for a model's only input, or one per input by name.

        Raises:
            SampleError: lengths differ, labels are not N integers, or uint8 images come without ``preprocess``.
        """
        parsed = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
        named = arrays if isinstance(arrays, Mapping) else {IMAGES: arrays}
        columns = {name: as_column(array) for name, array in named.items()}
        classes = None if labels is None else as_column(labels)
        return cls(open_arrays(columns, classes, "arrays", parsed), parsed)

    @classmethod
    def from_feeds(cls, feeds: Iterable[Any], *, preprocess: str | Preprocess | None = None) -> Samples:
        """Take feeds that are in memory: dicts of arrays by input name, or (dict, label).

        Raises:
            SampleError: an item is neither, or there is none.
        """
        parsed = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
        checked = [as_feed(feed, f"feeds[{index}]") for index, feed in enumerate(feeds)]
        return cls(FeedList(checked, "feeds"), parsed)

    @classmethod
    def from_callable(
        cls, function: FeedFunction, *, name: str = "callable", preprocess: str | Preprocess | None = None
    ) -> Samples:
        """Take what ``function()`` yields; it is called once to count and again for every walk.

        Such samples keep the function's order: :meth:`shuffled`, :meth:`take` and :meth:`split` choose which of
        them are used. Failures of the function are SampleErrors when it is called.
        """
        parsed = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
        return cls(FunctionBackend(function, name), parsed)

    @classmethod
    def synthetic(cls, inputs: Sequence[InputLike], count: int = DEFAULT_SYNTHETIC_COUNT, seed: int = 0) -> Samples:
        """Make seeded random feeds for these inputs; a dynamic axis 0 is a batch of one.

        Raises:
            SampleError: another dimension is dynamic (the message names ``--shape``), or a type is unknown.
        """
        return cls(Synthetic(None, count, seed)).for_inputs(inputs)

    # ---- what they are -----------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """Whether these are data or random."""
        return self._backend.source

    @property
    def patience(self) -> float:
        """Seconds that a run on one of these may take where a loop could go on for ever: random values may make it."""
        return IMPATIENT if self.source is Source.SYNTHETIC else PATIENT

    def __repr__(self) -> str:
        return f"<Samples of {self._backend.name}>"

    def __len__(self) -> int:
        return len(self._backend) if self._order is None else len(self._order)

    @cached_property
    def labelled(self) -> bool:
        """Whether at least one sample has a label; the others count for numerics only."""
        return any(self._backend.label(index) is not None for index in self._indices())

    @property
    def description(self) -> str:
        """One phrase for the report: how many, of what, through which preprocessing. Holds no absolute path."""
        total = len(self._backend)
        count = f"{total}" if len(self) == total else f"{len(self)} of {total}"
        how = f" ({self._preprocess})" if self._preprocess else ""
        return f"{count} samples of {self._backend.name}{how}"

    def __iter__(self) -> Iterator[Sample]:
        """Read the samples, one at a time.

        Raises:
            SampleError: one cannot be read, or does not fit the model; the message names it.
        """
        for index, raw in self._backend.walk(self._indices()):
            origin = self._backend.origin(index)
            feed = preprocessed(raw, self._preprocess, origin)
            if self._inputs is not None:
                feed = fitted(feed, self._inputs, origin)
            yield Sample(feed, self._backend.label(index), origin)

    # ---- which of them, for whom -------------------------------------------------------------------------

    def for_inputs(self, inputs: Sequence[InputLike]) -> Samples:
        """Return the samples for a model with these inputs: renamed, checked and cast as they are read.

        The first is read at once, so that what cannot fit is refused before any work. Casts are lossless or
        from float to float; integers become floats only as uint8 images through the preprocessing.

        Raises:
            SampleError: a name, rank, fixed dimension or element type does not fit the model.
        """
        bound = replace(self, _backend=self._backend.bound(inputs), _inputs=tuple(inputs))
        next(iter(bound))
        return bound

    def shuffled(self, seed: int = 0) -> Samples:
        """Return the same samples in an order that the seed and their number decide."""
        order = self._indices()
        return replace(self, _order=tuple(order[i] for i in generator(seed).permutation(len(order))))

    def take(self, count: int) -> Samples:
        """Return the first ``count`` samples, all of them where there are fewer.

        Raises:
            SampleError: ``count`` is below one.
        """
        if count < 1:
            raise SampleError(f"{count} samples were asked for: ask for at least one")
        return self if count >= len(self) else replace(self, _order=tuple(self._indices()[:count]))

    def drop(self, count: int) -> Samples:
        """Return what :meth:`take` of the same count leaves.

        Raises:
            SampleError: it leaves nothing.
        """
        if not 0 <= count < len(self):
            raise SampleError(f"{count} of {len(self)} samples were to be left out: leave at least one")
        return replace(self, _order=tuple(self._indices()[count:]))

    def pick(self, places: Sequence[int]) -> Samples:
        """Return the samples at ``places``, counted from 0, in that order.

        Raises:
            SampleError: there are no such places, or none at all.
        """
        order = self._indices()
        if not places or not all(0 <= place < len(order) for place in places):
            raise SampleError(f"samples {list(places)} of {len(order)} were asked for: ask for some that exist")
        return replace(self, _order=tuple(order[place] for place in places))

    def split(self, fraction: float = 0.8, seed: int = 0) -> Split:
        """Divide into calibration and evaluation by a seeded shuffle; fewer than 10 samples serve both.

        Args:
            fraction: what calibrates, between 0 and 1; each part gets at least one sample.
            seed: decides which samples go where.

        Raises:
            SampleError: ``fraction`` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise SampleError(f"cannot split at {fraction}: give a fraction between 0 and 1")
        if len(self) < _FEWEST_TO_HOLD_OUT:
            return Split(self, self, held_out=False)
        order = self.shuffled(seed)._indices()
        cut = min(max(round(len(order) * fraction), 1), len(order) - 1)
        calibration, evaluation = tuple(order[:cut]), tuple(order[cut:])
        return Split(replace(self, _order=calibration), replace(self, _order=evaluation), held_out=True)

    def _drawn(self, limit: int, seed: int) -> Samples:
        return self.take(limit) if limit >= len(self) else self.shuffled(seed).take(limit)

    def _indices(self) -> Sequence[int]:
        return range(len(self._backend)) if self._order is None else self._order


@dataclass(frozen=True)
class Split:
    """Samples to calibrate on and samples to measure on."""

    calibration: Samples
    evaluation: Samples
    held_out: bool
    """False when the same samples serve both, which flatters the measurement."""
