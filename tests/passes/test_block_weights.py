"""block-weights: products of what blocks stand for, in fewer bytes; and what must stay as it is, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import onnxslim
from onnxslim.errors import PassError, SpecError
from onnxslim.ir import Model, Rewriter
from onnxslim.passes._block_choice import Form, Stored
from onnxslim.passes.block_weights import BlockPlan, BlockWeights, Inputs, Rounding
from onnxslim.passes.dequantize import Dequantize
from onnxslim.pipeline import PassContext, format_spec, parse_spec
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.samples import Samples
from onnxslim.targets import find_target
from tools.gallery import ARCHITECTURES

Array = npt.NDArray[Any]

EXACTLY = 1e-5
"""Of the output's range: what float32 sums in another order may differ by."""
INT8 = 0.02
"""Of the output's range: what inputs in 8 bits may cost these small layers."""
TINY = 1e-36
"""Weights below it become zero."""
LEAST_DB = {2: 6.0, 4: 18.0, 8: 42.0}
"""What weights of normal numbers keep in blocks of 32, by bits."""


def build(body: str, weights: Mapping[str, Any] | None = None, opset: int = 17) -> onnx.ModelProto:
    """Parse a graph; weights are arrays, or shapes of seeded normal float32 numbers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{body}')
    random = np.random.default_rng(0)
    for name, value in (weights or {}).items():
        array = random.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def store(
    source: onnx.ModelProto | Model, item: BlockWeights | None = None, samples: Samples | None = None
) -> tuple[Model, Rewriter]:
    model = source.copy() if isinstance(source, Model) else Model.load(source)
    rewriter = Rewriter(model)
    (item or BlockWeights(min_size=0)).run(rewriter, PassContext(samples=samples, threads=1))
    rewriter.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    return model, rewriter


def run(model: Model | onnx.ModelProto, feed: dict[str, Array], level: Level = Level.NONE) -> list[Array]:
    session = Session(model.proto() if isinstance(model, Model) else model, SessionConfig(level=level))
    return [np.asarray(value) for value in session.run(feed).values()]


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def off(expected: Array, found: Array) -> float:
    """Return the largest difference, relative to the range of what was expected."""
    assert expected.shape == found.shape
    return float(np.abs(expected.astype(np.float64) - found).max()) / (float(np.ptp(expected)) or 1.0)


def decibels(expected: Array, found: Array) -> float:
    return float(10 * np.log10((expected**2).sum() / max(((found - expected) ** 2).sum(), 1e-300)))


def fused(model: Model, folder: Path) -> list[str]:
    """Return what onnxruntime runs."""
    path = folder / "optimized.onnx"
    Session(model.to_bytes(), SessionConfig(optimized_path=str(path)))
    return [node.op_type for node in onnx.load(str(path)).graph.node]


# ---- the oracle: what the stored numbers stand for, bit by bit -------------------------------------------------------


def unpack(data: Array, bits: int, count: int) -> Array:
    """Integers from bytes, the first in the lowest bits: told by bits, not by the code under test."""
    rows = np.unpackbits(data.reshape(-1, data.shape[-1]), axis=1, bitorder="little")
    values = rows.reshape(len(rows), -1, bits) @ (1 << np.arange(bits))
    return np.asarray(values.reshape(*data.shape[:-1], -1)[..., :count])


def stored_weight(proto: onnx.ModelProto, node: onnx.NodeProto) -> Array:
    """Return Ŵ, of shape (K, N), of a MatMulNBits or DequantizeLinear."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    given = [held[name] if name else None for name in node.input[0 if node.op_type == "DequantizeLinear" else 1 :]]
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    block, levels, scale = attributes["block_size"], given[0], given[1]
    assert levels is not None
    assert scale is not None
    zero = given[2] if len(given) > 2 else None
    if node.op_type == "DequantizeLinear":
        assert attributes["axis"] == 0
        wide = [np.repeat(part.astype(np.float64), block, axis=0)[: len(levels)] for part in (scale, 0 * scale)]
        offset = wide[1] if zero is None else np.repeat(zero.astype(np.float64), block, axis=0)[: len(levels)]
        return (levels.astype(np.float64) - offset) * wide[0]
    bits, blocks = attributes["bits"], scale.shape[1]
    assert levels.shape == (attributes["N"], blocks, block * bits // 8)
    middle = np.full(scale.shape, 2 ** (bits - 1)) if zero is None else unpack(zero, bits, blocks)
    parts = (unpack(levels, bits, block) - middle[:, :, None]) * scale.astype(np.float64)[:, :, None]
    return np.asarray(parts.reshape(len(parts), -1)[:, : attributes["K"]].T)


def weights_in(model: Model) -> list[Array]:
    proto = model.proto()
    kinds = ("MatMulNBits", "DequantizeLinear")
    return [stored_weight(proto, node) for node in proto.graph.node if node.op_type in kinds]


# ---- what must stay, and why -----------------------------------------------------------------------------------------

X = "g (float[4,32] x) => (float[4,24] y)"
MATMUL = f"{X} {{ y = MatMul(x, w) }}"
GEMM = f"{X} {{ y = Gemm(x, w, b) }}"
W, B = {"w": (32, 24)}, {"b": (24,)}
BRANCHED = "g (float[4,32] x, bool c, float[4,24] f) => (float[4,24] y"
BRANCHES = """y = If(c) <
    then_branch = t () => (float[4,24] a) { a = MatMul(x, w) }, else_branch = e () => (float[4,24] d) { d = Neg(f) }
> }"""
STAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a Conv": ("g (float[1,4,8,8] x) => (float[1,8,6,6] y) { y = Conv(x, w) }", {"w": (8, 4, 3, 3)}, "no kernel"),
    "a ConvTranspose": (
        "g (float[1,4,8,8] x) => (float[1,8,10,10] y) { y = ConvTranspose(x, w) }", {"w": (4, 8, 3, 3)}, "palettize",
    ),
    "two activations": ("g (float[4,4] x) => (float[4,4] y) { t = Exp(x) y = MatMul(x, t) }", {}, "computed"),
    "a weight that the caller may give": (
        "g (float[4,32] x, float[32,24] w) => (float[4,24] y) { y = MatMul(x, w) }", W, "given by the caller",
    ),
    "a constant on the left": (
        "g (float[32,24] x) => (float[4,24] y) { y = MatMul(w, x) }", {"w": (4, 32)}, "its weight is computed",
    ),
    "float64": (
        "g (double[4,32] x) => (double[4,24] y) { y = MatMul(x, w) }", {"w": np.ones((32, 24))}, "float64, not float32",
    ),
    "a weight for each of several products": (
        "g (float[2,4,32] x) => (float[2,4,24] y) { y = MatMul(x, w) }", {"w": (2, 32, 24)}, "3 dimensions",
    ),
    "a transposed input": (
        "g (float[32,4] x) => (float[4,24] y) { y = Gemm<transA = 1>(x, w) }", W, "its input is transposed",
    ),
    "a product times nothing": (f"{X} {{ y = Gemm<alpha = 0.0>(x, w, b) }}", W | B, "alpha is 0"),
    "a computed bias": (
        "g (float[4,32] x, float[24] b) => (float[4,24] y) { y = Gemm(x, w, b) }", W, "its bias is computed",
    ),
    "a bias for each row": (GEMM, W | {"b": (4, 24)}, "not one number for each channel"),
    "NaN": (MATMUL, {"w": np.full((32, 24), np.nan, np.float32)}, "NaN or Inf"),
    "a bias of Inf": (GEMM, W | {"b": np.full(24, np.inf, np.float32)}, "its bias has NaN or Inf"),
    "numbers near the end of float32": (MATMUL, {"w": np.full((32, 24), 3e38, np.float32)}, "beyond 1e+37"),
    "such numbers by alpha": (f"{X} {{ y = Gemm<alpha = 1e38>(x, w) }}", W, "beyond 1e+37"),
    "a weight that is read as a number": (
        "g (float[4,32] x) => (float[4,24] y, float[32,24] z) { y = MatMul(x, w) z = Neg(w) }", W, "Neg at 'z' reads",
    ),
    "a weight that the model returns": (
        "g (float[4,32] x) => (float[4,24] y, float[32,24] w) { y = MatMul(x, w) }", W, "the model returns its weight",
    ),
    "a weight that a branch reads": (
        f"{BRANCHED}, float[4,24] z) {{ z = MatMul(x, w) {BRANCHES}", W, "MatMul at 'a' reads its weight too",
    ),
    "a branch": (
        f"{BRANCHED}) {{ {BRANCHES}", W, "it lies in a subgraph",
    ),
    "one number for each block": (
        "g (float[4,1] x) => (float[4,24] y) { y = MatMul(x, w) }", {"w": (1, 24)}, "would not be smaller",
    ),
    "inputs that are integers": (
        f"{X} {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }}",
        W | {"s": np.float32(0.1), "z": np.uint8(128)}, "in integers already",
    ),
    "outputs that become integers": (
        f"{X} {{ p = MatMul(x, w) q = QuantizeLinear(p, s, z) y = DequantizeLinear(q, s, z) }}",
        W | {"s": np.float32(0.1), "z": np.uint8(128)}, "in integers already",
    ),
    "weights that are integers": (
        f"{X} {{ w = DequantizeLinear(v, s) y = MatMul(x, w) }}",
        {"v": np.ones((32, 24), np.int8), "s": np.float32(0.1)}, "its weight is computed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str, form: Form) -> None:
    body, weights, why = STAYS[name]
    proto = build(body, weights, opset=21)
    model, rewriter = store(proto, BlockWeights(min_size=0, form=form))
    assert rewriter.edits == 0
    assert ops(model) == [node.op_type for node in proto.graph.node]
    assert any(why in mismatch.reason for mismatch in rewriter.skipped), rewriter.skipped


def test_a_constant_input_stays() -> None:
    body = f"{X} {{ t = MatMul(v, w) s = MatMul(x, u) y = Add(s, t) }}"
    model, rewriter = store(build(body, {"v": (4, 32), "w": (32, 24), "u": (32, 24)}))
    assert ops(model) == ["MatMul", "MatMulNBits", "Add"]
    assert [(mismatch.anchor, mismatch.reason) for mismatch in rewriter.skipped] == [("t", "its input is constant")]


def test_options_leave_layers() -> None:
    body = "g (float[4,32] x) => (float[4,32] y) { a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, u) }"
    proto = build(body, {"w": (32, 64), "v": (64, 32), "u": (32, 32)})
    model, rewriter = store(proto, BlockWeights(min_size=1025, exclude=("b",)))
    assert ops(model) == ["MatMulNBits", "MatMul", "MatMul"]
    assert {mismatch.anchor: mismatch.reason for mismatch in rewriter.skipped} == {
        "b": "excluded by the options", "y": "its weight has 1024 elements, fewer than min-size (1025)",
    }  # fmt: skip


def test_a_weight_stays_where_a_layer_that_is_excluded_reads_it() -> None:
    body = "g (float[4,32] x) => (float[4,24] y, float[4,24] z) { y = MatMul(x, w) z = MatMul(x, w) }"
    model, rewriter = store(build(body, W), BlockWeights(min_size=0, exclude=("z",)))
    assert rewriter.edits == 0
    assert ops(model) == ["MatMul", "MatMul"]
    assert any("MatMul at 'z' reads its weight too" in mismatch.reason for mismatch in rewriter.skipped)


def test_a_single_block_has_no_standard_form() -> None:
    """onnxruntime takes its scale for one of all, and refuses a block beside that."""
    proto = build("g (float[4,20] x) => (float[4,1] y) { y = MatMul(x, w) }", {"w": (20, 1)})
    model, rewriter = store(proto, BlockWeights(min_size=0, form=Form.QDQ))
    assert ops(model) == ["MatMul"]
    assert "single block" in rewriter.skipped[0].reason
    assert ops(store(proto)[0]) == ["MatMulNBits"]


REFUSED = [
    ({"bits": 3}, "bits are 3, and form matmul-nbits has 2 or 4 or 8"),
    ({"bits": 2, "form": Form.QDQ}, "bits are 2, and form qdq has 4 or 8"),
    ({"block": 48}, "block is 48, no power of two from 16 to 256"),
    ({"block": 8}, "block is 8"),
    ({"block": 512}, "block is 512"),
    ({"min_size": -1}, "min-size"),
    ({"samples": 0}, "samples"),
]


@pytest.mark.parametrize(("options", "why"), REFUSED)
def test_options_out_of_range(options: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        BlockWeights(**options)


# ---- what changes ----------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "a MatMul": (MATMUL, W),
    "of three axes": ("g (float[2,3,32] x) => (float[2,3,24] y) { y = MatMul(x, w) }", W),
    "of one axis": ("g (float[32] x) => (float[24] y) { y = MatMul(x, w) }", W),
    "blocks that are not full": ("g (float[4,77] x) => (float[4,5] y) { y = MatMul(x, w) }", {"w": (77, 5)}),
    "one output": ("g (float[4,70] x) => (float[4,1] y) { y = MatMul(x, w) }", {"w": (70, 1)}),
    "one block": ("g (float[4,20] x) => (float[4,7] y) { y = MatMul(x, w) }", {"w": (20, 7)}),
    "zeros": (MATMUL, {"w": np.zeros((32, 24), np.float32)}),
    "some zeros": (MATMUL, {"w": np.outer(np.ones(32), np.arange(24) % 2).astype(np.float32)}),
    "no zero near": (MATMUL, {"w": np.linspace(5, 6, 768, dtype=np.float32).reshape(32, 24)}),
    "numbers as small as float32 has them": (MATMUL, {"w": np.full((32, 24), 1e-41, np.float32)}),
    "a Gemm": (GEMM, W | B),
    "without bias": (f"{X} {{ y = Gemm(x, w) }}", W),
    "transposed": (f"{X} {{ y = Gemm<transB = 1>(x, w, b) }}", {"w": (24, 32)} | B),
    "factors": (f"{X} {{ y = Gemm<alpha = 0.5, beta = 3.0, transB = 1>(x, w, b) }}", {"w": (24, 32)} | B),
    "a negative factor": (f"{X} {{ y = Gemm<alpha = -2.0>(x, w, b) }}", W | B),
    "a bias of one row": (GEMM, W | {"b": (1, 24)}),
    "a bias of one number": (GEMM, W | {"b": np.float32(0.5)}),
}  # fmt: skip
KINDS = [
    BlockWeights(min_size=0, inputs=Inputs.FLOAT),
    BlockWeights(min_size=0, inputs=Inputs.FLOAT, symmetric=False),
    BlockWeights(min_size=0, inputs=Inputs.FLOAT, bits=8, block=16),
    BlockWeights(min_size=0, inputs=Inputs.FLOAT, bits=2, symmetric=False),
    BlockWeights(min_size=0, form=Form.QDQ, block=16),
    BlockWeights(min_size=0, form=Form.QDQ, symmetric=False),
    BlockWeights(min_size=0, form=Form.QDQ, bits=8, symmetric=False),
]


def feed_of(proto: onnx.ModelProto) -> dict[str, Array]:
    (value,) = proto.graph.input
    shape = [dim.dim_value or 4 for dim in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


def in_numbers(proto: onnx.ModelProto) -> tuple[Array, Array]:
    """Return what the only layer multiplies by, of shape (K, N), and what it adds."""
    (node,) = proto.graph.node
    held = [numpy_helper.to_array(tensor).astype(np.float64) for tensor in proto.graph.initializer]
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    weight = attributes.get("alpha", 1.0) * (held[0].T if attributes.get("transB") else held[0])
    return weight, attributes.get("beta", 1.0) * held[1] if len(held) > 1 else np.zeros(())


@pytest.mark.parametrize("item", KINDS, ids=[format_spec([item]) for item in KINDS])
@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str, item: BlockWeights) -> None:
    proto = build(*CHANGES[name])
    model, rewriter = store(proto, item)
    assert not rewriter.skipped
    kind = proto.graph.node[0].op_type
    assert ops(model) == (["DequantizeLinear", kind] if item.form is Form.QDQ else ["MatMulNBits"])
    assert model.weight_bytes() < Model.load(proto).weight_bytes()
    weight, bias = in_numbers(proto)
    (ours,) = weights_in(model)
    assert np.abs(weight - ours).max() <= max(np.abs(weight).max() / (3 if item.bits > 2 else 1.5), TINY)
    (feed,) = feed_of(proto).values()
    (found,) = run(model, {"x": feed})
    assert off(feed.astype(np.float64) @ ours + bias, found) < EXACTLY


@pytest.mark.parametrize(("form", "bits"), [(form, bits) for form in Form for bits in form.bits])
def test_how_exact_weights_are(form: Form, bits: int) -> None:
    proto = build("g (float[4,256] x) => (float[4,64] y) { y = MatMul(x, w) }", {"w": (256, 64)})
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    lost = {}
    for symmetric in (True, False):
        model, _ = store(proto, BlockWeights(min_size=0, bits=bits, form=form, symmetric=symmetric))
        lost[symmetric] = decibels(weight, weights_in(model)[0])
    assert min(lost.values()) > LEAST_DB[bits]
    assert abs(lost[True] - lost[False]) < 1.5


def test_bytes() -> None:
    """Half a byte for each weight, four for each block, and half of one for its zero point."""
    proto = build("g (float[4,256] x) => (float[4,64] y) { y = MatMul(x, w) }", {"w": (256, 64)})
    assert store(proto)[0].weight_bytes() == 256 * 64 // 2 + 4 * 8 * 64
    assert store(proto, BlockWeights(min_size=0, symmetric=False))[0].weight_bytes() == 8192 + 2048 + 256
    assert store(proto, BlockWeights(min_size=0, form=Form.QDQ, block=64))[0].weight_bytes() == 8192 + 1024
    assert store(proto, BlockWeights(min_size=0, bits=2, block=128))[0].weight_bytes() == 4096 + 512
    model, _ = store(proto)
    assert len(model.to_bytes()) < 0.2 * len(proto.SerializeToString())


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(("width", "block", "fitted"), [(20, 256, 32), (5, 256, 16), (192, 128, 64), (256, 128, 128)])
def test_a_block_is_no_longer_than_its_row_needs(width: int, block: int, fitted: int, form: Form) -> None:
    """The standard form fills up no blocks."""
    proto = build(f"g (float[4,{width}] x) => (float[4,64] y) {{ y = MatMul(x, w) }}", {"w": (width, 64)})
    plan = BlockWeights(min_size=0, block=block, form=form).plan(Model.load(proto), PassContext())
    assert plan.layers["y"].block == (block if form is Form.QDQ and width == 192 else fitted)


@pytest.mark.parametrize("form", list(Form))
def test_layers_that_share_a_weight_share_its_blocks(form: Form) -> None:
    body = """g (float[4,32] x) => (float[4,24] y, float[4,24] z, float[4,24] u) {
        y = MatMul(x, w) n = Neg(x) z = Gemm(n, w, b) u = Gemm<alpha = 2.0>(n, w) }"""
    proto = build(body, W | B)
    model, _ = store(proto, BlockWeights(min_size=0, form=form, inputs=Inputs.FLOAT))
    weights = weights_in(model)
    stored = {tensor.name for tensor in model.proto().graph.initializer}
    assert len(stored) == 5  # twice levels and scales, for alpha; a bias
    feed = feed_of(proto)
    y, z, u = run(model, feed)
    plain = weights[0]
    assert off(feed["x"] @ plain, y) < EXACTLY
    assert off(numpy_helper.to_array(proto.graph.initializer[1]) - feed["x"] @ plain, z) < EXACTLY
    assert off(-feed["x"] @ weights[-1], u) < EXACTLY


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inputs_in_eight_bits(bits: int) -> None:
    proto = build(GEMM, W | B)
    model, _ = store(proto, BlockWeights(min_size=0, bits=bits))
    (node,) = model.graph.nodes
    assert node.attrs["accuracy_level"] == 4
    feed = feed_of(proto)
    expected = feed["x"] @ weights_in(model)[0] + numpy_helper.to_array(proto.graph.initializer[1])
    for level in (Level.NONE, Level.ALL):
        (found,) = run(model, feed, level)
        assert off(expected, found) < INT8


@pytest.mark.parametrize("body", [MATMUL, GEMM, f"{X} {{ y = Gemm<transB = 1, alpha = 0.5>(x, w, b) }}"])
def test_onnxruntime_makes_its_own_operator_of_the_standard_form(tmp_path: Path, body: str) -> None:
    weights: dict[str, Any] = {"w": (24, 32) if "transB" in body else (32, 24), "b": (24,)}
    proto = build(body, weights if "Gemm" in body else W)
    for item in (BlockWeights(min_size=0, form=Form.QDQ), BlockWeights(min_size=0, form=Form.QDQ, symmetric=False)):
        model, _ = store(proto, item)
        assert fused(model, tmp_path) == ["MatMulNBits"]
        (literally,), (found,) = run(model, feed_of(proto)), run(model, feed_of(proto), Level.ALL)
        assert off(literally, found) < INT8


def test_scales_below_zero_are_only_for_onnxruntime() -> None:
    proto = build(MATMUL, W)
    for form in Form:
        model, _ = store(proto, BlockWeights(min_size=0, form=form))
        scale = next(numpy_helper.to_array(t) for t in model.proto().graph.initializer if t.name == "w_s")
        assert bool(scale.min() < 0) is (form is Form.NBITS)


def test_names_stay() -> None:
    body = f"{X} {{ [layer] y = Gemm(x, w, b) }}"
    (node,) = store(build(body, W | B))[0].graph.nodes
    assert (node.name, node.outputs[0].name) == ("layer", "y")
    assert node.inputs[5].name == "b"


def test_old_opsets() -> None:
    """The standard form is of opset 21; what Resize did before opset 11 stays as it was."""
    body = """g (float[1,1,4,4] x) => (float[1,24] y) {
        r = Resize<mode = "linear">(x, s) f = Flatten(r) y = Gemm(f, w, b) }"""
    weights = {"s": np.array([1, 1, 2, 2], np.float32), "w": (64, 24)} | B
    proto = build(body, weights, opset=10)
    model, _ = store(proto, BlockWeights(min_size=0, form=Form.QDQ, bits=8))
    assert model.opset == 21
    (before,), (after,) = run(proto, feed_of(proto)), run(model, feed_of(proto))
    assert off(before, after) < INT8
    assert store(proto)[0].opset == 10


def test_the_target_chooses_the_form() -> None:
    forms = {}
    for name in ("arm-cpu", "qnn"):
        context = PassContext(target=find_target(name))
        plan = BlockWeights(min_size=0).plan(Model.load(build(MATMUL, W)), context)
        forms[name] = plan.layers["y"].form
    assert forms == {"arm-cpu": Form.NBITS, "qnn": Form.QDQ}


# ---- plans -----------------------------------------------------------------------------------------------------------


def applied(model: Model, plan: BlockPlan, context: PassContext, item: BlockWeights) -> Model:
    result = model.copy()
    rewriter = Rewriter(result)
    item.apply(rewriter, BlockPlan.model_validate_json(plan.model_dump_json()), context)
    rewriter.finish()
    return result


def test_a_plan_can_be_edited() -> None:
    body = "g (float[4,32] x) => (float[4,32] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    model = Model.load(build(body, {"w": (32, 64), "v": (64, 32)}))
    item = BlockWeights(min_size=0)
    plan = item.plan(model, PassContext())
    finer = {**plan.layers, "y": Stored(form=Form.NBITS, bits=8, block=16, symmetric=False)}
    result = applied(model, plan.model_copy(update={"layers": finer}), PassContext(), item)
    assert [(node.attrs["bits"], node.attrs["block_size"]) for node in result.graph.nodes] == [(4, 32), (8, 16)]


def test_a_plan_that_does_not_fit() -> None:
    model = Model.load(build(MATMUL, W))
    item = BlockWeights(min_size=0)
    plan = item.plan(model, PassContext())
    unknown = plan.model_copy(update={"layers": {"elsewhere": plan.layers["y"]}})
    with pytest.raises(PassError, match="'elsewhere' cannot be stored in blocks: there is no such layer"):
        applied(model, unknown, PassContext(), item)
    other = Model.load(build(MATMUL, {"w": np.full((32, 24), np.nan, np.float32)}))
    with pytest.raises(PassError, match="NaN or Inf"):
        applied(other, plan, PassContext(), item)
    decisions = json.loads(plan.model_dump_json())
    decisions["layers"]["y"]["bits"] = 5
    with pytest.raises(SpecError, match="bits are 5"):
        item.run(Rewriter(model.copy()), PassContext(replay=decisions))


def test_the_spec_comes_back() -> None:
    item = BlockWeights(bits=8, form=Form.QDQ, rounding=Rounding.NEAREST, only=("fc*", "head"), symmetric=False)
    assert parse_spec(format_spec([item]), {"block-weights": BlockWeights}, ()) == [item]


def test_a_second_time_finds_nothing() -> None:
    for form in Form:
        once, _ = store(build(GEMM, W | B), BlockWeights(min_size=0, form=form))
        twice, rewriter = store(once, BlockWeights(min_size=0, form=form))
        assert rewriter.edits == 0
        assert twice.to_bytes() == once.to_bytes()


# ---- samples ---------------------------------------------------------------------------------------------------------

NET = """g (float[n,64] x) => (float[n,24] y) {
    a = Gemm(x, w, b) r = Relu(a) y = MatMul(r, v) }"""


def network() -> Model:
    return Model.load(build(NET, {"w": (64, 96), "b": (96,), "v": (96, 24)}))


def alike(count: int, seed: int = 1) -> Samples:
    """Inputs that lie near few directions, off their mean, as those of real layers do."""
    mixing = np.random.default_rng(0).standard_normal((8, 64))
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, 8)) @ mixing + 0.2 * random.standard_normal((count, 64)) + 2.0
    return Samples.from_arrays({"x": values.astype(np.float32)}).for_inputs(network().inputs)


def lost(model: Model, other: Model) -> float:
    feed = {"x": np.concatenate([sample.feed["x"] for sample in alike(200, seed=2)])}
    (expected,), (found,) = run(model, feed), run(other, feed)
    return decibels(expected, found)


@pytest.mark.parametrize("item", [KINDS[0], KINDS[1], KINDS[3], KINDS[4]], ids=["4", "zeros", "2", "qdq"])
def test_samples_lower_the_error_of_outputs(item: BlockWeights) -> None:
    model, fields = network(), {field: getattr(item, field) for field in ("bits", "form", "symmetric", "block")}
    nearest, _ = store(model, BlockWeights(min_size=0, inputs=Inputs.FLOAT, rounding=Rounding.NEAREST, **fields))
    fitted, _ = store(model, item, alike(100))
    assert lost(model, fitted) > lost(model, nearest) + 5
    assert ops(fitted) == ops(nearest)
    assert fitted.weight_bytes() == nearest.weight_bytes()


def mean_errors(body: str) -> tuple[Model, float, float]:
    """Return the layer fitted to samples, and how far the means of its outputs are off: fitted, and to the nearest."""
    model = Model.load(build(body, {"w": (64, 24)}))
    fitted, nearest = store(model, KINDS[3], alike(100))[0], store(model, KINDS[3])[0]
    feed = {"x": np.concatenate([sample.feed["x"] for sample in alike(200, seed=2)])}
    expected, *means = (run(each, feed)[0].mean(axis=0) for each in (model, fitted, nearest))
    ours, plain = (float(np.abs(mean - expected).max()) for mean in means)
    return fitted, ours, plain


def test_a_gemm_without_bias_gets_one_that_puts_the_mean_right() -> None:
    fitted, ours, plain = mean_errors("g (float[n,64] x) => (float[n,24] y) { y = Gemm(x, w) }")
    assert len(fitted.graph.nodes[0].inputs) == 6
    assert ours < 0.2 * plain


def test_the_levels_of_a_matmul_put_its_mean_right() -> None:
    fitted, ours, plain = mean_errors("g (float[n,64] x) => (float[n,24] y) { y = MatMul(x, w) }")
    assert len(fitted.graph.nodes[0].inputs) == 4
    assert ours < 0.6 * plain


def test_too_few_samples_round_to_the_nearest() -> None:
    model = network()
    plain, _ = store(model, BlockWeights(min_size=0, rounding=Rounding.NEAREST))
    few, _ = store(model, BlockWeights(min_size=0), alike(15))
    assert few.to_bytes() == plain.to_bytes()
    assert store(model, BlockWeights(min_size=0), alike(16))[0].to_bytes() != plain.to_bytes()


def test_layers_that_share_a_weight_are_rounded_to_the_nearest() -> None:
    body = "g (float[n,64] x) => (float[n,64] y) { a = MatMul(x, w) y = MatMul(a, w) }"
    model = Model.load(build(body, {"w": (64, 64)}))
    fitted, _ = store(model, BlockWeights(min_size=0), alike(40))
    assert fitted.to_bytes() == store(model)[0].to_bytes()


def test_plans_replay_to_the_same_bytes() -> None:
    model, item, where = network(), BlockWeights(min_size=0), PassContext(samples=alike(40), threads=1)
    plan = item.plan(model.copy(), where)
    assert plan.rounding is Rounding.SECOND_ORDER
    assert applied(model, plan, where, item).to_bytes() == store(model, item, alike(40))[0].to_bytes()
    with pytest.raises(SpecError, match="--data"):
        applied(model, plan, PassContext(), item)


def test_a_plan_to_the_nearest_needs_no_samples() -> None:
    model, item = network(), BlockWeights(min_size=0, rounding=Rounding.NEAREST)
    plan = item.plan(model.copy(), PassContext(samples=alike(40), threads=1))
    replayed = applied(model, plan, PassContext(), BlockWeights(min_size=0))
    assert replayed.to_bytes() == store(model, item)[0].to_bytes()


def test_the_original_keeps_its_weights() -> None:
    model = network()
    before = model.to_bytes()
    store(model, BlockWeights(min_size=0), alike(40))
    assert model.to_bytes() == before


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "crnn", "vgg"])
def test_architectures(name: str, form: Form) -> None:
    """Outputs are those of the floats that blocks stand for, which ``dequantize`` puts back."""
    proto = ARCHITECTURES[name]()
    model, _ = store(proto, BlockWeights(min_size=256, form=form, inputs=Inputs.FLOAT))
    blocks = sum(
        op == "MatMulNBits" or "block_size" in n.attrs for op, n in zip(ops(model), model.graph.nodes, strict=True)
    )
    assert blocks > 0
    assert model.weight_bytes() < Model.load(proto).weight_bytes()
    floats = model.copy()
    rewriter = Rewriter(floats)
    Dequantize().run(rewriter, PassContext())
    rewriter.finish()
    assert not {"MatMulNBits", "DequantizeLinear"} & set(ops(floats))
    feed = {
        value.name: np.random.default_rng(0)
        .standard_normal([dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim])
        .astype(np.float32)
        for value in proto.graph.input
    }
    for expected, found in zip(run(floats, feed), run(model, feed), strict=True):
        assert off(expected, found) < 10 * EXACTLY


def test_through_the_manager() -> None:
    result = onnxslim.optimize(
        network(), data=alike(64), passes=[BlockWeights(min_size=0)], bench=False, threads=1, exact=False
    )
    (done,) = result.report.passes
    assert done.status.value == "kept"
    assert done.edits > 0
    assert result.model.weight_bytes() < 0.25 * network().weight_bytes()
    assert done.validation is not None
    sqnr = done.validation.outputs[0].sqnr_db
    assert sqnr is not None
    assert sqnr > 20
