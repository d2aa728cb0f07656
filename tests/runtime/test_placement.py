"""Where layers run: what onnxruntime makes of pairs, by the names of the model, with reasons for what stays float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto, numpy_helper

from onnxslim.runtime.placed_graph import Place
from onnxslim.runtime.placement import LayerPlacement, Placement, Waste, read_placement
from onnxslim.runtime.placement_reasons import Why
from onnxslim.runtime.profile import NodeTime, profile

SCALE, ZERO = np.array(0.05, np.float32), np.array(128, np.uint8)
Layers = dict[str, LayerPlacement]


class Net:
    """Writes a small network with pairs, node by node; every method returns the tensor that it makes."""

    def __init__(self, shape: tuple[int | str, ...] = (1, 4, 8, 8)) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Any] = {"s": SCALE, "z": ZERO, "low": np.array(0, np.uint8)}
        self.input = oh.make_tensor_value_info("x", TensorProto.FLOAT, shape)

    def op(self, op: str, *inputs: str, out: str, **attributes: Any) -> str:
        self.nodes.append(oh.make_node(op, inputs, [out], **attributes))
        return out

    def pair(self, x: str, out: str | None = None, zero: str = "z") -> str:
        quantized = self.op("QuantizeLinear", x, "s", zero, out=f"{x}_q")
        return self.op("DequantizeLinear", quantized, "s", zero, out=out or f"{x}_dq")

    def weight(self, name: str, *shape: int) -> str:
        """int8 behind DequantizeLinear."""
        self.stored[f"{name}_q"] = self.random.integers(-90, 90, shape).astype(np.int8)
        self.stored |= {"ws": np.array(0.01, np.float32), "wz": np.array(0, np.int8)}
        return self.op("DequantizeLinear", f"{name}_q", "ws", "wz", out=f"{name}_dq")

    def conv(self, x: str, out: str) -> str:
        return self.op("Conv", x, self.weight(f"{out}_w", 4, 4, 3, 3), out=out, pads=[1, 1, 1, 1])

    def constant(self, name: str, values: Any, dtype: type = np.float32) -> str:
        self.stored[name] = np.array(values, dtype)
        return name

    def model(self, *outputs: str, opset: int = 17) -> bytes:
        ends = [onnx.ValueInfoProto(name=name) for name in outputs]
        stored = [numpy_helper.from_array(value, name) for name, value in self.stored.items()]
        graph = oh.make_graph(self.nodes, "net", [self.input], ends, stored)
        proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)
        return proto.SerializeToString()


def placed(model: bytes) -> tuple[Layers, Placement]:
    placement = read_placement(model)
    return {layer.anchor: layer for layer in placement.layers}, placement


def places(layers: Layers) -> dict[str, tuple[str, str]]:
    return {anchor: (layer.place.value, layer.kernel) for anchor, layer in layers.items() if layer.within is None}


# ---- integer, moved, float ---------------------------------------------------------------------------------------


def test_a_quantized_network_is_integer_all_the_way() -> None:
    net = Net()
    conv = net.conv(net.pair("x"), "conv")
    relu = net.pair(net.op("Relu", conv, out="relu"), zero="low")
    pool = net.pair(net.op("MaxPool", relu, out="pool", kernel_shape=[2, 2]), zero="low")
    total = net.op("Add", pool, net.pair(net.conv(pool, "second")), out="sum")
    layers, placement = placed(net.model(net.pair(total, "y")))
    assert places(layers) == {
        "conv": ("integer", "QLinearConv"),
        "pool": ("moved", "MaxPool"),
        "second": ("integer", "QLinearConv"),
        "y": ("integer", "QLinearAdd"),
    }
    assert layers["relu"].within == "conv"
    assert layers["relu"].place is Place.INTEGER
    assert placement.wasted == ()
    assert placement.total_us is None


def test_a_float_network_is_float() -> None:
    net = Net()
    layers, _ = placed(net.model(net.op("Exp", "x", out="y")))
    assert places(layers) == {"y": ("float", "Exp")}


def test_arithmetic_of_shapes_is_no_layer() -> None:
    net = Net()
    sizes = net.op("Shape", "x", out="sizes")
    target = net.op("Concat", net.op("Abs", sizes, out="same"), net.constant("one", [1], np.int64), out="more", axis=0)
    layers, _ = placed(net.model(net.op("Reshape", net.pair("x"), target, out="y")))
    assert list(layers) == ["y"]


def test_an_activation_can_vanish_in_a_pair() -> None:
    net = Net()
    pair = net.pair(net.op("Relu", "x", out="relu"), zero="low")
    layers, _ = placed(net.model(net.op("Neg", pair, out="y")))
    assert (layers["relu"].place, layers["relu"].within) == (Place.INTEGER, "relu_q")
    assert places(layers) == {"y": ("float", "Neg")}


def test_float_weights_between_pairs_are_integers_all_the_same() -> None:
    net = Net()
    weight = net.constant("w", net.random.standard_normal((4, 4, 1, 1)))
    conv = net.pair(net.op("Conv", net.pair("x"), weight, out="conv"))
    layers, _ = placed(net.model(net.pair(net.conv(conv, "second"), "y")))
    assert places(layers) == {"conv": ("integer", "QLinearConv"), "y": ("integer", "QLinearConv")}
    assert (layers["conv"].why, layers["y"].why) == (Why.ROUNDED_AT_LOAD, None)


def test_integers_made_float_by_a_cast_are_not_moved() -> None:
    net = Net()
    net.pair("x")
    layers, _ = placed(net.model(net.op("Neg", net.op("Cast", "x_q", out="cast", to=TensorProto.FLOAT), out="y")))
    assert places(layers) == {"cast": ("float", "Cast"), "y": ("float", "Neg")}


# ---- why a layer stays in float ----------------------------------------------------------------------------------


def between() -> bytes:
    net = Net()
    conv = net.conv(net.pair("x"), "conv")
    return net.model(net.pair(net.op("Elu", conv, out="elu"), "y"))


def cut_off() -> bytes:
    """The range of the pair after Relu has negative numbers, which Relu would have to cut off."""
    net = Net()
    relu = net.op("Relu", net.conv(net.pair("x"), "conv"), out="relu")
    return net.model(net.op("Neg", net.pair(relu), out="y"))


def without_kernel() -> bytes:
    net = Net()
    return net.model(net.op("Neg", net.pair(net.op("Exp", net.pair("x"), out="conv")), out="y"))


def bare_input() -> bytes:
    net = Net()
    return net.model(net.op("Neg", net.pair(net.conv("x", "conv")), out="y"))


def read_in_float() -> bytes:
    net = Net()
    conv = net.conv(net.pair("x"), "conv")
    return net.model(net.pair(conv, "p"), net.op("Exp", conv, out="y"))


def the_models_own() -> bytes:
    net = Net()
    return net.model(net.conv(net.pair("x"), "conv"))


def weights_only() -> bytes:
    net = Net()
    return net.model(net.conv("x", "conv"))


def float_operand() -> bytes:
    net = Net()
    added = net.op("Add", net.pair("x"), net.constant("b", np.ones((4, 1, 1))), out="conv")
    return net.model(net.op("Neg", net.pair(added), out="y"))


def unwanted_bias() -> bytes:
    """The bias has a scale that is not that of the sums."""
    net = Net()
    net.constant("b_q", [1, 2, 3, 4], np.int32)
    bias = net.op("DequantizeLinear", "b_q", "s", out="b")
    conv = net.op("Conv", net.pair("x"), net.weight("w", 4, 4, 1, 1), bias, out="conv")
    return net.model(net.op("Neg", net.pair(conv), out="y"))


def interpolated() -> bytes:
    net = Net()
    scales = net.constant("scales", [1, 1, 2, 2])
    resized = net.op("Resize", net.pair("x"), "", scales, out="conv", mode="linear")
    return net.model(net.op("Neg", net.pair(resized), out="y"))


def another_grid_behind() -> bytes:
    net = Net()
    pooled = net.op("MaxPool", net.pair("x"), out="conv", kernel_shape=[2, 2])
    return net.model(net.op("Neg", net.pair(pooled, zero="low"), out="y"))


def split_in_float() -> bytes:
    """The sizes are a constant, but no operand."""
    net = Net()
    sizes = net.constant("sizes", [2, 2], np.int64)
    net.nodes.append(oh.make_node("Split", [net.pair("x"), sizes], ["conv", "half"], axis=1))
    return net.model(net.op("Neg", net.pair("conv"), out="y1"), net.op("Exp", "half", out="y2"))


def constants_only() -> bytes:
    net = Net(("n", 4, 8, 8))
    shape = net.op("Shape", "x", out="shape")
    wide = net.op("Expand", net.constant("one", np.ones((1, 1, 1, 1))), shape, out="conv")
    return net.model(net.op("Add", net.pair(wide), net.pair("x"), out="y"))


def alone() -> bytes:
    net = Net()
    return net.model(net.op("Softmax", "x", out="conv"), net.pair("x", "p"))


REASONS = {
    between: (Why.BETWEEN, "Elu, in float, lies between it and QuantizeLinear"),
    without_kernel: (Why.NO_KERNEL, "onnxruntime has no integer kernel for Exp"),
    bare_input: (Why.INPUT, "its input 'x' has no DequantizeLinear: it is the model's own"),
    read_in_float: (Why.OUTPUT, "its output 'conv' has no QuantizeLinear: Exp reads it in float"),
    the_models_own: (Why.OUTPUT, "its output 'conv' is the model's own, in float"),
    weights_only: (Why.WEIGHTS, "its weights are integers but its activations are not"),
    float_operand: (Why.WEIGHTS, "its activations are integers but a constant of it is not"),
    cut_off: (Why.BETWEEN, "Relu lies between it and QuantizeLinear, whose range is wider"),
    unwanted_bias: (Why.UNFUSED, "pairs are all around it, but onnxruntime makes no integer kernel of this Conv"),
    interpolated: (Why.NO_KERNEL, "onnxruntime has no integer kernel for Resize (mode linear)"),
    another_grid_behind: (
        Why.UNFUSED,
        "the pairs before and after it differ, so that integers cannot pass it as they are",
    ),
    split_in_float: (Why.OUTPUT, "its output 'half' has no QuantizeLinear: Exp reads it in float"),
    constants_only: (Why.SURROUNDINGS, "it reads no activations, only constants in float"),
    alone: (Why.SURROUNDINGS, "neither its inputs nor its outputs are quantized"),
}


@pytest.mark.parametrize("case", REASONS, ids=lambda case: case.__name__)
def test_why_it_stays_in_float(case) -> None:  # type: ignore[no-untyped-def]
    layers, _ = placed(case())
    found = layers["conv"]
    assert (found.place, found.why, found.reason) == (Place.FLOAT, *REASONS[case])


def test_a_relu_after_a_float_layer_has_nothing_to_vanish_in() -> None:
    net = Net()
    relu = net.op("Relu", net.op("Exp", net.pair("x"), out="e"), out="relu")
    layers, _ = placed(net.model(net.op("Neg", net.pair(relu), out="y")))
    assert layers["relu"].why is Why.SURROUNDINGS


# ---- names -------------------------------------------------------------------------------------------------------


def test_layers_fused_under_other_names_are_found() -> None:
    net = Net((1, 4, 8))
    net.constant("one", np.ones(8))
    mean = net.op("ReduceMean", "x", out="mean", axes=[-1])
    centred = net.op("Sub", "x", mean, out="centred")
    square = net.op("Pow", centred, net.constant("two", 2.0), out="square")
    spread = net.op("ReduceMean", square, out="variance", axes=[-1])
    root = net.op("Sqrt", net.op("Add", spread, net.constant("eps", 1e-5), out="moved"), out="root")
    scaled = net.op("Mul", net.op("Div", centred, root, out="normal"), "one", out="scaled")
    out = net.op("Add", scaled, net.constant("zero", np.zeros(8)), out="out")
    layers, _ = placed(net.model(net.pair(out, "y")))
    assert {layer.kernel for layer in layers.values()} == {"LayerNormalization"}
    assert sum(layer.within is None for layer in layers.values()) == 1
    assert len(layers) == 9
    assert layers["y"].within is None
    assert layers["mean"].within == "y"


def test_a_graph_output_names_its_layer_though_others_read_it() -> None:
    net = Net()
    conv = net.conv(net.pair("x"), "inner")
    quantized = net.op("QuantizeLinear", conv, "s", "z", out="q")
    ends = [net.op("DequantizeLinear", quantized, "s", "z", out=name) for name in ("d", "y1")]
    layers, _ = placed(net.model(ends[1], net.pair(net.conv(ends[0], "second"), "y2")))
    assert places(layers) == {"y1": ("integer", "QLinearConv"), "y2": ("integer", "QLinearConv")}


def test_a_tensor_that_is_read_in_float_too_keeps_its_name() -> None:
    net = Net()
    conv = net.conv(net.pair("x"), "inner")
    assert set(placed(net.model(net.pair(conv, "y1"), net.op("Exp", conv, out="y2")))[0]) == {"inner", "y2"}


# ---- what is run for nothing -------------------------------------------------------------------------------------


def test_a_weight_that_is_dequantized_every_time() -> None:
    net = Net()
    up = net.op("ConvTranspose", "x", net.weight("w", 4, 2, 2, 2), out="up", strides=[2, 2])
    layers, placement = placed(net.model(up, net.pair("x", "p")))
    assert layers["up"].why is Why.NO_KERNEL
    assert [(w.waste, w.tensor, w.reader) for w in placement.wasted] == [
        (Waste.CONSTANT, "w_dq", "up"),
        (Waste.ROUNDED, "x_q", "p"),
    ]


def test_float_weights_that_onnxruntime_rounds_itself() -> None:
    net = Net()
    weight = net.constant("w", net.random.standard_normal((4, 2, 2, 2)))
    up = net.op("ConvTranspose", net.pair("x"), weight, out="up", strides=[2, 2])
    _, placement = placed(net.model(net.op("Neg", net.pair(up), out="y")))
    (found,) = [w for w in placement.wasted if w.waste is not Waste.ROUNDED]
    assert (found.waste, found.reader) == (Waste.MADE_INTEGER, "up")


def test_from_one_grid_to_another_through_float() -> None:
    net = Net()
    net.constant("s2", 0.1)
    first = net.pair(net.conv(net.pair("x"), "first"))
    again = net.op("QuantizeLinear", first, "s2", "z", out="again")
    second = net.conv(net.op("DequantizeLinear", again, "s2", "z", out="again_dq"), "second")
    model = net.model(net.pair(second, "y1"), net.pair(net.conv(first, "third"), "y2"))
    _, placement = placed(model)
    assert [(w.waste, w.tensor, w.reader) for w in placement.wasted] == [(Waste.REQUANTIZED, "first_dq", "again")]


def test_rounded_to_stay_float() -> None:
    net = Net()
    soft = net.op("Exp", "x", out="e")
    _, placement = placed(net.model(net.op("Erf", net.pair(soft), out="y")))
    assert [(w.waste, w.tensor) for w in placement.wasted] == [(Waste.ROUNDED, "e_q")]


# ---- times -------------------------------------------------------------------------------------------------------


def test_times_of_a_profile_find_their_layers() -> None:
    model = between()
    times = profile(model, {"x": np.ones((1, 4, 8, 8), np.float32)}, runs=2)
    placement = read_placement(model, times)
    layers = {layer.anchor: layer for layer in placement.layers}
    assert placement.total_us == pytest.approx(sum(time.microseconds for time in times))
    own = [layer.microseconds or 0.0 for layer in placement.layers if layer.within is None]
    foreign = sum(one.microseconds for one in placement.inserted)
    weights = sum(w.microseconds or 0.0 for w in placement.wasted)
    assert placement.conversion_us is not None
    assert sum(own) + foreign + placement.conversion_us == pytest.approx(placement.total_us)
    assert weights <= placement.conversion_us
    assert layers["conv"].conversion_us is not None


def test_times_are_joined_by_name_and_shared_by_readers() -> None:
    net = Net()
    x = net.pair("x")
    model = net.model(net.pair(net.op("Exp", x, out="e"), "y1"), net.pair(net.op("Elu", x, out="f"), "y2"))
    names = {"x_q": 1.0, "x_dq": 4.0, "e": 8.0, "e_q": 16.0, "y1": 32.0, "f": 64.0, "f_q": 128.0, "y2": 256.0}
    ops = {"e": "Exp", "f": "Elu"}
    times = [NodeTime(name, name, ops.get(name, "QuantizeLinear"), spent) for name, spent in names.items()]
    placement = read_placement(model, [*times, NodeTime("Transpose_token_3", None, "Transpose", 512.0)])
    found = {layer.anchor: (layer.microseconds, layer.conversion_us) for layer in placement.layers}
    assert found == {"y1": (8.0, 2.0 + 16.0), "y2": (64.0, 2.0 + 128.0)}
    assert [(one.op, one.count, one.microseconds) for one in placement.inserted] == [("Transpose", 1, 512.0)]
    assert placement.conversion_us == sum(names.values()) - 8 - 64
