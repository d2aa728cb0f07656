"""Grids other than the default's: what is stored, and what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from gallery import GALLERY, Builder
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.errors import SpecError
from onnxslim.ir import Model, Rewriter, array_of
from onnxslim.passes import InsertQdq
from onnxslim.passes._qdq_judge import energies, sure_sqnr
from onnxslim.passes._quantize import GridKind, Integer, Style, grid_of, quantize_weight
from onnxslim.passes.insert_qdq import Rounding
from onnxslim.pipeline import PassContext
from onnxslim.runtime import Level, Reading, Session, SessionConfig
from onnxslim.samples import Samples
from onnxslim.targets import DEFAULT_TARGET, Target, find_target

Array = np.ndarray[Any, np.dtype[Any]]


def context_of(model: Model, target: Target = DEFAULT_TARGET) -> PassContext:
    (spec,) = model.inputs
    shape = [40, *(dim if isinstance(dim, int) else 1 for dim in (spec.shape or ())[1:])]
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    samples = Samples.from_arrays({spec.name: values}).for_inputs(model.inputs)
    return PassContext(samples=samples, threads=1, target=target)


def quantized(model: Model, options: InsertQdq, target: Target = DEFAULT_TARGET) -> Model:
    made = model.copy()
    rewriter = Rewriter(made)
    options.run(rewriter, context_of(model, target))
    rewriter.finish()
    onnx.checker.check_model(made.proto(), full_check=True)
    return made


def kept_db(model: Model, made: Model) -> float:
    sides = []
    for one in (model, made):
        session = Session(one.to_bytes(), SessionConfig(level=Level.ALL, reading=Reading.DEFINITION))
        samples = context_of(model).samples
        assert samples is not None
        sides.append([np.asarray(next(iter(session.run(s.feed).values())), np.float64) for s in samples])
    return sure_sqnr([energies(*pair) for pair in zip(*sides, strict=True)])


def activation_grids(model: Model) -> list[tuple[Array, Array]]:
    """Return scale and zero point of every QuantizeLinear."""
    nodes = [node for node in model.graph.nodes if node.op == "QuantizeLinear"]
    return [(np.asarray(array_of(node.inputs[1])), np.asarray(array_of(node.inputs[2]))) for node in nodes]


def weights(model: Model) -> list[tuple[Array, Array]]:
    """Return integers and scales of every weight."""
    nodes = [node for node in model.graph.nodes if node.op == "DequantizeLinear" and "axis" in node.attrs]
    pairs = [(array_of(node.inputs[0]), array_of(node.inputs[1])) for node in nodes]
    return [(np.asarray(q), np.asarray(s)) for q, s in pairs if q is not None and q.ndim > 1]


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("integer", Integer)
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_integers_of_activations(integer: Integer, symmetric: bool, rounding: Rounding) -> None:
    model = GALLERY["resnet"](Builder())
    made = quantized(model, InsertQdq(activations=integer, symmetric=symmetric, rounding=rounding, min_sqnr=0.0))
    grids = activation_grids(made)
    middle = {Integer.UINT8: 128, Integer.INT8: 0, Integer.UINT16: 32768, Integer.INT16: 0}[integer]
    assert grids
    assert all(str(zero.dtype) == integer.value for _, zero in grids)
    assert made.opset == (21 if integer in (Integer.UINT16, Integer.INT16) else 17)
    assert symmetric == all(int(zero) == middle for _, zero in grids)
    assert kept_db(model, made) > (24 if symmetric else 28)


def test_16_bits_of_some_layers() -> None:
    model = GALLERY["vgg"](Builder())
    first = model.graph.nodes[0].outputs[0].name
    made = quantized(model, InsertQdq(wide=(first,), min_sqnr=0.0))  # its result is what the Relu behind it makes
    kinds = [str(zero.dtype) for _, zero in activation_grids(made)]
    assert kinds.count("uint16") == 2  # and so is what MaxPool takes from it
    assert set(kinds) == {"uint8", "uint16"}


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_of_weights(bits: int, rounding: Rounding) -> None:
    made = quantized(GALLERY["vgg"](Builder()), InsertQdq(weight_bits=bits, rounding=rounding, min_sqnr=0.0))
    most = 2 ** (bits - 1) - 1
    found = weights(made)
    assert found
    assert max(int(np.abs(values.astype(int)).max()) for values, _ in found) == most


def test_bits_that_no_weight_has_are_refused() -> None:
    for bits in (1, 9):
        with pytest.raises(SpecError, match="2 to 8"):
            InsertQdq(weight_bits=bits)


@pytest.mark.parametrize("rounding", Rounding)
def test_one_scale_for_all_channels(rounding: Rounding) -> None:
    made = quantized(GALLERY["vgg"](Builder()), InsertQdq(per_channel=False, rounding=rounding, min_sqnr=0.0))
    assert all(len(set(scale.tolist())) == 1 for _, scale in weights(made))


@pytest.mark.parametrize("rounding", Rounding)
def test_powers_of_two(rounding: Rounding) -> None:
    made = quantized(GALLERY["resnet"](Builder()), InsertQdq(power_of_two=True, rounding=rounding, min_sqnr=0.0))
    for scale in [scale for scale, _ in (*activation_grids(made), *((s, q) for q, s in weights(made)))]:
        mantissa, _ = np.frexp(scale)
        assert np.all(mantissa == 0.5)


def test_targets_choose_integers_and_kernels() -> None:
    model = GALLERY["decoder"](Builder())
    made = quantized(model, InsertQdq(min_sqnr=0.0), find_target("xnnpack"))
    assert {str(zero.dtype) for _, zero in activation_grids(made)} == {"int8"}
    (node,) = [node for node in made.graph.nodes if node.op == "ConvTranspose"]
    maker = node.inputs[1].inputs[0]
    assert (maker.op, maker.attrs["axis"]) == ("DequantizeLinear", 1)
    assert kept_db(model, made) > 25


@given(st.floats(-100, 100), st.floats(-100, 100), st.sampled_from(Integer), st.booleans(), st.booleans())
def test_grids_hold_zero_and_their_range(a: float, b: float, integer: Integer, symmetric: bool, power: bool) -> None:
    low, high = min(a, b), max(a, b)
    grid = grid_of(low, high, GridKind(integer, symmetric, power))
    scale, zero = float(grid.scale), int(grid.zero_point)
    least, greatest = integer.limits
    assert scale > 0
    assert least <= zero <= greatest
    if max(-low, high) > 1e-30:
        assert scale * (least - zero) <= min(low, 0) + 0.51 * scale
        assert scale * (greatest - zero) >= max(high, 0) - 0.51 * scale


@given(st.integers(2, 8), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_weights_are_off_by_half_a_step(bits: int, per_channel: bool, power: bool, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((4, 3, 2)).astype(np.float32)
    style = Style(GridKind(power_of_two=power), per_channel=per_channel, weight_bits=bits)
    found = quantize_weight(weight, 0, None, None, style)
    scale = found.scale.astype(np.float64).reshape(-1, 1, 1)
    assert np.abs(found.values * scale - weight).max() <= 0.501 * scale.max()
    assert np.all(np.abs(found.values * scale - weight) <= 0.501 * scale)
