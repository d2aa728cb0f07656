"""What low rank would do to each layer of a model, to be looked at before anything is decided.

For every layer that factor-low-rank looks at: its singular values (how soon they fall says whether there is anything to
win), the error of each form against what it costs, and, timed beside the layer, the best form at three quarters, a half
and a quarter of its multiply-accumulates. The layers are those of the original network: what errors of several layers
do to each other is for the pass, which fits front to back, to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.analysis import concrete_shapes, infer_shapes
from onnxslim.errors import ModelError
from onnxslim.ir import Model, anchor_of, graph_nodes, selects
from onnxslim.measure.stopwatch import Clock
from onnxslim.passes import _ranks
from onnxslim.passes._eligible import eligible
from onnxslim.passes._factors import Floats, Problem, channel_spectrum
from onnxslim.passes._form_clock import FormClock, pays
from onnxslim.passes._forms import Scheme, elements, full_rank
from onnxslim.passes._layer_times import LayerTimes
from onnxslim.passes._rank_curves import Point, chosen, curve, schemes_of
from onnxslim.passes._rank_findings import (
    LayerSurvey,
    RankCurve,
    RankOption,
    RankPoint,
    RankSurvey,
    RefusedLayer,
    SpectrumPoint,
)
from onnxslim.passes._rank_problems import problems
from onnxslim.passes._rank_subject import UNTIMED, Subject, slow, subject_of
from onnxslim.pipeline import PassContext

SPECTRUM_POINTS = 64
"""Ranks of a spectrum that are told, at most."""
ESTIMATED = 2 * 10**10
"""Multiplications of a singular value decomposition above which a rank is not estimated: several seconds."""


@dataclass(frozen=True)
class SurveyOptions:
    """What is looked at, and how."""

    only: tuple[str, ...] = ()
    """Patterns of layers; the others are left out altogether."""
    clock: Clock = Clock.ON


def survey_ranks(model: Model, context: PassContext, options: SurveyOptions | None = None) -> RankSurvey:
    """Look at every layer of ``model`` that can be factorized; the model is not changed but for inferred shapes.

    Args:
        context: its samples decide what errors are of, its feed fixes shapes, its target says to which multiple ranks
            are rounded.

    Raises:
        PassError: activations are not finite.
        RuntimeRefusal: onnxruntime does not run the model on a sample.
    """
    return _Survey(model, context, options or SurveyOptions()).run()


class _Survey:
    """One survey of one model."""

    def __init__(self, model: Model, context: PassContext, options: SurveyOptions) -> None:
        infer_shapes(model)
        self.model, self.context, self.options = model, context, options
        self.shapes = _shapes(model, context)
        self.clock = FormClock(model.opset)
        self.times = self._timed()

    def run(self) -> RankSurvey:
        shared, refused = eligible(self.model, self.options.only, (), spare_others=False)
        wanted = {anchor_of(node) for _, node in graph_nodes(self.model.graph) if selects(node, self.options.only, ())}
        samples = self.context.samples
        try:
            subjects = [subject_of(nodes, self.shapes) for nodes in shared]
            found = problems(self.model, subjects, samples, self.context)
            layers = tuple(self._layer(subject, problem) for subject, problem, _ in found)
        finally:
            self.clock.known.keep()
        return RankSurvey(
            error_of="weights" if samples is None else "output",
            samples=None if samples is None else len(samples),
            clock=self.options.clock.value,
            layers=layers,
            refused=tuple(RefusedLayer(anchor=anchor, reason=why) for anchor, why in refused if anchor in wanted),
        )

    def _layer(self, subject: Subject, problem: Problem) -> LayerSurvey:
        layer, nodes = subject.layer, subject.nodes
        squares = channel_spectrum(problem)
        multiple = self.context.target.channel_multiple
        curves = {scheme: curve(subject, problem, scheme, multiple) for scheme in schemes_of(layer)}
        macs = subject.own_macs
        return LayerSurvey(
            anchor=subject.anchor,
            op=layer.node.op,
            also=tuple(anchor_of(node) for node in nodes[1:]),
            weight_shape=tuple(int(size) for size in layer.weight.shape),
            input_shape=self.shapes.get(layer.source),
            output_shape=self.shapes.get(subject.anchor),
            full_rank=full_rank(layer, Scheme.CHANNEL),
            macs=macs or None,
            bytes=layer.channels * layer.width * _itemsize(subject),
            microseconds=None if self.times is None else self.times.of(nodes),
            error_of="weights" if problem.metric is None else "output",
            spectrum=_thinned(squares),
            rank_90=_ranks.keeping(squares, 0.9),
            rank_99=_ranks.keeping(squares, 0.99),
            vbmf=_estimated(subject),
            curves=tuple(
                RankCurve(scheme=scheme.value, points=tuple(_point(subject, point) for point in points))
                for scheme, points in curves.items()
                if points
            ),
            options=tuple(self._option(subject, point) for point in chosen(list(curves.values()))),
        )

    # ---- time --------------------------------------------------------------------------------------------

    def _option(self, subject: Subject, point: Point) -> RankOption:
        form, share = point.form, subject.share(point.form)
        time = None if self._why_untimed(subject) else self.clock.share(subject.layer, form, subject.shape or ())
        why, good = self._why_untimed(subject), None
        if time is not None and share is not None:
            good = pays(time, share)
            why = None if good else slow(form, time, share)
        elif why is None:
            why = UNTIMED
        same = _point(subject, point).model_dump()
        return RankOption(scheme=form.scheme.value, time=time, pays=good, why=why, **same)

    def _why_untimed(self, subject: Subject) -> str | None:
        if self.options.clock is Clock.OFF:
            return "the clock is off"
        return "its shapes are unknown" if subject.shape is None else None

    def _timed(self) -> LayerTimes | None:
        """Return the layers' times; None without a feed or a clock, and for models too large to be held twice."""
        if self.options.clock is Clock.OFF or self.context.feed is None or self.model.is_large:
            return None
        return LayerTimes(self.model, self.context.feed)


def _shapes(model: Model, context: PassContext) -> dict[str, tuple[int, ...]]:
    try:
        return concrete_shapes(model, context.feed)
    except ModelError:
        if context.feed is not None:
            raise
        return concrete_shapes(model, {})  # dynamic sizes, and nothing that fixes them: what needs them is absent


def _itemsize(subject: Subject) -> int:
    return int(np.dtype(subject.layer.weight.dtype).itemsize)


def _point(subject: Subject, point: Point) -> RankPoint:
    form, layer = point.form, subject.layer
    share = subject.share(form)
    return RankPoint(
        rank=form.rank,
        inner=form.inner,
        macs=None if share is None else round(share, 4),
        bytes=round(elements(layer, form) / (layer.channels * layer.width), 4),
        error=round(point.error, 6),
    )


def _thinned(squares: Floats) -> tuple[SpectrumPoint, ...]:
    """Return what ranks in geometric steps keep."""
    kept = np.cumsum(squares)
    whole = max(float(kept[-1]), 1e-300)
    ranks = sorted({round(rank) for rank in np.geomspace(1, len(squares), SPECTRUM_POINTS)})
    return tuple(SpectrumPoint(rank=rank, energy=round(min(float(kept[rank - 1]) / whole, 1.0), 6)) for rank in ranks)


def _estimated(subject: Subject) -> int | None:
    short, long = sorted(subject.layer.matrix_shape[1:])
    if subject.layer.groups * short * short * long > ESTIMATED:
        return None
    rank = max(_ranks.estimated(part) for part in subject.layer.matrix())
    return min(rank, full_rank(subject.layer, Scheme.CHANNEL))
