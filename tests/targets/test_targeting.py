"""What a whole model is told of a target: through onnxruntime's own loading, on every target."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from gallery import GALLERY, Builder
from onnx import TensorProto, numpy_helper
from targets.texts import paired, paired_conv, proto

from onnxslim.errors import SpecError
from onnxslim.ir import Model, graph_nodes
from onnxslim.targets import TARGETS
from onnxslim.workflow.source import open_source
from onnxslim.workflow.target_survey import TargetSurvey
from onnxslim.workflow.targeting import run_targeting, shortfalls
from tools.gallery import ARCHITECTURES

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = [target.name for target in TARGETS]
NET = """(float[N,3,8,8] x, float[8,3,3,3] w, float[8] wb) => (float[N,8,6,6] y)
{ a = Conv(x, w, wb) b = Relu(a) c = HardSigmoid(b) y = Conv<kernel_shape = [1, 1]>(c, w1) }"""
NET = NET.replace("float[8] wb)", "float[8] wb, float[8,8,1,1] w1)")


def survey(text: str, target: str, batch: int | None = 1, opset: int = 17) -> TargetSurvey:
    return run_targeting(Model.load(proto(text, opset)), {}, batch, target)


def told(found: TargetSurvey) -> dict[str, str]:
    return {node.anchor: node.verdict for node in found.nodes}


def reasons(found: TargetSurvey) -> dict[str, str]:
    return {node.anchor: node.reason or "" for node in found.nodes}


# ---- what does not run -----------------------------------------------------------------------------------------------


def test_nnapi_and_coreml_refuse_by_name() -> None:
    found = survey(NET, "nnapi")
    assert told(found) == {"a": "runs", "b": "runs", "c": "refused", "y": "runs"}
    assert reasons(found)["c"] == "nnapi has no HardSigmoid"
    assert (found.checked_by, found.basis) == ("names", "by their operators' names")
    assert [one.nodes for one in found.partitions] == [2, 1]
    assert any("not at types, constants or attributes" in line for line in found.blind_spots)
    assert any(line.startswith("not checked: Conv: Only 2D Conv is supported.") for line in found.blind_spots)
    flat = survey("(float[1,8] x) => (float[8] y) <int64[1] k = {8}> { a = Flatten(x) y = Reshape(a, k) }", "coreml")
    assert told(flat)["a"] in ("refused", "gone")


def test_nnapi_and_coreml_want_fixed_sizes() -> None:
    for name in ("nnapi", "coreml"):
        found = survey(NET, name, None)
        assert set(told(found).values()) == {"refused"}
        assert reasons(found)["a"] == "the size of what it reads is not fixed"


def test_coreml_has_five_dimensions() -> None:
    deep = "(float[1,1,1,1,1,4] x) => (float[1,1,1,1,1,4] y) { y = Relu(x) }"
    assert reasons(survey(deep, "coreml"))["y"] == "'x' has 6 dimensions, and it takes 5"
    assert told(survey(deep, "nnapi"))["y"] == "runs", "its checker looks at no more"


def test_a_transpose_without_its_attribute() -> None:
    """onnxruntime's checker would fail on it, and on the whole model with it."""
    text = "(float[2,3,4] x) => (float[4,3,2] y) { a = Relu(x) y = Transpose(a) }"
    for name in ("nnapi", "coreml"):
        assert told(survey(text, name)) == {"a": "runs", "y": "runs"}
    deep = "(float[1,1,1,1,1,4] x) => (float[4,1,1,1,1,1] y) { y = Transpose(x) }"
    assert told(survey(deep, "coreml"))["y"] == "refused"


def test_links_of_lists_are_left_out() -> None:
    text = """(float[1,3,8,8] x) => (float[1,3,16,16] y) <float[4] k = {1, 1, 2, 2}> { y = Resize(x, , k) }"""
    lines = [line for line in survey(text, "coreml").blind_spots if "Resize" in line]
    assert lines
    assert not any("http" in line or "](" in line for line in lines)


def test_coreml_leaves_pairs_to_the_cpu() -> None:
    found = survey(paired_conv("uint8", "uint8", channels=False), "coreml")
    assert {told(found)[name] for name in "deq"} == {"refused"}
    assert "do not run there" in found.integers.words


def test_what_the_cpu_does_not_have() -> None:
    """onnxruntime ends at the first node that it has no kernel for; of the others it tells nothing."""
    text = "(bfloat16[8] x) => (bfloat16[8] y) { a = Cos(x) y = Erf(a) }"
    for name in ("arm-cpu", "web"):
        found = survey(text, name)
        assert found.graph == "file"
        assert "refused" in told(found).values()
        assert "runs" not in told(found).values()
        assert any("onnxruntime does not load it" in note for note in found.notes)


def test_a_domain_of_ones_own() -> None:
    text = "(float[1,8] x) => (float[1,8] y) { a = Relu(x) y = my.own.Twist(a) }"
    for name in NAMES:
        found = survey(text, name)
        assert told(found)["y"] == "refused", name
        assert found.graph == "file"
        assert [node.op for node in found.nodes] == ["Relu", "my.own:Twist"]


def test_functions_of_the_model() -> None:
    """onnxruntime opens them where it can, so that they are judged by what is in them."""
    relu = oh.make_function(
        "my.own", "Cut", ["a"], ["b"], [oh.make_node("Relu", ["a"], ["b"])], [oh.make_opsetid("", 17)]
    )
    graph = oh.make_graph(
        [oh.make_node("Cut", ["x"], ["t"], domain="my.own"), oh.make_node("Sigmoid", ["t"], ["y"])],
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
    )
    opsets = [oh.make_opsetid("", 17), oh.make_opsetid("my.own", 1)]
    model = Model.load(oh.make_model(graph, functions=[relu], opset_imports=opsets, ir_version=8))
    for name in NAMES:
        found = run_targeting(model, {}, 1, name)
        assert len(found.nodes) == 2, name
        assert {node.verdict for node in found.nodes} <= {"runs", "refused", "unknown"}
    assert told(run_targeting(model, {}, 1, "qnn")) == {"t": "runs", "y": "runs"}


def test_what_a_subgraph_holds_has_a_verdict_and_no_partition() -> None:
    text = """(float[8] x, bool k) => (float[8] y) { a = Relu(x) y = If (k) <
        then_branch = t () => (float[8] u) { u = Relu(a) }, else_branch = e () => (float[8] v) { v = Tanh(a) }> }"""
    for name in NAMES:
        found = survey(text, name)
        assert {node.anchor for node in found.nodes} == {"a", "y", "u", "v"}, name
        assert not any(node.partition for node in found.nodes if node.anchor in "uv")
    assert told(survey(text, "qnn"))["u"] == "unknown"


def test_too_large_to_be_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(proto(NET))
    monkeypatch.setattr(Model, "is_large", property(lambda _: True))
    found = run_targeting(model, {}, 1, "xnnpack")
    assert found.graph == "file"
    assert any("too large to be rewritten" in note for note in found.notes)
    _, doubts, _ = shortfalls(open_source(model, {}, 1), "xnnpack")
    assert any("too large" in doubt for doubt in doubts)


# ---- what does -------------------------------------------------------------------------------------------------------


def test_everything_runs_on_the_cpu() -> None:
    for name in ("arm-cpu", "web"):
        found = survey(NET, name)
        assert set(told(found).values()) == {"runs"}
        assert not found.partitions, "there is nothing to leave"
        assert found.without_integer_kernel == ("HardSigmoid",)
    assert "for bytes only" in survey(NET, "web").integers.words


def test_figures_of_a_network_by_hand() -> None:
    """Conv 3×3: 36·8·27 MACs; Conv 1×1: 36·8·8. XNNPACK has both, and a Relu within the first."""
    found = survey(NET, "xnnpack")
    assert (found.runs.nodes, found.runs.macs) == (3, 36 * 8 * 27 + 36 * 8 * 8)
    assert (found.refused.nodes, found.refused.macs) == (1, 0)
    first = found.partitions[0]
    assert (first.nodes, first.macs, first.first, first.last) == (2, 36 * 8 * 27, "a", "b")
    assert [(one.tensor, one.dtype, one.bytes) for one in first.enters] == [("x", "float32", 4 * 3 * 64)]
    assert [(one.tensor, one.bytes) for one in first.leaves] == [("b", 4 * 8 * 36)]
    assert [node.partition for node in found.nodes] == [1, 1, None, 2]
    assert found.uneven == ()


def test_layers_with_channels_between_lanes() -> None:
    text = "(float[1,3,8,8] x, float[5,3,3,3] w) => (float[1,5,6,6] y) { y = Conv(x, w) }"
    assert survey(text, "xnnpack").uneven == ("y",)


def test_what_onnxruntime_takes_out_is_gone() -> None:
    text = """(float[1,8] x) => (float[1,8] y) <float[8] k = {1, 1, 1, 1, 1, 1, 1, 1}>
    { c = Neg(k) b = Add(x, c) y = Relu(b) }"""
    found = survey(text, "qnn")
    assert told(found) == {"c": "gone", "b": "runs", "y": "runs"}
    assert (found.gone, found.runs.nodes) == (1, 2)


def test_what_becomes_another_operator_says_so() -> None:
    text = """(float[1,3,8,8] x, float[3] w, float[3] wb) => (float[1,3,8,8] y) <float[3] k = {1, 1, 1}>
    { a = Relu(x) y = BatchNormalization(a, w, wb, w, k) }"""
    reason = reasons(survey(text, "xnnpack"))["y"]
    assert reason == "xnnpack has no BatchNormalization" or reason.startswith("it becomes ")


def test_half_precision_is_told_without_the_casts_of_the_cpu() -> None:
    text = "(float16[1,8] x) => (float16[1,8] y) { a = Relu(x) y = Sigmoid(a) }"
    found = survey(text, "qnn")
    assert told(found) == {"a": "runs", "y": "runs"}
    assert not any(node.inserted for node in found.nodes)


def test_a_pair_is_told_with_its_layer() -> None:
    found = survey(paired("c = Add(d, d)", "1,8", "1,8"), "xnnpack")
    assert {node.anchor: node.within for node in found.nodes} == {"d": "c", "c": None, "q": "c"}
    assert found.refused.nodes == 3


def test_the_border_runs_nowhere_and_fails_nothing() -> None:
    text = """(float[1,8] x) => (float[1,8] y) <float s = {0.1}, uint8 z = {128}>
    { a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = Sigmoid(b)
      d = QuantizeLinear(c, s, z) y = DequantizeLinear(d, s, z) }"""
    found = survey(text, "qnn")
    assert (found.runs.nodes, found.border.nodes) == (3, 2)
    refused, doubts, remark = shortfalls(open_source(Model.load(proto(text))), "qnn")
    assert (refused, doubts) == ((), ())
    assert "but 2 at the model's inputs and outputs" in remark


def test_a_gate_is_told_layers_and_doubts() -> None:
    refused, doubts, _ = shortfalls(open_source(Model.load(proto(NET)), {}, 1), "xnnpack")
    assert (refused, doubts) == (("HardSigmoid c (xnnpack has no HardSigmoid)",), ())
    refused, doubts, _ = shortfalls(open_source(Model.load(proto(NET)), {}, 1), "qnn")
    assert (refused, doubts) == ((), ())
    refused, doubts, _ = shortfalls(open_source(Model.load(proto(NET.replace("HardSigmoid", "Relu"))), {}, 1), "nnapi")
    assert refused == ()
    assert doubts == ("its checker looks at operators' names only: try it on a device",)
    text = '(float[2,2] x) => (float[2,2] y) { y = Einsum<equation = "ij->ji">(x) }'
    _, doubts, _ = shortfalls(open_source(Model.load(proto(text))), "qnn")
    assert len(doubts) == 1


def test_patterns_and_targets_that_do_not_exist() -> None:
    model = Model.load(proto(NET))
    with pytest.raises(SpecError, match="unknown target 'tpu'"):
        run_targeting(model, {}, 1, "tpu")
    with pytest.raises(SpecError, match="'z\\*' matches no node"):
        run_targeting(model, {}, 1, "qnn", ["z*"])
    found = run_targeting(model, {}, 1, "qnn", ["a", "c"])
    assert [node.anchor for node in found.nodes] == ["a", "c"]
    assert found.runs.nodes == 4, "others are counted"


# ---- what must hold of any model -------------------------------------------------------------------------------------


def check(found: TargetSurvey, model: Model) -> None:
    """Assert that every node has exactly one verdict, and that figures add up."""
    given = Counter(node.outputs[0].name for _, node in graph_nodes(model.graph))
    assert Counter(node.anchor for node in found.nodes if not node.inserted) == given
    counts = Counter(node.verdict for node in found.nodes)
    shares = {name: getattr(found, name).nodes for name in ("runs", "refused", "unknown", "border")}
    assert counts == Counter({**shares, "gone": found.gone})
    for node in found.nodes:
        assert node.partition is None or node.verdict == "runs", node
        assert node.verdict in ("runs", "gone") or node.reason, node
    assert [one.nodes for one in found.partitions] == [
        sum(node.partition == number for node in found.nodes) for number in range(1, len(found.partitions) + 1)
    ]
    layers = {node.anchor: node.verdict for node in found.nodes if node.within is None}
    for node in found.nodes:
        refused = node.within is None or node.verdict in ("runs", "gone", "border")
        assert refused or layers[node.within or ""] == node.verdict, "a pair is refused with its layer"
    TargetSurvey.model_validate_json(found.to_json())


@pytest.mark.parametrize(("index", "name"), list(enumerate(ARCHITECTURES)))
def test_every_architecture_on_one_target(index: int, name: str) -> None:
    """In turn; all of them on all targets: the slow test below."""
    model = Model.load(ARCHITECTURES[name]())
    check(run_targeting(model, {}, 1, NAMES[index % len(NAMES)]), model)


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMES)
def test_every_architecture_on_every_target(target: str) -> None:
    for build in ARCHITECTURES.values():
        model = Model.load(build())
        check(run_targeting(model, {}, 1, target), model)


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMES)
def test_the_zoo(zoo: Path, target: str) -> None:
    for path in sorted(zoo.glob("*.onnx")):
        model = Model.load(path)
        for batch in (None, 1):
            check(run_targeting(model, {}, batch, target), model)


@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet"])
@pytest.mark.parametrize("target", NAMES)
def test_small_models_with_and_without_a_batch(name: str, target: str) -> None:
    model = GALLERY[name](Builder())
    loose, fixed = (run_targeting(model, {}, batch, target) for batch in (None, 1))
    for found in (loose, fixed):
        check(found, model)
    assert loose.runs.nodes <= fixed.runs.nodes, "a fixed batch never costs a node"


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_trained_models(path: Path) -> None:
    model = Model.load(path)
    for target in ("xnnpack", "qnn"):
        found = run_targeting(model, {}, 1, target)
        check(found, model)
        assert found.runs.nodes > 0


def test_weights_with_a_scale_for_each_channel_that_only_onnxruntime_sees() -> None:
    """Weights of a Conv that are stored in pairs: each node of the file has its verdict, the fused Relu too."""
    text = paired_conv("int8", "int8", channels=True, after="c = Relu(t)").replace("zq = {0}", "zq = {-128}")
    model = proto(text)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.full(8, 0.1, np.float32), "ws"))
    found = run_targeting(Model.load(model), {}, 1, "xnnpack")
    check(found, Model.load(onnx.ModelProto.FromString(model.SerializeToString())))
    assert found.runs.nodes == 6
