"""Every field of every message that onnx knows, wherever it stands in a model, comes back or is refused by name.

The fields are read from onnx's own descriptors: those that a later onnx adds are tried as well, and fail here until
they are carried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, numpy_helper

from onnxslim.errors import ModelError
from onnxslim.ir import Model

REFUSED = {
    "AttributeProto": {"ref_attr_name", "f", "i", "s", "t", "g", "tp", "sparse_tensor", "floats", "ints", "strings"}
    | {"tensors", "graphs", "type_protos", "sparse_tensors"},  # a second value
    "GraphProto": {"initializer", "sparse_initializer"},  # external data beside a model in memory; nameless ones
    "NodeProto": {"attribute", "domain"},  # an attribute without its value; a domain without a version
    "TensorProto": {"segment", "data_location", "raw_data", "string_data", "float_data", "int32_data", "int64_data"}
    | {"double_data", "uint64_data"},  # data twice, or elsewhere
    "TypeProto": {"tensor_type", "sequence_type", "map_type", "optional_type", "sparse_tensor_type"},  # incomplete
}
"""Fields whose made-up value contradicts the rest of the model, so that loading refuses it; no others may be."""


def _stored(name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(3, np.float32), name)


def _thing() -> onnx.NodeProto:
    """A node with an attribute of every type."""
    ends = [oh.make_tensor_value_info(name, 1, [3]) for name in "pq"]
    closed = oh.make_graph([oh.make_node("Relu", ["p"], ["q"])], "closed", ends[:1], ends[1:])
    sparse = oh.make_sparse_tensor(_stored("v"), numpy_helper.from_array(np.array([0, 1, 3]), "i"), [5])
    kind = oh.make_tensor_type_proto(1, [2])
    values: dict[str, Any] = {"f": 1.5, "i": 2, "s": "text", "t": _stored("t"), "fs": [1.0], "is": [1], "ss": ["a"]}
    values |= {"ts": [_stored("t")], "gs": [closed], "sp": sparse, "sps": [sparse], "tp": kind, "tps": [kind]}
    node = oh.make_node("Thing", ["a"], ["m"], domain="com.example")
    node.attribute.extend(oh.make_attribute(name, value) for name, value in values.items())
    return node


def rich() -> onnx.ModelProto:
    """A small model in which every kind of message occurs."""
    text = """<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]>
        g (float[n, 3] x, bool go, seq(float[3]) s, optional(float[3]) o) => (float[n, 3] y)
        <float[3] w = {1, 2, 3}, float[n, 3] a, float[n, 3] m, float scale = {1}> {
          a = Add(x, w)
          b = If(go) <then_branch = t () => (float[n, 3] u) <float[3] k = {4, 5, 6}, float[n, 3] r> {
                        r = Mul(a, k)  u = Neg(r) },
                      else_branch = e () => (float[n, 3] v) <float[n, 3] r> { r = Sub(a, w)  v = Abs(r) }>
          y = com.example.Leak(b)
        }
        <domain: "com.example", opset_import: ["" : 21]> Leak (i) => (j) { j = LeakyRelu(i) }"""
    model = onnx.parser.parse_model(text)
    graph = model.graph
    graph.node.insert(1, _thing())
    kinds = {
        "map": oh.make_map_type_proto(7, oh.make_tensor_type_proto(1, ["n"])),
        "sparse": oh.make_sparse_tensor_type_proto(1, [3]),
    }
    graph.input.extend(oh.make_value_info(name, kind) for name, kind in kinds.items())
    opaque = graph.input.add(name="opaque").type.opaque_type
    opaque.domain, opaque.name = "com.example", "Handle"
    note = graph.quantization_annotation.add(tensor_name="y")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    for branch in graph.node[2].attribute:
        branch.g.quantization_annotation.add(tensor_name="r")
    training = model.training_info.add()
    training.algorithm.CopyFrom(oh.make_graph([oh.make_node("Neg", ["w"], ["new"])], "step", [], []))
    training.update_binding.add(key="w", value="new")
    model.configuration.add(name="two", num_devices=2, device=["CPU:0", "CPU:1"])
    placed = graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    spec = placed.sharding_spec.add(tensor_name="w", device=[0, 1])
    spec.index_to_device_group_map.add(key=0, value=[0, 1])
    spec.sharded_dim.add(axis=0).simple_sharding.add(dim_value=3, num_shards=2)
    model.metadata_props.add(key="author", value="someone")
    return model


Step = tuple[str, int]


def _holders(message: Message, path: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], Message]]:
    """Yield ``message`` and, for every field that holds messages, the first of them, at any depth."""
    yield path, message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        inner = list(value) if field.is_repeated else [value]
        everyone = range(len(inner) if field.name in ("node", "attribute", "input", "functions") else 1)
        for index in everyone:
            yield from _holders(inner[index], (*path, (field.name, index if field.is_repeated else -1)))


def _cases() -> dict[str, tuple[tuple[Step, ...], str]]:
    found = {}
    for path, holder in _holders(rich()):
        place = ".".join(name if index < 1 else f"{name}[{index}]" for name, index in path)
        for field in holder.DESCRIPTOR.fields:
            if not (getattr(holder, field.name) if field.is_repeated else holder.HasField(field.name)):
                found[f"{place}.{field.name}".lstrip(".")] = (path, field.name)
    return found


CASES = _cases()


def _follow(message: Any, path: tuple[Step, ...]) -> Any:
    for name, index in path:
        message = getattr(message, name) if index < 0 else getattr(message, name)[index]
    return message


def _plain(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return next(value.number for value in field.enum_type.values if value.number)
    if field.type == FieldDescriptor.TYPE_STRING:
        return "value"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"\xff\x00"
    return 3


def _fill(holder: Any, field: FieldDescriptor) -> None:
    """Set a field to something: a message's own plain fields too."""
    if field.message_type is None:
        if field.is_repeated:
            getattr(holder, field.name).append(_plain(field))
        else:
            setattr(holder, field.name, _plain(field))
        return
    inner = getattr(holder, field.name).add() if field.is_repeated else getattr(holder, field.name)
    inner.SetInParent()
    for each in field.message_type.fields:
        if each.message_type is None and not each.is_repeated and each.containing_oneof is None:
            _fill(inner, each)


def test_a_model_with_everything_comes_back() -> None:
    model = Model.load(rich())
    assert model.proto() == rich()
    assert model.copy().proto() == rich()


def test_every_message_of_onnx_is_tried() -> None:
    present = {holder.DESCRIPTOR.full_name for _, holder in _holders(rich())}
    known: set[str] = set()
    stack = [onnx.ModelProto.DESCRIPTOR]
    while stack:
        kind = stack.pop()
        if kind.full_name not in known:
            known.add(kind.full_name)
            stack.extend(field.message_type for field in kind.fields if field.message_type is not None)
    assert known - present == {"onnx.TensorProto.Segment"}  # refused wherever it stands
    assert {a.type for a in rich().graph.node[1].attribute} >= set(AttributeProto.AttributeType.values()) - {
        AttributeProto.UNDEFINED,
        AttributeProto.GRAPH,
    }


def _loaded(proto: onnx.ModelProto, *, may_be_refused: bool) -> Model | None:
    try:
        return Model.load(proto)
    except ModelError:
        if may_be_refused:
            return None
        raise


@pytest.mark.parametrize("case", CASES)
def test_a_field_comes_back_or_is_refused(case: str) -> None:
    path, name = CASES[case]
    proto = rich()
    holder = _follow(proto, path)
    field = holder.DESCRIPTOR.fields_by_name[name]
    _fill(holder, field)
    model = _loaded(proto, may_be_refused=name in REFUSED.get(holder.DESCRIPTOR.name, ()))
    if model is not None:
        assert model.proto() == proto
        assert model.copy().proto() == proto
