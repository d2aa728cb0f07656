"""Facts about a model and its surroundings, in the terms of the report."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnx

from onnxslim.analysis import ModelCost, concrete_shapes, model_cost
from onnxslim.ir import Model
from onnxslim.measure.machine import cpu_name
from onnxslim.pipeline import Costs
from onnxslim.report.network import LayerSummary, ModelSummary
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
    model: Model, cost: ModelCost, *, path: Path | None, size: int, sha256: str, download: int | None = None
) -> ModelSummary:
    """Return the report's summary of a model of ``size`` bytes, ``download`` compressed, with the file ``path``."""
    return ModelSummary(
        path=None if path is None else str(path),
        sha256=sha256,
        bytes=size,
        download_bytes=download,
        nodes=cost.nodes,
        params=cost.params,
        macs=cost.macs,
        peak_activation_bytes=cost.peak_activation_bytes,
        opset=model.opset,
        layers=tuple(
            LayerSummary(
                anchor=layer.anchor,
                op=layer.op,
                bytes=layer.bytes,
                params=layer.params,
                macs=layer.macs,
                activation_bytes=layer.activation_bytes,
            )
            for layer in cost.layers
        ),
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
