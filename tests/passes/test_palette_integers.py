"""palettize packs integer weights without loss: what is read at load is what was there, and kernels stay integer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from gallery import GALLERY, Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxslim.errors import PassError
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import InsertQdq, Palettize
from onnxslim.passes.insert_qdq import Rounding
from onnxslim.passes.palettize import PalettePlan
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Session, SessionConfig
from onnxslim.samples import Samples

Array = npt.NDArray[Any]

ROOM = Palettize(min_size=0)
HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,K] x) => (float[2,N] y)'
BODY = f"{HEAD} {{ w = DequantizeLinear<axis = 1>(q, s) y = MatMul(x, w) }}"


def build(integers: Array, body: str = BODY) -> onnx.ModelProto:
    rows, columns = integers.shape
    text = body.replace("[2,K]", f"[2,{rows}]").replace("[2,N]", f"[2,{columns}]")
    proto = onnx.parser.parse_model(text)
    scale = np.linspace(0.01, 0.02, columns).astype(np.float32)
    proto.graph.initializer.extend([numpy_helper.from_array(integers, "q"), numpy_helper.from_array(scale, "s")])
    return proto


def packed(model: Model, item: Palettize = ROOM) -> tuple[Model, PalettePlan]:
    """Return the model with its integer weights packed, those in float as they are; and the plan."""
    context = PassContext(threads=1)
    made, plan = model.copy(), item.plan(model, context)
    rewriter = Rewriter(made)
    item.apply(rewriter, plan.model_copy(update={"weights": {}}), context)
    rewriter.finish()
    onnx.checker.check_model(made.proto(), full_check=True)
    return made, plan


def loaded(model: Model, folder: Path, level: Level, feed: dict[str, Array]) -> tuple[Counter[str], dict[str, Any]]:
    session = Session(model.to_bytes(), SessionConfig(level=level, optimized_path=str(folder / "loaded.onnx")))
    return Counter(node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node), session.run(feed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loaded")


@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    shape=st.tuples(st.integers(2, 40), st.integers(1, 60)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_onnxruntime_reads_what_was_there(
    folder: Path, bits: int, signed: bool, shape: tuple[int, int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    least = int(random.integers(0, 256 - 2**bits + 1)) - (128 if signed else 0)
    dtype = np.int8 if signed else np.uint8
    integers = random.integers(least, least + 2**bits, shape).astype(dtype)
    model = Model.load(build(integers))
    made, plan = packed(model)
    assert set(plan.packed.values()) <= set(range(1, bits + 1))
    feed = {"x": random.standard_normal((2, shape[0])).astype(np.float32)}
    before, expected = loaded(model, folder, Level.BASIC, feed)
    after, found = loaded(made, folder, Level.BASIC, feed)
    assert after == before
    np.testing.assert_array_equal(found["y"], expected["y"])


@pytest.mark.parametrize("bits", range(1, 8))
def test_the_file_takes_so_many_bits(bits: int) -> None:
    integers = np.random.default_rng(0).integers(0, 2**bits, (300, 200)).astype(np.uint8)
    model = Model.load(build(integers))
    made, plan = packed(model)
    assert plan.packed == {"q": bits}
    tables = 2**12 if bits in (1, 2, 4) else 2**13
    assert len(made.to_bytes()) < len(model.to_bytes()) - 300 * 200 * (8 - bits) // 8 + tables


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_a_network_of_few_bits_runs_the_same_kernels(folder: Path, bits: int) -> None:
    model = GALLERY["vgg"](Builder())
    values = np.random.default_rng(1).standard_normal((4, 3, 16, 16)).astype(np.float32)
    samples = Samples.from_arrays({"x": values}).for_inputs(model.inputs)
    rewriter = Rewriter(model)
    item = InsertQdq(rounding=Rounding.NEAREST, weight_bits=bits, min_sqnr=0.0)
    item.run(rewriter, PassContext(samples=samples, threads=1))
    rewriter.finish()
    with mock.patch("onnxslim.passes._palette_graph.NODE_BYTES", 0):
        made, plan = packed(model)
    assert len(plan.packed) >= 3
    feed = {"x": values[:1]}
    before, expected = loaded(model, folder, Level.ALL, feed)
    after, found = loaded(made, folder, Level.ALL, feed)
    assert after == before
    assert after["QLinearConv"] == 2
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


FEW = np.arange(1200).reshape(40, 30).astype(np.int8) % 5

STAYS: dict[str, tuple[onnx.ModelProto, Palettize]] = {
    "all bits are needed": (build(np.arange(-128, 128).repeat(8).reshape(64, 32).astype(np.int8)), ROOM),
    "too small to pay": (build(FEW[:2, :2]), ROOM),
    "fewer elements than min-size": (build(FEW), Palettize(min_size=5000)),
    "its layer is excluded": (build(FEW), Palettize(min_size=0, exclude=("y",))),
    "the model returns it": (
        build(FEW, f"{HEAD[:-1]}, int8[40,30] q) {{ w = DequantizeLinear<axis = 1>(q, s) y = MatMul(x, w) }}"),
        ROOM,
    ),
    "something else reads it": (
        build(FEW, BODY.replace("y) {", "y, float[40,30] z) {").replace(" }", " z = Cast<to = 1>(q) }")),
        ROOM,
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    proto, item = STAYS[name]
    model = Model.load(proto)
    made, plan = packed(model, item)
    assert not plan.packed
    assert made.to_bytes() == model.to_bytes()


@pytest.mark.parametrize("wanted", [{"nobody": 3}, {"q": 2}, {"q": 8}])
def test_a_plan_that_does_not_fit(wanted: dict[str, int]) -> None:
    rewriter = Rewriter(Model.load(build(FEW)))
    with pytest.raises(PassError, match="does not fit the model"):
        ROOM.apply(rewriter, PalettePlan(weights={}, packed=wanted), PassContext(threads=1))
