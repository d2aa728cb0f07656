"""Which nodes compute the same from the same inputs, every time, and can therefore be computed ahead or shared."""

from __future__ import annotations

from onnxslim.ir import Node, is_standard, subgraphs_of

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def is_deterministic(node: Node) -> bool:
    """Whether ``node`` is of the standard domain, draws nothing at random and holds no subgraph."""
    if not is_standard(node) or node.op in _RANDOM:
        return False
    if node.op == "Dropout" and len(node.inputs) > 2:
        return False  # it may train; remove-noops drops it where it is known not to
    return not subgraphs_of(node)
