"""Passes and their manager: text to passes, run, check, keep or roll back."""

from __future__ import annotations

from onnxslim.pipeline.base import (
    Costs,
    Effect,
    Pass,
    PassContext,
    Plan,
    PlannedPass,
    option,
)
from onnxslim.pipeline.rules import Rule, RulePass

__all__ = ["Costs", "Effect", "Pass", "PassContext", "Plan", "PlannedPass", "Rule", "RulePass", "option"]
