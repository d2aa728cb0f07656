"""Pipelines as text: ``exact,prune-filters{ratio=0.3 criterion=l1},insert-qdq``.

::

    spec   := item {"," item}
    item   := name ["{" option {" " option} "}"]
    option := key "=" value
    value  := bare | JSON string            bare has no space, comma, brace or quote; lists join with "|"

``exact`` stands for every exact rewrite. Text and passes convert into each other without loss, so the spec in a report
repeats the run.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxslim.errors import SpecError
from onnxslim.pipeline.base import Effect, Pass

EXACT = "exact"
"""The name that stands for all exact rewrites."""

_TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<mark>[{},=])|(?P<bare>[^\s{},="]+))')


def parse_spec(text: str, known: Mapping[str, type[Pass]], exact: Sequence[type[Pass]]) -> list[Pass]:
    """Return the passes that ``text`` names, options filled in.

    Args:
        text: a pipeline as in the module's grammar.
        known: pass classes by name.
        exact: what the word ``exact`` stands for.

    Raises:
        SpecError: a syntax error with its position, an unknown pass or option with the nearest known one, or a value
            that an option refuses.
    """
    passes: list[Pass] = []
    for name, options in _parse_items(text):
        if name == EXACT:
            if options:
                raise SpecError(f"{EXACT!r} in --passes takes no options: name its passes one by one to set theirs")
            passes.extend(cls() for cls in exact)
        else:
            passes.append(make_pass(name, options, known))
    return passes


def make_pass(name: str, options: Mapping[str, str], known: Mapping[str, type[Pass]]) -> Pass:
    """Build the pass called ``name`` from option texts."""
    if name not in known:
        raise SpecError(f"unknown pass {name!r}: {_nearest(name, [EXACT, *known])}; `onnxslim passes` lists them")
    cls = known[name]
    types_of = typing.get_type_hints(cls)
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(typing.cast(Any, cls))}
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in fields:
            raise SpecError(f"pass {name!r} has no option {key!r}: {_nearest(key, list(fields))}")
        field = fields[key]
        values[field.name] = _convert(text, types_of[field.name], f"option {key!r} of pass {name!r}")
    return cls(**values)


def format_spec(passes: Iterable[Pass]) -> str:
    """Return the text that parses back into ``passes``; options at their default are left out."""
    return ",".join(format_pass(item) for item in passes)


def format_pass(item: Pass) -> str:
    """Return one pass as text."""
    options = []
    for field in dataclasses.fields(typing.cast(Any, item)):
        value = getattr(item, field.name)
        if value is not None and value != field.default:
            options.append(f"{field.name.replace('_', '-')}={_quote(_text(value))}")
    return item.name + (f"{{{' '.join(options)}}}" if options else "")


def put_exact_first(passes: Sequence[Pass], exact: Sequence[type[Pass]]) -> list[Pass]:
    """Return ``passes`` with the exact rewrites in front, unless an exact pass is there already."""
    if passes and passes[0].effect is Effect.EXACT:
        return list(passes)
    return [*(cls() for cls in exact), *passes]


# ---- text ----------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[tuple[str, str, int]]:
    tokens, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise SpecError(f"--passes: unexpected {text[position]!r} at character {position + 1} of {text!r}: mend it")
        kind = match.lastgroup or ""
        tokens.append((kind, match[kind], match.start(kind)))
        position = match.end()
    return tokens


class _Reader:
    """Walks over tokens and complains with positions."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.index = 0

    def peek(self) -> str | None:
        return self.tokens[self.index][1] if self.index < len(self.tokens) else None

    def take(self, what: str, *kinds: str) -> str:
        if self.index == len(self.tokens):
            raise SpecError(f"--passes: {self.text!r} ends where {what} is expected: complete it")
        kind, value, position = self.tokens[self.index]
        if kind not in kinds and value not in kinds:
            raise SpecError(f"--passes: found {value!r} at character {position + 1} of {self.text!r}: expected {what}")
        self.index += 1
        return str(json.loads(value)) if kind == "string" else value


def _parse_items(text: str) -> list[tuple[str, dict[str, str]]]:
    reader = _Reader(text)
    items = [_parse_item(reader)]
    while reader.peek() is not None:
        reader.take("a comma", ",")
        items.append(_parse_item(reader))
    return items


def _parse_item(reader: _Reader) -> tuple[str, dict[str, str]]:
    name = reader.take("a pass name", "bare")
    options: dict[str, str] = {}
    if reader.peek() == "{":
        reader.take("{", "{")
        while reader.peek() != "}":
            key = reader.take("an option or }", "bare")
            reader.take("=", "=")
            if key in options:
                raise SpecError(f"--passes: option {key!r} of {name!r} is given twice: keep one")
            options[key] = reader.take(f"a value for {key!r}", "bare", "string")
        reader.take("}", "}")
    return name, options


def _nearest(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, 1)
    return (
        f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices) or 'none: it takes no options'}"
    )


# ---- values --------------------------------------------------------------------------------------------------


def _convert(text: str, wanted: Any, where: str) -> Any:
    """Turn an option's text into its declared type: bool, int, float, str, an enum, or a tuple of strings."""
    if isinstance(wanted, types.UnionType) or typing.get_origin(wanted) is typing.Union:
        wanted = next(kind for kind in typing.get_args(wanted) if kind is not types.NoneType)
    if typing.get_origin(wanted) is tuple:
        return tuple(part for part in text.split("|") if part)
    if wanted is bool:
        return _choice(text, {"true": True, "false": False}, where)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return _choice(text, {str(member.value): member for member in wanted}, where)
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            raise SpecError(f"{where} is {text!r}: give {'a whole number' if wanted is int else 'a number'}") from None
    return text


def _choice(text: str, choices: Mapping[str, Any], where: str) -> Any:
    if text not in choices:
        raise SpecError(f"{where} is {text!r}: {_nearest(text, list(choices))}")
    return choices[text]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return "|".join(value)
    return str(value)


def _quote(text: str) -> str:
    return text if re.fullmatch(r'[^\s{},="]+', text) else json.dumps(text)
