"""A model at the opset in which DequantizeLinear knows blocks."""

from __future__ import annotations

from onnxslim.ir import Rewriter, graph_nodes, is_standard

OPSET = 21
"""The first in which DequantizeLinear has blocks, and integers have 4 bits."""
EXPLICIT_RESIZE = 11
"""The first in which Resize says how it maps coordinates; before, it was always "asymmetric" and "floor"."""


def upgrade(rewriter: Rewriter) -> None:
    """Convert to ``OPSET``; onnx's converter forgets how Resize and Upsample placed samples before opset 11.

    Raises:
        PassError: the converter refuses.
    """
    old = rewriter.model.opset
    rewriter.upgrade(OPSET)
    if old >= EXPLICIT_RESIZE:
        return
    for _, node in graph_nodes(rewriter.model.graph):
        if is_standard(node, "Resize"):
            rewriter.set_attr(node, "coordinate_transformation_mode", "asymmetric")
            rewriter.set_attr(node, "nearest_mode", "floor")
