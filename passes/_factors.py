"""Factors that lose least of a layer's output: the mathematics behind every form of ``_forms``.

A layer y = W·p + b with the second moments of its patches (``onnxslim.analysis.second_order``) is a matrix B, the least
squares weights for what the *original* gives at this place, and a metric H = G + λI: replacing B by Ŵ adds the error

    ‖B − Ŵ‖²_H = tr((B − Ŵ)·H·(B − Ŵ)ᵀ)

to what no linear layer could put right (the asymmetric problem: Zhang et al. 2015, "Accelerating Very Deep
Convolutional Networks for Classification and Detection", §3.3). Without samples H = I and B = W.

Every form is Ŵ = A·T, where T maps a patch to what the last stage sees. Given T, the best A is a projection,

    A = B·H·Tᵀ·(T·H·Tᵀ)⁻¹

and where A itself may only have rank r (channel, tucker), the best is U·Uᵀ·A with U the leading eigenvectors of
A·(T·H·Tᵀ)·Aᵀ: reduced rank regression (Izenman 1975, "Reduced-Rank Regression for the Multivariate Linear Model"). The
T of each form comes from a singular value decomposition of B unfolded to that form, whitened by the part of H that it
sees; that of CP from alternating least squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from onnxslim.analysis.linear_layers import LinearLayer
from onnxslim.passes._algebra import half_solved, leading, parallel_factors, principal, root, solved
from onnxslim.passes._forms import Form, Scheme, Stage, along, down_up, full, pointwise, windowed

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What is to be approximated, and in which metric."""

    layer: LinearLayer
    target: Floats
    """B. Shape (groups, O/groups, d)."""
    metric: Floats | None
    """H. Shape (groups, d, d); None for the identity."""

    def measured(self, matrix: Floats, group: int = 0) -> Floats:
        """Return ``matrix``·H, shape (…, d)."""
        if self.metric is None:
            return matrix
        product: Floats = matrix @ self.metric[group]
        return product

    def energy(self) -> float:
        """Return ‖B‖²_H."""
        return sum(float(np.vdot(self.measured(part, group), part)) for group, part in enumerate(self.target))

    def error(self, weight: Floats) -> float:
        """Return ‖B − Ŵ‖²_H. ``weight``: shape (groups, O/groups, d)."""
        off = self.target - weight
        return max(sum(float(np.vdot(self.measured(part, group), part)) for group, part in enumerate(off)), 0.0)


@dataclass(frozen=True)
class Factored:
    """A layer as stages, and the one matrix that they are together."""

    stages: tuple[Stage, ...]
    weight: Floats
    """Ŵ. Shape (groups, O/groups, d)."""


def factored(problem: Problem, form: Form) -> Factored:
    """Return the stages of ``form`` that lose least."""
    return {
        Scheme.CHANNEL: _channel,
        Scheme.SPATIAL: _spatial,
        Scheme.TUCKER: _tucker,
        Scheme.SEPARABLE: _separable,
        Scheme.CP: _cp,
    }[form.scheme](problem, form)


def errors(problem: Problem, scheme: Scheme, ranks: Sequence[int]) -> Iterator[tuple[Form, float]]:
    """Yield forms of these ranks and the error of each, ‖B − Ŵ‖²_H; of Tucker's, one for each pair of ranks."""
    if scheme is Scheme.CHANNEL:
        tails = _tails(channel_spectrum(problem))
        yield from ((Form(scheme, rank), float(tails[min(rank, len(tails) - 1)])) for rank in ranks)
    elif scheme is Scheme.CP:
        forms = [Form(scheme, rank) for rank in ranks]
        yield from ((form, problem.error(_cp(problem, form).weight)) for form in forms)
    elif scheme is Scheme.TUCKER:
        yield from _tucker_errors(problem, ranks)
    else:
        yield from _nested_errors(problem, scheme, ranks)


# ---- channel ---------------------------------------------------------------------------------------------------------


def channel_spectrum(problem: Problem) -> Floats:
    """Return the squared singular values of B in the metric, falling, summed over groups: what each rank explains."""
    parts = []
    for group, part in enumerate(problem.target):
        squares, _ = principal(part, _metric_of(problem, group), min(part.shape))
        parts.append(np.maximum(squares, 0.0))
    total: Floats = np.sum(parts, axis=0)
    return total


def _tails(squares: Floats) -> Floats:
    """Return what is left of a sum after its first 0, 1, 2 … parts."""
    return np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])


def _channel(problem: Problem, form: Form) -> Factored:
    layer = problem.layer
    halves = [_halves(part, _metric_of(problem, g), form.rank) for g, part in enumerate(problem.target)]
    left, right = np.stack([up for up, _ in halves]), np.stack([down for _, down in halves])
    if not layer.kernel:
        return Factored(down_up(layer, right[0], left[0]), left @ right)
    last = pointwise(left.reshape(-1, form.rank), len(layer.kernel), layer.groups)
    return Factored((windowed(layer, right), last), left @ right)


def _halves(matrix: Floats, metric: Floats | None, rank: int) -> tuple[Floats, Floats]:
    """Return the factors of rank ``rank`` whose product is closest to ``matrix``, each singular value shared evenly."""
    if metric is None and len(matrix) <= matrix.shape[1]:
        up = leading(matrix @ matrix.T, rank)[1]
        down = up.T @ matrix
    elif metric is None:
        down = leading(matrix.T @ matrix, rank)[1].T
        up = matrix @ down.T
    else:
        down = principal(matrix, metric, rank)[1]
        seen = down @ metric
        up = solved(seen @ down.T, seen @ matrix.T).T
    scale = np.sqrt(np.linalg.norm(up, axis=0) / np.maximum(np.linalg.norm(down, axis=1), 1e-150))
    scale[scale == 0] = 1.0
    return up / scale, down * scale[:, None]


# ---- spatial and separable: all features of the window's half --------------------------------------------------------


def _spatial(problem: Problem, form: Form) -> Factored:
    layer = problem.layer
    wide = layer.kernel[1]
    half = _first_filters(problem, form.rank)
    ours = _along_first(half, wide)
    last = _projected(problem, ours)
    stages = along(layer, half, 0), along(layer, last.reshape(layer.channels, form.rank, wide), 1)
    return Factored(stages, (last @ ours)[None])


def _first_filters(problem: Problem, rank: int) -> Floats:
    """Return the filters along the first axis, nested, the most important first. Shape (rank, inputs, k)."""
    layer = problem.layer
    high, wide = layer.kernel
    by_axis = problem.target.reshape(layer.channels, -1, high, wide).transpose(0, 3, 1, 2)
    unfolded = by_axis.reshape(layer.channels * wide, -1)
    metric = None
    if problem.metric is not None:
        inputs = layer.width // layer.taps
        whole = problem.metric[0].reshape(inputs * high, wide, inputs * high, wide)
        metric = np.einsum("aibi->ab", whole) / wide
    return principal(unfolded, metric, rank)[1].reshape(rank, -1, high)


def _separable(problem: Problem, form: Form) -> Factored:
    layer, rank = problem.layer, form.rank
    filters = _channel_filters(problem, rank)
    ours = _block_diagonal(filters)
    last = _projected(problem, ours)
    depthwise = filters.reshape(-1, 1, layer.taps)
    first = windowed(layer, depthwise, len(filters))
    return Factored((first, pointwise(last, len(layer.kernel))), (last @ ours)[None])


def _channel_filters(problem: Problem, rank: int) -> Floats:
    """Return ``rank`` filters for each input channel, nested. Shape (inputs, rank, taps)."""
    layer = problem.layer
    inputs, taps = layer.width // layer.taps, layer.taps
    unfolded = problem.target.reshape(layer.channels, inputs, taps)
    found = []
    for channel in range(inputs):
        own = slice(channel * taps, (channel + 1) * taps)
        metric = None if problem.metric is None else problem.metric[0][own, own]
        found.append(principal(unfolded[:, channel], metric, rank)[1])
    return np.stack(found)


def _block_diagonal(filters: Floats) -> Floats:
    """Return T of filters of single channels: (inputs·m, inputs·taps)."""
    inputs, each, taps = filters.shape
    made = np.zeros((inputs, each, inputs, taps))
    made[np.arange(inputs), :, np.arange(inputs)] = filters
    return made.reshape(inputs * each, inputs * taps)


def _along_first(half: Floats, wide: int) -> Floats:
    """Return T of filters along the first axis, (rank, inputs, k), at every tap of the second: (rank·k', d)."""
    rank, inputs, high = half.shape
    made = np.zeros((rank, wide, inputs, high, wide))
    for tap in range(wide):
        made[:, tap, :, :, tap] = half
    return made.reshape(rank * wide, inputs * high * wide)


def _nested_errors(problem: Problem, scheme: Scheme, ranks: Sequence[int]) -> Iterator[tuple[Form, float]]:
    """Yield the errors of forms whose features are the leading ones of the largest."""
    layer, most = problem.layer, max(ranks)
    if scheme is Scheme.SPATIAL:
        ours = _along_first(_first_filters(problem, most), layer.kernel[1])
        each, order = layer.kernel[1], np.arange(most * layer.kernel[1])
    else:
        inputs = layer.width // layer.taps
        ours, each = _block_diagonal(_channel_filters(problem, most)), inputs
        order = np.arange(inputs * most).reshape(inputs, most).T.reshape(-1)
    ours = ours[order]
    seen = problem.measured(ours)
    gram, cross = seen @ ours.T, seen @ problem.target[0].T
    whole = problem.energy()
    for rank in ranks:
        some = slice(0, rank * each)
        explained = float((half_solved(gram[some, some], cross[some]) ** 2).sum())
        yield Form(scheme, rank), max(whole - explained, 0.0)


# ---- tucker ----------------------------------------------------------------------------------------------------------


def _tucker(problem: Problem, form: Form) -> Factored:
    layer, inner = problem.layer, form.inner or 1
    down = _inner_basis(problem, inner)
    ours = np.einsum("si,tu->stiu", down, np.eye(layer.taps)).reshape(inner * layer.taps, layer.width)
    every = _projected(problem, ours)
    combined = every @ ours
    _, up = leading(problem.measured(combined) @ combined.T, form.rank)
    core = up.T @ every
    axes = len(layer.kernel)
    middle = windowed(layer, core[None], 1)
    return Factored((pointwise(down, axes), middle, pointwise(up, axes)), (up @ core @ ours)[None])


def _inner_basis(problem: Problem, rank: int) -> Floats:
    """Return the combinations of input channels that matter, nested. Shape (rank, inputs)."""
    layer = problem.layer
    inputs, taps = layer.width // layer.taps, layer.taps
    unfolded = problem.target.reshape(layer.channels, inputs, taps).transpose(0, 2, 1).reshape(-1, inputs)
    metric = None
    if problem.metric is not None:
        metric = np.einsum("atbt->ab", problem.metric[0].reshape(inputs, taps, inputs, taps)) / taps
    return principal(unfolded, metric, rank)[1]


def _tucker_errors(problem: Problem, ranks: Sequence[int]) -> Iterator[tuple[Form, float]]:
    layer = problem.layer
    inputs, taps = layer.width // layer.taps, layer.taps
    most = full(layer, Scheme.TUCKER).inner or 1
    inners = sorted({min(max(1, round(rank * inputs / layer.channels)), most) for rank in ranks})
    down = _inner_basis(problem, max(inners))
    gram, cross = _through(problem, down)
    whole = problem.energy()
    for inner in inners:
        some = slice(0, inner * taps)
        half = half_solved(gram[some, some], cross[some])
        values = np.maximum(np.linalg.eigvalsh(half.T @ half)[::-1], 0.0)
        explained = np.concatenate([[0.0], np.cumsum(values)])
        for rank in ranks:
            yield Form(Scheme.TUCKER, rank, inner), max(whole - float(explained[min(rank, len(values))]), 0.0)


def _through(problem: Problem, down: Floats) -> tuple[Floats, Floats]:
    """Return T·H·Tᵀ and T·H·Bᵀ, where T applies ``down`` to the input channels of every tap."""
    layer = problem.layer
    inputs, taps, rank = layer.width // layer.taps, layer.taps, len(down)
    target = problem.target[0].reshape(layer.channels, inputs, taps)
    if problem.metric is None:
        cross = np.einsum("si,oit->sto", down, target, optimize=True).reshape(rank * taps, -1)
        gram = np.einsum("sr,tu->stru", down @ down.T, np.eye(taps)).reshape(rank * taps, rank * taps)
        return gram, cross
    metric = problem.metric[0].reshape(inputs, taps * inputs * taps)
    half = (down @ metric).reshape(rank * taps, inputs, taps)
    gram = np.einsum("aiu,ri->aru", half, down, optimize=True).reshape(rank * taps, rank * taps)
    cross = half.reshape(rank * taps, -1) @ problem.target[0].T
    return gram, cross


# ---- cp --------------------------------------------------------------------------------------------------------------


def _cp(problem: Problem, form: Form) -> Factored:
    layer, rank = problem.layer, form.rank
    inputs = layer.width // layer.taps
    tensor = problem.target.reshape(layer.channels, inputs, *layer.kernel)
    factor = None
    if problem.metric is not None:
        blocks = problem.metric[0].reshape(inputs, layer.taps, inputs, layer.taps)
        factor = root(np.einsum("atbt->ab", blocks) / layer.taps)
        tensor = np.einsum("oihw,ij->ojhw", tensor, factor, optimize=True)
    _, down, high, wide = parallel_factors(tensor, rank)
    if factor is not None:
        down = solve_triangular(factor, down.T, lower=True, trans="T", check_finite=False).T
    ours = np.einsum("ri,rh,rw->rihw", down, high, wide).reshape(rank, layer.width)
    last = _projected(problem, ours)
    stages = (
        pointwise(down, 2),
        along(layer, high[:, None], 0, rank),
        along(layer, wide[:, None], 1, rank),
        pointwise(last, 2),
    )
    return Factored(stages, (last @ ours)[None])


# ---- in the metric ---------------------------------------------------------------------------------------------------


def _metric_of(problem: Problem, group: int) -> Floats | None:
    return None if problem.metric is None else problem.metric[group]


def _projected(problem: Problem, ours: Floats) -> Floats:
    """Return A, the best last stage behind T. Shape (O, features)."""
    seen = problem.measured(ours)
    return solved(seen @ ours.T, seen @ problem.target[0].T).T
