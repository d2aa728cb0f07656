"""One function over many samples, on several threads, results in order and few of them at a time in memory.

onnxruntime lets go of Python's lock while it runs, so samples side by side keep all cores busy where one small model,
split over the same cores, would not.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def under_way(threads: int = 0) -> int:
    """Return how many items :func:`map_in_order` holds at most."""
    workers = _workers(threads)
    return 1 if workers == 1 else 2 * workers


def _workers(threads: int) -> int:
    return threads or os.cpu_count() or 1


def map_in_order(function: Callable[[T], R], items: Iterable[T], threads: int = 0) -> Iterator[R]:
    """Yield function(item) for each item, in order; at most two items for each thread are under way.

    Args:
        threads: 0 means one per core.

    Raises:
        Whatever ``function`` or ``items`` raises, at the item's place.
    """
    workers = _workers(threads)
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= under_way(threads):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
