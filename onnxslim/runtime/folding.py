"""Evaluating constant parts of a graph with onnxruntime, so that folded values are the ones it would compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxslim.runtime.loops import IMPATIENT
from onnxslim.runtime.sessions import Level, Session, SessionConfig


def evaluate(proto: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Run a model without inputs and return its tensor outputs by name; outputs that are no tensors are absent.

    Raises:
        RuntimeRefusal: onnxruntime does not load or run it.
    """
    values = Session(proto, SessionConfig(level=Level.NONE, patience=IMPATIENT)).run({})
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
