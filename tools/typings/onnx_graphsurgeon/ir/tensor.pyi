from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx

class LazyValues:
    tensor: onnx.TensorProto
    def __init__(self, tensor: onnx.TensorProto) -> None: ...
    shape: Sequence[int]
    dtype: Any
    nbytes: int
    def load(self) -> npt.NDArray[Any]: ...

class SparseValues(LazyValues): ...
