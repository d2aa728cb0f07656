"""Truncated singular value decompositions of layers, as pairs of factors.

Every scheme turns a layer's weight into a matrix M whose rank-r approximation is two layers: M ≈ U·V with the singular
values split evenly between the factors (Eckart and Young 1936: no pair of that rank is nearer in the Frobenius norm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Spectrum:
    """A thin singular value decomposition, in float64: ``left`` m x k, ``values`` k, ``right`` k x n, k = min(m, n)."""

    left: Array
    values: Array
    right: Array

    @property
    def full_rank(self) -> int:
        """Largest rank that a pair of factors can have."""
        return len(self.values)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """Return U (m x rank) and V (rank x n)."""
        root = np.sqrt(self.values[:rank])
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]

    def rank_for_energy(self, energy: float) -> int:
        """Return the smallest rank that keeps ``energy`` of the squared singular values, at least 1."""
        squares = self.values**2
        total = squares.sum()
        if total <= 0:
            return 1
        return min(self.full_rank, int(np.searchsorted(np.cumsum(squares) / total, energy - 1e-12)) + 1)


def decompose(matrix: Array) -> Spectrum:
    """Return the decomposition of an m x n matrix."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return Spectrum(left, values, right)
