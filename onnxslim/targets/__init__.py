"""What each target accepts and likes: pure data, each fact with its source.

A target tells passes which sizes to round to and which kernels a model should end in, and says what it takes of every
operator; it never edits anything.
"""

from __future__ import annotations

import difflib

from onnxslim.errors import SpecError
from onnxslim.targets.base import Fact, Looks, Target
from onnxslim.targets.cpu import ARM_CPU, WEB
from onnxslim.targets.listed import COREML, NNAPI
from onnxslim.targets.qnn import QNN
from onnxslim.targets.xnnpack import XNNPACK

__all__ = ["DEFAULT_TARGET", "TARGETS", "Fact", "Looks", "Target", "find_target"]

TARGETS = (ARM_CPU, XNNPACK, NNAPI, COREML, QNN, WEB)
"""Every target, the default first."""

DEFAULT_TARGET = TARGETS[0]


def find_target(name: str) -> Target:
    """Return the target called ``name``.

    Raises:
        SpecError: no such target, with the nearest name.
    """
    names = [target.name for target in TARGETS]
    if name in names:
        return TARGETS[names.index(name)]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}"
    raise SpecError(f"unknown target {name!r}: {hint}")
