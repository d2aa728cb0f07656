"""Dynamic dimensions of a model's inputs, fixed to sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_graphsurgeon import Tensor, Variable

from onnxslim.errors import ModelError
from onnxslim.ir.model import Model


def fix_input(model: Model, name: str, shape: Sequence[int]) -> None:
    """Fix the dynamic dimensions of input ``name`` to ``shape``; a symbol is replaced wherever it stands.

    Raises:
        ModelError: no such input, another rank, or a dimension that the model fixes to something else.
    """
    tensor = _input(model, name)
    old = tuple(tensor.shape) if tensor.shape is not None else (None,) * len(shape)
    fits = len(old) == len(shape) and all(not isinstance(a, int) or a == b for a, b in zip(old, shape, strict=True))
    if not fits:
        wanted, given = ("x".join(str(dim) for dim in dims) for dims in (old, shape))
        raise ModelError(f"input {name!r} is {wanted} in the model: it cannot be fixed to {given}")
    tensor.shape = list(shape)
    _substitute(model, {dim: size for dim, size in zip(old, shape, strict=True) if isinstance(dim, str)})


def fix_batch(model: Model, size: int) -> None:
    """Fix the first dimension of every input where it is dynamic."""
    for spec in model.inputs:
        if spec.shape and not isinstance(spec.shape[0], int):
            _input(model, spec.name).shape[0] = size
            _substitute(model, {spec.shape[0]: size} if spec.shape[0] else {})


def _input(model: Model, name: str) -> Tensor:
    tensor = next((t for t in model.graph.inputs if t.name == name), None)
    if tensor is None:
        names = ", ".join(t.name for t in model.graph.inputs)
        raise ModelError(f"the model has no input {name!r}: its inputs are {names}")
    return tensor


def _substitute(model: Model, symbols: Mapping[str, int]) -> None:
    """Replace symbolic dimensions by sizes in every declared shape."""
    for graph in model.graphs():
        for tensor in graph.tensors().values():
            if isinstance(tensor, Variable) and tensor.shape is not None:
                tensor.shape = [symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in tensor.shape]
