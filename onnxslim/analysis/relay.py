"""Inner tensors of a model that changes from stage to stage, on all samples, each stage run from where the last stood.

onnxruntime executes the whole graph whatever outputs are asked for, so a model is cut down to what leads to them. And
since a model that is compressed layer by layer, front to back, keeps its front, what crosses from there to the rest
(the *frontier*) is remembered for all samples and the next stage begins at it, so that all stages together cost little
more than one run of the model. Whether the front is still the same is not believed but checked, by its bytes.

Samples are stacked where each input's first dimension is free, and where, on the first samples of every stage, the
stack gives what they give one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from onnxslim.analysis.frontiers import (
    Array,
    Frontier,
    Values,
    digest_of,
    frontier_before,
    is_current,
    part_of,
)
from onnxslim.analysis.shapes import concrete_shapes
from onnxslim.errors import OnnxslimError
from onnxslim.ir import Model, anchor_of
from onnxslim.runtime import Session, SessionConfig
from onnxslim.samples import Feed, Samples

BATCH = 8
"""Samples that are run together at most: more take memory that is fetched anew for every batch, which takes longer than
it saves."""
BATCH_BYTES = 512 * 2**20
"""What the largest inner tensors of a batch may take, four being alive at once."""
_ALIVE = 4
_TRIED = 3
"""Samples that are run together and one by one to see whether it makes a difference."""
_STACKED = 1e-3
"""How far a stack may be from its samples one by one, relative to the largest value: kernels differ with the batch."""


class Unstackable(OnnxslimError):
    """Samples run together do not give what they give one by one: run them in batches of one."""


class Relay:
    """Runs one model over the same samples again and again, as it is changed from front to back.

    Args:
        samples: bound to the model's inputs.
        batch: samples that run together at most, see :func:`batch_size`.
        threads: of onnxruntime; 0 means one per core.
        memory: bytes that the frontier may take, over all samples.
    """

    def __init__(self, samples: Samples, batch: int = 1, threads: int = 0, memory: int = 2**30) -> None:
        self._samples = samples
        self._batch = batch
        self._config = SessionConfig(threads, spins=False)
        self._memory = memory
        self._frontier: Frontier | None = None

    def values(self, model: Model, names: Sequence[str], before: str | None = None) -> Iterator[tuple[int, Values]]:
        """Yield (samples, values by name) batch by batch: values of tensors ``names``, samples along their first axis.

        Args:
            before: the anchor of the first node that later calls may find changed: the frontier is set before it.

        Raises:
            RuntimeRefusal: onnxruntime does not run the model on a sample.
            PassError: the model has no such tensor.
            Unstackable: batches of more than one sample give other values.
        """
        held = self._frontier if self._frontier is not None and is_current(model, self._frontier) else None
        self._frontier = None
        wanted = self._chosen(model, before)
        run = _Run(model, tuple(dict.fromkeys((*names, *wanted))), held, self._config)
        if self._batch > 1 and not run.stacks(next(self._feeds(held, run))):
            raise Unstackable(f"samples run together give other values of {', '.join(run.names)}")
        fresh = Frontier(wanted, digest_of(model, wanted)) if wanted else None
        for count, feed in self._feeds(held, run):
            found = run(feed)
            if fresh is not None:
                fresh.batches.append({"": np.empty(count), **{name: found[name] for name in wanted}})
            yield count, {name: found[name] for name in names}
        self._frontier = fresh

    def _chosen(self, model: Model, before: str | None) -> tuple[str, ...]:
        """Return the frontier nearest before the layer ``before`` that memory has room for."""
        if before is None or model.is_large or model.nested:  # a subgraph's captures are not followed
            return ()
        position = next((i for i, node in enumerate(model.graph.nodes) if anchor_of(node) == before), 0)
        room = self._memory // max(len(self._samples), 1)
        return frontier_before(model, position, concrete_shapes(model, next(iter(self._samples)).feed), room)

    def _feeds(self, held: Frontier | None, run: _Run) -> Iterator[tuple[int, Feed]]:
        """Yield (samples, what ``run`` reads), from the frontier, the samples or both."""
        if held is None:
            yield from self._stacked()
            return
        again: Iterable[tuple[int, Feed]] = self._stacked() if run.reads_inputs else itertools.repeat((0, {}))
        for stored, (_, inputs) in zip(held.batches, again, strict=False):
            yield len(stored[""]), {**inputs, **{name: stored[name] for name in held.names}}

    def _stacked(self) -> Iterator[tuple[int, Feed]]:
        """Yield runs of samples of one shape, as long as a batch at most, stacked."""
        held: list[Feed] = []
        for sample in self._samples:
            if held and (len(held) == self._batch or _kind(held[0]) != _kind(sample.feed)):
                yield len(held), _stack(held)
                held = []
            held.append(sample.feed)
        if held:
            yield len(held), _stack(held)


def _kind(feed: Feed) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    return {name: (array.shape, array.dtype) for name, array in feed.items()}


def _stack(feeds: Sequence[Feed]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def batch_size(model: Model, samples: Samples) -> int:
    """Return how many samples may run together: one, unless all inputs' first dimensions are free."""
    shapes = concrete_shapes(model, next(iter(samples)).feed)
    if any(not spec.shape or isinstance(spec.shape[0], int) for spec in model.inputs):
        return 1
    largest = max((4 * math.prod(shape) for shape in shapes.values()), default=0)
    return max(1, min(BATCH, BATCH_BYTES // max(_ALIVE * largest, 1)))


# ---- one run ---------------------------------------------------------------------------------------------------------


class _Run:
    """A model cut down to what leads from a frontier, or the inputs, to some tensors, ready to run."""

    def __init__(self, model: Model, names: tuple[str, ...], held: Frontier | None, config: SessionConfig) -> None:
        self.names = names
        stops = held.names if held is not None else ()
        example = held.batches[0] if held is not None else {}
        given = {*stops, *(spec.name for spec in model.inputs)}
        self._given = [name for name in names if name in given]
        self._fixed = {name: value for name, value in model.defaults.items() if name in names and name not in given}
        self._computed = [name for name in names if name not in given and name not in self._fixed]
        part = part_of(model, self._computed, {name: example[name] for name in stops})
        self._inputs = [spec.name for spec in part.inputs]
        inputs = {spec.name for spec in model.inputs}
        self.reads_inputs = any(name in inputs and name not in stops for name in (*self._inputs, *self._given))
        self._placed = part.placed()
        self._session = Session(self._placed.data, config) if self._computed else None

    def __call__(self, feed: Feed) -> Values:
        values: Values = {**self._fixed, **{name: feed[name] for name in self._given}}
        if self._session is not None:
            values.update(self._session.run({name: feed[name] for name in self._inputs}, self._computed))
        return values

    def stacks(self, batch: tuple[int, Feed]) -> bool:
        """Whether the first samples of a batch, stacked, give what they give one by one."""
        count, feed = batch
        tried = min(count, _TRIED)
        whole = self({name: array[: len(array) // count * tried] for name, array in feed.items()})
        singles = [self({name: _nth(array, i, count) for name, array in feed.items()}) for i in range(tried)]
        return all(_is_stack(whole[name], [single[name] for single in singles]) for name in self.names)


def _nth(array: Array, index: int, count: int) -> Array:
    step = len(array) // count
    return array[index * step : (index + 1) * step]


def _is_stack(whole: Array, parts: Sequence[Array]) -> bool:
    if whole.ndim == 0 or any(part.shape[1:] != whole.shape[1:] for part in parts):
        return False
    stacked = np.concatenate(parts)
    if stacked.shape != whole.shape:
        return False
    if not np.isfinite(stacked).all():
        return True  # whoever asked for it will say so, and by name
    scale = float(np.abs(stacked).max()) if stacked.size else 0.0
    return bool(np.allclose(whole, stacked, rtol=0, atol=_STACKED * scale))
