"""The model in memory: loading, saving, looking things up, and the one door to changing it.

The only room that imports onnx-graphsurgeon. Others say ``Node`` and ``Constant`` and mean GraphSurgeon's.
"""

from __future__ import annotations

from onnx_graphsurgeon import Constant, Graph, Node, Tensor, Variable

from onnxslim.ir.dimensions import fix_batch, fix_input
from onnxslim.ir.lookup import (
    anchor_of,
    array_of,
    attribute,
    constant_bytes,
    consumers,
    dims_of,
    graph_nodes,
    is_standard,
    numpy_dtype,
    only_consumer,
    producer,
    subgraphs_of,
)
from onnxslim.ir.model import Model, TensorSpec
from onnxslim.ir.patterns import selects
from onnxslim.ir.rewriter import Mismatch, Rewriter

__all__ = [
    "Constant",
    "Graph",
    "Mismatch",
    "Model",
    "Node",
    "Rewriter",
    "Tensor",
    "TensorSpec",
    "Variable",
    "anchor_of",
    "array_of",
    "attribute",
    "constant_bytes",
    "consumers",
    "dims_of",
    "fix_batch",
    "fix_input",
    "graph_nodes",
    "is_standard",
    "numpy_dtype",
    "only_consumer",
    "producer",
    "selects",
    "subgraphs_of",
]
