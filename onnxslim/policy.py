"""The gate of a release pipeline: a policy and what was measured in, a verdict out. A pure function.

With a 95 % interval on what is limited, a rule passes when the interval's far end is within the limit, fails when its
near end is beyond it, and is inconclusive between. Without one, the point value decides. What was not measured is
inconclusive, never a pass.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxslim.budget import Limit, Unit, parse_limit
from onnxslim.errors import PolicyError

Interval = tuple[float, float]


class GateVerdict(enum.Enum):
    """The answer of a rule, or of the gate."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Strict):
    """``[limits]``: every key is optional."""

    bytes: str | float | None = None
    macs: str | float | None = None
    latency: str | float | None = None
    arm_instructions: str | float | None = None
    metric_drop: str | float | None = None
    sqnr_db: float | None = None
    top1_agreement: float | None = Field(default=None, ge=0, le=1)


class Require(_Strict):
    """``[require]``: every key is optional."""

    operators: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None


class Policy(_Strict):
    """A gate policy."""

    limits: Limits = Limits()
    require: Require = Require()


@dataclass(frozen=True)
class Evidence:
    """What was measured of a candidate against its reference; None where it was not, with the reason."""

    bytes: tuple[int, int]
    """Candidate's and reference's files."""
    macs: tuple[int | None, int | None]
    operators: frozenset[str]
    unsupported: Mapping[str, Sequence[str]]
    """By target that was checked: the nodes that do not run there."""
    doubts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By target: what nobody knows; a target with doubts never passes."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """By target: what to say of one on which every node runs."""
    latency_ms: tuple[float, float] | None = None
    latency_ratio: Interval | None = None
    """95 % interval of candidate / reference."""
    latency_reason: str = "not measured"
    arm_instructions: tuple[int, int] | None = None
    """Candidate's and reference's, of one inference, counted on an emulated processor."""
    arm_reason: str = "not counted"
    arm_refused: str | None = None
    """Why the candidate does not run on ARM, where it was tried."""
    drop: float | None = None
    drop_interval: Interval | None = None
    drop_reason: str = "no labelled samples: add --data with labels"
    sqnr_db: float | None = None
    top1_agreement: float | None = None
    finite: bool | None = None
    """Whether the candidate's outputs are finite wherever the reference's are."""
    numerics_reason: str = "no samples: add --data"


@dataclass(frozen=True)
class RuleResult:
    """One rule of the policy, judged."""

    name: str
    limit: str
    observed: float | str | None
    interval: Interval | None
    verdict: GateVerdict
    reason: str


@dataclass(frozen=True)
class GateResult:
    """The gate's answer: fail if any rule fails, otherwise inconclusive if any is, otherwise pass."""

    verdict: GateVerdict
    rules: tuple[RuleResult, ...]
    schema: int = 1


def read_policy(text: str, where: str) -> Policy:
    """Read a policy from TOML.

    Raises:
        PolicyError: not TOML, an unknown key, or a limit that cannot be read.
    """
    try:
        policy = Policy.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{where} is not TOML: {error}: mend that line") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join([*Limits.model_fields, *Require.model_fields])
        hint = f"known keys are {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise PolicyError(f"{where}: {key}: {hint}") from None
    _limits(policy.limits, where)
    return policy


def judge(policy: Policy, evidence: Evidence) -> GateResult:
    """Return the verdict of ``policy`` on ``evidence``."""
    rules = (
        *_judge_limits(_limits(policy.limits, "policy"), policy.limits, evidence),
        *_judge_require(policy, evidence),
    )
    verdicts = {rule.verdict for rule in rules}
    for verdict in (GateVerdict.FAIL, GateVerdict.INCONCLUSIVE):
        if verdict in verdicts:
            return GateResult(verdict, rules)
    return GateResult(GateVerdict.PASS, rules)


_UNITS: dict[str, tuple[Unit, ...]] = {
    "bytes": (Unit.BYTES, Unit.RATIO),
    "macs": (Unit.COUNT, Unit.RATIO),
    "latency": (Unit.MILLISECONDS, Unit.RATIO),
    "arm_instructions": (Unit.COUNT, Unit.RATIO),
    "metric_drop": (Unit.RATIO,),
}


def _limits(limits: Limits, where: str) -> dict[str, Limit]:
    """Parse the limits that are written as texts."""
    given: dict[str, Any] = {name: getattr(limits, name) for name in _UNITS}
    return {n: parse_limit(v, f"{where}: limits.{n}", *_UNITS[n]) for n, v in given.items() if v is not None}


def _judge_limits(parsed: dict[str, Limit], limits: Limits, evidence: Evidence) -> Iterator[RuleResult]:
    for name, pair in (("bytes", evidence.bytes), ("macs", evidence.macs)):
        if name in parsed:
            candidate, reference = pair
            known = candidate is not None and (reference is not None or parsed[name].unit is not Unit.RATIO)
            value = parsed[name].observe(candidate or 0, reference or 0) if known else None
            yield _at_most(
                name, parsed[name], value, None, "it cannot be counted: shapes are unknown, or there is none"
            )
    if "latency" in parsed:
        yield _judge_latency(parsed["latency"], evidence)
    if "arm_instructions" in parsed:
        yield _judge_instructions(parsed["arm_instructions"], evidence)
    if "metric_drop" in parsed:
        limit = parsed["metric_drop"]
        yield _at_most("metric_drop", limit, evidence.drop, evidence.drop_interval, evidence.drop_reason)
    if limits.sqnr_db is not None:
        yield _at_least("sqnr_db", limits.sqnr_db, evidence.sqnr_db, evidence)
    if limits.top1_agreement is not None:
        yield _at_least("top1_agreement", limits.top1_agreement, evidence.top1_agreement, evidence)


def _judge_latency(limit: Limit, evidence: Evidence) -> RuleResult:
    if evidence.latency_ms is None:
        return _at_most("latency", limit, None, None, evidence.latency_reason)
    value = limit.observe(*evidence.latency_ms)
    interval = evidence.latency_ratio
    if interval is not None and limit.unit is Unit.MILLISECONDS:
        reference = evidence.latency_ms[1]
        interval = (interval[0] * reference, interval[1] * reference)
    return _at_most("latency", limit, value, interval, "")


def _judge_instructions(limit: Limit, evidence: Evidence) -> RuleResult:
    """Counts are exact; a candidate that does not run where it was tried fails."""
    if evidence.arm_refused is not None:
        reason = f"the candidate does not run on ARM: {evidence.arm_refused}"
        return RuleResult("arm_instructions", f"<= {limit.text}", None, None, GateVerdict.FAIL, reason)
    value = None if evidence.arm_instructions is None else limit.observe(*evidence.arm_instructions)
    return _at_most("arm_instructions", limit, value, None, evidence.arm_reason)


def _judge_require(policy: Policy, evidence: Evidence) -> Iterator[RuleResult]:
    require = policy.require
    if require.operators is not None:
        foreign = sorted(evidence.operators - set(require.operators))
        verdict = GateVerdict.FAIL if foreign else GateVerdict.PASS
        reason = f"not allowed: {', '.join(foreign)}" if foreign else "all operators are allowed"
        yield RuleResult(
            "operators", f"{len(require.operators)} allowed", ", ".join(foreign) or None, None, verdict, reason
        )
    for target in require.targets or ():
        yield _judge_target(target, evidence)


def _judge_target(target: str, evidence: Evidence) -> RuleResult:
    """Fail on nodes that do not run there; otherwise a doubt is inconclusive."""
    name, limit = f"target {target}", "every node"
    nodes, doubts = evidence.unsupported.get(target), evidence.doubts.get(target, ())
    if nodes is None:
        return RuleResult(name, limit, None, None, GateVerdict.INCONCLUSIVE, "this version cannot check that target")
    if nodes:
        reason = f"do not run there: {_first(nodes)}"
        return RuleResult(name, limit, f"{len(nodes)} not", None, GateVerdict.FAIL, reason)
    if doubts:
        reason = f"not known: {_first(doubts)}"
        return RuleResult(name, limit, f"{len(doubts)} unknown", None, GateVerdict.INCONCLUSIVE, reason)
    reason = evidence.remarks.get(target, "every node runs there")
    return RuleResult(name, limit, None, None, GateVerdict.PASS, reason)


def _first(lines: Sequence[str], most: int = 3) -> str:
    """Name the first of many: all of them with ``inspect --target``."""
    rest = len(lines) - most
    return "; ".join((*lines[:most], f"and {rest} more") if rest > 0 else lines)


def _at_most(name: str, limit: Limit, value: float | None, interval: Interval | None, missing: str) -> RuleResult:
    if value is None:
        return RuleResult(name, f"<= {limit.text}", None, None, GateVerdict.INCONCLUSIVE, missing)
    low, high = interval or (value, value)
    if high <= limit.value:
        verdict, reason = GateVerdict.PASS, "within the limit"
    elif low > limit.value:
        verdict, reason = GateVerdict.FAIL, "beyond the limit"
    else:
        verdict, reason = GateVerdict.INCONCLUSIVE, "the 95 % interval spans the limit: measure on more samples"
    return RuleResult(name, f"<= {limit.text}", value, interval, verdict, reason)


def _at_least(name: str, limit: float, value: float | None, evidence: Evidence) -> RuleResult:
    text = f">= {limit:g}"
    if evidence.finite is False:
        reason = "the candidate returns NaN or Inf that the reference does not"
        return RuleResult(name, text, value, None, GateVerdict.FAIL, reason)
    if value is None:
        return RuleResult(name, text, None, None, GateVerdict.INCONCLUSIVE, evidence.numerics_reason)
    verdict = GateVerdict.PASS if value >= limit else GateVerdict.FAIL
    return RuleResult(name, text, value, None, verdict, "within the limit" if value >= limit else "beyond the limit")
