"""The targets' descriptions: complete, sourced and in words that onnx knows."""

from __future__ import annotations

import onnx
import pytest

from onnxslim.errors import SpecError
from onnxslim.targets import DEFAULT_TARGET, TARGETS, Looks, Target, find_target
from onnxslim.targets.pairs import GROUPS, QNN_GROUPS

EVERY = pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])


def test_the_names() -> None:
    assert [target.name for target in TARGETS] == ["arm-cpu", "xnnpack", "nnapi", "coreml", "qnn", "web"]
    assert find_target("qnn").wide_activations
    assert DEFAULT_TARGET in set(TARGETS), "targets can be keys"
    with pytest.raises(SpecError, match="unknown target 'tpu': choose one of arm-cpu, xnnpack"):
        find_target("tpu")


def test_what_passes_choose_by_is_as_it_was() -> None:
    told = {
        target.name: (
            target.channel_multiple,
            target.ort_platform,
            target.activations,
            target.wide_activations,
            target.transposed_convolutions,
        )
        for target in TARGETS
    }
    assert told == {
        "arm-cpu": (8, "arm", "uint8", False, False),
        "xnnpack": (8, "arm", "int8", False, True),
        "nnapi": (8, "arm", "uint8", False, False),
        "coreml": (8, "arm", "uint8", False, False),
        "qnn": (32, "arm", "uint8", True, True),
        "web": (8, "arm", "uint8", False, False),
    }


@EVERY
def test_every_fact_has_a_source(target: Target) -> None:
    assert target.source
    assert target.what
    assert target.basis
    assert target.blind, "every check has something that it does not see"
    assert target.integers is not None
    for fact in (*target.facts, target.integers):
        assert fact.source, fact.about
        assert "http" not in fact.source
    assert all(operator.source for operator in target.operators.values())


@EVERY
def test_operators_are_onnx_operators(target: Target) -> None:
    """A name with a typing error would refuse what runs."""
    for name in {*target.operators, *target.groups, *target.fused, *target.lonely, *target.integer_operators}:
        domain, _, op = name.rpartition(":")
        assert domain == "com.microsoft" or onnx.defs.has(op, domain) or name in ("Gelu", "Inverse"), name


def test_only_rules_have_tables() -> None:
    tables = {target.name for target in TARGETS if target.operators}
    assert tables == {target.name for target in TARGETS if target.looks is Looks.RULES} == {"xnnpack", "qnn"}


def test_a_target_that_takes_pairs_has_rules_for_them() -> None:
    """A row with integers for an operator that no group is made around would never be used."""
    for name in ("xnnpack", "qnn"):
        target = find_target(name)
        unused = {op for op, row in target.operators.items() if row.paired is not None and op not in target.groups}
        assert unused <= {"ThresholdedRelu", "Selu", "Softplus", "Tan", "IsNaN"}, name
    assert set(GROUPS) < set(QNN_GROUPS)
