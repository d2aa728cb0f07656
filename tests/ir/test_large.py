"""Large models: weights stay in their files, and everything else is as with small ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from onnxslim.errors import ModelError, OutputError
from onnxslim.ir import Constant, Model, array_of
from onnxslim.ir.weights import StoredValues
from onnxslim.ir.wire import without_weights

WIDTH = 64


def weight(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32)


def layers() -> onnx.ModelProto:
    """Weights as initializer, Constant node, 4-bit tensor, in a subgraph, and as a default that may be overridden."""
    nibbles = (np.arange(WIDTH * 256) % 16 - 8).astype(oh.tensor_dtype_to_np_dtype(TensorProto.INT4))
    packed = numpy_helper.from_array(nibbles.reshape(WIDTH, 256), "packed")
    branch = oh.make_graph(
        [oh.make_node("MatMul", ["c", "w"], ["b"])], "then", [], [oh.make_tensor_value_info("b", 1, ["i", "j"])]
    )
    inner = [
        oh.make_node("Constant", [], ["v"], value=numpy_helper.from_array(weight(3))),
        oh.make_node("Add", ["c", "v"], ["e"]),
    ]
    other = oh.make_graph(inner, "else", [], [oh.make_tensor_value_info("e", 1, ["i", "j"])])
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"]),
        oh.make_node("Constant", [], ["k"], value=numpy_helper.from_array(weight(1))),
        oh.make_node("MatMul", ["a", "k"], ["m"]),
        oh.make_node("Add", ["m", "free"], ["c"]),
        oh.make_node("DequantizeLinear", ["packed", "one"], ["d"]),
        oh.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=other),
    ]
    graph = oh.make_graph(
        nodes,
        "large",
        [oh.make_tensor_value_info("x", 1, ["n", WIDTH]), oh.make_tensor_value_info("free", 1, [WIDTH, WIDTH])],
        [oh.make_tensor_value_info("z", 1, ["i", "j"]), oh.make_tensor_value_info("d", 1, [WIDTH, 256])],
        [
            numpy_helper.from_array(weight(0), "w"),
            numpy_helper.from_array(weight(2), "free"),
            packed,
            numpy_helper.from_array(np.array(0.5, np.float32), "one"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(params=["inline", "external", "several files"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "model.onnx"
    if request.param == "inline":
        onnx.save_model(layers(), str(path))
    else:
        together = request.param == "external"
        keywords = {"all_tensors_to_one_file": together, "size_threshold": 0, "convert_attribute": True}
        onnx.save_model(layers(), str(path), save_as_external_data=True, **keywords)
    return path


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.ir.weights.LARGE", 0)


def stored(model: Model) -> set[str]:
    return {t.name for t in model._constants() if isinstance(t._values, StoredValues)}


@pytest.mark.usefixtures("everything_is_large")
def test_weights_of_the_main_graph_stay_in_their_files(file: Path) -> None:
    model = Model.load(file)
    assert {"w", "packed"} <= stored(model)
    tensors = model.graph.tensors()
    for _ in range(2):
        values = array_of(tensors["w"])
        assert values is not None
        np.testing.assert_array_equal(values, weight(0))
        assert not values.flags.writeable
    assert "w" in stored(model), "looking does not load"
    packed = array_of(tensors["packed"])
    assert packed is not None
    np.testing.assert_array_equal(packed.astype(int).reshape(-1), np.arange(WIDTH * 256) % 16 - 8)


def test_large_and_small_are_the_same_model(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Model.load(file).proto()
    monkeypatch.setattr("onnxslim.ir.weights.LARGE", 0)
    large = Model.load(file)
    assert large.proto() == small
    assert large.copy().proto() == small
    large.save(tmp_path / "whole.onnx")
    assert onnx.load_model(str(tmp_path / "whole.onnx")) == small
    onnx.checker.check_model(str(tmp_path / "whole.onnx"))
    monkeypatch.setattr("onnxslim.ir.saving.EXTERNAL_ABOVE", 0)
    large.save(tmp_path / "apart.onnx")
    assert (tmp_path / "apart.onnx").stat().st_size < 40_000, "but for Constant nodes"
    again = Model.load(tmp_path / "apart.onnx").proto()
    assert again == small


@pytest.mark.usefixtures("everything_is_large")
def test_saving_twice_gives_the_same_bytes_and_the_digest(file: Path, tmp_path: Path) -> None:
    model = Model.load(file)
    size, digest = model.size_and_digest()
    model.save(tmp_path / "one.onnx")
    Model.load(tmp_path / "one.onnx").save(tmp_path / "two.onnx")
    data = (tmp_path / "one.onnx").read_bytes()
    assert (tmp_path / "two.onnx").read_bytes() == data
    assert size == len(data)
    assert digest == Model.load(tmp_path / "two.onnx").size_and_digest()[1]


@pytest.mark.usefixtures("everything_is_large")
def test_what_passes_replaced_is_written_and_stays_in_memory(file: Path, tmp_path: Path) -> None:
    model = Model.load(file)
    tensor = model.graph.tensors()["w"]
    assert isinstance(tensor, Constant)
    new = weight(9).T  # not contiguous
    tensor.values = new
    model.save(tmp_path / "out.onnx")
    assert tensor._values is new
    written = {t.name: t for t in onnx.load_model(str(tmp_path / "out.onnx")).graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(written["w"]), new)


@pytest.mark.usefixtures("everything_is_large")
def test_a_placed_model_is_a_file_for_as_long_as_it_is_held(file: Path) -> None:
    placed = Model.load(file).placed(["a"])
    path = placed.data
    assert isinstance(path, Path)
    assert [value.name for value in onnx.load_model(str(path)).graph.output] == ["z", "d", "a"]
    del placed
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": "a/../../weights.bin"}, "outside the model's folder"),
        ({"location": "C:\\weights.bin"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"location": "gone.bin"}, "is missing"),
        ({"location": "link.bin"}, "is a link or no regular file"),
        ({"location": "folder"}, "is a link or no regular file"),
        ({"location": "linked/weights.bin"}, "is a link or no regular file"),
        ({"location": "weights.bin", "offset": "-1"}, "has offset '-1'"),
        ({"location": "weights.bin", "length": "1e9"}, "has length '1e9'"),
        ({"location": "weights.bin", "offset": "16000", "length": "16384"}, "ends at byte 32384 of weights.bin"),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_external_data_that_is_refused(
    entries: dict[str, str], fault: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("onnxslim.ir.weights.LARGE", 0)
    (tmp_path / "weights.bin").write_bytes(weight(0).tobytes())
    folder = tmp_path / "in"
    (folder / "folder").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(weight(0).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "linked").symlink_to(tmp_path)
    model = layers()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=fault) as caught:
        Model.load(folder / "model.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("everything_is_large")
def test_the_input_s_data_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.ir.saving.EXTERNAL_ABOVE", 0)
    path = tmp_path / "in.onnx"
    onnx.save_model(layers(), str(path), save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    with pytest.raises(OutputError, match="holds weights of the input"):
        Model.load(path).save(tmp_path / "out.onnx")


@given(cut=st.integers(0, 40_000), sizes=st.lists(st.integers(0, 3000), max_size=4))
@settings(max_examples=60, deadline=None)
def test_stepping_through_the_wire_format_agrees_with_protobuf(cut: int, sizes: list[int]) -> None:
    arrays = {f"t{i}": np.arange(size, dtype=np.float32) for i, size in enumerate(sizes)}
    graph = oh.make_graph([], "g", [], [], [numpy_helper.from_array(a, name) for name, a in arrays.items()])
    data = oh.make_model(graph).SerializeToString()
    light = onnx.ModelProto.FromString(without_weights(memoryview(data), "here"))
    for tensor in light.graph.initializer:
        values = arrays[tensor.name]
        if values.nbytes <= 4096:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), values)
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        start = int(place["offset"])
        assert data[start : start + int(place["length"])] == values.tobytes()
    part = memoryview(data[: cut % len(data)])
    try:
        onnx.ModelProto.FromString(bytes(part))
    except DecodeError:
        with pytest.raises(DecodeError):
            onnx.ModelProto.FromString(without_weights(part, "here"))


_MEASURE = """
import sys
from onnxslim.ir import Model
from onnxslim.measure.race import peak_resident_bytes
from onnxslim.pipeline import exact_fixed_point
from onnxslim.workflow.registry import exact_passes
before = peak_resident_bytes()
model = Model.load(sys.argv[1])
exact_fixed_point(model, [kind() for kind in exact_passes()])
model.save(sys.argv[2])
print(peak_resident_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("external", [False, True])
def test_memory_of_the_exact_pipeline_stays_below_the_weights(tmp_path: Path, external: bool) -> None:
    size, count = 3072, 10  # 377 MB
    weights = [numpy_helper.from_array(np.full((size, size), i, np.float32), f"w{i}") for i in range(count)]
    nodes = []
    for i in range(count):
        nodes += [
            oh.make_node("MatMul", [f"x{i}", f"w{i}"], [f"m{i}"]),
            oh.make_node("Identity", [f"m{i}"], [f"x{i + 1}"]),
        ]
    ends = [oh.make_tensor_value_info(name, 1, [1, size]) for name in ("x0", f"x{count}")]
    model = oh.make_model(oh.make_graph(nodes, "g", ends[:1], ends[1:], weights), ir_version=10)
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save_model(model, str(path), save_as_external_data=external)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), str(out)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < size * size * 4 * count + 50e6
    assert len(onnx.load_model(str(out), load_external_data=False).graph.node) == count
