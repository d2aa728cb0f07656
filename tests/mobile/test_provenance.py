"""Provenance in the model: enough to make it again, nothing that changes from run to run."""

from __future__ import annotations

import onnx
import onnx.parser

from onnxslim.ir import Model
from onnxslim.mobile import stamp
from onnxslim.mobile.provenance import provenance_of

TEXT = """
<ir_version: 8, opset_import: ["" : 17], metadata_props: ["author": "somebody", "onnxslim.spec": "older"]>
g (float[2] x) => (float[2] y) { y = Relu(x) }
"""


def stamped(plan: str | None = None) -> Model:
    model = Model.load(onnx.parser.parse_model(TEXT))
    stamp(model, version="1.2.3", spec="exact,insert-qdq{exclude=fc?}", input_digest="ab" * 32, plan_digest=plan)
    return Model.load(model.to_bytes())


def test_everything_needed_to_run_again() -> None:
    model = stamped(plan="cd" * 32)
    assert model.metadata == {
        "author": "somebody",
        "onnxslim.tool": "onnxslim-mobile",
        "onnxslim.version": "1.2.3",
        "onnxslim.spec": "exact,insert-qdq{exclude=fc?}",
        "onnxslim.input_sha256": "ab" * 32,
        "onnxslim.plan_sha256": "cd" * 32,
    }
    assert provenance_of(model)["spec"] == "exact,insert-qdq{exclude=fc?}"
    assert "author" not in provenance_of(model)


def test_no_plan_no_digest() -> None:
    assert "onnxslim.plan_sha256" not in stamped().metadata


def test_a_stamp_of_an_earlier_run_leaves_nothing_behind() -> None:
    model = stamped(plan="cd" * 32)
    stamp(model, version="2", spec="exact", input_digest="ef" * 32, plan_digest=None)
    assert provenance_of(model) == {
        "tool": "onnxslim-mobile",
        "version": "2",
        "spec": "exact",
        "input_sha256": "ef" * 32,
    }


def test_the_same_stamp_gives_the_same_bytes() -> None:
    assert stamped().to_bytes() == stamped().to_bytes()
