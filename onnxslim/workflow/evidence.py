"""What a gate wants to know, measured: only as much as the policy asks for."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.errors import DeviceError
from onnxslim.measure import Latency, RaceSettings, Validation
from onnxslim.mobile import operators_of
from onnxslim.pipeline.base import Progress, silent
from onnxslim.policy import Evidence, Policy
from onnxslim.runtime import RuntimeRefusal
from onnxslim.targets import TARGETS
from onnxslim.workflow.data import DataSettings, gather
from onnxslim.workflow.devices import check_devices, measure_devices
from onnxslim.workflow.measuring import run_bench, run_validate
from onnxslim.workflow.source import ModelLike, Source, open_source
from onnxslim.workflow.summary import cost_of
from onnxslim.workflow.targeting import shortfalls

ARM = "arm"
"""The device that counts ``arm_instructions``."""


def collect_evidence(
    policy: Policy,
    candidate: ModelLike,
    reference: ModelLike,
    data: DataSettings,
    *,
    metric: str = "top1",
    threads: int = 0,
    progress: Progress = silent,
) -> Evidence:
    """Measure what ``policy`` limits.

    Raises:
        UserError: a model or the samples cannot be used.
    """
    theirs, ours = open_source(candidate), open_source(reference)
    facts: dict[str, object] = {}
    limits = policy.limits
    needs_numbers = (limits.metric_drop, limits.sqnr_db, limits.top1_agreement) != (None, None, None)
    if needs_numbers and data.eval_data is not None:
        facts |= _numbers(run_validate(reference, candidate, data, metric=metric, threads=threads, progress=progress))
    if limits.latency is not None:
        race = RaceSettings(seed=data.seed, layers=False)
        facts |= _times(run_bench([reference, candidate], data, {}, None, race, progress)[0])
    if limits.arm_instructions is not None:
        facts |= _instructions(ours, theirs, data, progress)
    return Evidence(
        bytes=(theirs.bytes, ours.bytes),
        macs=(_macs(theirs), _macs(ours)),
        operators=frozenset(operators_of(theirs.model)),
        **_targets(theirs, policy.require.targets or ()),  # type: ignore[arg-type]
        **facts,  # type: ignore[arg-type]
    )


def _numbers(validation: Validation) -> dict[str, object]:
    agreements = [o.top1_agreement for o in validation.outputs if o.top1_agreement is not None]
    facts: dict[str, object] = {
        "sqnr_db": validation.sqnr_db,
        "top1_agreement": min(agreements, default=None),
        "finite": validation.finite,
        "numerics_reason": "not defined for these outputs",
    }
    if validation.metric is not None:
        facts |= {"drop": validation.metric.drop, "drop_interval": validation.metric.interval}
    return facts


def _times(latency: Latency) -> dict[str, object]:
    """An unstable measurement is no evidence."""
    if not latency.stable or latency.speedup is None or latency.interval is None:
        return {"latency_reason": "the machine was too noisy to tell: measure again on a quiet one"}
    reference = latency.reference.p50_ms
    low, high = latency.interval
    return {"latency_ms": (reference / latency.speedup, reference), "latency_ratio": (1 / high, 1 / low)}


def _instructions(ours: Source, theirs: Source, data: DataSettings, progress: Progress) -> dict[str, object]:
    """Count both models on the emulated processor that ``arm`` means; what keeps it from counting is the reason."""
    try:
        check_devices([ARM])
        feed = next(iter(gather(ours.model, data).evaluation)).feed
        pair = [ours.placed, theirs.placed]
        found = measure_devices([ARM], pair, feed, RaceSettings(seed=data.seed), progress).results[0]
    except (DeviceError, RuntimeRefusal) as error:
        return {"arm_reason": str(error)}
    reference, candidate = found.sides
    if candidate.refused is not None:
        return {"arm_refused": candidate.refused}
    return {"arm_instructions": (candidate.instructions, reference.instructions)}


def _macs(source: Source) -> int | None:
    return cost_of(source.model, {} if _is_dynamic(source) else None).macs


def _is_dynamic(source: Source) -> bool:
    """Whether an input has a dynamic dimension other than the batch, so that shapes are not known without samples."""
    return any(not isinstance(d, int) for spec in source.model.inputs for d in (spec.shape or (None,))[1:])


def _targets(source: Source, names: Sequence[str]) -> dict[str, object]:
    """Return what does not run on each target, what nobody knows, and a remark; nothing of targets that are unknown."""
    unsupported, doubts, remarks = {}, {}, {}
    for name in names:
        if name in {target.name for target in TARGETS}:
            unsupported[name], doubts[name], remarks[name] = shortfalls(source, name)
    return {"unsupported": unsupported, "doubts": doubts, "remarks": remarks}
