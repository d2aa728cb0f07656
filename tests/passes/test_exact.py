"""All exact passes together: a fixed point, the same bytes twice, equal outputs in any order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.ir import Model
from onnxslim.passes import EXACT_PASSES
from onnxslim.passes.fuse_matmul_add import FuseMatmulAdd
from onnxslim.pipeline import Pass, exact_fixed_point
from onnxslim.runtime import Level, Session, SessionConfig

MODELS = Path(__file__).resolve().parents[2] / "models"
EXACT = 1e-5
"""Relative to an output's range: what an exact pass may change."""

GRAPH = """g (float[N,3,8,8] x) => (float[P,R] z, float[N,4,8,8] side) {
    mean = Constant<value = float[3,1,1] {0.5, 0.25, 0.125}>()
    std = Constant<value_float = 0.25>()
    centred = Sub(x, mean)
    scaled = Div(centred, std)
    padded = Pad(scaled, pads)
    c = Conv(padded, w1)
    n = BatchNormalization(c, gamma, beta, mu, var)
    r = Relu(n)
    again = Relu(r)
    c2 = Conv<pads = [1,1,1,1]>(again, w2)
    m = Mul(c2, gain)
    a = Add(m, again)
    copy = Identity(a)
    other = Mul(gain, c2)
    b = Add(other, again)
    both = Concat<axis = 1>(copy, b)
    side = Slice(both, first, fourth, one)
    s = Shape(both)
    batch = Gather(s, zero)
    u = Unsqueeze(batch, axis)
    t = Concat<axis = 0>(u, rest)
    flat = Reshape(both, t)
    wt = Transpose(w3)
    y = MatMul(flat, wt)
    z = Add(y, bias)
    dead = Exp(z)
}"""
WEIGHTS: dict[str, Any] = {
    "w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (5, 512), "bias": (5,), "gain": (4, 1, 1),
    "gamma": (4,), "beta": (4,), "mu": (4,), "var": np.array([0.5, 1, 2, 3], np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "zero": np.array(0, np.int64),
    "axis": np.array([0], np.int64), "rest": np.array([-1], np.int64), "first": np.array([0], np.int64),
    "fourth": np.array([4], np.int64), "one": np.array([1], np.int64),
}  # fmt: skip


def all_passes() -> list[Pass]:
    kinds: dict[type[Pass], None] = dict.fromkeys((*EXACT_PASSES, FuseMatmulAdd))
    return [cls() for cls in kinds]


def test_everything_at_once(check: Callable[..., Any]) -> None:
    """Sub before a padded convolution stays; all else that can be is folded, joined or merged."""
    done = check(GRAPH, all_passes(), WEIGHTS)
    assert sorted(done.ops) == ["Add", "Concat", "Conv", "Conv", "Gemm", "Relu", "Reshape", "Sub"]
    assert done.difference < EXACT


def test_again_is_byte_identical(check: Callable[..., Any]) -> None:
    once = check(GRAPH, all_passes(), WEIGHTS).model
    data = once.to_bytes()
    assert exact_fixed_point(once, all_passes()) == 0
    assert once.to_bytes() == data
    reloaded = Model.load(data)
    assert exact_fixed_point(reloaded, all_passes()) == 0
    assert reloaded.to_bytes() == data
    assert check(GRAPH, all_passes(), WEIGHTS).model.to_bytes() == data


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_any_order_gives_equal_outputs(check: Callable[..., Any], seed: int) -> None:
    passes = all_passes()
    np.random.default_rng(seed).shuffle(passes)
    assert check(GRAPH, passes, WEIGHTS).difference < EXACT


@pytest.mark.parametrize("name", ["inception", "mobilenet", "nin", "resnet", "vgg"])
def test_trained_models(name: str) -> None:
    """Trained networks: equal outputs, never more nodes or bytes, and the same bytes twice."""
    original = onnx.load(MODELS / f"{name}.onnx")
    model = Model.load(original)
    exact_fixed_point(model, all_passes())
    data = model.to_bytes()
    again = Model.load(data)
    exact_fixed_point(again, all_passes())
    assert again.to_bytes() == data
    assert len(model.graph.nodes) <= len(original.graph.node)
    assert len(data) <= original.ByteSize() * 1.01
    for a, b in zip(_run(original.SerializeToString()), _run(data), strict=True):
        assert float(np.abs(a - b).max()) <= EXACT * float(np.ptp(a))


def _run(data: bytes) -> list[Any]:
    session = Session(data, SessionConfig(level=Level.NONE))
    shape = [dim if isinstance(dim, int) else 1 for dim in Model.load(data).inputs[0].shape or ()]
    generator = np.random.default_rng(0)
    feed = {session.input_names[0]: generator.normal(size=shape).astype(np.float32)}
    return list(session.run(feed).values())


@pytest.mark.parametrize("name", ["resnet20_cifar10", "efficientnet_lite0"])
def test_zoo(zoo: Path, name: str) -> None:
    """Real models, where there are any."""
    original = zoo / f"{name}.onnx"
    model = Model.load(original)
    exact_fixed_point(model, all_passes())
    assert len(model.graph.nodes) == {"resnet20_cifar10": 54, "efficientnet_lite0": 94}[name]
    for a, b in zip(_run(original.read_bytes()), _run(model.to_bytes()), strict=True):
        assert float(np.abs(a - b).max()) <= EXACT * float(np.ptp(a))
