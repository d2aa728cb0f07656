"""How many threads linear algebra takes.

OpenBLAS lets its threads spin while they wait for each other: on a machine where others work too, two of them can be
six times slower than one. So it is one unless the user asks for more, which also makes results the same everywhere.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import threadpool_limits


def blas_threads(threads: int) -> AbstractContextManager[object]:
    """Return a context in which numpy and scipy use ``threads`` threads; one where that is 0."""
    limits: AbstractContextManager[object] = threadpool_limits(limits=max(threads, 1), user_api="blas")
    return limits
