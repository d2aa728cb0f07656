"""The emulated ARM itself, where it is set up: counts that repeat, add up, and tell kernels apart."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.parser
import pytest

import onnxslim
from onnxslim.devices import DeviceResult, Job, Side
from onnxslim.devices.arm import BETWEEN, ArmDevice
from onnxslim.devices.arm_home import default_home
from onnxslim.devices.base import Array, Kind
from onnxslim.errors import DeviceError
from onnxslim.passes import InsertQdq
from onnxslim.runtime import Reading, Session, SessionConfig

HOME = default_home()
"""The user's own, looked up before each test gets a cache folder of its own."""
MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = ("inception", "mobilenet", "nin", "resnet", "vgg")
REPEATS = 1e-3
ADDS_UP = 0.02
SINGLE = 1e-5
"""Of an output's range: two machines' kernels in single precision."""
CASCADED = 0.02
"""Of an output's range: ARM's sum of integers multiplies and adds in one rounding, x86's in two, so that one value in
20,000 is off by one, which spreads in a deep network."""

pytestmark = pytest.mark.skipif(
    HOME.fault() is not None, reason=f"the emulated ARM {HOME.fault()}: run `onnxslim device setup arm`"
)


def count(models: Sequence[Path], feed: dict[str, Array], cpu: str = "") -> DeviceResult:
    return ArmDevice(cpu, HOME.path).measure(Job(models, feed))


def kinds(side: Side) -> Counter[str]:
    total: Counter[str] = Counter()
    for layer in side.layers:
        total.update(layer.classes)
    return total


def digit() -> dict[str, Array]:
    return {"image": np.load(MODELS / "digits_eval.npz")["images"][:1].astype(np.float32)}


def feed_of(path: Path) -> dict[str, Array]:
    (value,) = onnx.load(path).graph.input
    return {value.name: next(iter(digit().values()))}


Quantizer = Callable[[str], Path]


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    """Return one of the small models as int8."""
    folder = tmp_path_factory.mktemp("int8")

    @functools.cache
    def quantize(name: str) -> Path:
        data = onnxslim.Samples.from_path(MODELS / "digits_calib.npz")
        result = onnxslim.optimize(MODELS / f"{name}.onnx", data=data, passes=[InsertQdq()], bench=False)
        result.model.save(folder / f"{name}.onnx")
        return folder / f"{name}.onnx"

    return quantize


def check_numbers(path: Path, feed: dict[str, Array], side: Side, tolerance: float = SINGLE) -> None:
    host = Session(path, SessionConfig(reading=Reading.ARM)).run(dict(feed))
    assert set(side.outputs) == set(host)
    for name, value in host.items():
        assert np.abs(side.outputs[name] - value).max() <= tolerance * np.abs(value).max()


def check_rows(path: Path, side: Side) -> None:
    assert side.instructions is not None
    assert sum(layer.instructions for layer in side.layers) == pytest.approx(side.instructions, rel=ADDS_UP)
    assert [layer.node for layer in side.layers].count(BETWEEN) == 1
    outputs = {node.output[0] for node in onnx.load(path).graph.node}
    origins = {layer.origin for layer in side.layers if layer.origin is not None}
    assert origins <= outputs
    convolutions = [node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    assert set(convolutions) <= origins


def test_counts_add_up_and_are_fewer_for_int8_with_dot_products(int8: Quantizer) -> None:
    paths = [MODELS / "mobilenet.onnx", int8("mobilenet")]
    steps: list[tuple[int, int]] = []
    job = Job(paths, feed_of(paths[0]), progress=lambda what, done, total: steps.append((done, total)))
    result = ArmDevice(home=HOME.path).measure(job)
    floating, integer = result.sides
    assert (result.name, result.kind) == ("arm", Kind.COUNTED)
    assert result.facts["cpu"] == "cortex-a76"
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    for path, side in zip(paths, result.sides, strict=True):
        assert side.times_ms == ()
        check_rows(path, side)
        check_numbers(path, feed_of(path), side)
    assert floating.instructions is not None
    assert integer.instructions is not None
    assert 1.5 < floating.instructions / integer.instructions < 4
    assert kinds(floating)["fma"] > 0.2 * floating.instructions
    assert kinds(floating)["dot"] == 0
    assert kinds(integer)["dot"] > 0.05 * integer.instructions
    assert kinds(integer)["mmla"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "dots", "matrices"), [("cortex-a53", False, False), ("i8mm", False, True)])
def test_each_processor_gets_its_own_kernels(int8: Quantizer, cpu: str, dots: bool, matrices: bool) -> None:
    result = count([MODELS / "nin.onnx", int8("nin")], feed_of(int8("nin")), cpu)
    assert result.name == f"arm:{cpu}"
    found = kinds(result.sides[1])
    assert (found["dot"] > 0, found["mmla"] > 0) == (dots, matrices)
    assert (found["int mla"] > 0.2 * sum(found.values())) == (cpu == "cortex-a53")
    check_numbers(int8("nin"), feed_of(int8("nin")), result.sides[1])


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_counts_of_all_models_repeat_from_process_to_process(int8: Quantizer, quantized: bool) -> None:
    """And from place to place in one process: the last model is the first once more."""
    paths = [int8(name) if quantized else MODELS / f"{name}.onnx" for name in (*NAMES, NAMES[0])]
    feed = {name: array for path in paths for name, array in feed_of(path).items()}
    first, second = count(paths, feed), count(paths, feed)
    assert first.sides[-1].instructions == pytest.approx(first.sides[0].instructions, rel=REPEATS)
    for path, one, other in zip(paths, first.sides, second.sides, strict=True):
        assert one.instructions is not None
        assert other.instructions == pytest.approx(one.instructions, rel=REPEATS)
        check_rows(path, one)
        check_numbers(path, feed_of(path), one)


def convolutions(channels: int, path: Path) -> Path:
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for index in range(3):
        weights.append(onnx.numpy_helper.from_array(rng.random((channels, channels, 3, 3), np.float32), f"w{index}"))
        nodes.append(oh.make_node("Conv", [f"t{index}", f"w{index}"], [f"t{index + 1}"], pads=[1] * 4))
    ends = [oh.make_tensor_value_info(name, 1, ["n", channels, "h", "w"]) for name in ("t0", f"t{len(nodes)}")]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.slow
def test_counts_follow_channels_and_size(tmp_path: Path) -> None:
    """Half the channels are a quarter of the multiplications; shapes are the feed's."""
    counts = {}
    for channels, size in ((64, 16), (32, 16), (32, 32)):
        path = convolutions(channels, tmp_path / f"{channels}-{size}.onnx")
        (side,) = count([path], {"t0": np.ones((1, channels, size, size), np.float32)}).sides
        assert side.instructions is not None
        counts[channels, size] = side.instructions
        assert [layer.origin for layer in side.layers[:-1]] == ["t1", "t2", "t3"]
        shares = [layer.instructions / side.instructions for layer in side.layers[:-1]]
        assert shares == pytest.approx([1 / 3] * 3, abs=0.02)
    assert 3.3 < counts[64, 16] / counts[32, 16] < 4.2
    assert 3.5 < counts[32, 32] / counts[32, 16] < 4.5


def save(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), path)
    return path


ODD = {
    "integers, several inputs": (
        "g (int64[N] ids, float[4,D] table) => (float[N,D] y, int64[N] z) "
        "{ y = Gather (table, ids)  z = Add (ids, ids) }",
        {"ids": np.array([1, 2, 3]), "table": np.ones((4, 7), np.float32), "unused": np.ones(1)},
        {"y", "z"},
    ),
    "subgraphs": (
        "g (float[4] x, bool c) => (float[4] y) { y = If (c) <"
        "then_branch = a () => (float[4] u) { v = Relu (x)  u = Neg (v) },"
        "else_branch = b () => (float[4] w) { w = Abs (x) }> }",
        {"x": np.ones(4, np.float32), "c": np.array(True)},
        {"y"},
    ),
    "text": (
        "g (string[2] x) => (string[4] y) { y = Concat <axis = 0> (x, x) }",
        {"x": np.array(["a", "é"], object)},
        {"y"},
    ),
    "a sequence, which is no array": (
        "g (float[4] x) => (seq(float[4]) s, float[4] y) { s = SequenceConstruct (x, x)  y = Relu (x) }",
        {"x": np.ones(4, np.float32)},
        {"y"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ODD)
def test_odd_models_are_counted_too(tmp_path: Path, what: str) -> None:
    text, feed, outputs = ODD[what]
    path = save(tmp_path / "m.onnx", text)
    assert isinstance(feed, dict)
    (side,) = count([path], feed).sides
    host = Session(path).run({name: array for name, array in feed.items() if name != "unused"})
    assert set(side.outputs) == outputs
    for name in outputs:
        assert side.outputs[name].tolist() == host[name].tolist()
    assert {layer.origin for layer in side.layers} >= outputs


@pytest.mark.slow
def test_weights_beside_the_model_and_a_neighbour_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = convolutions(8, tmp_path / "inside.onnx")
    onnx.save(onnx.load(path), "beside.onnx", save_as_external_data=True, location="beside.data", size_threshold=0)
    bad = save(
        tmp_path / "bad.onnx",
        "g (float[1,8,h,w] t0) => (float[3] y) { k = Constant <value_ints = [3]> ()  y = Reshape (t0, k) }",
    )
    feed: dict[str, Array] = {"t0": np.ones((1, 8, 8, 8), np.float32)}
    inside, beside, refused = count([path, Path("beside.onnx"), bad], feed).sides
    assert beside.instructions == pytest.approx(inside.instructions, rel=REPEATS)
    assert np.array_equal(beside.outputs["t3"], inside.outputs["t3"])
    assert "Reshape" in str(refused.refused)
    assert refused.instructions is None
    with pytest.raises(DeviceError, match=r"^bad\.onnx does not run on ARM \(.*Reshape.*\): see whether it runs here$"):
        count([bad], feed)


@pytest.mark.slow
def test_int8_of_a_real_network(zoo: Path, tmp_path: Path) -> None:
    """EfficientNet-Lite0, whose emulation takes ten seconds as int8."""
    source = zoo / "efficientnet_lite0.onnx"
    (value,) = onnx.load(source).graph.input
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    feed: dict[str, Array] = {value.name: np.random.default_rng(0).random(shape, np.float32)}
    data = onnxslim.Samples.from_feeds([feed, feed])
    result = onnxslim.optimize(source, data=data, passes=[InsertQdq()], bench=False)
    result.model.save(tmp_path / "int8.onnx")
    floating, integer = count([source, tmp_path / "int8.onnx"], feed).sides
    assert floating.instructions is not None
    assert integer.instructions is not None
    assert 3 < floating.instructions / integer.instructions < 6
    check_numbers(tmp_path / "int8.onnx", feed, integer, CASCADED)


def test_nothing_is_left_in_temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(DeviceError, match=r"took over 0\.01 s"):
        ArmDevice(home=HOME.path, patience=0.01).measure(Job([MODELS / "nin.onnx"], feed_of(MODELS / "nin.onnx")))
    assert os.listdir(tmp_path) == []
