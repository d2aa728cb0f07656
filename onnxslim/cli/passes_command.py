"""``onnxslim passes``: which passes there are, and what each one's options mean."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import inspect
import json
import typing
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from onnxslim.cli.options import common_options
from onnxslim.cli.output import Output
from onnxslim.errors import SpecError
from onnxslim.pipeline import Pass
from onnxslim.workflow.registry import exact_passes, known_passes

EPILOG = """\b
Examples:
  onnxslim passes
  onnxslim passes prune-filters
"""


@click.command(epilog=EPILOG)
@click.argument("name", required=False)
@common_options()
def command(name: str | None, as_json: bool, quiet: bool, **_: Any) -> None:
    """List the passes, or explain one with its options."""
    known = known_passes()
    out = Output(quiet=quiet, as_json=as_json)
    if name is not None and name not in known:
        near = difflib.get_close_matches(name, list(known), 1)
        raise SpecError(
            f"unknown pass {name!r}: " + (f"did you mean {near[0]!r}?" if near else "see 'onnxslim passes'")
        )
    chosen = list(known.values()) if name is None else [known[name]]
    if as_json:
        out.json(json.dumps([_describe(cls) for cls in chosen], indent=2))
    elif name is None:
        out.show(_list(chosen))
    else:
        out.show(*_explain(chosen[0]))


def _describe(cls: type[Pass]) -> dict[str, Any]:
    return {
        "name": cls.name,
        "effect": cls.effect.value,
        "exact": cls in exact_passes(),
        "needs_samples": cls.needs_samples,
        "summary": _summary(cls),
        "options": [
            {"name": name, "type": kind, "default": _json_value(default), "help": text}
            for name, kind, default, text in _options(cls)
        ],
    }


def _json_value(value: Any) -> Any:
    return value.value if hasattr(value, "value") else value


def _list(passes: list[type[Pass]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pass", "effect", "what it does"):
        table.add_column(heading, no_wrap=heading != "what it does")
    for cls in passes:
        needs = " (needs samples)" if cls.needs_samples else ""
        table.add_row(cls.name, cls.effect.value, _summary(cls) + needs)
    table.caption = "'exact' in --passes stands for all exact ones; 'onnxslim passes NAME' explains one"
    table.caption_justify = "left"
    return table


def _explain(cls: type[Pass]) -> list[object]:
    heading = f"[bold]{cls.name}[/bold]  ({cls.effect.value}{', needs samples' if cls.needs_samples else ''})"
    lines: list[object] = [heading, "", inspect.cleandoc(cls.__doc__ or "")]
    options = _options(cls)
    if options:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("option", "type", "default", "meaning"):
            table.add_column(title)
        for name, kind, default, text in options:
            shown = "" if default in (None, ()) else str(_json_value(default))
            table.add_row(name, kind, shown, escape(text))
        lines += ["", table]
    return lines


def _options(cls: type[Pass]) -> list[tuple[str, str, Any, str]]:
    hints = typing.get_type_hints(cls)
    rows = []
    for field in dataclasses.fields(typing.cast(Any, cls)):
        kind = _kind(hints[field.name])
        rows.append((field.name.replace("_", "-"), kind, field.default, field.metadata.get("help", "")))
    return rows


def _kind(hint: Any) -> str:
    """Return a type as people read it: the choices of an enum, what a list holds, without "or nothing"."""
    given = [part for part in typing.get_args(hint) if part not in (type(None), Ellipsis)]
    if typing.get_origin(hint) is tuple:
        return f"list of {_kind(given[0])}"
    if given:
        return _kind(given[0])
    if issubclass(hint, enum.Enum):
        return ", ".join(str(choice.value) for choice in hint)
    return {str: "text", int: "integer", float: "number"}.get(hint) or str(hint.__name__)


def _summary(cls: type[Pass]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
