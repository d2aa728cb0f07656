"""What is known about a model without changing it: shapes, costs, coupled channels, ranges of inner tensors."""

from __future__ import annotations

from onnxslim.analysis.cost import LayerCost, ModelCost, model_cost
from onnxslim.analysis.shapes import concrete_shapes, forget_shapes, infer_shapes

__all__ = ["LayerCost", "ModelCost", "concrete_shapes", "forget_shapes", "infer_shapes", "model_cost"]
