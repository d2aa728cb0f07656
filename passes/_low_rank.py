"""Low rank: what a rank keeps of a weight, which rank a goal asks for, the two factors, and the two nodes.

A weight is unfolded into a matrix W of n × m; W ≈ L·R with L of n × r and R of r × m is its truncated singular value
decomposition, the best there is for that rank in the Frobenius norm (Eckart & Young 1936). The factors share each
singular value evenly, L = U·√Σ and R = √Σ·Vᵀ, so that neither holds all the range. Everything is computed in float64.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Node, Rewriter, dims_of

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_GEMM_WITHOUT_BIAS = 11
"""The operator set since which Gemm's bias is optional."""


@dataclass(frozen=True)
class Scheme:
    """A way to store a weight as two of lower rank."""

    unfold: Callable[[Shape], tuple[int, int]]
    """The shape of the matrix W that a weight of this shape is."""
    fold: Callable[[Shape, int], tuple[Shape, Shape]]
    """The shapes in which L and R of a rank are stored."""


def _unfold_channels(shape: Shape) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _fold_channels(shape: Shape, rank: int) -> tuple[Shape, Shape]:
    window = shape[2:]
    return (shape[0], rank, *(1 for _ in window)), (rank, shape[1], *window)


SCHEMES = {"svd": Scheme(_unfold_channels, _fold_channels)}
"""By name. ``svd``: a matrix as two; a k×k convolution as one of k×k to r channels, then one of 1×1 (Zhang et al. 2015,
"Accelerating Very Deep Convolutional Networks for Classification and Detection", §3.1, without its data)."""


# ---- what a rank costs and keeps -----------------------------------------------------------------------------


def full_rank(shape: Shape, scheme: str) -> int:
    """Return the largest rank that a weight of ``shape`` can have."""
    return min(SCHEMES[scheme].unfold(shape))


def elements(shape: Shape, rank: int, scheme: str) -> int:
    """Return the number of elements of both factors at ``rank``."""
    return sum(math.prod(factor) for factor in SCHEMES[scheme].fold(shape, rank))


def largest_gain(shape: Shape, scheme: str) -> int:
    """Return the largest rank whose factors have fewer elements than the weight itself; 0 where none has."""
    return (math.prod(shape) - 1) // elements(shape, 1, scheme)


def factors(weight: Array, rank: int, scheme: str) -> tuple[Array, Array]:
    """Return L and R of ``weight`` at ``rank``, in the shapes and the type in which they are stored."""
    matrix = weight.astype(np.float64).reshape(SCHEMES[scheme].unfold(weight.shape))
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    left_shape, right_shape = SCHEMES[scheme].fold(weight.shape, rank)
    thin, wide = left[:, :rank] * root, root[:, None] * right[:rank]
    return thin.reshape(left_shape).astype(weight.dtype), wide.reshape(right_shape).astype(weight.dtype)


# ---- which rank ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spectrum:
    """What each rank of one weight keeps and costs."""

    shape: Shape
    scheme: str
    kept: Array
    """Fraction of the squared singular values that the first 1, 2, … keep: never falling, the last is 1."""
    price: int
    """What one element of the weight costs, in whatever is to be saved."""

    @property
    def full_rank(self) -> int:
        """The largest rank there is."""
        return len(self.kept)

    def rank(self, energy: float) -> int:
        """Return the smallest rank that keeps at least ``energy``."""
        return min(int(np.searchsorted(self.kept, energy)) + 1, self.full_rank)

    def rank_without(self, ratio: float) -> int:
        """Return what is left of the full rank when ceil(ratio·full rank) ranks go: at least 1."""
        return max(1, self.full_rank - math.ceil(ratio * self.full_rank - 1e-9))  # 0.07 · 100 is 7.000000000000001

    def rounded(self, rank: int, multiple: int) -> int:
        """Return the multiple at or above ``rank``, or the full rank where that comes first."""
        return max(rank, min(math.ceil(rank / multiple) * multiple, self.full_rank))

    def saved(self, rank: int) -> int:
        """Return what the factors at ``rank`` save; 0 where they would cost more."""
        return max(0, math.prod(self.shape) - elements(self.shape, rank, self.scheme)) * self.price


def spectrum(weight: Array, scheme: str, price: int = 0) -> Spectrum:
    """Decompose ``weight``. One of nothing but zeros is kept whole by any rank."""
    matrix = weight.astype(np.float64).reshape(SCHEMES[scheme].unfold(weight.shape))
    total = np.cumsum(np.linalg.svd(matrix, compute_uv=False) ** 2)
    kept = total / total[-1] if total[-1] > 0 else np.ones_like(total)
    return Spectrum(weight.shape, scheme, kept, price)


def ranks_that_save(spectra: Sequence[Spectrum], wanted: float, multiple: int) -> tuple[list[int], int]:
    """Return the ranks at the highest energy, the same for all weights, that save ``wanted``; and what they save.

    Where none saves so much, these are the lowest ranks. Saving falls as the energy rises, so the energies at which
    some weight's rank changes are bisected.
    """

    def ranks_at(energy: float) -> list[int]:
        return [weight.rounded(weight.rank(energy), multiple) for weight in spectra]

    def saved(ranks: Sequence[int]) -> int:
        return sum(weight.saved(rank) for weight, rank in zip(spectra, ranks, strict=True))

    steps = np.unique(np.concatenate([weight.kept for weight in spectra])).tolist() if spectra else []
    index = bisect.bisect_right(steps, -wanted, key=lambda energy: -saved(ranks_at(energy)))
    ranks = ranks_at(steps[index - 1] if index else 0.0)
    return ranks, saved(ranks)


# ---- two nodes -----------------------------------------------------------------------------------------------


def stored_factors(weight: Constant, rank: int, scheme: str, rewriter: Rewriter) -> tuple[Constant, Constant]:
    """Return both factors of ``weight`` as new constants."""
    left, right = factors(weight.values, rank, scheme)
    return rewriter.constant(f"{weight.name}_left", left), rewriter.constant(f"{weight.name}_right", right)


def split(node: Node, rank: int, pair: tuple[Constant, Constant], rewriter: Rewriter) -> None:
    """Put a node with one factor before ``node``, which keeps the other, its bias, name and output."""
    outputs_first = node.op == "Conv" or bool(node.attrs.get("transB"))  # how the weight is stored: n × m, or m × n
    second, first = pair if outputs_first else pair[::-1]
    out = node.outputs[0]
    shape = dims_of(out)
    if shape:
        axis = 1 if node.op == "Conv" else len(shape) - 1
        shape = (*shape[:axis], rank, *shape[axis + 1 :])
    inputs, attrs = [node.inputs[0], first], {}
    if node.op == "Conv":
        attrs = dict(node.attrs)
        rewriter.set_op(node, "Conv", {"kernel_shape": [1] * (len(first.shape) - 2)})
    elif node.op == "Gemm":
        attrs = {"transB": 1} if outputs_first else {}
        if rewriter.model.opset < _GEMM_WITHOUT_BIAS:
            inputs.append(rewriter.constant(f"{first.name}_bias", np.zeros(1, first.values.dtype)))
    middle = rewriter.variable(f"{out.name}_rank{rank}", out.dtype, shape)
    rewriter.insert(node.op, inputs, [middle], attrs, name=f"{node.name or out.name}_rank{rank}", domain=node.domain)
    rewriter.set_input(node, 0, middle)
    rewriter.set_input(node, 1, second)
