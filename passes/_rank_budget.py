"""Forms for all layers under one budget: every layer offers forms, and the least loss for what is saved wins.

A form's loss is what was measured at the outputs when its layer alone was factorized (``_sensitivity``), at a few
ranks, and between them in proportion.
Offers that the clock refuses are taken back until none is among the chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnxslim.analysis import model_cost
from onnxslim.analysis.linear_layers import LinearLayer
from onnxslim.analysis.moments import Moments
from onnxslim.errors import PassError
from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.passes import _ranks
from onnxslim.passes._factoring import write_factors
from onnxslim.passes._factors import Problem, errors
from onnxslim.passes._forms import Form, Scheme, elements, full_rank, misfit
from onnxslim.passes._rank_problems import problems
from onnxslim.passes._rank_study import Study
from onnxslim.passes._rank_subject import Decision, Subject
from onnxslim.passes._ranks import AS_IT_IS, Option, Tried
from onnxslim.passes._sensitivity import Probe, divided

TRIED = 3
"""Forms of each layer that are tried out. What a layer loses spans orders of magnitude from rank to rank, and what
outputs mind of it is not in proportion: a small loss that was fitted hides more than a large one."""


@dataclass(frozen=True)
class Goal:
    """What may remain: ``fraction`` of ``was``, where ``now`` is there."""

    name: str
    """"macs" or "bytes"."""
    fraction: float
    was: int
    now: int

    @property
    def excess(self) -> float:
        """What must go."""
        return self.now - self.fraction * self.was

    def left(self, saved: float) -> float:
        """Return what would remain of the original."""
        return (self.now - saved) / max(self.was, 1)


def goal_of(study: Study) -> Goal | None:
    """Return the budget that the options set, None where each layer decides for itself.

    Raises:
        PassError: multiply-accumulates cannot be counted.
    """
    options, was = study.options, study.context.baseline
    if options.bytes is not None:
        return Goal("bytes", options.bytes, was.bytes, model_cost(study.model, {}).bytes)
    if options.macs is None:
        return None
    now = model_cost(study.model, study.shapes).macs
    if now is None or was.macs is None:
        raise PassError("multiply-accumulates cannot be counted, because shapes are unknown: use energy or bytes")
    return Goal("macs", options.macs, was.macs, now)


class Spending:
    """A budget, and what all layers offer for it."""

    def __init__(self, study: Study, goal: Goal, shared: Sequence[Sequence[Node]]) -> None:
        self._study = study
        self._goal = goal
        self._subjects = study.subjects(shared)
        self._offers = self._looked_at()
        self._reasons: dict[int, str] = {}

    def choose(self, worth: float) -> list[Decision]:
        """Return a form for each subject, or the reason why there is none.

        Args:
            worth: share of the saved multiply-accumulates that a form must save in time.

        Raises:
            PassError: the goal is out of reach.
        """
        while True:
            chosen = _ranks.spend(self._offers, self._goal.excess)
            if chosen is None:
                raise PassError(self._out_of_reach(worth))
            if not self._corrected(chosen, worth):
                break
        return [
            self._study.decision(subject, option.form, option.loss)
            if option.form is not None
            else Decision(
                subject.nodes, None, reason=self._reasons.get(index, "other layers lose less for what they save")
            )
            for index, (subject, option) in enumerate(zip(self._subjects, chosen, strict=True))
        ]

    def _corrected(self, chosen: Sequence[Option], worth: float) -> bool:
        """Take back the offers that the clock refuses among the chosen; return whether there were any."""
        changed = False
        for index, option in enumerate(chosen):
            form = option.form
            reason = None if form is None else self._study.why_no_time(self._subjects[index], form, worth)
            if form is None or reason is None:
                continue
            self._reasons[index], changed = reason, True
            self._offers[index] = [
                each
                for each in self._offers[index]
                if each.form is None or each.form.scheme is not form.scheme or each.saved > option.saved
            ]
        return changed

    def _out_of_reach(self, worth: float) -> str:
        """Say what can be reached, after asking the clock about the lowest ranks."""
        while True:
            lowest = [max(options, key=lambda each: each.saved, default=AS_IT_IS) for options in self._offers]
            if not self._corrected(lowest, worth):
                break
        goal = self._goal
        least = goal.left(sum(option.saved for option in lowest))
        text = f"{goal.name}={goal.fraction:g} is out of reach: the lowest ranks leave {least:.3f} of the original"
        if not self._reasons:
            return text
        examples = "; ".join(
            f"{self._subjects[index].anchor!r}: {reason}" for index, reason in list(self._reasons.items())[:3]
        )
        return f"{text} where the clock agrees; {len(self._reasons)} layers have forms that do not pay, as {examples}"

    # ---- what layers offer -------------------------------------------------------------------------------

    def _looked_at(self) -> list[list[Option]]:
        """Return what every layer has to offer, losses scaled by what the outputs mind."""
        study = self._study
        probe, fitting = None, study.samples
        if study.samples is not None:
            fitting, looking = divided(study.samples)
            probe = Probe(study.model, looking, study.context.threads)
        found = []
        for subject, problem, moments in problems(study.model, self._subjects, fitting, study.context):
            options = list(self._options(subject, problem))
            if probe is not None:
                tried = [
                    Tried(option.loss, probe.error_of(self._with(subject, problem, moments, option)))
                    for option in _ranks.spread(options, TRIED)
                ]
                options = [replace(option, loss=_ranks.minded(option.loss, tried)) for option in options]
            found.append(options)
        return found

    def _options(self, subject: Subject, problem: Problem) -> Iterator[Option]:
        layer = subject.layer
        whole = max(problem.energy(), 1e-300)
        for scheme in self._schemes(layer):
            multiple = self._study.options.multiple or self._study.context.target.channel_multiple
            step = 1 if scheme is Scheme.SEPARABLE else multiple
            ranks = _ranks.grid(self._largest(subject, scheme), step)
            for form, error in errors(problem, scheme, ranks) if ranks else ():
                saved = self._saved(subject, form)
                if saved > 0:
                    yield Option(form, saved, error / whole)

    def _schemes(self, layer: LinearLayer) -> list[Scheme]:
        chosen = self._study.options.scheme.value
        wanted = [Scheme(chosen)] if chosen != "auto" else [each for each in Scheme if each is not Scheme.CP]
        return [scheme for scheme in wanted if misfit(layer, scheme) is None]

    def _largest(self, subject: Subject, scheme: Scheme) -> int:
        """Return the largest rank that can save anything."""
        layer, most = subject.layer, full_rank(subject.layer, scheme)
        if scheme is Scheme.TUCKER:
            return most
        one = Form(scheme, 1)
        if self._goal.name == "macs":
            own, each = subject.own_macs, subject.macs(one)
        else:
            own, each = layer.channels * layer.width, elements(layer, one)
        return min(most - 1, (own - 1) // max(each, 1))

    def _saved(self, subject: Subject, form: Form) -> float:
        return float(subject.own_macs - subject.macs(form) if self._goal.name == "macs" else subject.bytes_saved(form))

    def _with(self, subject: Subject, problem: Problem, moments: Moments | None, option: Option) -> Model:
        """Return a copy of the model with one layer factorized."""
        assert option.form is not None  # noqa: S101  (offers have forms)
        trial = self._study.model.copy()
        rewriter = Rewriter(trial)
        anchors = {anchor_of(node) for node in subject.nodes}
        nodes = [node for node in trial.graph.nodes if anchor_of(node) in anchors]
        write_factors(rewriter, nodes, problem, moments, option.form)
        rewriter.finish()
        return trial
