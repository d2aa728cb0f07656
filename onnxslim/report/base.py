"""What every part of the report shares: how it is checked, read and written.

Rules of schema 1 kept here, once: names are snake_case, numbers are finite, unknown keys are refused, and a
value that was not measured is absent from the document, never 0 or null.
"""

from __future__ import annotations

import json
import os
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Decibel = Annotated[float, Field(le=200.0)]


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"an interval runs from low to high, not from {interval[0]} to {interval[1]}")
    return interval


def _utf8(text: object) -> object:
    """Spell out bytes of a file name that are not UTF-8; pydantic and JSON take none of them."""
    text = os.fspath(text) if isinstance(text, os.PathLike) else text
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


PathText = Annotated[str, BeforeValidator(_utf8)]
Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]


class PassStatus(StrEnum):
    """What became of a pass."""

    KEPT = "kept"
    ROLLED_BACK = "rolled_back"
    UNCHANGED = "unchanged"
    FAILED = "failed"


class Source(StrEnum):
    """Where the samples of a validation came from."""

    DATA = "data"
    SYNTHETIC = "synthetic"


class Claim(StrEnum):
    """What a race between two models proves."""

    FASTER = "faster"
    SLOWER = "slower"
    NOTHING = "nothing"


class BudgetVerdict(StrEnum):
    """Whether a stated budget was met; what could not be measured is unknown, never met."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "unknown"


class Part(BaseModel):
    """A frozen piece of the report.

    ``model_validate`` also takes any object with the same attribute names (the frozen dataclasses of other
    rooms), nested ones and tuples included.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        from_attributes=True,
        allow_inf_nan=False,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Drop what is None, and optional lists that are empty; required lists are always written."""
        optional_lists = {name for name, field in type(self).model_fields.items() if field.default == ()}
        written: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in written.items()
            if value is not None and (value or name not in optional_lists)
        }

    def to_json(self) -> str:
        """Return the part as JSON: schema 1's names in their order, two spaces of indent, a final newline."""
        document = self.model_dump(mode="json", by_alias=True)
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote; pydantic's ValidationError (a ValueError) says what does not fit."""
        return cls.model_validate_json(text)
