"""Whether a factorized layer is faster: both forms in onnxruntime, at the layer's real input, beside each other.

Time does not depend on weights, so the stages are timed with noise for weights; what was timed once is remembered,
from run to run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from onnxslim.analysis.linear_layers import Floats, LinearLayer
from onnxslim.analysis.recurrent_inputs import RecurrentInput
from onnxslim.ir import numpy_dtype
from onnxslim.measure.stopwatch import Rounds, time_shares
from onnxslim.measure.timings import Timings
from onnxslim.passes._forms import Form, Stage, blank
from onnxslim.runtime import RuntimeRefusal

WORTH = 0.6
"""Share of the saved multiply-accumulates that must be saved time."""
MARGIN = 0.03
"""How much faster a form must be at least: less is within the noise."""
ROUNDS = Rounds(seconds=0.25, least=7, most=60)


@dataclass
class FormClock:
    """Times forms of layers for one opset; asks onnxruntime once for each shape."""

    opset: int
    known: Timings = field(default_factory=Timings)

    def share(self, layer: LinearLayer, form: Form, shape: tuple[int, ...]) -> float | None:
        """Return the time of ``form`` as a share of the layer's own for inputs of ``shape``; None if it did not run."""
        key = self._key(layer, form, shape)
        found = self.known.get(key)
        if found is None:
            found = self._measured(layer, form, shape)
            if found is not None:
                self.known.put(key, found)
        return found

    def _key(self, layer: LinearLayer, form: Form, shape: tuple[int, ...]) -> str:
        attrs = " ".join(f"{name}={value}" for name, value in sorted(layer.node.attrs.items()))
        own = f"{layer.node.op} {self.opset} {numpy_dtype(layer.weight.dtype)} {tuple(map(int, layer.weight.shape))}"
        return f"{own} {attrs} of {shape}: {form.scheme.value} {form.rank} {form.inner}"

    def _measured(self, layer: LinearLayer, form: Form, shape: tuple[int, ...]) -> float | None:
        random = np.random.default_rng(0)
        own = Stage(layer.node.op, layer.stored(random.standard_normal(layer.matrix_shape)), dict(layer.node.attrs))
        beside = None
        if isinstance(layer, RecurrentInput):
            beside = random.standard_normal(tuple(map(int, layer.node.inputs[2].shape)))
        dtype = numpy_dtype(layer.weight.dtype)
        if dtype is None:
            return None
        forms = (own,), blank(layer, form, random)
        models = [_model(stages, shape, self.opset, dtype, beside) for stages in forms]
        feeds = [{"x": random.standard_normal(shape).astype(dtype)}] * 2
        try:
            return round(time_shares(models, feeds, ROUNDS)[1], 4)
        except RuntimeRefusal:
            return None


def pays(time: float, macs: float, worth: float = WORTH, margin: float = MARGIN) -> bool:
    """Whether a form with these shares of time and multiply-accumulates is worth it."""
    return 1 - time >= max(worth * (1 - macs), margin)


def _model(
    stages: tuple[Stage, ...],
    shape: tuple[int, ...],
    opset: int,
    dtype: np.dtype[np.generic],
    beside: Floats | None,
) -> bytes:
    """Return a model of nothing but ``stages``; ``beside`` is the recurrent weight of the last."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, weights, given = [], [], "x"
    for index, stage in enumerate(stages):
        out = "y" if index == len(stages) - 1 else f"m{index}"
        inputs = [given, f"w{index}"]
        weights.append(onnx.numpy_helper.from_array(stage.weight.astype(dtype), f"w{index}"))
        if stage.op == "Gemm" and opset < 11:
            inputs.append(f"b{index}")
            weights.append(onnx.numpy_helper.from_array(np.zeros(1, dtype), f"b{index}"))
        if beside is not None and index == len(stages) - 1:
            inputs.append("r")
            weights.append(onnx.numpy_helper.from_array(beside.astype(dtype), "r"))
        nodes.append(helper.make_node(stage.op, inputs, [out], **stage.attrs))
        given = out
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString()
