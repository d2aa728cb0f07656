"""prune-filters on every architecture of the gallery, against an oracle that knows nothing of groups."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxslim.ir import Model
from onnxslim.passes import EXACT_PASSES, PruneFilters
from onnxslim.pipeline import exact_fixed_point
from tools.gallery import ARCHITECTURES
from tools.gallery.oracle import Verdict, cuts_as_planned, judge, kept_indices, prune, zeroed
from tools.gallery.running import apart, feed_of, run

TOLERANCE = 1e-5
UNREACHED_AS_EXPORTED = {"style-transfer", "group-norm-reshaped"}
"""Where the exact passes come first or nothing is cut: shapes are computed in the graph."""


def exact(name: str) -> Model:
    model = Model.load(ARCHITECTURES[name]())
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    return model


def check(model: Model, ratio: float) -> Verdict:
    original = model.proto()
    pruned, plan = prune(model, PruneFilters(ratio=ratio))
    proto = pruned.proto()
    onnx.checker.check_model(proto, full_check=True)
    verdict = judge(original, proto)
    assert verdict.difference <= TOLERANCE
    assert bool(plan.cuts) == bool(verdict.layers)
    cuts_as_planned(original, proto, plan)
    return verdict


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pruned_is_the_original_with_zeros(name: str, ratio: float) -> None:
    assert check(exact(name), ratio).layers


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "resnet152"])
def test_pruned_as_exported_is_the_original_with_zeros(name: str) -> None:
    model = Model.load(ARCHITECTURES[name]())
    assert bool(check(model, 0.5).layers) == (name not in UNREACHED_AS_EXPORTED)


@pytest.mark.parametrize("name", ["yolo", "vit", "shufflenet-v2", "crnn", "resnext", "unet"])
def test_what_is_cut_comes_out_of_the_exact_passes_the_same(name: str) -> None:
    pruned, _ = prune(exact(name), PruneFilters(ratio=0.5))
    feed = feed_of(pruned.proto())
    expected = run(pruned, feed)
    exact_fixed_point(pruned, [cls() for cls in EXACT_PASSES])
    assert apart(expected, run(pruned, feed)) <= TOLERANCE


# ---- the oracle itself -----------------------------------------------------------------------------------------------


def constant(model: onnx.ModelProto, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def swapped(original: onnx.ModelProto, pruned: onnx.ModelProto, anchor: str) -> onnx.ModelProto | None:
    """Return ``pruned`` with one layer that reads a channel's weights which the original has for another, cut one."""
    result = onnx.ModelProto()
    result.CopyFrom(pruned)
    (before,), (after,) = ([n for n in proto.graph.node if n.output[0] == anchor] for proto in (original, result))
    if before.op_type != "Conv":
        return None
    whole, part = constant(original, before.input[1]), constant(pruned, after.input[1])
    kept = kept_indices(whole, part, anchor)
    if kept[1].all():
        return None
    kept[1][[np.flatnonzero(kept[1])[0], np.flatnonzero(~kept[1])[0]]] = False, True
    result.graph.initializer.append(numpy_helper.from_array(whole[np.ix_(*kept)].copy(), "swapped"))
    after.input[1] = "swapped"
    return result


@pytest.mark.parametrize("name", ["resnet18", "inception-v4", "mobilenet-v3", "shufflenet-v2", "unet", "yolo"])
def test_the_oracle_notices_a_layer_that_reads_another_channel(name: str) -> None:
    model = exact(name)
    original = model.proto()
    pruned = prune(model, PruneFilters(ratio=0.3))[0].proto()
    wrong = [swapped(original, pruned, anchor) for anchor in zeroed(original, pruned)[1]]
    noticed = [judge(original, proto).difference > TOLERANCE for proto in wrong if proto is not None]
    assert len(noticed) > 8
    assert np.mean(noticed) >= 0.9, "some channels are dead, but not as many"


def test_the_oracle_notices_a_weight_that_is_no_part_of_the_original() -> None:
    model = exact("resnet18")
    original, (pruned, plan) = model.proto(), prune(model, PruneFilters(ratio=0.3))
    proto = pruned.proto()
    node = next(node for node in proto.graph.node if node.output[0] == plan.cuts[3].anchor)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    with pytest.raises(ValueError, match="no part of the original"):
        judge(original, proto)


def test_the_oracle_notices_filters_that_the_plan_does_not_name() -> None:
    model = exact("vgg")
    original, (pruned, plan) = model.proto(), prune(model, PruneFilters(ratio=0.3))
    assert cuts_as_planned(original, pruned.proto(), plan) >= 12
    first = plan.cuts[0]
    other = tuple(sorted({*range(first.size)} - {*first.remove}))[: len(first.remove)]
    edited = plan.model_copy(update={"cuts": (first.model_copy(update={"remove": other}), *plan.cuts[1:])})
    with pytest.raises(ValueError, match="other filters"):
        cuts_as_planned(original, pruned.proto(), edited)
