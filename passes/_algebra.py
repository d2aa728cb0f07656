"""Linear algebra of low rank: principal rows in a metric, solving with Gram matrices, alternating least squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular

from onnxslim.errors import PassError

Floats = npt.NDArray[np.float64]

_LEAST = 1e-12
"""Added to a Gram matrix of features, as a fraction of its mean diagonal; a hundredfold until it is definite."""
_SWEEPS = 100
"""Of alternating least squares, at most."""
_STARTS, _FEW = 4, 16
"""How many starts are tried for ranks up to the second number; one above, where each takes long and all end alike."""
_SETTLED = 1e-9
"""Change of the fit, as a fraction of the tensor's energy, at which alternating least squares stop."""


def principal(matrix: Floats, metric: Floats | None, rank: int) -> tuple[Floats, Floats]:
    """Return the largest squared singular values of ``matrix`` in the metric, and the combinations of its rows.

    The best approximation of rank r is a combination of the first r rows. Shapes (rank,), (rank, d).
    """
    if metric is None and len(matrix) > matrix.shape[1]:
        squares, basis = leading(matrix.T @ matrix, rank)
        return squares, basis.T
    if len(matrix) <= matrix.shape[1] or metric is None:
        squares, basis = leading((matrix if metric is None else matrix @ metric) @ matrix.T, rank)
        return squares, _unit(basis.T @ matrix)
    factor = root(metric)
    white = matrix @ factor
    squares, basis = leading(white.T @ white, rank)
    return squares, _unit(solve_triangular(factor, basis, lower=True, trans="T", check_finite=False).T)


def _unit(rows: Floats) -> Floats:
    """Return rows of norm 1; those that are next to nothing are noise, and become zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Floats = np.where(norms > 1e-9 * norms.max(initial=0.0), rows / np.maximum(norms, 1e-150), 0.0)
    return scaled


def leading(square: Floats, rank: int) -> tuple[Floats, Floats]:
    """Return the largest eigenvalues of a symmetric matrix and their vectors, the largest first."""
    size = len(square)
    chosen = None if rank >= size else (size - rank, size - 1)
    values, vectors = eigh((square + square.T) / 2, subset_by_index=chosen, check_finite=False)
    return values[::-1], vectors[:, ::-1]


def root(gram: Floats) -> Floats:
    """Return the lower Cholesky factor of a matrix that is definite but for rounding.

    Raises:
        PassError: it is not.
    """
    scale = float(np.trace(gram)) / max(len(gram), 1) or 1.0
    added = _LEAST
    while added < 1:
        try:
            found: Floats = cholesky(gram + added * scale * np.eye(len(gram)), lower=True, check_finite=False)
            return found
        except LinAlgError:
            added *= 100
    raise PassError("the statistics of a layer are not definite")


def half_solved(gram: Floats, cross: Floats) -> Floats:
    """Return L⁻¹·cross with gram = L·Lᵀ: its squares sum to what the features explain."""
    found: Floats = solve_triangular(root(gram), cross, lower=True, check_finite=False)
    return found


def solved(gram: Floats, cross: Floats) -> Floats:
    """Return gram⁻¹·cross."""
    factor = root(gram)
    half = solve_triangular(factor, cross, lower=True, check_finite=False)
    found: Floats = solve_triangular(factor, half, lower=True, trans="T", check_finite=False)
    return found


def parallel_factors(tensor: Floats, rank: int) -> list[Floats]:
    """Return A, B, C, D with tensor ≈ Σ_r A_r ∘ B_r ∘ C_r ∘ D_r, each of shape (rank, size).

    Alternating least squares, the best of a few starts: from the leading singular vectors of each unfolding, filled up
    with seeded noise, and from noise (Kolda & Bader 2009, "Tensor Decompositions and Applications", §3.4).
    """
    random = np.random.default_rng(0)
    unfolded = [np.moveaxis(tensor, axis, 0).reshape(size, -1) for axis, size in enumerate(tensor.shape)]
    best, least = [], np.inf
    for start in range(_STARTS if rank <= _FEW else 1):
        leading_rows = [principal(m.T, None, min(rank, len(m)))[1][: None if start == 0 else 0] for m in unfolded]
        more = [random.standard_normal((rank - len(rows), rows.shape[1])) for rows in leading_rows]
        found, left = _alternated(unfolded, [np.concatenate(pair) for pair in zip(leading_rows, more, strict=True)])
        if left < least:
            best, least = found, left
        if least <= _SETTLED * float((tensor**2).sum()):
            break
    return best


def _alternated(unfolded: Sequence[Floats], factors: list[Floats]) -> tuple[list[Floats], float]:
    """Improve ``factors`` one by one until that wins nothing more; return them and the error."""
    rank, energy = len(factors[0]), float((unfolded[0] ** 2).sum())
    before = np.inf
    for _ in range(_SWEEPS if rank <= _FEW else _SWEEPS // 5):
        for axis, matrix in enumerate(unfolded):
            others = [factor for index, factor in enumerate(factors) if index != axis]
            joined = np.einsum("ra,rb,rc->rabc", *others).reshape(rank, -1)
            gram = np.prod([factor @ factor.T for factor in others], axis=0)
            factors[axis] = solved(gram, joined @ matrix.T)
            if axis < len(factors) - 1:
                factors[axis] /= np.maximum(np.linalg.norm(factors[axis], axis=1, keepdims=True), 1e-150)
        left = energy - float((factors[-1] * (joined @ unfolded[-1].T)).sum())
        if before - left <= _SETTLED * energy:
            break
        before = left
    return factors, left
