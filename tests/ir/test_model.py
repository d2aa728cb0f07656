"""A model goes in and comes out with nothing lost, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto, numpy_helper

from onnxslim.errors import ModelError, OutputError
from onnxslim.ir import Constant, Model, fix_input
from onnxslim.pipeline import exact_fixed_point
from onnxslim.workflow.registry import exact_passes


def small_model() -> onnx.ModelProto:
    """A two-layer model that carries everything a file can say about itself."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    weight.doc_string = "a weight"
    node = oh.make_node("MatMul", ["x", "w"], ["y"], name="first", doc_string="a node")
    node.metadata_props.add(key="origin", value="layer 1")
    graph = oh.make_graph(
        [node, oh.make_node("Relu", ["y"], ["z"], name="second")],
        "small",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2], doc_string="the input")],
        [oh.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 3])],
        [weight],
        doc_string="a graph",
        value_info=[oh.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    graph.quantization_annotation.add(tensor_name="y").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17), oh.make_opsetid("com.example", 3)])
    model.ir_version = 8
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "2", "org.example", 7
    model.doc_string = "a model"
    oh.set_model_props(model, {"author": "someone"})
    return model


def test_round_trip_loses_nothing() -> None:
    original = small_model()
    returned = Model.load(original).proto()
    assert returned == original


def test_loading_does_not_change_the_given_proto() -> None:
    original = small_model()
    before = original.SerializeToString(deterministic=True)
    Model.load(original).proto()
    assert original.SerializeToString(deterministic=True) == before


def test_same_model_same_bytes() -> None:
    data = Model.load(small_model()).to_bytes()
    assert Model.load(data).to_bytes() == data
    assert Model.load(data).copy().to_bytes() == data


def test_copy_is_independent() -> None:
    model = Model.load(small_model())
    copy = model.copy()
    copy.graph.nodes[0].name = "changed"
    copy.set_metadata("author", "another")
    assert model.graph.nodes[0].name == "first"
    assert model.metadata == {"author": "someone"}


def test_restore_undoes_everything() -> None:
    model = Model.load(small_model())
    before = model.to_bytes()
    snapshot = model.copy()
    model.graph.nodes.pop()
    model.set_metadata("new", "entry")
    model.restore(snapshot)
    assert model.to_bytes() == before


def overridable(ir_version: int) -> onnx.ModelProto:
    """A model whose weight is an input too."""
    weight = numpy_helper.from_array(np.ones((2,), np.float32), "w")
    declare = oh.make_tensor_value_info
    graph = oh.make_graph(
        [oh.make_node("Add", ["x", "w"], ["z"])],
        "g",
        [declare("w", TensorProto.FLOAT, [2]), declare("x", TensorProto.FLOAT, [2])],
        [declare("z", TensorProto.FLOAT, [2])],
        [weight],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 12)])
    model.ir_version = ir_version
    return model


def test_a_default_that_callers_may_override_is_no_constant() -> None:
    model = Model.load(overridable(8))
    assert not any(isinstance(t, Constant) for t in model.graph.tensors().values())
    assert [spec.name for spec in model.inputs] == ["x"]
    assert model.proto() == overridable(8)


def test_ir_version_3_lists_weights_as_inputs() -> None:
    model = Model.load(overridable(3))
    assert isinstance(model.graph.tensors()["w"], Constant)
    assert model.proto() == overridable(3)


def test_a_captured_weight_is_stored_once() -> None:
    then, other = (
        oh.make_graph([oh.make_node(op, ["x", "w"], [name])], name, [], [oh.make_empty_tensor_value_info(name)])
        for op, name in (("Add", "a"), ("Sub", "b"))
    )
    graph = oh.make_graph(
        [oh.make_node("If", ["c"], ["z"], then_branch=then, else_branch=other)],
        "g",
        [oh.make_tensor_value_info("c", TensorProto.BOOL, []), oh.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [oh.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.ones((2,), np.float32), "w")],
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    for candidate in (model, model.copy()):
        proto = candidate.proto()
        assert [t.name for t in proto.graph.initializer] == ["w"]
        assert not any(a.g.initializer for a in proto.graph.node[0].attribute)


def test_fixing_an_input_replaces_its_symbol_everywhere() -> None:
    model = Model.load(small_model())
    fix_input(model, "x", (4, 2))
    assert model.inputs[0].shape == (4, 2)
    assert model.outputs[0].shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "shape", "fragment"),
    [("q", (1, 2), "no input 'q'"), ("x", (1, 5), "cannot be fixed to 1x5"), ("x", (1,), "cannot be fixed to 1")],
)
def test_fixing_refuses_what_does_not_fit(name: str, shape: tuple[int, ...], fragment: str) -> None:
    with pytest.raises(ModelError, match=fragment):
        fix_input(Model.load(small_model()), name, shape)


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good = small_model().SerializeToString()
    cases = {
        "missing.onnx": (None, "no such model"),
        "empty.onnx": (b"", "is empty"),
        "text.onnx": (b"hello, this is text\n" * 20, "not an ONNX model"),
        "truncated.onnx": (good[: len(good) // 2], "truncated"),
        "no_graph.onnx": (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
    }
    for name, (data, fragment) in cases.items():
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ModelError, match=fragment) as caught:
            Model.load(path)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_an_invalid_graph_is_refused() -> None:
    model = small_model()
    model.graph.node[0].input[0] = "nobody"
    with pytest.raises(ModelError, match="not valid ONNX"):
        Model.load(model)


def external(tmp_path: Path, location: str = "weights.bin") -> Path:
    """Save the small model with its weight in another file."""
    path = tmp_path / "model.onnx"
    onnx.save_model(small_model(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        model = onnx.load_model(str(path), load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    model = Model.load(external(tmp_path))
    weight = model.graph.tensors()["w"]
    assert isinstance(weight, Constant)
    np.testing.assert_array_equal(weight.values, np.arange(6).reshape(2, 3))


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"external data .*weights\.bin"):
        Model.load(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname"])
def test_external_data_stays_in_its_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(b"\0" * 24)
    with pytest.raises(ModelError, match="external data"):
        Model.load(external(folder, location))


def test_saving_is_whole_or_not_at_all(tmp_path: Path) -> None:
    model = Model.load(small_model())
    with pytest.raises(OutputError, match="cannot write"):
        model.save(tmp_path / "no" / "such" / "folder.onnx")
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    model.save(out)
    assert onnx.load_model(str(out)) == small_model()
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(small_model().SerializeToString())
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    for target in (path, link):
        with pytest.raises(OutputError, match="is the input itself"):
            Model.load(path).save(target)


def test_big_models_keep_weights_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.ir.saving.EXTERNAL_ABOVE", 1000)
    monkeypatch.setattr("onnxslim.ir.weights.LARGE", 1000)
    big = small_model()
    values = np.random.default_rng(0).standard_normal((2, 3000)).astype(np.float32)
    big.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    big.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3000
    big.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value = 3000
    out = tmp_path / "out.onnx"
    Model.load(big).save(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert out.stat().st_size < 2000
    weight = Model.load(out).graph.tensors()["w"]
    assert isinstance(weight, Constant)
    np.testing.assert_array_equal(weight.values, values)


def test_a_subgraph_that_declares_what_it_captures_still_captures_it() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x, bool c) => (float[2] z) {
        a = Neg(x)
        z = If(c) <then_branch = t () => (float[2] p) { p = Relu(a) },
                   else_branch = e () => (float[2] q) { q = Abs(a) }>
    }"""
    proto = onnx.parser.parse_model(text)
    for attribute in proto.graph.node[1].attribute:
        attribute.g.value_info.append(onnx.helper.make_tensor_value_info("a", 1, [2]))
    graph = Model.load(proto).graph
    assert [node.op for node in graph.nodes[0].outputs[0].outputs] == ["Relu", "Abs"]


def test_in_ir_version_3_a_constant_that_a_subgraph_captures_is_stored_outside() -> None:
    model = Model.load(
        onnx.parser.parse_model(
            '<ir_version: 3, opset_import: ["" : 7]> g (float[2] x, int64 n, bool go) => (float[2] z) {'
            " c = Constant<value = float[1] {2}>() z = Loop(n, go, x) <body = b (int64 i, bool k, float[2] s)"
            " => (bool d, float[2] u) { d = Identity(k) u = Mul(s, c) }> }"
        )
    )
    exact_fixed_point(model, [kind() for kind in exact_passes()])
    proto = model.proto()
    onnx.checker.check_model(proto)
    assert [tensor.name for tensor in proto.graph.initializer] == ["c"]
    assert "c" in [value.name for value in proto.graph.input]
