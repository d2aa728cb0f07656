"""The manager: runs passes, checks each, keeps what holds and rolls back what does not. It trusts nobody.

Consecutive exact passes form a block. A block is run round after round until a whole round edits nothing, and is then
checked once. Only if that check fails is it undone and tried pass by pass, so that the culprit alone is rolled back.
A lossy pass is a block of its own.
"""

from __future__ import annotations

import enum
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxslim.errors import PassError, SpecError, UserError, one_line
from onnxslim.ir import Mismatch, Model, Rewriter
from onnxslim.ir.garbage import collection_paused
from onnxslim.pipeline.base import NO_COSTS, Costs, Effect, Pass, PassContext, PlannedPass
from onnxslim.pipeline.spec import format_pass
from onnxslim.runtime.blas import blas_threads

MAX_ROUNDS = 50
"""A block that still edits after this many rounds does not converge: an error in a pass, reported as such."""

_log = logging.getLogger(__name__)


class Status(enum.Enum):
    """What became of a pass."""

    KEPT = "kept"
    ROLLED_BACK = "rolled_back"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """A check's answer: whether the candidate may stay, the reason if not, and what was measured."""

    ok: bool
    reason: str | None = None
    validation: Any = None


Check = Callable[[Model, Effect], Verdict]
"""Says whether a candidate may stay. Handed to the manager by whoever knows the original and the samples."""


@dataclass(frozen=True)
class PassResult:
    """What one pass did, in the terms of the report."""

    name: str
    spec: str
    status: Status
    edits: int
    skipped: tuple[Mismatch, ...]
    seconds: float
    before: Costs
    after: Costs
    """What the pass made, also where that was rolled back."""
    validation: Any = None
    reason: str | None = None
    plan: dict[str, Any] | None = None


@dataclass
class _Tally:
    """What one pass has done so far in its block."""

    item: Pass
    edits: int = 0
    seconds: float = 0.0
    skipped: dict[tuple[str, str], Mismatch] = field(default_factory=dict)
    change: Costs = NO_COSTS
    reason: str | None = None
    status: Status | None = None
    plan: dict[str, Any] | None = None


class PassManager:
    """Runs passes over a model.

    Args:
        passes: in order.
        check: judges the model after each block.
        costs: measures the model before and after each pass.
    """

    def __init__(self, passes: Sequence[Pass], check: Check, costs: Callable[[Model], Costs]) -> None:
        self.passes = tuple(passes)
        self._check = check
        self._costs = costs

    def run(
        self, model: Model, context: PassContext, plans: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[PassResult, ...]:
        """Run every pass on ``model``, which is changed in place.

        Args:
            model: what to rewrite.
            context: samples, target, seed and the costs of the original.
            plans: decisions to replay, one for each planned pass in order; None plans afresh.

        Raises:
            SpecError: a pass needs samples and there are none, or ``plans`` does not fit the passes.
        """
        self._fit(context, plans)
        with blas_threads(context.threads):
            return tuple(self._results(model, context, iter(plans or ())))

    def _results(self, model: Model, context: PassContext, replays: Iterator[Mapping[str, Any]]) -> list[PassResult]:
        results: list[PassResult] = []
        for effect, group in itertools.groupby(self.passes, key=lambda item: item.effect):
            if effect is Effect.EXACT:
                results.extend(self._run_exact(model, context, list(group)))
                continue
            for item in group:
                replay = next(replays, None) if isinstance(item, PlannedPass) else None
                results.append(self._run_one(model, replace(context, replay=replay, recorded=None), item))
        return results

    def _fit(self, context: PassContext, plans: Sequence[Mapping[str, Any]] | None) -> None:
        planned = [item for item in self.passes if isinstance(item, PlannedPass)]
        if plans is not None and len(plans) != len(planned):
            raise SpecError(
                f"the plan decides {len(plans)} passes and the pipeline has {len(planned)}: use its own spec"
            )
        for item in self.passes:
            if item.needs_samples and plans is None:
                context.require_samples(item.name)

    # ---- exact passes ----------------------------------------------------------------------------------------

    def _run_exact(self, model: Model, context: PassContext, items: list[Pass]) -> list[PassResult]:
        snapshot, before = model.copy(), self._costs(model)
        tallies = [_Tally(item) for item in items]
        problem = _to_fixed_point(model, context, tallies, self._costs)
        if problem is None and not any(tally.edits for tally in tallies):
            return _accumulate(tallies, before, None)
        verdict = Verdict(False, problem) if problem else self._check(model, Effect.EXACT)
        if verdict.ok:
            return _accumulate(tallies, before, verdict.validation)
        _log.warning("exact passes undone and tried one by one: %s", verdict.reason)
        model.restore(snapshot)
        return [self._run_one(model, context, item) for item in items]

    # ---- one pass at a time ----------------------------------------------------------------------------------

    def _run_one(self, model: Model, context: PassContext, item: Pass) -> PassResult:
        snapshot, before = model.copy(), self._costs(model)
        tally = _Tally(item)
        if item.effect is Effect.EXACT:
            problem = _to_fixed_point(model, context, [tally], None)
        else:
            problem = _sweep(model, context, tally)
        if problem is not None:
            model.restore(snapshot)
            tally.status, tally.reason = Status.FAILED, problem
            return _result(tally, before, before, None)
        if not tally.edits:
            return _result(tally, before, before, None)
        verdict = self._check(model, item.effect)
        after = self._costs(model)
        if not verdict.ok:
            model.restore(snapshot)
            tally.status, tally.reason = Status.ROLLED_BACK, verdict.reason
        return _result(tally, before, after, verdict.validation)


def exact_fixed_point(model: Model, passes: Sequence[Pass], context: PassContext | None = None) -> int:
    """Run exact passes on ``model`` until nothing changes, without checks; return the number of edits.

    Raises:
        PassError: a pass failed, or the passes do not converge.
    """
    tallies = [_Tally(item) for item in passes]
    problem = _to_fixed_point(model, context or PassContext(), tallies, None)
    if problem is not None:
        raise PassError(problem)
    return sum(tally.edits for tally in tallies)


@collection_paused()
def _to_fixed_point(
    model: Model, context: PassContext, tallies: Sequence[_Tally], costs: Callable[[Model], Costs] | None
) -> str | None:
    """Run the passes in rounds until a round edits nothing; return what went wrong, None when all went well.

    Only a whole round counts, from the first pass to the last: the first ones may learn shapes, which is no edit but
    lets others do more.
    """
    quiet = 0  # passes in a row that found nothing
    current = None if costs is None else costs(model)
    for done, tally in enumerate(itertools.islice(itertools.cycle(tallies), MAX_ROUNDS * len(tallies)), start=1):
        edits = tally.edits
        problem = _sweep(model, context, tally)
        if problem is not None:
            return problem
        quiet = quiet + 1 if tally.edits == edits else 0
        if costs is not None and current is not None and tally.edits != edits:
            new = costs(model)
            tally.change, current = _add(tally.change, _subtract(new, current)), new
        if quiet >= len(tallies) and done % len(tallies) == 0:
            return None
    return f"{', '.join(t.item.name for t in tallies)} still change the model after {MAX_ROUNDS} rounds"


def _sweep(model: Model, context: PassContext, tally: _Tally) -> str | None:
    """Run one pass once; return why it failed, None when it did not."""
    started = time.perf_counter()
    rewriter = Rewriter(model)
    try:
        tally.item.run(rewriter, context)
        rewriter.finish()
    except UserError:
        raise
    except PassError as error:
        return one_line(error)
    except (
        Exception
    ) as error:  # a pass may be anyone's: whatever it raises, the model is rolled back and the run goes on
        _log.debug("pass %s failed", tally.item.name, exc_info=True)
        return f"{tally.item.name}: internal error: {type(error).__name__}: {one_line(error)}"
    finally:
        tally.seconds += time.perf_counter() - started
    tally.edits += rewriter.edits
    tally.skipped = {(m.anchor, m.reason): m for m in rewriter.skipped}  # the last sweep saw the final graph
    if context.recorded is not None:
        tally.plan = context.recorded.model_dump(mode="json")
    return None


# ---- results -------------------------------------------------------------------------------------------------


def _accumulate(tallies: Sequence[_Tally], before: Costs, validation: Any) -> list[PassResult]:
    """Give each pass of a block its own share of the block's change, one after the other."""
    results = []
    for tally in tallies:
        after = _add(before, tally.change)
        results.append(_result(tally, before, after, validation if tally.edits else None))
        before = after
    return results


def _result(tally: _Tally, before: Costs, after: Costs, validation: Any) -> PassResult:
    return PassResult(
        name=tally.item.name,
        spec=format_pass(tally.item),
        status=tally.status or (Status.KEPT if tally.edits else Status.UNCHANGED),
        edits=tally.edits,
        skipped=tuple(tally.skipped.values()),
        seconds=tally.seconds,
        before=before,
        after=after,
        validation=validation,
        reason=tally.reason,
        plan=tally.plan,
    )


def _add(left: Costs, right: Costs, sign: int = 1) -> Costs:
    macs = None if left.macs is None or right.macs is None else left.macs + sign * right.macs
    return Costs(left.bytes + sign * right.bytes, left.params + sign * right.params, macs)


def _subtract(left: Costs, right: Costs) -> Costs:
    return _add(left, right, -1)
