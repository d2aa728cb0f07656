"""What a dequantized tensor was before it was quantized: through pairs, and operators between that only move values."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxslim.analysis.known_ranges import known_range
from onnxslim.ir import Constant, Graph, Node, Rewriter, Tensor, array_of, attribute, is_standard, producer
from onnxslim.passes._dequantize_values import converts, dequantized_constant, limits, optional

_MOVING = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators on integers that mean the same on the numbers they stand for."""

_KEEPING_SIGN = _MOVING | {"Add", "AveragePool", "GlobalAveragePool", "Mul"}
"""Operators that make nothing negative of what is not."""
_NEVER_NEGATIVE = ("Abs", "Exp", "Relu", "Sqrt")

_DEPTH = 64
"""Operators looked through."""
_MOST = 256
"""Tensors looked at to learn one's sign."""
_RELU6 = 6.0


class Saturation(enum.Enum):
    """What becomes of the ends of a grid, where quantizing cuts off."""

    RELU = "relu"
    KEEP = "keep"
    DROP = "drop"


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of a tensor, constant or not."""

    scale: Tensor
    zero: Tensor | None
    axis: int = 1
    block: int = 0

    @property
    def is_single(self) -> bool:
        """Whether one scale is for all elements, so that moving them changes nothing."""
        if isinstance(self.scale, Constant):
            return self.block == 0 and math.prod(self.scale.shape) == 1
        maker = producer(self.scale)
        return maker is not None and is_standard(maker, "DynamicQuantizeLinear")

    @property
    def key(self) -> tuple[Any, ...]:
        """What is equal for equal grids: zero points that are left out are zeros."""
        zero = array_of(self.zero)
        offset = None if zero is not None and not zero.astype(np.float32).any() else _key_of(self.zero)
        where = () if self.is_single else (self.axis, self.block)
        return (_key_of(self.scale), offset, where)


def _key_of(tensor: Tensor | None) -> Any:
    values = array_of(tensor)
    if values is None:
        return None if tensor is None else id(tensor)
    shape = () if values.size == 1 else values.shape
    return values.dtype.name if values.dtype.kind == "f" else "", shape, values.astype(np.float64).tobytes()


def grid_of(node: Node) -> Grid:
    """Return the grid of a QuantizeLinear or DequantizeLinear."""
    axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))
    return Grid(node.inputs[1], optional(node, 2), axis, block)


class Pairs:
    """Finds what tensors stood for; what is looked for twice is made once. ``reason`` says why nothing was found."""

    def __init__(self, rewriter: Rewriter, saturation: Saturation) -> None:
        self.rewriter = rewriter
        self.saturation = saturation
        self.reason = ""
        self._found: dict[tuple[Any, ...], Tensor] = {}

    def floating(self, tensor: Tensor, grid: Grid, depth: int = 0) -> Tensor | None:
        """Return the floating-point tensor whose integers on ``grid`` are ``tensor``, None where there is none."""
        key = (id(tensor), grid.key)
        if key not in self._found:
            found = self._look(tensor, grid, depth)
            if found is None:
                return None
            self._found[key] = found
        return self._found[key]

    def renamed(self, old: Tensor, new: Tensor) -> None:
        """Take note that ``new`` is in the place of ``old``."""
        self._found = {key: new if tensor is old else tensor for key, tensor in self._found.items()}

    def _look(self, tensor: Tensor, grid: Grid, depth: int) -> Tensor | None:
        maker = producer(tensor)
        if isinstance(tensor, Constant):
            found = dequantized_constant(self.rewriter, tensor, grid.scale, grid.zero, axis=grid.axis, block=grid.block)
            return found or self._refuse("its scale or zero point is computed, or does not fit what it scales")
        if maker is None:
            return self._refuse("the model is fed these integers")
        if converts(maker, "QuantizeLinear") or is_standard(maker, "DynamicQuantizeLinear"):
            return self._quantized(maker, tensor, grid)
        if is_standard(maker) and maker.op in _MOVING and depth < _DEPTH:
            return self._moved(maker, tensor, grid, depth)
        return self._refuse(f"{maker.op} computes these integers")

    def _refuse(self, reason: str) -> Tensor | None:
        self.reason = reason
        return None

    def _quantized(self, maker: Node, tensor: Tensor, grid: Grid) -> Tensor | None:
        if maker.op == "DynamicQuantizeLinear":
            same = maker.outputs[0] is tensor and Grid(maker.outputs[1], maker.outputs[2]).key == grid.key
            return maker.inputs[0] if same else self._refuse("it is not dequantized with the scale it was quantized by")
        if grid_of(maker).key != grid.key:
            return self._refuse("it is not dequantized with the scale it was quantized by")
        return self._bounded(maker)

    def _moved(self, maker: Node, tensor: Tensor, grid: Grid, depth: int) -> Tensor | None:
        """Return what ``maker`` makes of floating-point numbers, moving those instead of the integers."""
        if not grid.is_single:
            return self._refuse(f"{maker.op} moves integers of several scales")
        made = list(maker.outputs) if maker.op == "Split" else [maker.outputs[0]]
        if all(out is not tensor for out in made):
            return self._refuse(f"{maker.op} computes these integers")
        inputs = self._moved_inputs(maker, grid, depth)
        if inputs is None:
            return None
        outputs = [self.rewriter.variable(f"{out.name}_f", grid.scale.dtype, out.shape) for out in made]
        graph = self.rewriter.home(maker)
        self.rewriter.insert(maker.op, inputs, outputs, maker.attrs, name=maker.name, graph=graph)
        self._found.update(((id(old), grid.key), new) for old, new in zip(made, outputs, strict=True))
        return self._found[id(tensor), grid.key]

    def _moved_inputs(self, maker: Node, grid: Grid, depth: int) -> list[Tensor] | None:
        several = len(maker.inputs) if maker.op == "Concat" else 1
        data = [self.floating(read, grid, depth + 1) for read in maker.inputs[:several]]
        inputs = [*(part for part in data if part is not None), *maker.inputs[several:]]
        if len(inputs) < len(maker.inputs):
            return None
        if maker.op != "Pad" or attribute(maker, "mode", "constant") != "constant":
            return inputs
        given = optional(maker, 2)
        if given is None:  # integers are padded with 0, which need not be their zero point
            zero = array_of(grid.zero)
            given = self.rewriter.constant("pad", np.zeros((), np.uint8 if zero is None else zero.dtype))
        value = self.floating(given, grid, depth + 1)
        return None if value is None else [*inputs[:2], value, *inputs[3:]]

    # ---- ends of grids ---------------------------------------------------------------------------------------

    def _bounded(self, maker: Node) -> Tensor:
        """Return what a QuantizeLinear reads, cut where its grid is believed to cut on purpose."""
        tensor = maker.inputs[0]
        ends = _ends(maker)
        if ends is None or self.saturation is Saturation.DROP or isinstance(tensor, Constant):
            return tensor
        low, high = ends
        if self.saturation is Saturation.KEEP:
            return self._clipped(maker, low, high)
        if low != 0 or root_of(tensor) is None or _is_never_negative(tensor):
            return tensor
        if np.isclose(high, _RELU6, rtol=1e-6):
            return self._clipped(maker, 0.0, _RELU6)
        out = self.rewriter.variable(f"{tensor.name}_relu", tensor.dtype, tensor.shape)
        self.rewriter.insert("Relu", [tensor], [out], graph=self.rewriter.home(maker))
        return out

    def _clipped(self, maker: Node, low: float, high: float) -> Tensor:
        tensor, graph = maker.inputs[0], self.rewriter.home(maker)
        out = self.rewriter.variable(f"{tensor.name}_clip", tensor.dtype, tensor.shape)
        if self.rewriter.model.opset < _CLIP_BY_INPUTS:
            self.rewriter.insert("Clip", [tensor], [out], {"min": low, "max": high}, graph=graph)
            return out
        scale = array_of(maker.inputs[1])
        assert scale is not None  # noqa: S101  (there are ends)
        bounds = [self.rewriter.constant("bound", np.array(end, scale.dtype)) for end in (low, high)]
        self.rewriter.insert("Clip", [tensor, *bounds], [out], graph=graph)
        return out


_CLIP_BY_INPUTS = 11
"""The first opset in which Clip's bounds are inputs."""


def _ends(maker: Node) -> tuple[float, float] | None:
    """Return the least and the greatest number on a QuantizeLinear's grid, None where unknown or of several scales."""
    grid = grid_of(maker)
    scale, zero = array_of(grid.scale), array_of(grid.zero)
    if scale is None or not grid.is_single or (grid.zero is not None and zero is None):
        return None
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if zero is None and "output_dtype" in maker.attrs:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(maker.attrs["output_dtype"]))
    whole = limits(kind)
    if whole is None:
        return None
    offset = 0 if zero is None else int(zero.reshape(-1)[0])
    step = float(scale.reshape(-1)[0])
    return (whole[0] - offset) * step, (whole[1] - offset) * step


def root_of(tensor: Tensor) -> Node | None:
    """Return the node that computes what ``tensor`` only moves, None where it is an input or a constant."""
    maker = producer(tensor)
    for _ in range(_DEPTH):
        if maker is None or not is_standard(maker) or maker.op not in _MOVING:
            return maker
        maker = producer(maker.inputs[0])
    return maker


def _is_never_negative(tensor: Tensor) -> bool:
    work, seen = [tensor], {id(tensor)}
    while work:
        behind = _sign_depends_on(work.pop())
        if behind is None or len(seen) > _MOST:
            return False
        work.extend(read for read in behind if id(read) not in seen)
        seen.update(map(id, behind))
    return True


def _sign_depends_on(tensor: Tensor) -> list[Tensor] | None:
    """Return tensors of which one must be negative for ``tensor`` to be; None where it may be anyway."""
    maker, values = producer(tensor), array_of(tensor)
    if values is not None and bool((values >= 0).all()):
        return []
    if maker is None or not is_standard(maker):
        return None
    known = known_range(maker)
    if maker.op in _NEVER_NEGATIVE or (known is not None and known[0] >= 0):
        return []
    if maker.op not in _KEEPING_SIGN:
        return None
    if maker.op == "Pad":
        value = optional(maker, 2)
        return None if attribute(maker, "value", 0.0) < 0 else [maker.inputs[0], *([] if value is None else [value])]
    return list(maker.inputs) if maker.op in ("Add", "Concat", "Mul") else [maker.inputs[0]]


def dead_after(rewriter: Rewriter, nodes: list[Node]) -> None:
    """Remove those of ``nodes`` that nobody reads any more, and what fed nothing but them."""
    work = list(nodes)
    while work:
        node = work.pop()
        if not rewriter.alive(node) or any(out.outputs or rewriter.is_output(out) for out in node.outputs):
            continue
        makers = [maker for read in node.inputs if (maker := producer(read)) is not None]
        rewriter.remove(node)
        work.extend(makers)


def put(rewriter: Rewriter, pairs: Pairs, old: Tensor, new: Tensor, graph: Graph) -> None:
    """Let everybody read ``new`` in place of ``old``; what a graph returns keeps its name."""
    if rewriter.replace(old, new):
        if rewriter.is_output(old):
            pairs.renamed(new, old)
    elif isinstance(new, Constant):
        rewriter.insert("Constant", [], [old], {"value": new}, graph=graph)
    else:
        rewriter.insert("Identity", [new], [old], graph=graph)
