"""Writing float16 into a graph: constants rounded, and a Cast wherever a tensor changes between its two types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxslim.ir import Constant, Node, Rewriter, Tensor, array_of, consumers, is_standard, numpy_dtype
from onnxslim.passes._float16_choice import FLOAT32, LARGEST, SIZE_ONLY, half_inputs, half_outputs

Array = npt.NDArray[Any]

FLOAT16 = np.dtype(np.float16)
SMALLEST = 2.0**-24
"""Of float16's numbers above 0."""


def rounded(values: Array) -> Array:
    """Return float32 numbers as the nearest float16; finite ones stay finite, and none but 0 becomes 0.

    An epsilon that became 0 would divide by it, and a mask that became Inf would make NaN of what it hides.
    """
    wide = np.clip(values.astype(np.float64), -LARGEST, LARGEST)
    wide = np.where(np.isinf(values), values, wide)
    small = (wide != 0) & (np.abs(wide) < SMALLEST)
    return np.asarray(np.where(small, np.copysign(SMALLEST, wide), wide).astype(np.float16))


class Caster:
    """Makes nodes compute in float16; each tensor is cast and each constant rounded once."""

    def __init__(self, rewriter: Rewriter, nodes: Iterable[Node]) -> None:
        self.rewriter = rewriter
        self.opset = rewriter.model.opset
        self.nodes = list(nodes)
        self._half: dict[int, Tensor] = {}
        self._wide: dict[int, Tensor] = {}

    def run(self) -> None:
        """Change outputs first, so that every reader finds the tensor in the type that it has."""
        inputs = [(node, half_inputs(node, self.opset)) for node in self.nodes]
        for node in self.nodes:
            for index in half_outputs(node, self.opset):
                self._narrow_output(node, index)
        for node, indices in inputs:
            for index in indices:
                self.rewriter.set_input(node, index, self._as_half(node.inputs[index]))
        self._widen_readers({(id(node), index) for node, indices in inputs for index in indices})

    def _narrow_output(self, node: Node, index: int) -> None:
        """Let ``node`` compute a float16 tensor; what the graph returns is a Cast of it."""
        if is_standard(node, "Cast"):
            self.rewriter.set_attr(node, "to", int(onnx.TensorProto.FLOAT16))
        tensor = node.outputs[index]
        if not self.rewriter.is_output(tensor):
            self.rewriter.set_type(tensor, dtype=FLOAT16)
            self._half[id(tensor)] = tensor
            return
        half = self.rewriter.variable(f"{tensor.name}_half", FLOAT16, tensor.shape)
        node.outputs[index] = half
        self.rewriter.insert("Cast", [half], [tensor], {"to": int(onnx.TensorProto.FLOAT)})
        self._half[id(tensor)] = half

    def _as_half(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._half:
            self._half[id(tensor)] = self._converted(tensor, FLOAT16)
        return self._half[id(tensor)]

    def _converted(self, tensor: Tensor, dtype: np.dtype[Any]) -> Tensor:
        values = array_of(tensor)
        if values is not None:
            return self.rewriter.constant(tensor.name, rounded(values))
        suffix = "half" if dtype == FLOAT16 else "float"
        made = self.rewriter.variable(f"{tensor.name}_{suffix}", dtype, tensor.shape)
        number = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        self.rewriter.insert("Cast", [tensor], [made], {"to": int(number)})
        return made

    def _widen_readers(self, halves: set[tuple[int, int]]) -> None:
        """Give everybody else, subgraphs included, what became float16 as float32 again."""
        for tensor in [
            t for t in self._half.values() if not isinstance(t, Constant) and numpy_dtype(t.dtype) == FLOAT16
        ]:
            for reader in consumers(tensor):
                self._widen(reader, tensor, halves)

    def _widen(self, reader: Node, tensor: Tensor, halves: set[tuple[int, int]]) -> None:
        if reader.op in SIZE_ONLY or reader.op == "Cast":
            return
        for index, current in enumerate(reader.inputs):
            if current is tensor and (id(reader), index) not in halves:
                if id(tensor) not in self._wide:
                    self._wide[id(tensor)] = self._converted(tensor, FLOAT32)
                self.rewriter.set_input(reader, index, self._wide[id(tensor)])
