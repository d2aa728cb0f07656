"""Facts about a model and its surroundings, in the terms of the report."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnx

from onnxslim.analysis import LayerCost, ModelCost, concrete_shapes, model_cost
from onnxslim.analysis.quantized_ranges import quantized_ranges
from onnxslim.ir import Model
from onnxslim.measure.layer_times import origins_of
from onnxslim.measure.machine import cpu_name
from onnxslim.pipeline import Costs
from onnxslim.report.network import ActivationPeak, LayerSummary, ModelSummary, TensorRange
from onnxslim.report.schema import Environment, Tool
from onnxslim.runtime import Feed
from onnxslim.runtime.sessions import version as onnxruntime_version


def cost_of(model: Model, feed: Feed | None) -> ModelCost:
    """Return what ``model`` costs at the shapes of ``feed``."""
    return model_cost(model, concrete_shapes(model, feed))


def totals(cost: ModelCost) -> Costs:
    """Return the sums of ``cost`` that passes and their results speak of."""
    return Costs(cost.bytes, cost.params, cost.macs)


def summarize(
    model: Model,
    cost: ModelCost,
    *,
    path: Path | None,
    size: int,
    sha256: str,
    download: int | None = None,
    reference: Model | None = None,
) -> ModelSummary:
    """Return the report's summary of a model.

    Args:
        path: of its file.
        size: of the file in bytes.
        download: the same, compressed.
        reference: what it was made of; layers then say which of its layers they work for.
    """
    origins = {} if reference is None else _origins(reference, model)
    return ModelSummary(
        path=None if path is None else str(path),
        sha256=sha256,
        bytes=size,
        download_bytes=download,
        nodes=cost.nodes,
        params=cost.params,
        macs=cost.macs,
        peak_activation_bytes=cost.peak_activation_bytes,
        peak=None if cost.peak is None else ActivationPeak.model_validate(cost.peak),
        opset=model.opset,
        layers=tuple(_layer(layer, origins.get(layer.anchor)) for layer in cost.layers),
        ranges=tuple(TensorRange.model_validate(one) for one in quantized_ranges(model.graph)),
    )


def _origins(reference: Model, model: Model) -> dict[str, str]:
    """Return the layer of ``reference`` that each node of ``model`` works for, where it has another name."""
    found = origins_of(reference.skeleton(0).graph, model.skeleton(0).graph)
    return {name: layer for name, layer in found.items() if name != layer}


def _layer(layer: LayerCost, origin: str | None) -> LayerSummary:
    return LayerSummary(
        anchor=layer.anchor,
        op=layer.op,
        bytes=layer.bytes,
        params=layer.params,
        macs=layer.macs,
        activation_bytes=layer.activation_bytes,
        origin=origin,
    )


def tool() -> Tool:
    """Return this tool's name and version."""
    from onnxslim import __version__

    return Tool(name="onnxslim-mobile", version=__version__)


def environment() -> Environment:
    """Return what the measurements were made on."""
    return Environment(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        onnx=onnx.__version__,
        onnxruntime=onnxruntime_version(),
    )


def both_known(one: int | None, other: int | None) -> tuple[int, int] | None:
    """Return the pair, None where one of them is unknown."""
    return None if one is None or other is None else (one, other)
