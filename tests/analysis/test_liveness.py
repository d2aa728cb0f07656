"""What is held along the network: rules one by one, and the whole beside what onnxruntime says it holds."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxslim
from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.analysis.liveness import _IN_PLACE, Liveness, liveness
from onnxslim.ir import Model
from onnxslim.passes import InsertQdq
from onnxslim.runtime import Level, Session, SessionConfig, load_proto
from onnxslim.samples import Samples
from tools.gallery import ARCHITECTURES

MODELS = Path(__file__).parents[2] / "models"
HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n'


def walk(text: str, head: str = HEAD) -> list[int | None]:
    model = Model.load(onnx.parser.parse_model(head + text))
    found = liveness(model.graph, concrete_shapes(model))
    return [found.live[id(node)] for node in model.graph.nodes]


CASES = {
    # a float is 4 bytes, each tensor has 100 of them, the caller's input is held to the end
    "x and y": ("y = Neg(x)", [800]),
    "a is over when z is made": ("a = Neg(x) b = Neg(a) y = Neg(b)", [800, 1200, 1200]),
    "activations write over their input": ("a = Neg(x) b = Relu(a) y = Neg(b)", [800, 800, 1200]),
    "unless it is read again": ("a = Neg(x) b = Relu(a) y = Add(a, b)", [800, 1200, 1600]),
    "never over the caller's input": ("b = Relu(x) y = Neg(b)", [800, 1200]),
    "nor where the caller wants it": ("b = Neg(x) y = Relu(b)", [800, 1200]),
    "views write nothing": ("a = Neg(x) b = Reshape(a, m) c = Identity(b) y = Neg(c)", [800, 800, 800, 1200]),
    "a view is held as long": (
        "a = Neg(x) b = Identity(a) c = Neg(a) d = Relu(b) y = Sub(c, d)",
        [800, 800, 1200, 1200, 1600],
    ),
    "constants and what is made of them": ("a = Neg(w) b = Add(a, w) y = Add(x, b)", [400, 400, 800]),
    "unread outputs": ("a, b = Split<axis = 1>(x, n) y = Concat<axis = 1>(a, a)", [800, 1000]),
    "a bias becomes part of the convolution": ("a = Conv(x, k) c = Add(a, w) y = Neg(c)", [800, 800, 1200]),
    "padding is part of its convolution": (
        "a = Neg(x) b = Pad(a, p) c = Conv(b, k) y = Neg(c)",
        [800, 800, 1216, 1232],
    ),
    "but not of anything else": ("a = Neg(x) b = Pad(a, p) c = Neg(b) y = Neg(c)", [800, 1216, 1232, 1232]),
    "nor where it reflects": (
        'a = Neg(x) b = Pad<mode = "reflect">(a, p) c = Conv(b, k) y = Neg(c)',
        [800, 1216, 1232, 1232],
    ),
    "SiLU is one step": ("a = Neg(x) b = Sigmoid(a) c = Mul(a, b) y = Neg(c)", [800, 800, 1200, 1200]),
    "another gate is two": ("a = Neg(x) b = Sigmoid(a) c = Mul(x, b) y = Neg(c)", [800, 800, 1200, 1200]),
    "HardSwish takes two steps": ("a = Neg(x) b = HardSwish(a) y = Neg(b)", [800, 1600, 1200]),
    "a pair holds integers": (
        "q = Q(x) d = D(q) a = MaxPool<kernel_shape = [1]>(d) r = Q(a) y = D(r)",
        [500, 500, 600, 500, 900],
    ),
    "an activation between vanishes": (
        "q = Q(x) d = D(q) a = Add(d, d) c = Relu(a) r = Q(c) y = D(r)",
        [500, 500, 600, 500, 500, 900],
    ),
    "a float kernel holds floats": ("q = Q(x) d = D(q) a = Sin(d) r = Q(a) y = D(r)", [500, 900, 1200, 900, 900]),
    "so does one with a float reader": (
        "q = Q(x) d = D(q) a = Add(d, d) r = Q(a) e = D(r) y = Add(e, a)",
        [500, 900, 1200, 900, 1300, 1600],
    ),
    "integers wait for all their readers": (
        "q = Q(x) d = D(q) a = MaxPool<kernel_shape = [1]>(d) r = Q(a) e = D(r) c = Add(d, e) t = Q(c) y = D(t)",
        [500, 500, 600, 600, 600, 700, 500, 900],
    ),
}


def pairs(body: str) -> str:
    """Spell out pairs."""
    body = re.sub(r"Q\((\w)\)", r"QuantizeLinear(\1, s, z)", body)
    return re.sub(r"D\((\w)\)", r"DequantizeLinear(\1, s, z)", body)


SHAPE = "float[1, 2, 50]"
CONSTANTS = (
    "<int64[2] n = {1, 1}, int64[3] m = {1, 2, 50}, int64[6] p = {0, 0, 1, 0, 0, 1}, "
    "float[1] w = {1}, float[2, 2, 1] k = {1, 1, 1, 1}, float s = {0.1}, uint8 z = {0}>"
)


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_rules(body: str, expected: list[int]) -> None:
    assert walk(f"a ({SHAPE} x) => ({SHAPE} y) {CONSTANTS} {{ {pairs(body)} }}") == expected


def test_an_output_that_is_read_goes_on_to_the_end() -> None:
    body = "y = Neg(x) a = Neg(y) z = Neg(a)"
    assert walk(f"a ({SHAPE} x) => ({SHAPE} y, {SHAPE} z) {{ {body} }}") == [800, 1200, 1600]


def test_what_a_branch_captures_is_held_until_it_runs() -> None:
    branches = f"then_branch = t () => ({SHAPE} p) {{ p = Neg(a) }}, else_branch = e () => ({SHAPE} q) {{ q = Neg(b) }}"
    body = f"a = Neg(x) b = Neg(x) y = If<{branches}>(c)"
    assert walk(f"a ({SHAPE} x, bool[1] c) => ({SHAPE} y) {{ {body} }}") == [801, 1201, 1601]


def test_16_bits_are_computed_in_float() -> None:
    body = pairs("q = Q(x) d = D(q) a = MaxPool<kernel_shape = [1]>(d) r = Q(a) y = D(r)")
    text = f"a ({SHAPE} x) => ({SHAPE} y) <float s = {{0.1}}, uint16 z = {{0}}> {{ {body} }}"
    assert walk(text, HEAD.replace("17", "21").replace("8", "10", 1))[2] == 1200


def test_weights_in_few_bits_are_expanded_for_a_float_kernel() -> None:
    weights = "<float s = {0.1}, int8 z = {0}, int8[4, 4] q = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}>"
    body = "w = DequantizeLinear(q, s, z) y = MatMul(x, w)"
    assert walk(f"a (float[1, 4] x) => (float[1, 4] y) {weights} {{ {body} }}") == [16 + 64, 16 + 64 + 16]


def test_unknown_sizes_are_unknown_while_they_are_held() -> None:
    model = Model.load(
        onnx.parser.parse_model(HEAD + "a (float[4] x) => (float[4] y) { a = NonZero(x) b = Shape(a) y = Neg(x) }")
    )
    found = liveness(model.graph, concrete_shapes(model))
    assert [found.live[id(node)] for node in model.graph.nodes] == [None, None, 32]
    assert found.peak is None


def test_the_peak_names_what_is_held() -> None:
    text = "a (float[100] x) => (float[50] y) <int64[2] n = {50, 50}> { a = Neg(x) y, b = Split <axis = 0> (a, n) }"
    model = Model.load(onnx.parser.parse_model(HEAD + text))
    cost = model_cost(model, concrete_shapes(model))
    assert cost.peak is not None
    assert (cost.peak.anchor, cost.peak.bytes) == ("y", 1200)
    assert [(one.name, one.bytes) for one in cost.peak.tensors] == [("x", 400), ("a", 400), ("y", 200), ("b", 200)]
    assert cost.peak_activation_bytes == 1200


# ---- beside onnxruntime --------------------------------------------------------------------------------------


def held_by_onnxruntime(proto: onnx.ModelProto, folder: Path) -> tuple[list[int], int]:
    """Return the arena's bytes after each node, and its peak, without what it holds before the first.

    In the first run, which has no pattern yet: each tensor is a piece of its own. With layouts as in the file.
    """
    config = SessionConfig(1, level=Level.EXTENDED, profile_prefix=str(folder / "profile"))
    session = Session(proto, config)
    feed = {
        value.name: np.zeros([d.dim_value or 1 for d in value.type.tensor_type.shape.dim], np.float32)
        for value in proto.graph.input
    }
    session.run(feed)
    events = json.loads(session.end_profiling().read_text())
    nodes: list[dict[str, Any]] = [
        event["args"] for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    after = [int(node["mem_bytes_requested_in_use"]) for node in nodes]
    before = after[0] - int(nodes[0]["mem_requested_in_use_delta"])
    return [size - before for size in after], int(nodes[-1]["mem_in_use_peak"]) - before


def ours(model: Model) -> tuple[Liveness, int]:
    shapes = concrete_shapes(model)
    return liveness(model.graph, shapes), sum(4 * math.prod(shapes[t.name]) for t in model.graph.inputs)


@pytest.mark.parametrize("name", ["inception", "mobilenet", "nin", "resnet", "vgg"])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
def test_the_peak_is_what_onnxruntime_holds(name: str, quantized: bool, tmp_path: Path) -> None:
    """To the byte in tensors; kernels' workspace, which the arena's own peak has too, is not counted."""
    model = onnxslim.load(MODELS / f"{name}.onnx")
    if quantized:
        data = Samples.from_path(str(MODELS / "digits_calib.npz")).take(16)
        model = onnxslim.optimize(model, data, passes=[InsertQdq()], bench=False).model
    found, inputs = ours(model)
    held, with_workspace = held_by_onnxruntime(load_proto(model.to_bytes()), tmp_path)
    assert found.peak is not None
    assert found.peak.bytes - inputs == max(held) <= with_workspace


EQUAL = (
    "vgg",
    "resnet18",
    "mobilenet-v2",
    "regnet",
    "efficientnet",
    "unet",
    "fpn",
    "super-resolution",
    "crnn",
    "video",
)
BRANCHED = ("densenet", "resnext", "inception-v4", "ghostnet", "shufflenet-v2", "split-before-depthwise", "centernet")


@pytest.mark.parametrize("name", EQUAL + BRANCHED)
def test_architectures_hold_as_much_and_branches_up_to_so_much_more(name: str, tmp_path: Path) -> None:
    proto = ARCHITECTURES[name]()
    found, inputs = ours(Model.load(proto))
    held, _ = held_by_onnxruntime(proto, tmp_path)
    assert found.peak is not None
    ratio = max(held) / (found.peak.bytes - inputs)
    assert ratio == 1 if name in EQUAL else 0.9 <= ratio <= 1.6


@pytest.mark.parametrize("op", sorted(_IN_PLACE))
def test_activations_write_over_their_input(op: str, tmp_path: Path) -> None:
    shape = "float[16, 64]"
    text = f"a ({shape} x) => ({shape} y) {{ a = Sin(x) b = {op}(a) y = Sin(b) }}"
    held, _ = held_by_onnxruntime(onnx.parser.parse_model(HEAD + text), tmp_path)
    assert held[:2] == [4096, 4096]
