"""Plan files: every decision of the big passes, to be shown, edited and replayed without samples or a clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxslim.errors import SpecError
from onnxslim.ir.saving import write_bytes
from onnxslim.pipeline import PassResult


class Decision(BaseModel):
    """What one planned pass decided."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    pass_: str = Field(alias="pass")
    plan: dict[str, Any]


class PlanFile(BaseModel):
    """A saved plan."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    spec: str
    """The pipeline that made the decisions, and replays them."""
    input_sha256: str
    """The model they were made for."""
    decisions: tuple[Decision, ...]

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"

    def digest(self) -> str:
        """Return the SHA-256 of the plan's JSON."""
        return sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the plan to ``path``, whole or not at all."""
        write_bytes(Path(path), self.to_json().encode())


def read_plan(path: str | Path) -> PlanFile:
    """Read a plan file.

    Raises:
        SpecError: missing, not JSON, or not a plan.
    """
    try:
        return PlanFile.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise SpecError(f"cannot read the plan {path}: {error.strerror}: check the path") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise SpecError(f"{path} is not a plan: {where}: {first['msg']}: save one with --plan-out") from None


def collect(spec: str, input_digest: str, results: Sequence[PassResult]) -> PlanFile:
    """Return the decisions that ``results`` carry, as a plan for the model of ``input_digest``."""
    decisions = tuple(
        Decision.model_validate({"pass": result.name, "plan": result.plan})
        for result in results
        if result.plan is not None
    )
    return PlanFile(spec=spec, input_sha256=input_digest, decisions=decisions)
