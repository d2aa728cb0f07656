"""A seeded sample of the conformance run, and every case that once failed. All of it: ``python tools/conformance``."""

from __future__ import annotations

import random

import pytest

from onnxslim.ir import Model, Rewriter
from tools.conformance import cases
from tools.conformance.judge import judge

SAMPLE = 60

ONCE_FAILED = [
    "node/test_attention_4d_causal_fp16_expanded",
    "node/test_blackmanwindow_expanded",
    "node/test_causal_conv_with_state_kernel_size_one_expanded",
    "node/test_celu_expanded",
    "node/test_identity_opt",
    "node/test_if_opt",
    "node/test_loop16_seq_none",
    "node/test_not_2d",
    "node/test_optional_get_element_optional_sequence",
    "node/test_optional_has_element_empty_optional_input",
    "node/test_sequence_insert_at_back",
    "node/test_sequence_map_extract_shapes_expanded",
    "model/pytorch-converted/test_BatchNorm2d_eval",
    "model/pytorch-converted/test_Linear",
    "model/pytorch-operator/test_operator_params",
]


def sample() -> list[str]:
    return random.Random(0).sample(cases.names(), SAMPLE)  # noqa: S311  (a sample, not a secret)


@pytest.mark.parametrize("name", ONCE_FAILED)
def test_a_case_that_once_failed(name: str) -> None:
    assert [result for result in judge(cases.load(name)) if result.is_bad] == []


def test_a_sample() -> None:
    results = [result for name in sample() for result in judge(cases.load(name))]
    assert [result for result in results if result.is_bad] == []
    assert sum(result.stage == "exact" for result in results) == SAMPLE
    assert {"passed", "unchanged", "refused"} == {result.verdict for result in results}


def test_a_wrong_rewrite_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Model, passes: object) -> int:
        rewriter = Rewriter(model)
        for node in model.graph.nodes:
            node.op = "Neg"
        rewriter.finish()
        return 1

    monkeypatch.setattr("tools.conformance.judge.exact_fixed_point", wrong)
    (result,) = judge(cases.load("node/test_relu"))
    assert result.verdict == "failed"
    assert "differs" in result.reason
