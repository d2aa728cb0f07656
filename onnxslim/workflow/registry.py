"""The passes that text can name: this package's own and those of entry points in the group ``onnxslim.passes``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import metadata

from onnxslim.errors import SpecError, one_line
from onnxslim.passes import EXACT_PASSES, PASSES
from onnxslim.pipeline import Pass

ENTRY_POINT_GROUP = "onnxslim.passes"


@functools.cache
def known_passes() -> Mapping[str, type[Pass]]:
    """Return every pass by name: our own first, then other packages' by entry point.

    Raises:
        SpecError: an entry point does not load, is no pass, or takes a name that is taken.
    """
    known: dict[str, type[Pass]] = {cls.name: cls for cls in PASSES}
    for entry in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        cls = _load(entry)
        if cls.name in known:
            raise SpecError(f"entry point {entry.value!r}: a pass called {cls.name!r} exists already: rename it")
        known[cls.name] = cls
    return known


def exact_passes() -> tuple[type[Pass], ...]:
    """Return what the word ``exact`` stands for, in order."""
    return EXACT_PASSES


def _load(entry: metadata.EntryPoint) -> type[Pass]:
    try:
        cls = entry.load()
    except Exception as error:  # another package's import may raise anything
        raise SpecError(
            f"entry point {entry.value!r} does not load ({one_line(error)}): mend or uninstall it"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Pass) and getattr(cls, "name", None)):
        raise SpecError(f"entry point {entry.value!r} is no onnxslim Pass with a name: mend or uninstall it")
    return cls
