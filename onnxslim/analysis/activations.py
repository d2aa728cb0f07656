"""Inner tensors of a model on samples, streamed: one sample at a time, in groups of bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy.typing as npt

from onnxslim.analysis.shapes import concrete_shapes
from onnxslim.ir import Model
from onnxslim.runtime import Session, SessionConfig
from onnxslim.runtime.parallel import map_in_order, under_way
from onnxslim.samples import Feed, Samples

T = TypeVar("T")
Values = dict[str, npt.NDArray[Any]]

GROUP_BYTES = 512 * 2**20
"""Bytes of inner tensors that one run may hand out."""

UNKNOWN_BYTES = 16 * 2**20
"""What a tensor of unknown shape counts as."""


def stream(
    model: Model, names: Sequence[str], samples: Samples, threads: int = 0
) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """Yield (index of the sample, values by name) for all ``names``, several groups of names one after the other.

    Memory holds one group of one sample, however many samples there are. Inputs of the model are among the values when
    ``names`` asks for them.

    Raises:
        RuntimeRefusal: onnxruntime does not run the model on a sample.
    """
    inputs = {spec.name for spec in model.inputs}
    given = [name for name in names if name in inputs]
    for group in _groups(model, [name for name in names if name not in inputs], samples):
        placed = model.placed(group)
        session = Session(placed.data, SessionConfig(threads, spins=False))
        for index, sample in enumerate(samples):
            values = session.run(sample.feed, group)
            values.update((name, sample.feed[name]) for name in given)
            yield index, values
        given = []


def reduced(
    model: Model, names: Sequence[str], samples: Samples, reduce: Callable[[Values], T], threads: int = 0
) -> Iterator[tuple[int, T]]:
    """Yield (index of the sample, ``reduce`` of its values by name), as :func:`stream`, several samples side by side.

    Memory holds ``GROUP_BYTES`` of tensors, those of all samples under way together.

    Raises:
        RuntimeRefusal: onnxruntime does not run the model on a sample.
    """
    inputs = {spec.name for spec in model.inputs}
    given = [name for name in names if name in inputs]
    limit = GROUP_BYTES // under_way(threads)
    for group in _groups(model, [name for name in names if name not in inputs], samples, limit):
        placed = model.placed(group)
        session = Session(placed.data, SessionConfig(1, spins=False))

        def one(
            feed: Feed, session: Session = session, group: Sequence[str] = group, given: Sequence[str] = given
        ) -> T:
            return reduce({**session.run(feed, group), **{name: feed[name] for name in given}})

        yield from enumerate(map_in_order(one, (sample.feed for sample in samples), threads))
        given = []


def _groups(model: Model, names: Sequence[str], samples: Samples, limit: int = GROUP_BYTES) -> list[list[str]]:
    """Split ``names`` so that the float tensors of each group fit, by their sizes on the first sample."""
    shapes = concrete_shapes(model, next(iter(samples)).feed)
    groups: list[list[str]] = [[]]
    held = 0
    for name in names:
        size = 4 * math.prod(shapes[name]) if name in shapes else UNKNOWN_BYTES
        if groups[-1] and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups
