"""What the installed onnxruntime has kernels for, asked of itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh

from onnxslim.runtime.sessions import Level, RuntimeRefusal, Session, SessionConfig


@functools.cache
def quantizes(opset: int) -> bool:
    """Whether onnxruntime runs QuantizeLinear and DequantizeLinear of the standard's version ``opset``."""
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        oh.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    stored = [
        onnx.numpy_helper.from_array(np.array(1, np.float32), "scale"),
        onnx.numpy_helper.from_array(np.array(0, np.uint8), "zero"),
    ]
    graph = oh.make_graph(nodes, "probe", ends[:1], ends[1:], stored)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)
    try:
        Session(model, SessionConfig(1, Level.NONE))
    except RuntimeRefusal:
        return False
    return True


@dataclass(frozen=True)
class Kernel:
    """One kernel that is registered for the CPU; there is one for each of some operators' types."""

    domain: str
    """Empty for the standard's."""
    op: str
    first: int
    last: int
    """Versions of the operator that it computes."""


@functools.cache
def registered_kernels() -> tuple[Kernel, ...]:
    """Return all kernels of the installed onnxruntime's CPU provider; none where it does not tell."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    listed: Sequence[Any] = getattr(state, "get_all_opkernel_def", tuple)()
    return tuple(
        Kernel("" if kernel.domain == "ai.onnx" else kernel.domain, kernel.op_name, *kernel.version_range)
        for kernel in listed
        if kernel.provider == "CPUExecutionProvider"
    )


def library_bytes() -> int | None:
    """Return the size of the installed onnxruntime's library, without its bindings where these are apart."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    names = ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll", "onnxruntime_pybind11_state*")
    found = (path for name in names for path in sorted(folder.glob(name)))
    return next((path.stat().st_size for path in found), None)
