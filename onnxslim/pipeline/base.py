"""What a pass is: a frozen dataclass whose fields are its options.

Two kinds. A plain :class:`Pass` edits through the Rewriter it is handed. A :class:`PlannedPass` first decides
(``plan``, pure, JSON) and then does (``apply``), so that its decisions can be shown, edited and replayed.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from onnxslim.errors import SpecError
from onnxslim.ir import Model, Rewriter
from onnxslim.samples import Feed, Samples
from onnxslim.targets import DEFAULT_TARGET, Target


class Effect(enum.Enum):
    """What a pass may do to a model's outputs."""

    EXACT = "exact"
    """Nothing beyond rounding: every output stays within 1e-5 of its range."""
    APPROXIMATE = "approximate"
    """Change them: the loss is measured and reported."""


@dataclass(frozen=True)
class Costs:
    """Size and work of a model: constants in bytes, their number of elements, multiply-accumulates per inference."""

    bytes: int
    params: int
    macs: int | None
    """None where a shape is unknown."""


NO_COSTS = Costs(0, 0, 0)

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) during long work."""


def silent(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Goals:
    """What the user asks to be kept of the outputs, measured against the original; None where nothing was asked."""

    min_sqnr: float | None = None
    """dB, of every output."""
    max_drop: float | None = None
    """Of the metric: 0.01 is a point."""
    metric: str = "top1"


@dataclass
class PassContext:
    """What a pass may ask for besides the model."""

    samples: Samples | None = None
    """Calibration samples, bound to the model's inputs; None when the user gave none."""
    feed: Feed | None = None
    """One feed, for the shapes at which costs are counted."""
    baseline: Costs = NO_COSTS
    """Costs of the model the user came with: what ``macs`` and ``bytes`` are fractions of."""
    target: Target = DEFAULT_TARGET
    goals: Goals = Goals()
    seed: int = 0
    threads: int = 1
    progress: Progress = silent
    replay: Mapping[str, Any] | None = None
    """Decisions to replay instead of planning: the planned pass at work finds its own here."""
    recorded: Plan | None = None
    """The plan that the last planned pass carried out."""
    scratch: dict[object, Any] = field(default_factory=dict)
    """What planning has computed and applying would compute again, by all that it depends on besides model and samples;
    empty when a pass begins and when it ends."""

    def require_samples(self, name: str) -> Samples:
        """Return the samples.

        Raises:
            SpecError: the user gave none; names the pass and ``--data``.
        """
        if self.samples is None:
            raise SpecError(f"pass {name!r} needs samples and got none: add --data PATH (or --data synthetic)")
        return self.samples


def option(default: Any, text: str) -> Any:
    """Declare an option of a pass: a dataclass field with its one-line explanation."""
    return field(default=default, metadata={"help": text})


class Pass(ABC):
    """One rewrite. Subclasses are frozen dataclasses; each field is declared with :func:`option`.

    ``name`` is kebab-case; ``passes`` and ``--passes`` know the pass by it.
    """

    name: ClassVar[str]
    effect: ClassVar[Effect]
    needs_samples: ClassVar[bool] = False

    @abstractmethod
    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Edit ``rewriter.model`` through ``rewriter``, and tell it what was left alone and why."""


class Plan(BaseModel):
    """Decisions of a planned pass. Subclasses add typed fields; JSON in, JSON out."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Plan)


class PlannedPass(Pass, Generic[P]):
    """A pass that decides first and then does. ``plan_type`` is the type of its decisions."""

    plan_type: ClassVar[type[Plan]]

    @abstractmethod
    def plan(self, model: Model, context: PassContext) -> P:
        """Decide, without changing ``model``. The same model, options, samples and seed give the same plan."""

    @abstractmethod
    def apply(self, rewriter: Rewriter, plan: P, context: PassContext) -> None:
        """Do what ``plan`` says. Needs no clock, and samples only where the plan says so."""

    def _read(self, decisions: Mapping[str, Any]) -> Plan:
        try:
            return self.plan_type.model_validate(decisions)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "its decisions"
            raise SpecError(f"the plan of {self.name!r} cannot be read: {where}: {first['msg']}: mend it") from None

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Plan (or take the plan to replay), remember it in ``context.recorded``, and apply it."""
        context.scratch.clear()
        if context.replay is not None:
            plan: Any = self._read(context.replay)
        else:
            plan = self.plan(rewriter.model, context)
        self.apply(rewriter, plan, context)
        context.scratch.clear()
        context.recorded = plan
