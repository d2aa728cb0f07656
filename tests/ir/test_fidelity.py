"""What a file can hold comes back as it was: through load and save, and past passes that do not own it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxslim.analysis.shapes import concrete_shapes
from onnxslim.errors import ModelError
from onnxslim.ir import Constant, Model, Rewriter
from onnxslim.passes.fold_constants import FoldConstants
from onnxslim.pipeline import PassContext, exact_fixed_point
from onnxslim.runtime import Session
from onnxslim.workflow.registry import exact_passes

NEWEST_IR = int(onnx.IR_VERSION)
NEWEST_OPSET = onnx.defs.onnx_opset_version()
TYPES = {name: number for name, number in TensorProto.DataType.items() if name != "UNDEFINED"}


def model(graph: onnx.GraphProto, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=ir_version)


def unary(op: str = "Relu", **attributes: Any) -> onnx.GraphProto:
    node = oh.make_node(op, ["x"], ["y"], **attributes)
    ends = [oh.make_tensor_value_info(name, 1, ["n", 3]) for name in "xy"]
    return oh.make_graph([node], "g", ends[:1], ends[1:])


def with_example(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.opset_import.add(domain="com.example", version=1)
    return proto


def same(proto: onnx.ModelProto) -> None:
    loaded = Model.load(proto)
    assert loaded.proto() == proto
    assert loaded.copy().proto() == proto


def after_exact(proto: onnx.ModelProto) -> onnx.ModelProto:
    loaded = Model.load(proto)
    exact_fixed_point(loaded, [kind() for kind in exact_passes()])
    result = loaded.proto()
    onnx.checker.check_model(result)
    return result


@pytest.mark.parametrize("version", range(3, NEWEST_IR + 1))
def test_ir_versions(version: int) -> None:
    same(model(unary(), 8 if version < 7 else 12, version))


@pytest.mark.parametrize("opset", range(7, NEWEST_OPSET + 1))
def test_opsets(opset: int) -> None:
    same(model(unary(), opset, NEWEST_IR))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("place", ["initializer", "Constant"])
def test_data_types(kind: str, place: str) -> None:
    number = TYPES[kind]
    values: Any = [b"a", b"\xff\x00"] if kind == "STRING" else [1, 0]
    tensor = oh.make_tensor("c", number, [2], values)
    nodes = [oh.make_node("Identity", ["c"], ["y"], domain="com.example")]
    if place == "Constant":
        nodes.insert(0, oh.make_node("Constant", [], ["c"], value=oh.make_tensor("v", number, [2], values)))
    given = oh.make_tensor_value_info("x", number, [2])
    graph = oh.make_graph(
        [*nodes, oh.make_node("Identity", ["x"], ["z"], domain="com.example")],
        "g",
        [given],
        [oh.make_tensor_value_info(name, number, [2]) for name in "yz"],
        [tensor] if place == "initializer" else [],
    )
    proto = model(graph, NEWEST_OPSET, NEWEST_IR)
    proto.opset_import.add(domain="com.example", version=1)
    same(proto)
    stored = {t.name: t for t in after_exact(proto).graph.initializer}
    assert stored["c"].data_type == number
    assert list(stored["c"].string_data) == list(tensor.string_data)
    if kind != "STRING":
        assert numpy_helper.to_array(stored["c"]).tobytes() == numpy_helper.to_array(tensor).tobytes()


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "STRING"])
def test_values_that_were_looked_at_are_stored_as_they_were(kind: str) -> None:
    """Types of fewer bits than a byte are packed again; numpy's array of them is not."""
    number = TYPES[kind]
    tensor = oh.make_tensor("c", number, [3], [1, 0, 1])
    graph = unary("Thing", domain="com.example")
    graph.node[0].input.append("c")
    graph.initializer.append(tensor)
    loaded = Model.load(with_example(model(graph, NEWEST_OPSET, NEWEST_IR)))
    constant = loaded.graph.tensors()["c"]
    assert isinstance(constant, Constant)
    assert len(constant.values) == 3
    (stored,) = loaded.proto().graph.initializer
    assert stored.data_type == number
    assert numpy_helper.to_array(stored).tobytes() == numpy_helper.to_array(tensor).tobytes()


@pytest.mark.parametrize("kind", TYPES)
def test_folding_keeps_the_type(kind: str) -> None:
    number = TYPES[kind]
    values: Any = [b"a", b"\xff", b""] if kind == "STRING" else [1, 0, 1]
    tensor = oh.make_tensor("c", number, [3], values)
    nodes = [oh.make_node("Reshape", ["c", "s"], ["d"]), oh.make_node("Thing", ["d"], ["y"], domain="com.example")]
    weights = [tensor, numpy_helper.from_array(np.array([3, 1]), "s")]
    graph = oh.make_graph(nodes, "g", [], [oh.make_tensor_value_info("y", 1, [3])], weights)
    result = after_exact(with_example(model(graph, NEWEST_OPSET, NEWEST_IR))).graph
    stored = result.initializer[0]
    assert stored.data_type == number
    if kind == "STRING":
        assert list(stored.string_data) == list(tensor.string_data)
    else:
        assert numpy_helper.to_array(stored).tobytes() == numpy_helper.to_array(tensor).tobytes()


@pytest.mark.parametrize("kind", TYPES)
def test_declared_types_that_are_known_as_numpy_types(kind: str) -> None:
    loaded = Model.load(model(unary(), NEWEST_OPSET, NEWEST_IR))
    loaded.graph.outputs[0].dtype = np.dtype(oh.tensor_dtype_to_np_dtype(TYPES[kind]))
    assert loaded.proto().graph.output[0].type.tensor_type.elem_type == TYPES[kind]


def test_raw_data_stays_raw() -> None:
    graph = unary("Add")
    graph.node[0].input.append("c")
    graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "c"))
    same(model(graph))


def attribute_of_every_type() -> onnx.GraphProto:
    graph = unary("Thing", domain="com.example")
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "t")
    indices = numpy_helper.from_array(np.array([1, 3]), "i")
    sparse = oh.make_sparse_tensor(tensor, indices, [5])
    inner = oh.make_graph([oh.make_node("Relu", ["x"], ["r"])], "inner", [], [oh.make_tensor_value_info("r", 1, [3])])
    ends = [oh.make_tensor_value_info(name, 1, [3]) for name in "ab"]
    closed = oh.make_graph([oh.make_node("Relu", ["a"], ["b"])], "closed", ends[:1], ends[1:])
    kind = oh.make_tensor_type_proto(1, [2])
    values = {
        "f": 1.5,
        "i": 2,
        "s": "text",
        "raw": b"\xff\x00",
        "t": tensor,
        "g": inner,
        "fs": [1.0, 2.0],
        "is": [1, 2],
        "ss": ["a", "b"],
        "ts": [tensor, tensor],
        "gs": [closed],
        "sp": sparse,
        "sps": [sparse],
        "tp": kind,
        "tps": [kind, kind],
    }
    graph.node[0].attribute.extend(oh.make_attribute(name, value) for name, value in sorted(values.items()))
    return graph


def test_attributes_of_every_type() -> None:
    proto = model(attribute_of_every_type())
    proto.opset_import.add(domain="com.example", version=1)
    assert {a.type for a in proto.graph.node[0].attribute} == set(AttributeProto.AttributeType.values()) - {0}
    same(proto)
    assert after_exact(proto).graph.node[0] == proto.graph.node[0]


def test_empty_lists_keep_their_type() -> None:
    graph = unary("Thing", domain="com.example")
    for name, number in AttributeProto.AttributeType.items():
        if name.endswith("S"):
            graph.node[0].attribute.add(name=name.lower(), type=number)
    assert len(graph.node[0].attribute) == 7
    same(with_example(model(graph)))
    assert after_exact(with_example(model(graph))).graph == graph


def test_lists_of_graphs_that_capture_are_refused_in_one_line() -> None:
    graph = unary("Thing", domain="com.example")
    inner = oh.make_graph([oh.make_node("Neg", ["x"], ["r"])], "i", [], [oh.make_tensor_value_info("r", 1, [3])])
    graph.node[0].attribute.append(oh.make_attribute("gs", [inner]))
    with pytest.raises(ModelError, match="in gs, whose graphs see nothing outside: Neg 'r' reads 'x'") as caught:
        Model.load(with_example(model(graph)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [b"\xff\x00", [b"\xff\x00", b"text"]])
def test_bytes_in_constant_nodes(value: bytes | list[bytes]) -> None:
    name = "value_string" if isinstance(value, bytes) else "value_strings"
    graph = unary("Thing", domain="com.example")
    graph.node[0].input.append("c")
    constant = oh.make_node("Constant", [], ["c"])
    constant.attribute.append(oh.make_attribute(name, value))
    graph.node.insert(0, constant)
    same(with_example(model(graph)))
    assert b"\xff\x00" in after_exact(with_example(model(graph))).SerializeToString()


def test_nodes_that_differ_in_a_rare_attribute_are_not_merged() -> None:
    kinds = [oh.make_tensor_type_proto(number, [2]) for number in (1, 7)]
    nodes = [oh.make_node("Optional", [], [name], type=kind) for name, kind in zip("ab", kinds, strict=True)]
    nodes += [oh.make_node("OptionalHasElement", [name], [f"{name}_y"]) for name in "ab"]
    ends = [oh.make_tensor_value_info(f"{name}_y", TensorProto.BOOL, []) for name in "ab"]
    proto = model(oh.make_graph(nodes, "g", [], ends))
    same(proto)
    left = [node for node in after_exact(proto).graph.node if node.op_type == "Optional"]
    assert [node.attribute[0].tp for node in left] in ([], kinds)


def test_constant_nodes_of_every_form() -> None:
    sparse = oh.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.array([1]), "i"), [3]
    )
    forms: dict[str, Any] = {
        "value": numpy_helper.from_array(np.ones(3, np.float32), "v"),
        "value_float": 1.0,
        "value_floats": [1.0, 2.0],
        "value_int": 1,
        "value_ints": [1, 2],
        "value_string": "s",
        "value_strings": ["s", "t"],
        "sparse_value": sparse,
    }
    nodes = [oh.make_node("Constant", [], [name], **{name: value}) for name, value in forms.items()]
    nodes.append(oh.make_node("Thing", list(forms), ["y"], domain="com.example"))
    proto = model(oh.make_graph(nodes, "g", [], [oh.make_tensor_value_info("y", 1, [3])]))
    proto.opset_import.add(domain="com.example", version=1)
    same(proto)
    assert list(after_exact(proto).graph.node[-1].input) == list(forms)


def kinds_of_values() -> onnx.ModelProto:
    tensor = oh.make_tensor_type_proto(1, ["n"])
    kinds = {
        "seq": oh.make_sequence_type_proto(tensor),
        "opt": oh.make_optional_type_proto(tensor),
        "optseq": oh.make_optional_type_proto(oh.make_sequence_type_proto(tensor)),
        "map": oh.make_map_type_proto(7, tensor),
        "sparse": oh.make_sparse_tensor_type_proto(1, [3]),
    }
    nodes = [oh.make_node("Thing", [name], [f"{name}_y"], domain="com.example") for name in kinds]
    inputs = [oh.make_value_info(name, kind) for name, kind in kinds.items()]
    outputs = [oh.make_value_info(f"{name}_y", kind) for name, kind in kinds.items()]
    proto = model(oh.make_graph(nodes, "g", inputs, outputs))
    proto.opset_import.add(domain="com.example", version=1)
    return proto


def test_sequences_optionals_maps_and_sparse_values() -> None:
    proto = kinds_of_values()
    same(proto)
    assert after_exact(proto).graph == proto.graph


def function_model() -> onnx.ModelProto:
    scaled = oh.make_node("LeakyRelu", ["a"], ["b"])
    scaled.attribute.add(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT)
    function = oh.make_function(
        "com.example", "Leak", ["a"], ["b"], [scaled], [oh.make_opsetid("", 18)], attributes=["slope"]
    )
    function.doc_string = "a function"
    function.metadata_props.add(key="k", value="v")
    graph = unary("Leak", domain="com.example", slope=0.2)
    proto = model(graph)
    proto.opset_import.add(domain="com.example", version=1)
    proto.functions.append(function)
    return proto


def test_local_functions() -> None:
    same(function_model())
    assert after_exact(function_model()) == function_model()


@pytest.mark.parametrize("names", [["", ""], ["same", "same"]])
def test_node_names(names: list[str]) -> None:
    first, second = oh.make_node("Relu", ["x"], ["m"], names[0]), oh.make_node("Sigmoid", ["m"], ["y"], names[1])
    graph = unary()
    del graph.node[:]
    graph.node.extend([first, second])
    same(model(graph))


def test_omitted_inputs_and_outputs() -> None:
    node = oh.make_node("Thing", ["", "x", "", "x"], ["", "y", ""], domain="com.example")
    graph = unary()
    del graph.node[:]
    graph.node.append(node)
    proto = model(graph)
    proto.opset_import.add(domain="com.example", version=1)
    same(proto)
    assert after_exact(proto).graph.node[0] == node


def test_ends_of_every_kind() -> None:
    """An unused input, outputs that are an input, an initializer, and a tensor that is read on."""
    graph = oh.make_graph(
        [oh.make_node("Relu", ["x"], ["m"]), oh.make_node("Add", ["m", "m"], ["y"])],
        "g",
        [oh.make_tensor_value_info(name, 1, [3]) for name in ("x", "unused")],
        [oh.make_tensor_value_info(name, 1, [3]) for name in ("y", "m", "x", "c")],
        [numpy_helper.from_array(np.ones(3, np.float32), "c")],
    )
    same(model(graph))
    result = after_exact(model(graph)).graph
    assert list(result.input) == list(graph.input)
    assert list(result.output) == list(graph.output)
    assert [t.name for t in result.initializer] == ["c"]


def nested() -> onnx.ModelProto:
    """A Loop in an If, capturing what is two graphs away; an inner name that shadows nothing used there."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[3] x, bool go, int64 n) => (float[3] y)
        <float[3] w = {1, 2, 3}> {
          a = Mul(x, w)
          y = If(go) <
            then_branch = t () => (float[3] p) {
              p = Loop(n, go, a) <body = b (int64 i, bool k, float[3] s) => (bool d, float[3] u)
                { d = Identity(k)  u = Add(s, w) }>
            },
            else_branch = e () => (float[3] q) { q = Sub(a, w) }>
        }"""
    return onnx.parser.parse_model(text)


def test_subgraphs_capture_and_weights_stay_one() -> None:
    same(nested())
    result = after_exact(nested())
    assert [t.name for t in result.graph.initializer] == ["w"]
    inner = next(node for node in result.graph.node if node.op_type == "If")
    assert not any(attribute.g.initializer for attribute in inner.attribute)


def test_a_weight_shared_by_two_layers_stays_shared() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"""
    result = after_exact(onnx.parser.parse_model(text))
    assert [t.name for t in result.graph.initializer] == ["w"]


def sparse_weight(name: str, indices: list[int], size: int = 3) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.arange(1, len(indices) + 1, dtype=np.float32), name)
    return oh.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices, np.int64), f"{name}_at"), [size])


def with_sparse(sparse: onnx.SparseTensorProto) -> onnx.ModelProto:
    """y = Relu(Identity(x + s)), with a branch that has a sparse weight of its own and reads the outer one."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[3] x, bool go) => (float[3] y) {
        t = Add(x, s)  i = Identity(t)
        y = If(go) <then_branch = a () => (float[3] p) { p = Add(i, inner) },
                    else_branch = b () => (float[3] q) { q = Mul(i, s) }> }"""
    proto = onnx.ModelProto()
    proto.ParseFromString(onnx.parser.parse_model(text).SerializeToString())
    proto.graph.sparse_initializer.append(sparse)
    proto.graph.node[2].attribute[0].g.sparse_initializer.append(sparse_weight("inner", [2]))
    return proto


def test_sparse_initializers_are_carried() -> None:
    proto = with_sparse(sparse_weight("s", [0, 2]))
    same(proto)
    result = after_exact(proto)
    assert [t.values.name for t in result.graph.sparse_initializer] == ["s"]
    assert [node.op_type for node in result.graph.node] == ["Add", "If"]
    feed = {"x": np.array([1, 2, 3], np.float32), "go": np.array(True)}
    for model_proto in (proto, result):
        assert Session(model_proto).run(feed)["y"].tolist() == [2, 2, 6]


def returned_sparse(opset: int) -> onnx.ModelProto:
    graph = oh.make_graph(
        [
            oh.make_node("Identity", ["x"], ["i"]),
            oh.make_node("Relu", ["i"], ["z"]),
            oh.make_node("Identity", ["s"], ["y"]),
        ],
        "g",
        [oh.make_tensor_value_info("x", 1, [3])],
        [oh.make_tensor_value_info(name, 1, [3]) for name in "yz"],
        sparse_initializer=[sparse_weight("s", [0, 2])],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [7, 10, 11, 17])
def test_a_sparse_initializer_is_returned_through_an_identity(opset: int) -> None:
    """onnxruntime does not return one itself, and before opset 11 no Constant node could hold it."""
    proto = returned_sparse(opset)
    same(proto)
    result = after_exact(proto)
    assert [node.op_type for node in result.graph.node] == ["Relu", "Identity"]
    assert result.graph.sparse_initializer == proto.graph.sparse_initializer
    assert Session(result).run({"x": np.zeros(3, np.float32)})["y"].tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "kind", ["bool", "float16", "float32", "float64", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64))]
)
@pytest.mark.parametrize("at", [[1, 5], [[0, 1], [1, 2]]], ids=["by number", "by coordinates"])
def test_sparse_initializers_of_every_type_that_onnxruntime_runs(kind: str, at: list[Any]) -> None:
    values = numpy_helper.from_array(np.array([1, 1]).astype(kind), "s")
    sparse = oh.make_sparse_tensor(values, numpy_helper.from_array(np.array(at, np.int64), "at"), [2, 3])
    outputs = [oh.make_tensor_value_info("y", values.data_type, [2, 3])]
    graph = oh.make_graph([oh.make_node("Identity", ["s"], ["y"])], "g", [], outputs, sparse_initializer=[sparse])
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    same(proto)
    assert after_exact(proto) == proto
    assert Session(proto).run({})["y"].astype(int).tolist() == [[0, 1, 0], [0, 0, 1]]


def test_shapes_and_types_of_sparse_initializers_are_known() -> None:
    proto = with_sparse(sparse_weight("s", [0, 2]))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    loaded = Model.load(proto)
    assert concrete_shapes(loaded)["t"] == (3,)
    constant = loaded.graph.nodes[0]
    assert (constant.op, constant.outputs[0].dtype, constant.outputs[0].shape) == ("Constant", np.float32, [3])


def test_sparse_values_are_not_folded_for_a_reason() -> None:
    loaded = Model.load(with_sparse(sparse_weight("s", [0, 2])))
    rewriter = Rewriter(loaded)
    FoldConstants().run(rewriter, PassContext())
    assert {(m.anchor, m.reason) for m in rewriter.skipped} == {
        (n, "its value is sparse and stays so") for n in ("s", "inner")
    }
    assert rewriter.edits == 0


def test_a_large_model_keeps_its_sparse_initializers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.ir.weights.LARGE", 1000)
    proto = with_sparse(sparse_weight("s", [0, 2]))
    proto.graph.sparse_initializer.append(sparse_weight("long", list(range(2000)), 4000))
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(4000, dtype=np.float32), "dense"))
    proto.graph.node.add(op_type="Mul", input=["dense", "long"], output=["product"])
    proto.graph.output.append(oh.make_tensor_value_info("product", 1, [4000]))
    onnx.save(proto, tmp_path / "in.onnx")
    loaded = Model.load(tmp_path / "in.onnx")
    assert loaded.is_large
    loaded.save(tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == proto


def test_sparse_initializers_are_bounded_together() -> None:
    proto = with_sparse(sparse_weight("s", [0, 2]))
    proto.graph.sparse_initializer.extend(sparse_weight(f"s{i}", [0], 2**26) for i in range(5))
    with pytest.raises(ModelError, match="'s3': with the sparse tensors before it"):
        Model.load(proto)


def test_a_sparse_initializer_that_nothing_reads_is_dropped() -> None:
    proto = base()
    proto.graph.sparse_initializer.append(sparse_weight("unused", [1]))
    assert not after_exact(proto).graph.sparse_initializer


@pytest.mark.parametrize(
    "sparse",
    [
        sparse_weight("s", [0, 7]),
        sparse_weight("s", [2, 0]),
        sparse_weight("s", [-1]),
        sparse_weight("x", [1]),
        sparse_weight("", [1]),
        sparse_weight("s", [1], 2**40),
    ],
)
def test_broken_sparse_initializers_are_refused_in_one_line(sparse: onnx.SparseTensorProto) -> None:
    with pytest.raises(ModelError) as caught:
        Model.load(with_sparse(sparse))
    assert "\n" not in str(caught.value)


# ---- what is said ------------------------------------------------------------------------------------------------


def _annotate(proto: onnx.ModelProto) -> None:
    graph, node = proto.graph, proto.graph.node[0]
    graph.quantization_annotation.add(tensor_name="y").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    for holder in (proto, graph, node, graph.input[0], graph.initializer[0]):
        holder.metadata_props.add(key="k", value="v")
        holder.doc_string = "said"
    graph.value_info[0].doc_string = "inner"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.input[0].type.denotation = "IMAGE"


def base() -> onnx.ModelProto:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[n, 3] x) => (float[n, 3] y)
        <float[3] w = {1, 2, 3}, float[n, 3] a> { a = Add(x, w)  y = Relu(a) }"""
    return onnx.parser.parse_model(text)


def test_annotations_everywhere() -> None:
    proto = base()
    _annotate(proto)
    same(proto)
    result = after_exact(proto)
    for changed in (proto, result):  # values that were looked at are stored raw
        changed.graph.initializer[0].ClearField("float_data")
        changed.graph.initializer[0].ClearField("raw_data")
    assert result == proto


BRANCHES = """<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]> g (float[3] x, bool go) => (float[3] y) {
    y = If(go) <then_branch = t () => (float[3] p) { r = Neg(x)  p = Relu(r) },
                else_branch = e () => (float[3] q) { r = Abs(x)  q = Sin(r) }> }"""

Graphs = tuple[onnx.GraphProto, onnx.GraphProto]


def _documented(branches: Graphs) -> None:
    for branch, text in zip(branches, "ab", strict=True):
        branch.doc_string = text
        branch.metadata_props.add(key="k", value=text)
        branch.quantization_annotation.add(tensor_name="r")
        branch.value_info.append(oh.make_tensor_value_info("r", 1, [3], text))
        branch.node[0].doc_string = text


def _overloaded(branches: Graphs) -> None:
    for branch, text in zip(branches, ("one", ""), strict=True):
        branch.node[0].CopyFrom(oh.make_node("Thing", ["x"], ["r"], domain="com.example", overload=text or None))


def _of_two_kinds(branches: Graphs) -> None:
    first, second = branches
    for node, op in zip(first.node, ("Wrap", "Unwrap"), strict=True):
        node.op_type, node.domain = op, "com.example"
    tensor = oh.make_tensor_type_proto(1, [3])
    first.value_info.append(oh.make_value_info("r", oh.make_optional_type_proto(tensor)))
    second.value_info.append(oh.make_value_info("r", tensor))


def _weighted(branches: Graphs) -> None:
    for branch, value in zip(branches, (1, 2), strict=True):
        branch.node[0].CopyFrom(oh.make_node("Add", ["x", "w"], ["r"]))
        branch.initializer.append(numpy_helper.from_array(np.full(3, value, np.float32), "w"))
        branch.initializer[0].doc_string = str(value)


@pytest.mark.parametrize("change", [_documented, _overloaded, _of_two_kinds, _weighted])
def test_branches_that_use_the_same_names(change: Callable[[Graphs], None]) -> None:
    """Names repeat from branch to branch, and what one says of them is not true of the other."""
    proto = onnx.parser.parse_model(BRANCHES)
    first, second = (attribute.g for attribute in proto.graph.node[0].attribute)
    change((first, second))
    same(proto)
    assert after_exact(proto).graph.node[0] == proto.graph.node[0]


def test_an_inner_weight_that_hides_an_outer_one_stays() -> None:
    proto = nested()
    body = proto.graph.node[1].attribute[0].g.node[0].attribute[0].g
    body.initializer.append(numpy_helper.from_array(np.full(3, 9, np.float32), "w"))
    same(proto)
    loop = after_exact(proto).graph.node[1].attribute[0].g.node[0]
    (own,) = loop.attribute[0].g.initializer
    assert numpy_helper.to_array(own).tolist() == [9, 9, 9]


def test_a_call_that_moves_out_of_a_branch_keeps_its_overload() -> None:
    proto = onnx.parser.parse_model(BRANCHES)
    first, second = (attribute.g for attribute in proto.graph.node[0].attribute)
    _overloaded((first, second))
    del proto.graph.input[1]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
    result = after_exact(proto).graph
    calls = [node for graph in (result, *(a.g for a in result.node[0].attribute)) for node in graph.node]
    assert [node.overload for node in calls if node.op_type == "Thing"][:1] == ["one"]


def test_weights_that_nothing_names_are_dropped() -> None:
    proto = base()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unused"))
    assert Model.load(proto).proto() == base()


def test_a_captured_weight_with_a_doc_string_is_stored_once_after_it_was_looked_at() -> None:
    proto = nested()
    proto.graph.initializer[0].doc_string = "said"
    loaded = Model.load(proto)
    constant = loaded.graph.tensors()["w"]
    assert isinstance(constant, Constant)
    assert constant.values.tolist() == [1, 2, 3]
    result = loaded.proto().graph
    assert [(tensor.name, tensor.doc_string) for tensor in result.initializer] == [("w", "said")]
    assert not any(attribute.g.initializer for attribute in result.node[1].attribute)


def test_weights_that_annotations_or_training_name_stay() -> None:
    proto = base()
    for name in ("scale", "unused", "momentum"):
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), name))
    note = proto.graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    training = proto.training_info.add()
    training.algorithm.CopyFrom(oh.make_graph([oh.make_node("Neg", ["w"], ["new"])], "step", [], []))
    training.update_binding.add(key="momentum", value="new")
    for result in (Model.load(proto).proto(), after_exact(proto)):
        assert {tensor.name for tensor in result.graph.initializer} == {"w", "scale", "momentum"}
        assert result.graph.quantization_annotation == proto.graph.quantization_annotation
        assert result.training_info == proto.training_info


def test_dimensions_of_every_kind() -> None:
    proto = with_example(model(unary("Thing", domain="com.example")))
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims.add().denotation = "DATA_CHANNEL"
    dims.add(dim_value=0)
    same(proto)
    assert after_exact(proto).graph.input == proto.graph.input


def test_sequences_of_maps() -> None:
    """What classifiers of ai.onnx.ml return."""
    proto = with_example(model(unary("Thing", domain="com.example")))
    kind = oh.make_sequence_type_proto(oh.make_map_type_proto(7, oh.make_tensor_type_proto(1, [])))
    proto.graph.output[0].type.CopyFrom(kind)
    same(proto)
    assert after_exact(proto) == proto
