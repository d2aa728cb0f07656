"""How exact passes are tested: run them to a fixed point and compare outputs in onnxruntime, optimizations off."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

from onnxslim.ir import Model, Rewriter
from onnxslim.pipeline import Pass, PassContext
from onnxslim.runtime import Level, Session, SessionConfig

DYNAMIC = 3
"""The size that dynamic dimensions are fed with."""

Weights = Mapping[str, tuple[int, ...] | npt.NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """What exact passes made of a model."""

    model: Model
    edits: int
    reasons: tuple[str, ...]
    difference: float
    """The largest difference of any output on seeded inputs, relative to that output's range."""

    @property
    def ops(self) -> list[str]:
        return [node.op for node in self.model.graph.nodes]


def build(body: str, weights: Weights | None = None, opset: int = 17) -> onnx.ModelProto:
    """Parse a graph; ``weights`` are arrays, or shapes to be filled with seeded float32 numbers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{body}')
    generator = np.random.default_rng(7)
    for name, value in (weights or {}).items():
        array = _away_from_zero(generator, value) if isinstance(value, tuple) else value
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(proto)
    return proto


def _away_from_zero(generator: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Tiny weights beside large offsets would make every output's range tiny, and rounding large beside it."""
    values = generator.standard_normal(shape)
    return (values + 0.5 * np.sign(values)).astype(np.float32)


def fixed_point(model: Model, passes: Sequence[Pass]) -> tuple[int, tuple[str, ...]]:
    """Run passes round after round; return all edits and the reasons of the last round."""
    total = 0
    for _ in range(30):
        edits, reasons = 0, []
        for item in passes:
            rewriter = Rewriter(model)
            item.run(rewriter, PassContext())
            rewriter.finish()
            edits += rewriter.edits
            reasons += [mismatch.reason for mismatch in rewriter.skipped]
        total += edits
        if not edits:
            return total, tuple(reasons)
    raise AssertionError("no fixed point")


def outputs(model: Model | onnx.ModelProto, seed: int) -> list[npt.NDArray[Any]]:
    proto = model.proto() if isinstance(model, Model) else model
    session = Session(proto, SessionConfig(level=Level.NONE))
    generator = np.random.default_rng(seed)
    given = {tensor.name for tensor in proto.graph.initializer}
    feed = {v.name: _random(v.type.tensor_type, generator) for v in proto.graph.input if v.name not in given}
    return list(session.run(feed).values())


def _random(kind: onnx.TypeProto.Tensor, generator: np.random.Generator) -> npt.NDArray[Any]:
    shape = [dim.dim_value if dim.HasField("dim_value") else DYNAMIC for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(-3 if dtype.kind == "i" else 0, 4, shape).astype(dtype)
    return generator.normal(size=shape).astype(dtype)


def difference(before: Model | onnx.ModelProto, after: Model | onnx.ModelProto) -> float:
    """Return the largest difference over three seeds, relative to the range (or size, for constants) of the output."""
    worst = 0.0
    for seed in range(3):
        for a, b in zip(outputs(before, seed), outputs(after, seed), strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            if a.size and a.dtype.kind in "fiu":
                wide, other = a.astype(np.float64), b.astype(np.float64)
                span = float(np.ptp(wide)) or float(np.abs(wide).max()) or 1.0
                with np.errstate(invalid="ignore"):
                    gap = np.where(wide == other, 0.0, np.abs(wide - other))
                worst = max(worst, float(gap.max()) / span)
            else:
                worst = max(worst, float((a != b).any()))
    return worst


Check = Callable[..., Outcome]


@pytest.fixture(scope="session")
def check() -> Check:
    """Build a model, run passes on it to a fixed point, check the result with onnx and compare outputs."""

    def run(
        body: str,
        passes: Pass | Sequence[Pass],
        weights: Weights | None = None,
        opset: int = 17,
        compare: bool = True,
    ) -> Outcome:
        proto = build(body, weights, opset)
        model = Model.load(proto)
        edits, reasons = fixed_point(model, [passes] if isinstance(passes, Pass) else passes)
        onnx.checker.check_model(model.proto(), full_check=True)
        return Outcome(model, edits, reasons, difference(proto, model) if compare else math.nan)

    return run
