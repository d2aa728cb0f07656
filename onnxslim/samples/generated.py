"""Samples that are made when they are asked for: by a user's function, or by a seeded generator."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import SampleError, one_line
from onnxslim.samples.kinds import Backend, Feed, InputLike, Source, as_feed, generator

FeedFunction = Callable[[], Iterable[Any]]
"""Called anew for every walk; yields feeds, or (feed, label), the same ones in the same order each time."""

_MAX_FEEDS = 1_000_000
_MAX_ELEMENTS = 1 << 28


class FunctionBackend(Backend):
    """What a user's function yields. It is walked once to count, and again for every reading.

    It cannot seek, so :meth:`walk` keeps the function's order whatever order it is asked for.
    """

    def __init__(self, function: FeedFunction, name: str) -> None:
        self.name = name
        self._function = function

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> Feed:
        """Return one feed by walking there."""
        return next(self.walk((index,)))[1]

    def label(self, index: int) -> int | None:
        """Return the label that came with the feed on the first walk."""
        return self._labels[index]

    def walk(self, order: Sequence[int]) -> Iterator[tuple[int, Feed]]:
        """Yield the feeds whose index is in ``order``, in the function's own order.

        Raises:
            SampleError: the function fails, or yields fewer feeds than it first did.
        """
        wanted = set(order)
        for index, (feed, _) in enumerate(self._stream()):
            if index in wanted:
                wanted.discard(index)
                yield index, feed
            if not wanted:
                return
        raise SampleError(
            f"{self.name} first yielded {len(self)} feeds and then fewer: it must yield the same at every call"
        )

    @cached_property
    def _labels(self) -> tuple[int | None, ...]:
        labels: list[int | None] = []
        for _, label in self._stream():
            labels.append(label)
            if len(labels) > _MAX_FEEDS:
                raise SampleError(f"{self.name} yields more than {_MAX_FEEDS} feeds: make it end")
        if not labels:
            raise SampleError(f"{self.name} yields no feed: a dict of arrays by input name is one")
        return tuple(labels)

    def _stream(self) -> Iterator[tuple[Feed, int | None]]:
        try:
            iterator = iter(self._function())
        except Exception as error:  # the user's own code may raise anything
            raise self._failure(error) from error
        index = 0
        while True:
            try:
                value = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # as above
                raise self._failure(error) from error
            yield as_feed(value, self.origin(index))
            index += 1

    def _failure(self, error: Exception) -> SampleError:
        detail = f"{type(error).__name__}: {one_line(error)}"
        return SampleError(
            f"{self.name} failed ({detail}): it is called without arguments and returns an iterable of feeds"
        )


class Synthetic(Backend):
    """Seeded random feeds: normal floats, zeros and ones for integers (safe as indices), booleans, short strings.

    A dynamic axis 0 is a batch of one. Until :meth:`bound` tells what the model wants there is nothing to read.
    """

    name = "synthetic"
    source = Source.SYNTHETIC

    def __init__(self, inputs: Sequence[InputLike] | None, count: int, seed: int) -> None:
        if count < 1:
            raise SampleError(f"{count} synthetic samples were asked for: ask for at least one")
        self._inputs = inputs
        self._count = count
        self._seed = seed
        self._shapes = [_concrete(spec) for spec in inputs or ()]
        generator(seed)  # refuses a bad seed now

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Feed:
        """Generate one feed from (seed, index), whatever was read before."""
        if self._inputs is None:
            raise SampleError("synthetic samples are made for a model: call for_inputs(model's inputs) first")
        rng = generator(self._seed, index)
        return {spec.name: _random(rng, spec, shape) for spec, shape in zip(self._inputs, self._shapes, strict=True)}

    def bound(self, inputs: Sequence[InputLike]) -> Backend:
        """Return the generator for these inputs.

        Raises:
            SampleError: a dimension other than axis 0 is dynamic, or an element type has no random values.
        """
        return Synthetic(inputs, self._count, self._seed)


def load_function(text: str) -> FeedFunction:
    """Import ``module:callable``, with the current folder on the path as ``python -m`` puts it there.

    Raises:
        SampleError: the module cannot be imported, or has no such callable.
    """
    module_name, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        detail = f"{type(error).__name__}: {one_line(error)}"
        raise SampleError(
            f"{text!r}: the module {module_name!r} cannot be imported ({detail}): run where it can be, or install it"
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise SampleError(f"{text!r}: {module_name!r} has no callable {attribute!r}: name one that yields feeds")
    function: FeedFunction = found
    return function


def _concrete(spec: InputLike) -> tuple[int, ...]:
    if spec.shape is None:
        raise SampleError(f"the input {spec.name!r} has no known shape: give --shape {spec.name}=1x3x224x224")
    dynamic = [axis for axis, dim in enumerate(spec.shape) if axis and not isinstance(dim, int)]
    if dynamic:
        template = "x".join(str(d) if isinstance(d, int) else "1" if not i else "?" for i, d in enumerate(spec.shape))
        axes = ", ".join(map(str, dynamic))
        raise SampleError(
            f"the input {spec.name!r} is dynamic in axis {axes}, so random samples have no size there: "
            f"fix it with --shape {spec.name}={template}, or give --data PATH"
        )
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape)
    if math.prod(shape) > _MAX_ELEMENTS:
        raise SampleError(f"the input {spec.name!r} has {math.prod(shape)} elements: give --data PATH instead")
    return shape


def _random(rng: np.random.Generator, spec: InputLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = spec.dtype
    if dtype is None:
        raise SampleError(f"the input {spec.name!r} has no known element type: give --data PATH")
    if dtype.kind in "OUT":
        return np.array([f"s{i}" for i in rng.integers(0, 100, shape).ravel()], dtype=object).reshape(shape)
    if dtype.kind in "iub" or dtype.name.startswith(("int", "uint")):
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "f" or dtype.name.startswith(("bfloat", "float")):
        return rng.standard_normal(shape).astype(dtype)
    raise SampleError(f"the input {spec.name!r} has elements of {dtype}: give --data PATH, none are random")
