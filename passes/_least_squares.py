"""Least squares: the weights that make the best of what a layer still gets to see.

    min over W, b of  Σ‖y − W·p − b‖² + λ·‖W − W₀‖²

with the moments of p and y (``onnxslim.analysis.second_order``), one problem for each group of a layer. With the means
separated, b = ȳ − W·p̄ and W·(G + λI) = Cᵀ + λ·W₀, where G is the centred Gram matrix and C the cross products. W₀ is
what the weights are pulled towards where the data say little: the weights as they were, or zero (ridge regression).

Sources: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", §3.1 (reconstruction after
pruning); Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection", §3.3.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxslim.analysis.second_order import Moments
from onnxslim.errors import PassError

Floats = npt.NDArray[np.float64]

RIDGE = 1e-4
"""λ as a fraction of the mean diagonal of G, unless told."""
SHRINKAGE = 2.0
"""λ is at least this times d/n, columns for each patch: the fewer patches, the less the weights believe them. For
independent patches a tenth would do; neighbours in an image are so alike that one counts for a twentieth."""
_STEPS = 9
"""How often λ may grow tenfold where G + λI is not positive definite."""


class Pull(enum.Enum):
    """What the weights are pulled towards."""

    ORIGINAL = "original"
    """What they were: where the data say nothing, nothing changes."""
    ZERO = "zero"


class Bias(enum.Enum):
    """What becomes of b."""

    FITTED = "fitted"
    """The means say what it is."""
    FIXED = "fixed"
    """It stays as it is, for layers that have none: then W makes up for the means too."""


@dataclass(frozen=True)
class Refit:
    """New weights of a layer, and what they win."""

    weight: Floats
    """Shape (groups, O/groups, d)."""
    bias: Floats
    """Shape (O,)."""
    before: float
    """Error of the weights as they were: Σ‖y − W₀·p − b₀‖² as a fraction of Σ‖y − ȳ‖²."""
    after: float
    """Error of the new weights."""
    ridge: float
    """The largest fraction λ that any group needed, at least the one asked for."""


def refit(
    moments: Moments,
    weight: Floats,
    bias: Floats,
    ridge: float = RIDGE,
    pull: Pull = Pull.ORIGINAL,
    kind: Bias = Bias.FITTED,
) -> Refit:
    """Return the weights and bias that predict the targets best.

    Args:
        moments: of the layer's patches, as it sees them now, and of its targets.
        weight: as they are. Shape (groups, O/groups, d).
        bias: as it is. Shape (O,).
        ridge: λ as a fraction of the mean diagonal of G, of each group; see :func:`shrunk`.

    Raises:
        PassError: the moments are not finite, or no ridge makes them definite.
    """
    gram, cross = (moments.gram, moments.cross) if kind is Bias.FITTED else around_bias(moments, bias)
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        raise PassError("the statistics of a layer are not finite")
    parts, used = np.empty_like(weight), ridge
    for group, start in enumerate(weight):
        base = start if pull is Pull.ORIGINAL else np.zeros_like(start)
        parts[group], needed = _solved(gram[group], cross[group], base, ridge)
        used = max(used, needed)
    new_bias = bias if kind is Bias.FIXED else best_bias(moments, parts)
    before, after = error_of(moments, weight, bias), error_of(moments, parts, new_bias)
    return Refit(parts, new_bias, before, after, used)


def shrunk(ridge: float, moments: Moments, shrinkage: float = SHRINKAGE) -> float:
    """Return λ for so few or many patches: ``ridge``, or ``shrinkage``·d/n where that is more.

    The eigenvalues of a sample covariance spread by √(d/n) around the true ones (Marchenko & Pastur 1967); a ridge in
    proportion to d/n takes that back (Ledoit & Wolf 2004, "A Well-Conditioned Estimator").
    """
    return max(ridge, shrinkage * moments.width / max(moments.count, 1))


def best_bias(moments: Moments, weight: Floats) -> Floats:
    """Return b = ȳ − W·p̄, the best bias beside ``weight``: what remains of the mean is put right. Shape (O,).

    Without new weights this is bias correction (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization
    and Bias Correction", §4.2).
    """
    predicted = np.einsum("god,gd->go", weight, moments.mean).reshape(-1)
    bias: Floats = moments.target_mean - predicted
    return bias


def error_of(moments: Moments, weight: Floats, bias: Floats) -> float:
    """Return Σ‖y − W·p − b‖² as a fraction of Σ‖y − ȳ‖²; of constant targets, 0 where met and infinity where not."""
    shape = weight.shape[:2]
    left = np.einsum("god,gde->goe", weight, moments.gram) if weight.size else weight
    spread = np.einsum("goe,goe->go", left, weight) - 2 * np.einsum("god,gdo->go", weight, moments.cross)
    off = best_bias(moments, weight) - bias
    total = float((moments.energy.reshape(shape) + spread).sum() + moments.count * (off**2).sum())
    energy = moments.total_energy
    if energy <= 0:
        return 0.0 if total <= 1e-12 * moments.count * float((moments.target_mean**2).sum()) else np.inf
    return max(total / energy, 0.0)


def around_bias(moments: Moments, bias: Floats) -> tuple[Floats, Floats]:
    """Return G and C of p itself and y − b, means included."""
    mean, count = moments.mean, moments.count
    wanted = (moments.target_mean - bias).reshape(moments.groups, 1, -1)
    gram = moments.gram + count * mean[:, :, None] * mean[:, None, :]
    return gram, moments.cross + count * mean[:, :, None] * wanted


def _solved(gram: Floats, cross: Floats, base: Floats, ridge: float) -> tuple[Floats, float]:
    """Return W of one group, and the ridge that it took. The problem is solved for W − W₀, which keeps W₀'s digits."""
    scale = float(np.trace(gram)) / len(gram)
    if scale <= 0:
        return base, ridge  # the input never changes: nothing speaks for other weights
    factor, used = factorized(gram, ridge)
    change: Floats = cho_solve(factor, cross - gram @ base.T, check_finite=False)
    return base + change.T, used


def factorized(gram: Floats, ridge: float) -> tuple[tuple[Floats, bool], float]:
    """Return the Cholesky factor of G + λI as ``cho_solve`` takes it, and the fraction λ that made it definite.

    Args:
        ridge: the fraction of the mean diagonal to begin with; tenfold until it is enough.

    Raises:
        PassError: none is enough.
    """
    scale = float(np.trace(gram)) / len(gram)
    tried = ridge
    for _ in range(_STEPS + 1):
        shifted = gram.copy()
        shifted.flat[:: len(gram) + 1] += tried * scale
        try:
            return cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False), tried
        except LinAlgError:
            tried = max(10 * tried, 1e-9)
    raise PassError(f"the statistics of a layer are not definite, even with a ridge of {tried:.0e} of their diagonal")
