"""Which layers a user means: ``only`` and ``exclude`` patterns of passes."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from onnx_graphsurgeon import Node

from onnxslim.ir.lookup import anchor_of


def selects(node: Node, only: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether ``node`` is among ``only`` (all, when empty) and not among ``exclude``.

    Patterns (``*``, ``?``) are matched against the node's name and its first output tensor.
    """
    return (not only or _matches(node, only)) and not _matches(node, exclude)


def _matches(node: Node, patterns: Sequence[str]) -> bool:
    names = (node.name, anchor_of(node))
    return any(fnmatch.fnmatchcase(name, _literal(pattern)) for pattern in patterns for name in names if name)


def _literal(pattern: str) -> str:
    """Only ``*`` and ``?`` are special: a bracket stands for itself."""
    return pattern.replace("[", "[[]")
