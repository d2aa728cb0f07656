"""The gate: a policy and evidence in, a verdict out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxslim.errors import PolicyError
from onnxslim.policy import Evidence, GateVerdict, judge, read_policy

EVIDENCE = Evidence(
    bytes=(30, 100),
    macs=(50, 100),
    operators=frozenset({"Conv", "Relu"}),
    unsupported={"arm-cpu": ()},
    latency_ms=(6.0, 10.0),
    latency_ratio=(0.55, 0.65),
    arm_instructions=(400, 1000),
    drop=0.004,
    drop_interval=(-0.002, 0.010),
    sqnr_db=25.0,
    top1_agreement=0.985,
    finite=True,
)
PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ('bytes = "30%"', PASS),
        ('bytes = "29%"', FAIL),
        ('bytes = "29B"', FAIL),
        ('macs = "50%"', PASS),
        ('latency = "70%"', PASS),
        ('latency = "60%"', INCONCLUSIVE),
        ('latency = "50%"', FAIL),
        ('latency = "6.6ms"', PASS),
        ('metric_drop = "1%"', PASS),
        ('metric_drop = "0.5%"', INCONCLUSIVE),
        ("sqnr_db = 20", PASS),
        ("sqnr_db = 30", FAIL),
        ("top1_agreement = 0.98", PASS),
        ('arm_instructions = "40%"', PASS),
        ('arm_instructions = "39%"', FAIL),
        ("arm_instructions = 400", PASS),
        ("arm_instructions = 399", FAIL),
    ],
)
def test_limits(line: str, verdict: GateVerdict) -> None:
    assert judge(read_policy(f"[limits]\n{line}", "gate.toml"), EVIDENCE).verdict is verdict


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ('operators = ["Conv", "Relu", "Gemm"]', PASS),
        ('operators = ["Conv"]', FAIL),
        ('targets = ["arm-cpu"]', PASS),
        ('targets = ["arm-cpu", "qnn"]', INCONCLUSIVE),
    ],
)
def test_requirements(line: str, verdict: GateVerdict) -> None:
    assert judge(read_policy(f"[require]\n{line}", "gate.toml"), EVIDENCE).verdict is verdict


@pytest.mark.parametrize(
    ("refused", "doubts", "verdict", "observed", "reason"),
    [
        ((), (), PASS, None, "every node runs there"),
        (("Add a (no)",), (), FAIL, "1 not", "do not run there: Add a (no)"),
        (("Add a (no)",), ("Erf b (who knows)",), FAIL, "1 not", "do not run there: Add a (no)"),
        ((), ("Erf b (who knows)",), INCONCLUSIVE, "1 unknown", "not known: Erf b (who knows)"),
        (tuple("abcde"), (), FAIL, "5 not", "do not run there: a; b; c; and 2 more"),
    ],
)
def test_a_doubt_about_a_target_never_passes(
    refused: tuple[str, ...], doubts: tuple[str, ...], verdict: GateVerdict, observed: str | None, reason: str
) -> None:
    evidence = replace(EVIDENCE, unsupported={"qnn": refused}, doubts={"qnn": doubts})
    rule = judge(read_policy('[require]\ntargets = ["qnn"]', "gate.toml"), evidence).rules[0]
    assert (rule.verdict, rule.observed, rule.reason) == (verdict, observed, reason)


def test_what_is_worth_saying_of_a_target_that_passes() -> None:
    evidence = replace(EVIDENCE, unsupported={"qnn": ()}, remarks={"qnn": "every node runs there, but 2"})
    rule = judge(read_policy('[require]\ntargets = ["qnn"]', "gate.toml"), evidence).rules[0]
    assert (rule.verdict, rule.reason) == (PASS, "every node runs there, but 2")


def test_what_was_not_measured_never_passes() -> None:
    unmeasured = replace(EVIDENCE, latency_ms=None, latency_ratio=None, drop=None, sqnr_db=None, top1_agreement=None)
    for line in ('latency = "999%"', 'metric_drop = "99%"', "sqnr_db = 0", "top1_agreement = 0"):
        assert judge(read_policy(f"[limits]\n{line}", "gate.toml"), unmeasured).verdict is INCONCLUSIVE


def test_what_was_not_counted_has_its_reason_and_what_does_not_run_fails() -> None:
    policy = read_policy('[limits]\narm_instructions = "999%"', "gate.toml")
    rule = judge(policy, replace(EVIDENCE, arm_instructions=None, arm_reason="set it up")).rules[0]
    assert (rule.verdict, rule.observed, rule.reason) == (INCONCLUSIVE, None, "set it up")
    rule = judge(policy, replace(EVIDENCE, arm_instructions=None, arm_refused="no kernel")).rules[0]
    assert (rule.verdict, rule.reason) == (FAIL, "the candidate does not run on ARM: no kernel")


def test_any_failure_outweighs_any_doubt() -> None:
    policy = read_policy('[limits]\nlatency = "60%"\nbytes = "1%"\n', "gate.toml")
    assert judge(policy, EVIDENCE).verdict is FAIL


def test_new_nan_fails_numeric_rules() -> None:
    broken = replace(EVIDENCE, finite=False, sqnr_db=None)
    assert judge(read_policy("[limits]\nsqnr_db = 1", "gate.toml"), broken).verdict is FAIL


def test_an_empty_policy_passes() -> None:
    assert judge(read_policy("", "gate.toml"), EVIDENCE).verdict is PASS


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("[limits]\nsize = 3", "limits.size"),
        ("[limit]\nbytes = 3", "limit"),
        ("[limits\n", "not TOML"),
        ('[limits]\nbytes = "big"', "limits.bytes is 'big'"),
        ("[limits]\ntop1_agreement = 2", "top1_agreement"),
    ],
)
def test_bad_policies_name_the_key(text: str, fragment: str) -> None:
    with pytest.raises(PolicyError, match=fragment) as caught:
        read_policy(text, "gate.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("gate.toml")
