"""Measuring a candidate against its reference: numerics, accuracy, latency."""

from __future__ import annotations

from onnxslim.measure.latency import Latency, RaceSettings, compare_latency
from onnxslim.measure.metric import Metric, MetricTracker, compare_metrics, drop_interval, find_metric
from onnxslim.measure.numerics import Comparison, OutputNumerics, within_exact_tolerance
from onnxslim.measure.validation import (
    LayerSqnr,
    Validation,
    ValidationSettings,
    is_integer_model,
    layer_sqnr,
    validate,
)

__all__ = [
    "Comparison",
    "Latency",
    "LayerSqnr",
    "Metric",
    "MetricTracker",
    "OutputNumerics",
    "RaceSettings",
    "Validation",
    "ValidationSettings",
    "compare_latency",
    "compare_metrics",
    "drop_interval",
    "find_metric",
    "is_integer_model",
    "layer_sqnr",
    "validate",
    "within_exact_tolerance",
]
