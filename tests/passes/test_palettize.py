"""palettize: what is stored is what its numbers say, onnxruntime folds all of it at load, and the rest stays."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import EXACT_PASSES
from onnxslim.passes._palette import GridChoice, palette_of
from onnxslim.passes._palette_choice import weights_of
from onnxslim.passes.palettize import Fit, PalettePlan, Palettize
from onnxslim.pipeline import PassContext, exact_fixed_point
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.samples import Samples
from tools.gallery import ARCHITECTURES
from tools.gallery.running import feed_of

Array = np.ndarray[Any, Any]
MODELS = Path(__file__).resolve().parents[2] / "models"

GRIDS = {
    "int8": Palettize(GridChoice.INT8, min_size=0),
    "int4": Palettize(GridChoice.INT4, min_size=0),
    "sign": Palettize(GridChoice.SIGN, min_size=0),
    **{f"kmeans{bits}": Palettize(GridChoice.KMEANS, bits, min_size=0) for bits in range(1, 9)},
}
INT8 = GRIDS["int8"]


def build(body: str, weights: Mapping[str, Any] | None = None, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{body}')
    random = np.random.default_rng(0)
    for name, value in (weights or {}).items():
        array = random.standard_normal(value) if isinstance(value, tuple) else np.asarray(value)
        stored = array.astype(np.float32) if isinstance(value, tuple) else array
        proto.graph.initializer.append(numpy_helper.from_array(stored, name))
    return proto


def palettized(
    source: onnx.ModelProto | Model, item: Palettize = INT8, context: PassContext | None = None
) -> tuple[Model, Rewriter]:
    model = source.copy() if isinstance(source, Model) else Model.load(source)
    rewriter = Rewriter(model)
    item.run(rewriter, context or PassContext())
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    return model, rewriter


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def loaded(model: Model | onnx.ModelProto, folder: Path, feed: dict[str, Array]) -> tuple[Counter[str], dict[str, Any]]:
    """Return the operators that onnxruntime has left to run at its basic level, and what they compute."""
    config = SessionConfig(level=Level.BASIC, optimized_path=str(folder / "loaded.onnx"))
    session = Session(model.proto() if isinstance(model, Model) else model, config)
    nodes = onnx.load(folder / "loaded.onnx").graph.node
    return Counter(node.op_type for node in nodes), session.run(feed)


def stand_in(proto: onnx.ModelProto, item: Palettize, plan: PalettePlan) -> onnx.ModelProto:
    """Return the float model whose weights are what the palettes stand for."""
    found = weights_of(Model.load(proto)).found
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in plan.weights:
            axes, bits = found[tensor.name].axes, item.grid.bits(item.bits)
            values = palette_of(numpy_helper.to_array(tensor), axes, item.grid, bits).values(found[tensor.name].dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result


# ---- what must stay, and why -------------------------------------------------------------------------------------

X = "g (float[2,60] x) => (float[2,40] y)"
C = "g (float[1,8,5,5] x) => (float[1,9,3,3] y)"
GEMM, CONV = f"{X} {{ y = Gemm(x, w) }}", f"{C} {{ y = Conv(x, w) }}"
W, K = (60, 40), (9, 8, 3, 3)


def with_one(shape: tuple[int, ...], value: float) -> Array:
    weight = np.ones(shape, np.float32)
    weight.reshape(-1)[7] = value
    return weight


STAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a computed weight": (f"{C} {{ v = Mul(w, w) y = Conv(x, v) }}", {"w": K}, "computed, or given by the caller"),
    "a weight that the caller may override": (
        "g (float[1,8,5,5] x, float[9,8,3,3] w) => (float[1,9,3,3] y) { y = Conv(x, w) }", {"w": K},
        "given by the caller",
    ),
    "float64": (
        "g (double[2,60] x) => (double[2,40] y) { y = Gemm(x, w) }", {"w": np.ones(W, np.float64)},
        "not float32 or float16",
    ),
    "NaN": (GEMM, {"w": with_one(W, np.nan)}, "NaN or Inf"),
    "Inf": (GEMM, {"w": with_one(W, -np.inf)}, "NaN or Inf"),
    "numbers whose scales might overflow": (GEMM, {"w": with_one(W, -2e37)}, "beyond 1e+37"),
    "numbers whose scales might overflow float16": (
        "g (float16[2,60] x) => (float16[2,40] y) { y = Gemm(x, w) }", {"w": with_one(W, 4e4).astype(np.float16)},
        "beyond 30000",
    ),
    "the model returns it": (
        "g (float[2,60] x) => (float[2,40] y, float[60,40] w) { y = Gemm(x, w) }", {"w": W}, "returns its weight",
    ),
    "another operator reads it": (
        "g (float[2,60] x) => (float[2,40] y, float[40,60] t) { y = Gemm(x, w) t = Transpose(w) }", {"w": W},
        "Transpose at 't' reads its weight too",
    ),
    "it is a bias too": (
        "g (float[40,60] x, float[60,40] u) => (float[40,40] y) { a = Gemm(x, u, w) y = Gemm(a, w) }", {"w": (40, 40)},
        "Gemm at 'a' reads its weight too, and not as one",
    ),
    "a subgraph reads it too": (
        """g (float[2,60] x, bool c) => (float[2,40] y) { a = Gemm(x, w) y = If(c) <
            then_branch = t () => (float[2,40] p) { p = MatMul(x, w) },
            else_branch = e () => (float[2,40] q) { q = Neg(a) }
        > }""",
        {"w": W}, "a subgraph reads its weight too",
    ),
    "it lies in a subgraph": (
        """g (float[2,60] x, bool c) => (float[2,40] y) { y = If(c) <
            then_branch = t () => (float[2,40] p) { p = MatMul(x, w) },
            else_branch = e () => (float[2,40] q) { q = MatMul(x, v) }
        > }""",
        {"w": W, "v": W}, "it lies in a subgraph",
    ),
    "nothing to store": ("g (float[2,0] x) => (float[2,9] y) { y = MatMul(x, w) }", {"w": (0, 9)}, "0 elements"),
    "too few numbers": ("g (float[2,6] x) => (float[2,4] y) { y = Gemm(x, w) }", {"w": (6, 4)}, "not be smaller"),
    "a scale for each number": (
        "g (int64[2] x) => (float[2] y) { y = Gather(w, x) }", {"w": (2000,)}, "would not be smaller",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    body, weights, why = STAYS[name]
    proto = build(body, weights)
    model, rewriter = palettized(proto)
    assert rewriter.edits == 0
    assert ops(model) == [node.op_type for node in proto.graph.node]
    assert any(why in mismatch.reason for mismatch in rewriter.skipped), rewriter.skipped


def test_nothing_is_said_of_what_is_no_weight() -> None:
    body = """g (float[2,60] x, float[60,40] u, int64[3] i) => (float[2,40] y, float[3,60] z) {
        a = MatMul(x, u) y = Add(a, b) z = Gather(x, i)
    }"""
    _, rewriter = palettized(build(body, {"b": (40,)}))
    assert rewriter.edits == 0
    assert not rewriter.skipped


def test_what_options_exclude_stays() -> None:
    proto = build(f"{X} {{ a = MatMul(x, w) y = MatMul(a, v) }}", {"w": (60, 60), "v": W})
    model, rewriter = palettized(proto, Palettize(min_size=0, exclude=("a",)))
    assert ops(model) == ["MatMul", "Cast", "Mul", "MatMul"]
    assert [(mismatch.anchor, mismatch.reason) for mismatch in rewriter.skipped] == [("a", "excluded by the options")]
    assert ops(palettized(proto, Palettize(min_size=0, only=("a",)))[0]) == ["Cast", "Mul", "MatMul", "MatMul"]
    model, rewriter = palettized(proto, Palettize(min_size=3000))
    assert ops(model) == ["Cast", "Mul", "MatMul", "MatMul"]
    assert [mismatch.reason for mismatch in rewriter.skipped] == [
        "its weight has 2400 elements, fewer than min-size (3000)"
    ]


def test_a_weight_of_two_layers_stays_where_one_is_excluded() -> None:
    proto = build(f"{X} {{ a = MatMul(x, w) b = Relu(x) c = MatMul(b, w) y = Add(a, c) }}", {"w": W})
    assert palettized(proto, Palettize(min_size=0, exclude=("c",)))[1].edits == 0


@pytest.mark.parametrize(
    ("options", "fault"),
    [({"bits": 0}, "1 to 8"), ({"bits": 9}, "1 to 8"), ({"min_size": -1}, "0 or more"), ({"samples": 0}, "1 or more")],
)
def test_options_out_of_range(options: dict[str, int], fault: str) -> None:
    with pytest.raises(SpecError, match=fault):
        Palettize(**options)  # type: ignore[arg-type]


# ---- what changes ------------------------------------------------------------------------------------------------

PACKED = ["Cast", "Cast", "Gather", "Reshape", "Mul"]
"""Table and bytes are cast, rows looked up."""
CHANGES = [
    (GEMM, W, "int8", ["Cast", "Mul", "Gemm"], "integers as they are"),
    (GEMM, W, "int4", [*PACKED, "Gemm"], "two in a byte"),
    (GEMM, W, "sign", [*PACKED, "Gemm"], "eight in a byte"),
    (CONV, K, "kmeans8", ["Cast", "Gather", "Mul", "Conv"], "a codebook of 256"),
    ("g (float[1,4,5,5] x) => (float[1,9,3,3] y) { y = Conv(x, w) }", (9, 4, 3, 3), "kmeans4",
     ["Cast", "Gather", "Mul", "Conv"], "too few to pack"),
    (GEMM, W, "kmeans4", ["Cast", "Gather", "Cast", "Gather", "Reshape", "Mul", "Gemm"], "a table of levels"),
    ("g (float[2,61] x) => (float[2,41] y) { y = Gemm(x, w) }", (61, 41), "int4",
     ["Cast", "Cast", "Gather", "Reshape", "Slice", "Reshape", "Mul", "Gemm"], "half a byte is left over"),
    (GEMM, W, "kmeans3",
     [*["Cast", "Cast", "Add", "Reshape", "Gather"], *["Cast", "Mul"], *["Cast", "Cast", "Gather", "Reshape", "Add"],
      *["Gather", "Reshape", "Mul", "Gemm"]],
     "planes of two bits and one: levels of all codes, multiples of 256, codes, and what they hold"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "shape", "grid", "expected"), [pytest.param(*case[:4], id=case[4]) for case in CHANGES]
)
def test_changes(body: str, shape: tuple[int, ...], grid: str, expected: list[str], tmp_path: Path) -> None:
    proto = build(body, {"w": shape}, opset=18)
    model, rewriter = palettized(proto, GRIDS[grid])
    assert sorted(ops(model)) == sorted(expected)
    assert not rewriter.skipped
    assert len(check(proto, GRIDS[grid], tmp_path).weights) == 1


def check(proto: onnx.ModelProto, item: Palettize, folder: Path) -> PalettePlan:
    """Loaded, the model is the float model whose weights the palettes stand for, to the bit, with nothing left over."""
    model, _ = palettized(proto, item)
    plan = item.plan(Model.load(proto), PassContext())
    feed, floats = feed_of(proto), stand_in(proto, item, plan)
    (before, expected), (after, found) = loaded(floats, folder, feed), loaded(model, folder, feed)
    assert after == before, "something is left to do at inference"
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name)
    return plan


LAYERS = """g (float[2,6,7,7] x, int64[3] i, float[5,2,11] s) =>
    (float[2,7,5,5] a, float[2,6,9,9] b, float[2,6,8,8] c, float[2,23] d, float[2,19] e, float[3,29] f,
     float[5,1,2,7] h, float[5,1,2,7] j) {
    a = Conv(x, conv)
    b = ConvTranspose(x, up)
    c = ConvTranspose<group = 3>(x, grouped)
    v = Flatten(x)
    d = Gemm(v, gemm, zero)
    e = Gemm<transB = 1, alpha = 0.5>(v, turned, zero)
    f = Gather(table, i)
    h = LSTM<hidden_size = 7>(s, lstm, again)
    j = GRU<hidden_size = 7>(s, gru, twice)
}"""
SHAPES = {
    "conv": (7, 6, 3, 3), "up": (6, 6, 3, 3), "grouped": (6, 2, 2, 2), "gemm": (294, 23), "turned": (19, 294),
    "table": (41, 29), "lstm": (1, 28, 11), "again": (1, 28, 7), "gru": (1, 21, 11), "twice": (1, 21, 7),
}  # fmt: skip


@pytest.fixture
def no_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack weights however small."""
    monkeypatch.setattr("onnxslim.passes._palette_graph.NODE_BYTES", 0)


EVERY = {opset: tuple(GRIDS) for opset in (9, 17)}
"""The last opset with Slice's bounds as attributes, and one after it."""
FEW = dict.fromkeys((7, 10, 11, 13, 18, 21, 23), ("int4", "kmeans4", "kmeans7"))


@pytest.mark.usefixtures("no_overhead")
@pytest.mark.parametrize(("opset", "grids"), [*EVERY.items(), *FEW.items()])
def test_every_layer_on_every_grid(opset: int, grids: tuple[str, ...], tmp_path: Path) -> None:
    """Every number of bits, with bytes that are not full; onnxruntime's basic level is enough."""
    proto = build(LAYERS, {**SHAPES, "zero": np.zeros(1, np.float32)}, opset)
    for grid in grids:
        assert len(check(proto, GRIDS[grid], tmp_path).weights) == len(SHAPES)


AXES = [
    ("Conv(x, w)", (8, 6, 3, 3), (0,)),
    ("Conv<group = 3>(x, w)", (9, 2, 3, 3), (0,)),
    ("ConvTranspose(x, w)", (6, 8, 3, 3), (1,)),
    ("ConvTranspose<group = 2>(x, w)", (6, 4, 3, 3), (1,)),
    ("ConvTranspose<group = 6>(x, w)", (6, 1, 3, 3), (0,)),
    ("Gemm(x, w)", (6, 8), (1,)),
    ("Gemm<transB = 1>(x, w)", (8, 6), (0,)),
    ("Gemm(w, x)", (8, 6), (0,)),
    ("Gemm<transA = 1>(w, x)", (6, 8), (1,)),
    ("MatMul(x, w)", (6, 8), (1,)),
    ("MatMul(x, w)", (5, 6, 8), (0, 2)),
    ("MatMul(w, x)", (8, 6), (0,)),
    ("MatMul(w, x)", (5, 8, 6), (0, 1)),
    ("MatMul(x, w)", (6,), ()),
    ("Gather(w, x)", (8, 6), (0,)),
    ("Gather<axis = -1>(w, x)", (8, 6), (1,)),
    ("LSTM<hidden_size = 2>(x, w, x)", (2, 8, 6), (0, 1)),
    ("GRU<hidden_size = 2>(x, x, w)", (2, 6, 2), (0, 1)),
]


@pytest.mark.parametrize(("call", "shape", "axes"), AXES)
def test_each_output_has_a_scale(call: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    model = Model.load(build(f"g (float x) => (float y) {{ y = {call} }}", {"w": shape}))
    (found,) = weights_of(model).found.values()
    assert found.axes == axes
    assert found.scales == int(np.prod([shape[axis] for axis in axes]))


SOME = ("int8", "kmeans3", "int4", "kmeans5", "sign", "kmeans4", "kmeans2")
QUICK = (
    "vgg", "densenet", "mobilenet-v3", "shufflenet-v2", "unet", "old-detector", "crnn", "crnn-gru", "vit", "audio",
    "tensorflow-resnet", "group-norm", "video", "tied-weights", "captured",
)  # fmt: skip


@pytest.mark.usefixtures("no_overhead")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    grid = SOME[list(ARCHITECTURES).index(name) % len(SOME)]
    assert check(ARCHITECTURES[name](), GRIDS[grid], tmp_path).weights


@pytest.mark.parametrize("grid", GRIDS)
def test_the_file_is_smaller_by_as_much_as_bits_are_fewer(grid: str) -> None:
    """All that comes on top are scales, tables, codebooks, and the names of nodes."""
    item = GRIDS[grid]
    bits = item.grid.bits(item.bits)
    proto = build("g (float[2,256] x) => (float[2,256] y) { a = MatMul(x, w) y = MatMul(a, v) }",
                  {"w": (256, 256), "v": (256, 256)})  # fmt: skip
    model, _ = palettized(proto, item)
    ideal = 2 * 256 * 256 * bits / 8
    assert ideal < len(model.to_bytes()) < ideal + 8000


def test_float16_weights_stay_float16(tmp_path: Path) -> None:
    body = "g (float16[2,60] x) => (float16[2,40] y) { y = MatMul(x, w) }"
    proto = build(body, {"w": np.random.default_rng(0).standard_normal(W).astype(np.float16)})
    for grid in ("int8", "int4", "kmeans3"):
        assert len(check(proto, GRIDS[grid], tmp_path).weights) == 1
    assert ops(palettized(proto)[0]) == ["Cast", "Mul", "Cast", "MatMul"]


def test_a_weight_of_several_layers_is_stored_once(tmp_path: Path) -> None:
    body = """g (int64[3] i, float[3,60] x) => (float[3,40] a, float[3,60] b, float[3,40] c) {
        a = MatMul(x, w) b = Gemm<transB = 1>(a, w) e = Gather<axis = 0>(w, i) c = Add(a, e)
    }"""
    proto = build(body, {"w": W})
    model, _ = palettized(proto, GRIDS["int4"])
    assert [tensor.dims for tensor in model.proto().graph.initializer if tensor.name == "w_b"] == [[W[0] * W[1] // 2]]
    assert len(check(proto, GRIDS["int4"], tmp_path).weights) == 1


def test_tables_are_shared() -> None:
    proto = build(f"{X} {{ a = MatMul(x, w) y = MatMul(a, v) }}", {"w": (60, 60), "v": W})
    model, _ = palettized(proto, GRIDS["sign"])
    assert sum(list(tensor.dims) == [256, 8] for tensor in model.proto().graph.initializer) == 1


def test_weights_in_constant_nodes_are_stored_too(tmp_path: Path) -> None:
    """As Paddle and old exporters write them."""
    proto = build(GEMM, {"w": W})
    (weight,) = proto.graph.initializer
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weight))
    inside = onnx.ModelProto()
    inside.CopyFrom(proto)
    del proto.graph.node[0]
    del inside.graph.initializer[:]
    assert palettized(inside)[0].to_bytes() == palettized(proto)[0].to_bytes()
    model = Model.load(inside)
    before = model.to_bytes()
    assert list(INT8.plan(model, PassContext()).weights) == ["w"]
    assert model.to_bytes() == before, "planning changed the model"


def test_weights_that_are_inputs_of_version_3(tmp_path: Path) -> None:
    """Before IR version 4 every initializer was an input, and nobody could give another."""
    proto = build(GEMM, {"w": W}, opset=9, ir=3)
    proto.graph.node[0].input.append("b")
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(40, np.float32), "b"))
    for name, shape in (("w", W), ("b", (40,))):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    model, _ = palettized(proto, GRIDS["kmeans3"])
    feed = feed_of(proto)
    left, _ = loaded(model, tmp_path, feed)
    assert left == {"Gemm": 1}
    assert [value.name for value in model.inputs] == ["x"]


@pytest.mark.parametrize("grid", ["int8", "int4", "kmeans3", "sign"])
def test_doing_it_again_changes_nothing(grid: str) -> None:
    proto = build(LAYERS, {**SHAPES, "zero": np.zeros(1, np.float32)})
    model, _ = palettized(proto, GRIDS[grid])
    stored = model.to_bytes()
    for source in (model, Model.load(stored)):
        again, rewriter = palettized(source, GRIDS["int8"])
        assert rewriter.edits == 0
        assert again.to_bytes() == stored


@pytest.mark.parametrize("grid", ["int8", "int4", "kmeans4", "kmeans7", "sign"])
def test_exact_passes_do_not_expand_it(grid: str) -> None:
    """What is folded is never much larger than what it replaces, and the smallest weights are left anyway."""
    model, _ = palettized(Model.load(MODELS / "vgg.onnx"), dataclasses.replace(GRIDS[grid], min_size=1024))
    before = len(model.to_bytes())
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    assert len(model.to_bytes()) <= before


def test_a_large_model_comes_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(ARCHITECTURES["crnn"](), tmp_path / "m.onnx")
    results = []
    for _ in range(2):
        model = Model.load(tmp_path / "m.onnx")
        results.append(palettized(model, GRIDS["kmeans3"])[0].to_bytes())
        monkeypatch.setattr("onnxslim.ir.weights.LARGE", 0)
    assert results[0] == results[1]


# ---- plans -------------------------------------------------------------------------------------------------------


def test_a_plan_replays_to_the_same_bytes() -> None:
    model = Model.load(ARCHITECTURES["mobilenet-v3"]())
    item = GRIDS["kmeans3"]
    direct, _ = palettized(model, item)
    plan = item.plan(model, PassContext())
    replayed, rewriter = palettized(model, item, PassContext(replay=plan.model_dump(mode="json")))
    assert replayed.to_bytes() == direct.to_bytes()
    assert len(rewriter.skipped) == len(plan.refused)


def test_a_plan_may_be_edited() -> None:
    """Each weight may have a grid of its own."""
    proto = build(f"{X} {{ a = MatMul(x, w) y = MatMul(a, v) }}", {"w": (60, 60), "v": W})
    plan = INT8.plan(Model.load(proto), PassContext()).model_dump(mode="json")
    plan["weights"]["v"] = {"grid": "sign", "bits": 1}
    model, _ = palettized(proto, INT8, PassContext(replay=plan))
    sizes = {tensor.name: len(tensor.raw_data) for tensor in model.proto().graph.initializer}
    assert sizes["w_q"] == 3600
    assert sizes["v_b"] == 2400 // 8


@pytest.mark.parametrize("name", ["other", "b"])
def test_a_plan_for_another_model_is_refused(name: str) -> None:
    proto = build(f"{X} {{ a = Gemm(x, w, b) y = Relu(a) }}", {"w": W, "b": (40,)})
    plan = {"weights": {name: {"grid": "int8", "bits": 8}}, "refused": []}
    with pytest.raises(PassError, match=f"no weight '{name}' that palettize can store"):
        palettized(proto, INT8, PassContext(replay=plan))


# ---- fitted to samples -------------------------------------------------------------------------------------------


def trained(name: str) -> Model:
    model = Model.load(MODELS / f"{name}.onnx")
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    return model


def with_samples(model: Model, samples: Samples | int = 100) -> PassContext:
    data = Samples.from_path(MODELS / "digits_calib.npz").take(samples) if isinstance(samples, int) else samples
    return PassContext(samples=data.for_inputs(model.inputs), threads=1)


def off(model: Model, other: Model, samples: Samples) -> float:
    """Error of all outputs on samples, relative."""
    sessions = [Session(each.to_bytes()) for each in (model, other)]
    error = energy = 0.0
    for sample in samples.for_inputs(model.inputs):
        expected, found = (session.run(sample.feed) for session in sessions)
        for name, value in expected.items():
            error += float(np.square(found[name] - value, dtype=np.float64).sum())
            energy += float(np.square(value, dtype=np.float64).sum())
    return error / energy


FITTED = [
    ("vgg", "int8", 0.6),
    ("resnet", "int4", 0.1),
    ("inception", "kmeans2", 0.1),
    pytest.param("nin", "kmeans3", 0.05, marks=pytest.mark.slow),
    pytest.param("mobilenet", "sign", 0.4, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "grid", "limit"), FITTED)
def test_fitted_palettes_lose_less(name: str, grid: str, limit: float) -> None:
    model = trained(name)
    item = dataclasses.replace(GRIDS[grid], min_size=64)
    fitted, _ = palettized(model, item, with_samples(model))
    nearest, _ = palettized(model, dataclasses.replace(item, fit=Fit.OFF), with_samples(model))
    judges = Samples.from_path(MODELS / "digits_eval.npz").take(100)
    assert off(model, fitted, judges) < limit * off(model, nearest, judges)


def alike(*shape: int) -> Samples:
    """Return inputs whose numbers have much in common, and a mean."""
    random = np.random.default_rng(4)
    common = random.standard_normal((shape[0], *(1 for _ in shape[1:])))
    return Samples.from_arrays({"x": (0.5 + common + 0.5 * random.standard_normal(shape)).astype(np.float32)})


ONE_LAYER = [
    ("g (float[n,60] x) => (float[n,40] y) { y = MatMul(x, w) }", W, (200, 60), "no bias"),
    ("g (float[n,60] x) => (float[n,40] y) { y = Gemm(x, w, b) }", W, (200, 60), "a bias"),
    ("g (float[n,60] x) => (float[n,40] y) { y = Gemm<transB = 1, alpha = -0.3, beta = 2.0>(x, w, b) }", (40, 60),
     (200, 60), "alpha and beta"),
    ("g (float[n,8,5,5] x) => (float[n,9,3,3] y) { y = Conv(x, w) }", K, (40, 8, 5, 5), "a bias to come"),
    ("g (float[n,8,5,5] x) => (float[n,12,3,3] y) { y = Conv<group = 4>(x, w) }", (12, 2, 3, 3), (40, 8, 5, 5),
     "groups"),
    ("g (float[n,8,5,5] x) => (float[n,6,7,7] y) { y = ConvTranspose(x, w) }", (8, 6, 3, 3), (40, 8, 5, 5),
     "transposed"),
    ("g (float[n,8,5,5] x) => (float[n,8,7,7] y) { y = ConvTranspose<group = 8>(x, w) }", (8, 1, 3, 3), (40, 8, 5, 5),
     "transposed, depthwise"),
]  # fmt: skip


@pytest.mark.usefixtures("no_overhead")
@pytest.mark.parametrize(
    ("body", "weight", "data", "grid"),
    [pytest.param(*case[:3], grid, id=f"{case[3]}, {grid}") for case in ONE_LAYER for grid in ("int4", "kmeans2")],
)
def test_one_layer_is_fitted(body: str, weight: tuple[int, ...], data: tuple[int, ...], grid: str) -> None:
    model = Model.load(build(body, {"w": weight, "b": (40,)} if "b)" in body else {"w": weight}))
    samples = alike(*data)
    nearest, _ = palettized(model, GRIDS[grid])
    fitted, _ = palettized(model, GRIDS[grid], with_samples(model, samples))
    limit = 0.8 if "group = 8" in body else 0.5  # nine columns have little to put right among each other
    assert off(model, fitted, samples) < limit * off(model, nearest, samples)
    assert ops(fitted) == ops(nearest)


def test_what_a_recurrent_layer_multiplies_its_input_by_is_fitted() -> None:
    body = "g (float[5,2,20] x) => (float[5,1,2,16] y) { y = LSTM<hidden_size = 16>(x, w, r) }"
    model = Model.load(build(body, {"w": (1, 64, 20), "r": np.zeros((1, 64, 16), np.float32)}))
    random = np.random.default_rng(0)
    arrays = 0.2 * (random.standard_normal((30, 5, 2, 1)) + 0.3 * random.standard_normal((30, 5, 2, 20)))
    samples = Samples.from_feeds([{"x": each} for each in arrays.astype(np.float32)])
    nearest, _ = palettized(model, GRIDS["kmeans2"])
    fitted, _ = palettized(model, GRIDS["kmeans2"], with_samples(model, samples))
    assert off(model, fitted, samples) < 0.5 * off(model, nearest, samples)


def test_later_layers_make_up_for_what_cannot_be_fitted() -> None:
    """Embeddings, whose table nobody multiplies by, go to the nearest; the layer behind them is fitted to that."""
    body = "g (int64[n] x) => (float[n,40] y) { e = Gather(t, x) y = Gemm(e, w, b) }"
    model = Model.load(build(body, {"t": (64, 30), "w": (30, 40), "b": (40,)}))
    samples = Samples.from_arrays({"x": np.tile(np.arange(64), 3)})
    context = with_samples(model, samples)
    item = GRIDS["kmeans2"]
    made = palettized(model, item, context)[0]
    apart = palettized(model, dataclasses.replace(item, only=("y",)), context)[0]
    apart = palettized(apart, dataclasses.replace(item, only=("e",)))[0]
    assert off(model, made, samples) < 0.9 * off(model, apart, samples)


@pytest.mark.usefixtures("no_overhead")
def test_too_few_samples_go_to_the_nearest() -> None:
    model = Model.load(build(GEMM, {"w": W}))
    few = with_samples(model, Samples.from_feeds([{"x": np.ones((2, 60), np.float32)}]))
    assert palettized(model, INT8, few)[0].to_bytes() == palettized(model)[0].to_bytes()


def test_nothing_but_zeros_can_be_fitted() -> None:
    model = Model.load(build("g (float[n,60] x) => (float[n,40] y) { y = Gemm(x, w, b) }", {
        "w": np.zeros(W, np.float32), "b": (40,)}))  # fmt: skip
    for data in (alike(100, 60), Samples.from_arrays({"x": np.zeros((100, 60), np.float32)})):
        for item in GRIDS.values():
            fitted, _ = palettized(model, item, with_samples(model, data))
            assert off(model, fitted, data) < 1e-10


def test_activations_that_are_not_finite_are_named() -> None:
    model = Model.load(build("g (float[n,60] x) => (float[n,40] y) { a = Log(x) y = Gemm(a, w) }", {"w": W}))
    with pytest.raises(PassError, match="'a' holds NaN or Inf"):
        palettized(model, INT8, with_samples(model, alike(100, 60)))


def test_a_plan_that_fits_asks_for_the_same_samples() -> None:
    model = trained("vgg")
    item = dataclasses.replace(GRIDS["kmeans2"], samples=20)
    context = with_samples(model)
    plan = item.plan(model, context)
    assert plan.fit is not None
    assert plan.fit.samples == 20
    direct, replayed = (
        palettized(model, each, dataclasses.replace(context, replay=replay))[0].to_bytes()
        for each, replay in ((item, None), (INT8, plan.model_dump(mode="json")))
    )
    assert direct == replayed
    with pytest.raises(SpecError, match="needs samples"):
        palettized(model, item, PassContext(replay=plan.model_dump(mode="json")))
