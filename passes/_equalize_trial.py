"""What int8 with one scale for each weight would leave of the outputs: tried on samples, not modelled.

Weights that scales meet are rounded, and a pair of QuantizeLinear and DequantizeLinear stands behind every tensor with
scaled channels that quantization puts on a grid. What is the same whatever the scales is left in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from onnxslim.analysis.equalizable import Equalizable, analyze_scales
from onnxslim.analysis.ranges import observe_ranges
from onnxslim.analysis.shapes import infer_shapes
from onnxslim.ir import Model, Rewriter, numpy_dtype
from onnxslim.passes._equalize import Array
from onnxslim.passes._quantize import grid_of
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Reading, Session, SessionConfig
from onnxslim.samples import Samples

SAMPLES = 16
"""On which candidates are compared, at most."""
MOST = 200.0
"""dB beyond which nobody cares."""
OPSET = 10
"""The first that has QuantizeLinear."""
_LARGEST = 127
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu"})


def gridded(model: Model, scales: Equalizable) -> set[str]:
    """Return tensors that something other than an activation reads: quantization puts those on a grid."""
    return {
        tensor.name
        for node in model.graph.nodes
        if node.op not in _ACTIVATIONS
        for tensor in node.inputs
        if tensor.name in scales.tensors
    }


class Trial:
    """Changes of one model, compared at its outputs. The model stays as it is."""

    def __init__(self, model: Model, samples: Samples, context: PassContext) -> None:
        self._model, self._samples, self._context = model, samples.take(SAMPLES), context
        self._expected = list(self._outputs(model))

    def sqnr(self, change: Callable[[Rewriter], None]) -> float:
        """Return the SQNR of the worst output, had ``change`` been made and the result been quantized.

        In dB, at most 200 either way.

        Raises:
            RuntimeRefusal: onnxruntime does not run the model on a sample.
        """
        tried = self._model.copy()
        rewriter = Rewriter(tried)
        change(rewriter)
        rewriter.finish()
        infer_shapes(tried)
        self._quantize(rewriter)
        signal = noise = np.zeros(len(self._expected[0]))
        for expected, found in zip(self._expected, self._outputs(tried), strict=True):
            signal = signal + [_energy(z) for z in expected]
            noise = noise + [_difference(z, other) for z, other in zip(expected, found, strict=True)]
        return min((_decibels(*pair) for pair in zip(signal, noise, strict=True)), default=MOST)

    def _quantize(self, rewriter: Rewriter) -> None:
        scales = analyze_scales(rewriter.model)
        for part in scales.weights:
            name = part.node.inputs[part.slot].name
            rewriter.set_input(part.node, part.slot, rewriter.constant(name, _rounded(part.values)))
        names = sorted(gridded(rewriter.model, scales))
        ranges = observe_ranges(rewriter.model, names, self._samples, self._context.threads)
        for name, range_ in ranges.items():
            if range_ is not None:
                _insert_pair(rewriter, name, *range_)
        rewriter.finish()

    def _outputs(self, model: Model) -> Iterator[list[Array]]:
        placed = model.placed()  # its file lives as long
        session = Session(placed.data, SessionConfig(self._context.threads, reading=Reading.DEFINITION, spins=False))
        for sample in self._samples:
            arrays = [np.asarray(value) for value in session.run(sample.feed).values()]
            yield [array.astype(np.float64) for array in arrays if array.dtype.kind == "f"]


def _rounded(values: Array) -> Array:
    scale = float(np.abs(values).max(initial=0.0)) / _LARGEST or 1.0
    return (np.round(values / scale) * scale).astype(values.dtype)


def _insert_pair(rewriter: Rewriter, name: str, low: float, high: float) -> None:
    """Let every reader of a tensor read it from its grid."""
    tensor = next(t for node in rewriter.model.graph.nodes for t in node.outputs if t.name == name)
    if numpy_dtype(tensor.dtype) != np.float32:
        return
    readers = [(node, slot) for node in tensor.outputs for slot, read in enumerate(node.inputs) if read is tensor]
    grid = grid_of(low, high)
    scale = rewriter.constant(f"{name}_scale", np.array(grid.scale))
    zero = rewriter.constant(f"{name}_zero", np.array(grid.zero_point))
    stored, back = rewriter.variable(f"{name}_q", zero.dtype), rewriter.variable(f"{name}_dq", tensor.dtype)
    rewriter.insert("QuantizeLinear", [tensor, scale, zero], [stored])
    rewriter.insert("DequantizeLinear", [stored, scale, zero], [back])
    for node, slot in readers:
        rewriter.set_input(node, slot, back)


def _energy(values: Array) -> float:
    return float(np.square(values).sum())


def _difference(values: Array, others: Array) -> float:
    return _energy(values - others) if values.shape == others.shape else math.inf


def _decibels(signal: float, noise: float) -> float:
    if not math.isfinite(noise):
        return -MOST
    ratio = max(signal, 1e-30) / max(noise, 1e-30)
    return round(min(max(10 * math.log10(ratio), -MOST), MOST), 2)
