"""What users do, as functions: optimize, inspect, validate, bench, gate. The only core room that imports passes."""

from __future__ import annotations

from onnxslim.workflow.api import bench, gate, inspect, load, optimize, validate

__all__ = ["bench", "gate", "inspect", "load", "optimize", "validate"]
