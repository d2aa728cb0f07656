"""Whether a race claims what is so: a model beside itself, and beside one that does a tenth more of the same work."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

from onnxslim.measure import RaceSettings, compare_latency
from onnxslim.measure.latency import Claim

LAYERS, MORE = 20, 22
CHANNELS, SIZE = 32, 28
FALSE_CLAIMS, FOUND = 1 / 50, 45 / 50


def run(races: int, seconds: float) -> int:
    """Print what ``races`` of each kind claimed; return 1 where that is too often wrong."""
    feed = {"x": np.random.default_rng(0).standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)}
    same, slower = _chain(LAYERS), _chain(MORE)
    found: dict[str, Counter[str]] = {}
    for name, other in (("itself", same), ("a tenth more work", slower)):
        found[name] = Counter(_claim(same, other, feed, seed, seconds) for seed in range(races))
        told = "".join(f"{claim.value:>10}: {found[name][claim.value]:>3}" for claim in Claim)
        print(f"{name:20}{told}", flush=True)
    false = races - found["itself"]["nothing"]
    planted = found["a tenth more work"]
    missed = false > FALSE_CLAIMS * races or planted["slower"] < FOUND * races or planted["faster"]
    print("MISSED" if missed else "ok")
    return int(bool(missed))


def _claim(first: bytes, second: bytes, feed: dict[str, np.ndarray], seed: int, seconds: float) -> str:
    (race,) = compare_latency([first, second], feed, RaceSettings(seconds, seed=seed, layers=False))
    return race.claim.value if race.claim is not None else "nothing"


def _chain(layers: int) -> bytes:
    """Return equal convolutions in a row."""
    random = np.random.default_rng(1)
    names = ["x", *(f"t{index}" for index in range(layers))]
    weight = random.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 17
    nodes = [oh.make_node("Conv", [a, "w"], [b], pads=[1] * 4) for a, b in itertools.pairwise(names)]
    shape = [1, CHANNELS, SIZE, SIZE]
    values = [oh.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (names[0], names[-1])]
    graph = oh.make_graph(nodes, "chain", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model: onnx.ModelProto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
