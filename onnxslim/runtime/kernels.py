"""What the installed onnxruntime has kernels for, asked of itself."""

from __future__ import annotations

import functools

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
