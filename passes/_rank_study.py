"""One model under study: what each form of each layer would save and lose, and which is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.analysis.linear_layers import LinearLayer, linear_layer
from onnxslim.analysis.moments import Moments, Settings
from onnxslim.analysis.second_order import Collector
from onnxslim.errors import PassError
from onnxslim.ir import Model, Node, Rewriter, anchor_of
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import _ranks
from onnxslim.passes._factoring import POSITIONS, fitted_alone, problem_of, write_factors
from onnxslim.passes._factors import Problem, channel_spectrum, errors, factored
from onnxslim.passes._form_clock import FormClock, pays
from onnxslim.passes._forms import (
    Form,
    Positions,
    Scheme,
    elements,
    full,
    full_rank,
    macs,
    misfit,
    own_macs,
    positions_of,
)
from onnxslim.passes._ranks import AS_IT_IS, Option
from onnxslim.passes._sensitivity import Probe, divided
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples

if TYPE_CHECKING:
    from onnxslim.passes.factor_low_rank import FactorLowRank

AT_ONCE = 512 * 2**20
"""Bytes of moments that are held together."""


@dataclass(frozen=True)
class Decision:
    """A form for some nodes that share a weight, or why there is none."""

    nodes: Sequence[Node]
    form: Form | None
    full_rank: int = 0
    error: float = 0.0
    macs: float | None = None
    time: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Subject:
    """Nodes that share a weight, and what is known of them."""

    nodes: Sequence[Node]
    layer: LinearLayer
    positions: tuple[Positions, ...] | None
    """Of each node; None where a shape is unknown."""
    shape: tuple[int, ...] | None
    """Of the first node's input."""

    @property
    def anchor(self) -> str:
        return self.layer.anchor

    @property
    def own_macs(self) -> int:
        return sum(own_macs(self.layer, each) for each in self.positions or ())

    def macs(self, form: Form) -> int:
        return sum(macs(self.layer, form, each) for each in self.positions or ())

    def share(self, form: Form) -> float | None:
        """Return the multiply-accumulates of ``form`` as a share of the layer's own."""
        return self.macs(form) / self.own_macs if self.own_macs else None


@dataclass(frozen=True)
class _Budget:
    """What may remain: ``fraction`` of ``was``, where ``now`` is there."""

    name: str
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


class Study:
    """Chooses forms for layers of one model."""

    def __init__(self, options: FactorLowRank, model: Model, context: PassContext) -> None:
        self.options = options
        self.model = model
        self.context = context
        given = context.samples
        self.samples: Samples | None = None if given is None else given.take(options.samples)
        self._clock = FormClock(model.opset)
        counted = options.macs is not None or context.feed is not None
        self._shapes = concrete_shapes(model, context.feed) if counted else {}

    def decisions(self, shared: Sequence[Sequence[Node]]) -> list[Decision]:
        """Return a form for each list of nodes that share a weight, or the reason why there is none.

        Raises:
            PassError: a budget is out of reach, or activations are not finite.
        """
        subjects = [_Subject(nodes, linear_layer(nodes[0]), *_known(nodes, self._shapes)) for nodes in shared]
        budget = self._budget()
        if budget is None:
            return [self._own(subject, problem) for subject, problem, _ in self._problems(subjects, self.samples)]
        return [] if budget.excess <= 0 else self._under(budget, subjects)

    def _problems(
        self, subjects: Sequence[_Subject], samples: Samples | None
    ) -> Iterator[tuple[_Subject, Problem, Moments | None]]:
        """Yield each subject with what is to be approximated: with moments, where there are samples."""
        settings = Settings(POSITIONS, self.context.seed, self.context.threads)
        collector = None if samples is None else Collector(samples, None, settings)
        done = 0
        for some in _few(subjects):
            fitted = [each.anchor for each in some if collector is not None and fitted_alone(each.nodes)]
            moments = collector.moments(self.model, fitted) if collector is not None and fitted else {}
            for subject in some:
                done += 1
                self.context.progress("factor-low-rank: look at layers", done, len(subjects))
                own = moments.pop(subject.anchor, None)
                yield subject, problem_of(subject.layer, own), own

    # ---- layer by layer ----------------------------------------------------------------------------------

    def _own(self, subject: _Subject, problem: Problem) -> Decision:
        """Decide about one layer by its ratio, energy, rank or estimate."""
        chosen = self.options.scheme.value
        scheme = Scheme.CHANNEL if chosen == "auto" else Scheme(chosen)
        reason = misfit(subject.layer, scheme)
        if reason is not None:
            return Decision(subject.nodes, None, reason=reason)
        form = self._asked(problem, scheme)
        reason = _why_no_gain(subject.layer, form) or self._why_no_time(subject, form)
        if reason is not None:
            return Decision(subject.nodes, None, reason=reason)
        return self._decision(subject, form, next(iter(_losses(problem, form))))

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
            rank, inner = self._with_energy(problem, scheme, options.energy)
        else:
            rank, inner = _estimated(problem, scheme)
        multiple = (options.multiple or 1) if scheme is not Scheme.SEPARABLE else 1
        rank = _ranks.rounded(min(rank, most.rank) if inner else rank, multiple, most.rank)
        return Form(scheme, rank, inner and inputs and _ranks.rounded(inner, multiple, inputs))

    def _with_energy(self, problem: Problem, scheme: Scheme, energy: float) -> tuple[int, int | None]:
        if scheme is Scheme.CHANNEL:
            return _ranks.keeping(channel_spectrum(problem), energy), None
        layer = problem.layer
        most = full(layer, scheme)
        found = errors(problem, scheme, _ranks.grid(most.rank, 1))
        allowed = (1 - energy) * problem.energy()
        able = [form for form, error in found if error <= allowed]
        best = min(able, key=lambda form: elements(layer, form), default=most)
        return best.rank, best.inner

    def _why_no_time(self, subject: _Subject, form: Form) -> str | None:
        """Return why the clock refuses a form, None where it does not or is not asked."""
        time, share = self._time(subject, form), subject.share(form)
        if time is None or share is None or pays(time, share):
            return None
        return f"{_told(form)} would take {time:.0%} of its time for {share:.0%} of its multiply-accumulates"

    def _time(self, subject: _Subject, form: Form) -> float | None:
        silent = self.options.clock is Clock.OFF or self.options.bytes is not None
        if silent or subject.shape is None or self.context.feed is None:
            return None
        return self._clock.share(subject.layer, form, subject.shape)

    def _decision(self, subject: _Subject, form: Form, loss: float) -> Decision:
        share = subject.share(form)
        most = full_rank(subject.layer, form.scheme)
        return Decision(subject.nodes, form, most, loss, share, self._time(subject, form))

    # ---- all layers under a budget -----------------------------------------------------------------------

    def _budget(self) -> _Budget | None:
        was = self.context.baseline
        if self.options.bytes is not None:
            return _Budget("bytes", self.options.bytes, was.bytes, model_cost(self.model, {}).bytes)
        if self.options.macs is None:
            return None
        now = model_cost(self.model, self._shapes).macs
        if now is None or was.macs is None:
            raise PassError("multiply-accumulates cannot be counted, because shapes are unknown: use energy or bytes")
        return _Budget("macs", self.options.macs, was.macs, now)

    def _under(self, budget: _Budget, subjects: Sequence[_Subject]) -> list[Decision]:
        offers = self._offers(subjects)
        reasons: dict[int, str] = {}
        while True:
            chosen = _ranks.spend(offers, budget.excess)
            if chosen is None:
                raise PassError(self._out_of_reach(budget, subjects, offers, reasons))
            if self.options.macs is None or not self._corrected(subjects, offers, chosen, reasons):
                break
        return [
            self._decision(subject, option.form, option.loss)
            if option.form is not None
            else Decision(subject.nodes, None, reason=reasons.get(index, "other layers lose less for what they save"))
            for index, (subject, option) in enumerate(zip(subjects, chosen, strict=True))
        ]

    def _corrected(
        self,
        subjects: Sequence[_Subject],
        offers: list[list[Option]],
        chosen: Sequence[Option],
        reasons: dict[int, str],
    ) -> bool:
        """Take back the offers that the clock refuses among the chosen; return whether there were any."""
        changed = False
        for index, option in enumerate(chosen):
            form = option.form
            reason = None if form is None else self._why_no_time(subjects[index], form)
            if form is None or reason is None:
                continue
            reasons[index], changed = reason, True
            offers[index] = [
                each
                for each in offers[index]
                if each.form is None or each.form.scheme is not form.scheme or each.saved > option.saved
            ]
        return changed

    def _out_of_reach(
        self,
        budget: _Budget,
        subjects: Sequence[_Subject],
        offers: list[list[Option]],
        reasons: dict[int, str],
    ) -> str:
        """Say what can be reached, after asking the clock about the lowest ranks."""
        while True:
            lowest = [max(options, key=lambda each: each.saved, default=AS_IT_IS) for options in offers]
            if self.options.macs is None or not self._corrected(subjects, offers, lowest, reasons):
                break
        least = budget.left(sum(option.saved for option in lowest))
        text = f"{budget.name}={budget.fraction:g} is out of reach: the lowest ranks leave {least:.3f} of the original"
        if not reasons:
            return text
        examples = "; ".join(f"{subjects[index].anchor!r}: {reason}" for index, reason in list(reasons.items())[:3])
        return f"{text} where the clock agrees; {len(reasons)} layers have forms that do not pay, as {examples}"

    def _offers(self, subjects: Sequence[_Subject]) -> list[list[Option]]:
        """Return what every layer has to offer, losses scaled by what the outputs mind."""
        probe, fitting = None, self.samples
        if self.samples is not None:
            fitting, looking = divided(self.samples)
            probe = Probe(self.model, looking, self.context.threads)
        found = []
        for subject, problem, moments in self._problems(subjects, fitting):
            options = list(self._options(subject, problem))
            weight = 1.0 if probe is None else self._mind(probe, subject, problem, moments, options)
            found.append([replace(option, loss=option.loss * weight) for option in options])
        return found

    def _options(self, subject: _Subject, problem: Problem) -> Iterator[Option]:
        layer = subject.layer
        whole = max(problem.energy(), 1e-300)
        for scheme in self._schemes(layer):
            multiple = self.options.multiple or self.context.target.channel_multiple
            step = 1 if scheme is Scheme.SEPARABLE else multiple
            ranks = _ranks.grid(self._largest(subject, scheme), step)
            for form, error in errors(problem, scheme, ranks) if ranks else ():
                saved = self._saved(subject, form)
                if saved > 0:
                    yield Option(form, saved, error / whole)

    def _schemes(self, layer: LinearLayer) -> list[Scheme]:
        chosen = self.options.scheme.value
        wanted = [Scheme(chosen)] if chosen != "auto" else [each for each in Scheme if each is not Scheme.CP]
        return [scheme for scheme in wanted if misfit(layer, scheme) is None]

    def _largest(self, subject: _Subject, scheme: Scheme) -> int:
        """Return the largest rank that can save anything."""
        layer, most = subject.layer, full_rank(subject.layer, scheme)
        if scheme is Scheme.TUCKER:
            return most
        own = subject.own_macs if self.options.macs is not None else layer.channels * layer.width
        one = Form(scheme, 1)
        each = subject.macs(one) if self.options.macs is not None else elements(layer, one)
        return min(most - 1, (own - 1) // max(each, 1))

    def _saved(self, subject: _Subject, form: Form) -> float:
        if self.options.macs is not None:
            return float(subject.own_macs - subject.macs(form))
        layer = subject.layer
        size = np.dtype(layer.weight.dtype).itemsize
        return float((layer.channels * layer.width - elements(layer, form)) * size)

    def _mind(
        self, probe: Probe, subject: _Subject, problem: Problem, moments: Moments | None, options: Sequence[Option]
    ) -> float:
        """Return how much the outputs mind a loss of this layer: tried out at about half of what can be saved."""
        if not options:
            return 1.0
        half = max(option.saved for option in options) / 2
        tried = min(options, key=lambda option: abs(option.saved - half))
        assert tried.form is not None  # noqa: S101  (options have forms)
        trial = self.model.copy()
        rewriter = Rewriter(trial)
        anchors = {anchor_of(node) for node in subject.nodes}
        nodes = [node for node in trial.graph.nodes if anchor_of(node) in anchors]
        write_factors(rewriter, nodes, problem, moments, tried.form)
        rewriter.finish()
        return probe.error_of(trial) / max(tried.loss, 1e-6)


def _known(
    nodes: Sequence[Node], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Positions, ...] | None, tuple[int, ...] | None]:
    """Return the positions of all nodes and the first one's input shape; None where a shape is unknown."""
    pairs = [(shapes.get(node.inputs[0].name), shapes.get(node.outputs[0].name)) for node in nodes]
    found = []
    for node, (given, made) in zip(nodes, pairs, strict=True):
        if given is None or made is None:
            return None, None
        found.append(positions_of(linear_layer(node), (given, made)))
    return tuple(found), pairs[0][0]


def _few(subjects: Sequence[_Subject]) -> Iterator[list[_Subject]]:
    """Split subjects, in order, so that the moments of each few fit."""
    held: list[_Subject] = []
    size = 0
    for subject in subjects:
        own = 8 * subject.layer.groups * subject.layer.width**2
        if held and size + own > AT_ONCE:
            yield held
            held, size = [], 0
        held.append(subject)
        size += own
    if held:
        yield held


def _losses(problem: Problem, form: Form) -> Iterator[float]:
    """Yield the error of one form, relative."""
    yield problem.error(factored(problem, form).weight) / max(problem.energy(), 1e-300)


def _estimated(problem: Problem, scheme: Scheme) -> tuple[int, int | None]:
    layer = problem.layer
    weight = layer.matrix()
    rank = max(_ranks.estimated(part) for part in weight)
    if scheme is not Scheme.TUCKER:
        return min(rank, full_rank(layer, scheme)), None
    inputs = layer.width // layer.taps
    unfolded = weight.reshape(layer.channels, inputs, layer.taps).transpose(1, 0, 2).reshape(inputs, -1)
    return rank, _ranks.estimated(unfolded)


def _why_no_gain(layer: LinearLayer, form: Form) -> str | None:
    most = full(layer, form.scheme)
    if form.rank >= most.rank and (form.inner or 0) >= (most.inner or 0):
        return f"rank {form.rank} is not below its full rank {most.rank}: nothing to gain"
    own = layer.channels * layer.width
    if elements(layer, form) < own:
        return None
    largest = 0 if form.inner else (own - 1) // elements(layer, Form(form.scheme, 1))
    cheaper = str(largest) if largest else "none"
    return f"rank {form.rank} of {most.rank} would not make it cheaper: {cheaper} would"


def _told(form: Form) -> str:
    inner = "" if form.inner is None else f" and {form.inner}"
    return f"{form.scheme.value} of rank {form.rank}{inner}"
