"""Forms for a model: layer by layer or under a budget, and as a whole no slower than its layers promise.

Layers that are faster alone may not be so in a row, where onnxruntime fuses and reorders. So the whole model is timed
with the chosen forms, and where it saves too little, layers must promise more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.measure.stopwatch import Rounds, time_shares
from onnxslim.passes._factoring import write_noise
from onnxslim.passes._form_clock import WORTH, pays
from onnxslim.passes._rank_budget import Spending, goal_of
from onnxslim.passes._rank_study import Study
from onnxslim.passes._rank_subject import Decision
from onnxslim.runtime import RuntimeRefusal

STRICTER = (WORTH, 0.7, 0.8, 0.9)
"""What layers must promise, the next where the whole does not keep it."""
ROUNDS = Rounds(seconds=1.5, least=7, most=80)


class Whole(BaseModel):
    """What the chosen forms leave of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: float
    time: float

    @property
    def pays(self) -> bool:
        """Whether enough of the saved multiply-accumulates is saved time."""
        return pays(self.time, self.macs, margin=0.0)


def choose(study: Study, shared: Sequence[Sequence[Node]]) -> tuple[list[Decision], Whole | None]:
    """Return a form for each list of nodes that share a weight, or the reason why there is none; and what was timed.

    Raises:
        PassError: a budget is out of reach, or activations are not finite.
    """
    try:
        return _chosen(study, shared)
    finally:
        study.clock.known.keep()


def _chosen(study: Study, shared: Sequence[Sequence[Node]]) -> tuple[list[Decision], Whole | None]:
    goal = goal_of(study)
    if goal is not None and goal.excess <= 0:
        return [], None
    spending = None if goal is None else Spending(study, goal, shared)
    decisions = [] if spending is not None else study.each(shared)
    told = ""
    for worth in STRICTER:
        decisions = _paying(decisions, worth) if spending is None else spending.choose(worth)
        whole = _timed(study, decisions)
        if whole is None or whole.pays:
            return decisions, whole
        told = f"the whole model would take {whole.time:.0%} of its time for {whole.macs:.0%} of the MACs"
    return [_refused(decision, told) for decision in decisions], None


def _paying(decisions: Sequence[Decision], worth: float) -> list[Decision]:
    return [
        decision
        if decision.time is None or decision.macs is None or pays(decision.time, decision.macs, worth)
        else _refused(decision, f"{decision.time:.0%} of its time is too much where the whole model is to be faster")
        for decision in decisions
    ]


def _refused(decision: Decision, reason: str) -> Decision:
    return decision if decision.form is None else replace(decision, form=None, reason=reason)


def _timed(study: Study, decisions: Sequence[Decision]) -> Whole | None:
    """Time the model with the chosen forms beside itself; None where nothing is chosen, or the clock is not asked."""
    feed = study.context.feed
    if not study.is_timed or feed is None or all(decision.form is None for decision in decisions):
        return None
    trial = _with_forms(study.model, decisions)
    own = model_cost(study.model, study.shapes).macs
    left = model_cost(trial, concrete_shapes(trial, feed)).macs
    if not own or left is None:
        return None
    try:
        placed = [study.model.placed(), trial.placed()]  # their files live as long
        share = time_shares([each.data for each in placed], [feed] * 2, ROUNDS)[1]
    except RuntimeRefusal:
        return None
    return Whole(macs=round(left / own, 4), time=round(share, 4))


def _with_forms(model: Model, decisions: Sequence[Decision]) -> Model:
    """Return a copy with the chosen forms, with noise for weights: time does not depend on them."""
    trial = model.copy()
    rewriter = Rewriter(trial)
    by_anchor = {anchor_of(node): node for node in trial.graph.nodes}
    random = np.random.default_rng(0)
    for decision in decisions:
        if decision.form is not None:
            write_noise(rewriter, [by_anchor[anchor_of(node)] for node in decision.nodes], decision.form, random)
    rewriter.finish()
    return trial
