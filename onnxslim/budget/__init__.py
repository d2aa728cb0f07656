"""Limits on what a model may cost or lose: read from text, judged against what was measured."""

from __future__ import annotations

from onnxslim.budget.limits import Limit, Unit, Verdict, parse_limit
from onnxslim.budget.lines import BudgetLine, Budgets, Observed, judge_budgets

__all__ = ["BudgetLine", "Budgets", "Limit", "Observed", "Unit", "Verdict", "judge_budgets", "parse_limit"]
