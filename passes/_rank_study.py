"""One model under study: what each form of each layer would save, lose and take, and which is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxslim.analysis import concrete_shapes
from onnxslim.ir import Model, Node
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import _ranks
from onnxslim.passes._factors import Problem, channel_spectrum, errors, factored
from onnxslim.passes._form_clock import WORTH, FormClock, pays
from onnxslim.passes._forms import Form, Scheme, elements, full, full_rank, misfit
from onnxslim.passes._rank_problems import problems
from onnxslim.passes._rank_subject import UNTIMED, Decision, Subject, slow, subject_of, why_no_gain
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

if TYPE_CHECKING:
    from onnxslim.passes.factor_low_rank import FactorLowRank


class Study:
    """What is asked about the layers of one model, and how it is found out."""

    def __init__(self, options: FactorLowRank, model: Model, context: PassContext) -> None:
        self.options = options
        self.model = model
        self.context = context
        given = context.samples
        self.samples: Samples | None = None if given is None else given.take(options.samples)
        counted = options.macs is not None or context.feed is not None
        self.shapes = concrete_shapes(model, context.feed) if counted else {}
        self.clock = FormClock(model.opset)

    def subjects(self, shared: Sequence[Sequence[Node]]) -> list[Subject]:
        """Return each list of nodes that share a weight with what their shapes say."""
        return [subject_of(nodes, self.shapes) for nodes in shared]

    # ---- the clock ---------------------------------------------------------------------------------------

    def why_no_time(self, subject: Subject, form: Form, worth: float = WORTH) -> str | None:
        """Return why the clock refuses a form, None where it does not or is not asked."""
        share = subject.share(form)
        if not self.is_timed or subject.shape is None or share is None:
            return None
        time = self.time(subject, form)
        if time is None:
            return UNTIMED
        return None if pays(time, share, worth) else slow(form, time, share)

    def time(self, subject: Subject, form: Form) -> float | None:
        """Return the share of the layer's time that ``form`` takes, None where the clock is not asked."""
        if not self.is_timed or subject.shape is None:
            return None
        return self.clock.share(subject.layer, form, subject.shape)

    @property
    def is_timed(self) -> bool:
        """Whether the clock is asked: unless it is off, bytes are the goal, or inputs are unknown."""
        silent = self.options.clock is Clock.OFF or self.options.bytes is not None
        return not silent and self.context.feed is not None

    # ---- layer by layer ----------------------------------------------------------------------------------

    def each(self, shared: Sequence[Sequence[Node]]) -> list[Decision]:
        """Decide about every layer by its own ratio, energy, rank or estimate.

        Raises:
            PassError: activations are not finite.
        """
        subjects = self.subjects(shared)
        return [
            self._own(subject, problem)
            for subject, problem, _ in problems(self.model, subjects, self.samples, self.context)
        ]

    def _own(self, subject: Subject, problem: Problem) -> Decision:
        chosen = self.options.scheme.value
        scheme = Scheme.CHANNEL if chosen == "auto" else Scheme(chosen)
        refused = Decision(subject.nodes, None, reason=misfit(subject.layer, scheme) or "")
        if refused.reason:
            return refused
        form = self._asked(problem, scheme)
        reason = why_no_gain(subject.layer, form) or self.why_no_time(subject, form)
        if reason is not None:
            return replace(refused, reason=reason)
        loss = problem.error(factored(problem, form).weight) / max(problem.energy(), 1e-300)
        return self.decision(subject, form, loss)

    def decision(self, subject: Subject, form: Form, loss: float) -> Decision:
        """Return the decision for a form that is expected to lose ``loss`` of the layer's output."""
        most = full_rank(subject.layer, form.scheme)
        return Decision(subject.nodes, form, most, loss, subject.share(form), self.time(subject, form))

    def _asked(self, problem: Problem, scheme: Scheme) -> Form:
        """Return the form that the options ask of one layer."""
        options, layer = self.options, problem.layer
        most = full(layer, scheme)
        inputs = most.inner
        if options.ratio is not None:
            rank = _ranks.without(most.rank, options.ratio)
            inner = inputs and _ranks.without(inputs, options.ratio)
        elif options.rank is not None:
            rank, inner = options.rank, inputs and min(options.rank, inputs)
        elif options.energy is not None:
            rank, inner = _with_energy(problem, scheme, options.energy)
        else:
            rank, inner = _estimated(problem, scheme)
        multiple = (options.multiple or 1) if scheme is not Scheme.SEPARABLE else 1
        rank = _ranks.rounded(min(rank, most.rank) if inner else rank, multiple, most.rank)
        return Form(scheme, rank, inner and inputs and _ranks.rounded(inner, multiple, inputs))


def _with_energy(problem: Problem, scheme: Scheme, energy: float) -> tuple[int, int | None]:
    if scheme is Scheme.CHANNEL:
        return _ranks.keeping(channel_spectrum(problem), energy), None
    layer = problem.layer
    most = full(layer, scheme)
    found = errors(problem, scheme, _ranks.grid(most.rank, 1))
    allowed = (1 - energy) * problem.energy()
    able = [form for form, error in found if error <= allowed]
    best = min(able, key=lambda form: elements(layer, form), default=most)
    return best.rank, best.inner


def _estimated(problem: Problem, scheme: Scheme) -> tuple[int, int | None]:
    layer = problem.layer
    weight = layer.matrix()
    rank = max(_ranks.estimated(part) for part in weight)
    if scheme is not Scheme.TUCKER:
        return min(rank, full_rank(layer, scheme)), None
    inputs = layer.width // layer.taps
    unfolded = weight.reshape(layer.channels, inputs, layer.taps).transpose(1, 0, 2).reshape(inputs, -1)
    return rank, _ranks.estimated(unfolded)
