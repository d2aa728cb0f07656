"""A model at a newer opset, where a pass inserts what older ones lack."""

from __future__ import annotations

from onnxslim.ir import Rewriter, graph_nodes, is_standard

EXPLICIT_RESIZE = 11
"""The first in which Resize says how it maps coordinates; before, it was always "asymmetric" and "floor"."""


def upgrade(rewriter: Rewriter, opset: int) -> None:
    """Convert to ``opset``; onnx's converter forgets how Resize and Upsample placed samples before opset 11.

    Raises:
        PassError: the converter refuses.
    """
    old = rewriter.model.opset
    rewriter.upgrade(opset)
    if old >= EXPLICIT_RESIZE:
        return
    for _, node in graph_nodes(rewriter.model.graph):
        if is_standard(node, "Resize"):
            rewriter.set_attr(node, "coordinate_transformation_mode", "asymmetric")
            rewriter.set_attr(node, "nearest_mode", "floor")
