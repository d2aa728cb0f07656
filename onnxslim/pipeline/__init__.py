"""Passes and their manager: text to passes, run, check, keep or roll back."""

from __future__ import annotations

from onnxslim.pipeline.base import Costs, Effect, Goals, Pass, PassContext, Plan, PlannedPass, option
from onnxslim.pipeline.manager import (
    Check,
    PassManager,
    PassResult,
    Status,
    Verdict,
    exact_fixed_point,
)
from onnxslim.pipeline.rules import Rule, RulePass
from onnxslim.pipeline.spec import EXACT, format_pass, format_spec, make_pass, parse_spec, put_exact_first

__all__ = [
    "EXACT",
    "Check",
    "Costs",
    "Effect",
    "Goals",
    "Pass",
    "PassContext",
    "PassManager",
    "PassResult",
    "Plan",
    "PlannedPass",
    "Rule",
    "RulePass",
    "Status",
    "Verdict",
    "exact_fixed_point",
    "format_pass",
    "format_spec",
    "make_pass",
    "option",
    "parse_spec",
    "put_exact_first",
]
