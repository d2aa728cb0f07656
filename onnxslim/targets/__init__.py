"""What each target accepts and likes: pure data, each fact with its source.

A target tells passes which sizes to round to and which kernels a model should end in; it never edits anything.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from onnxslim.errors import SpecError


@dataclass(frozen=True)
class Target:
    """One place a model can run."""

    name: str
    what: str
    channel_multiple: int
    """Channel counts and ranks that are multiples of this waste no vector lanes."""
    ort_platform: str
    """``target_platform`` of the ORT format: ``arm`` keeps x86-only layouts out of the file."""
    source: str
    activations: str = "uint8"
    """Integers that activations are quantized to: those that its kernels take, or are quickest with."""
    wide_activations: bool = False
    """Whether it computes with 16-bit activations as integers; elsewhere what 8 bits cannot hold stays in float."""
    transposed_convolutions: bool = False
    """Whether it has an integer kernel for ConvTranspose."""


TARGETS = (
    Target(
        "arm-cpu", "onnxruntime's own CPU kernels on ARM", 8, "arm",
        "onnxruntime MLAS: NEON SGEMM and depthwise kernels work on 4 or 8 channels at a time",
    ),
    Target(
        "xnnpack", "the XNNPACK execution provider", 8, "arm",
        "onnxruntime core/providers/xnnpack: S8S8, or U8U8 per tensor; 2-D; constant weights",
        activations="int8", transposed_convolutions=True,
    ),
    Target(
        "nnapi", "Android's NNAPI execution provider (deprecated since Android 15)", 8, "arm",
        "onnxruntime tools/usability_checker: op names of the NNAPI provider; fixed shapes",
    ),
    Target(
        "coreml", "Apple's Core ML execution provider", 8, "arm",
        "onnxruntime tools/usability_checker: op names of the Core ML provider; no Q/DQ at all",
    ),
    Target(
        "qnn", "Qualcomm's HTP through the QNN execution provider", 32, "arm",
        "onnxruntime QNN provider documentation: fixed shapes, QDQ models, activations of 8 or 16 bits",
        wide_activations=True, transposed_convolutions=True,
    ),
    Target(
        "web", "onnxruntime-web on WebAssembly", 8, "arm",
        "measured: int8 runs 1.3-1.8 times slower than float there, and saves only bytes",
    ),
)  # fmt: skip
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
