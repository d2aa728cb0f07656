"""What this project uses of onnx-graphsurgeon, typed: the library ships no types of its own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_graphsurgeon.ir.tensor import LazyValues

class Tensor:
    name: str
    inputs: list[Node]
    outputs: list[Node]
    dtype: Any
    shape: Any
    def is_empty(self) -> bool: ...

class Variable(Tensor):
    type: str
    def __init__(
        self, name: str, dtype: Any = None, shape: Sequence[int | str | None] | None = None, type: str = ...
    ) -> None: ...
    @staticmethod
    def empty() -> Variable: ...

class Constant(Tensor):
    @property
    def values(self) -> npt.NDArray[Any]: ...
    @values.setter
    def values(self, values: npt.NDArray[Any] | LazyValues) -> None: ...
    _values: npt.NDArray[Any] | LazyValues
    export_dtype: Any
    data_location: int | None
    def __init__(self, name: str, values: npt.NDArray[Any] | LazyValues) -> None: ...

class Node:
    op: str
    name: str
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    domain: str | None
    def __init__(
        self,
        op: str,
        name: str | None = None,
        attrs: dict[str, Any] | None = None,
        inputs: Sequence[Tensor] | None = None,
        outputs: Sequence[Tensor] | None = None,
        domain: str | None = None,
    ) -> None: ...
    def subgraphs(self, recursive: bool = ...) -> Iterator[Graph]: ...

class Graph:
    nodes: list[Node]
    inputs: list[Tensor]
    outputs: list[Tensor]
    name: str
    opset: int
    doc_string: str
    def __init__(
        self,
        *,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        name: str,
        doc_string: str,
        opset: int | None,
        import_domains: Any,
    ) -> None: ...
    def copy(self) -> Graph: ...
    def toposort(self) -> Graph: ...
    def cleanup(self) -> Graph: ...
    def subgraphs(self, recursive: bool = ...) -> Iterator[Graph]: ...
    def tensors(self) -> dict[str, Tensor]: ...
