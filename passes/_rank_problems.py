"""What is to be approximated in each layer of a model, the statistics of a few layers in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxslim.analysis.moments import Moments, Settings, in_turns
from onnxslim.analysis.second_order import Collector
from onnxslim.ir import Model
from onnxslim.passes._factoring import POSITIONS, fitted_alone, problem_of
from onnxslim.passes._factors import Problem
from onnxslim.passes._rank_subject import Subject
from onnxslim.pipeline import PassContext
from onnxslim.samples import Samples


def problems(
    model: Model, subjects: Sequence[Subject], samples: Samples | None, context: PassContext
) -> Iterator[tuple[Subject, Problem, Moments | None]]:
    """Yield each subject with its problem: with moments, where there are samples and the layer is fitted on them.

    Raises:
        PassError: activations are not finite.
    """
    settings = Settings(POSITIONS, seed=context.seed, threads=context.threads)
    collector = None if samples is None else Collector(samples, None, settings)
    done = 0
    for some in in_turns(subjects, _held):
        fitted = [each.anchor for each in some if collector is not None and fitted_alone(each.nodes)]
        moments = collector.moments(model, fitted) if collector is not None and fitted else {}
        for subject in some:
            done += 1
            context.progress("look at ranks", done, len(subjects))
            own = moments.pop(subject.anchor, None)
            yield subject, problem_of(subject.layer, own), own


def _held(subject: Subject) -> int:
    """Bytes of the moments of one layer; those of layers that are not fitted are none."""
    return subject.moment_bytes if fitted_alone(subject.nodes) else 0
