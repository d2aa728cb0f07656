"""What becomes of a Clip whose upper end scales would move: Clip(s·x, 0, 6) is not s·Clip(x, 0, 6).

Given   y = Clip(x, 0, 6)
Result  y = Relu(x)                         where no sample comes near 6, or on request
        y / s = Min(Relu(x / s), 6 / s)     with a bound for each channel: always exact, one operator more
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis.channel_peaks import Peaks
from onnxslim.analysis.equalizable import Cap
from onnxslim.ir import Rewriter, numpy_dtype
from onnxslim.passes._equalize import Floats

MARGIN = 1.5
"""How far below its bounds a Clip must stay on the samples, to be believed to cut nothing elsewhere."""
BROADCASTS = 8
"""The first opset in which Min and Max broadcast."""


class Relu6(enum.Enum):
    """What is done about a Clip between two layers."""

    AUTO = "auto"
    """Open it where the samples stay below its bound; otherwise leave its channels alone."""
    REFUSE = "refuse"
    CAPS = "caps"
    """Give each channel a bound of its own."""
    RELU = "relu"
    """Open it, whatever the samples show."""


class Kind(enum.Enum):
    """What a Clip becomes."""

    OPEN = "open"
    CAPS = "caps"


class ClipChange(BaseModel):
    """One Clip, known by its output, and what it becomes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    kind: Kind


def decided(cap: Cap, choice: Relu6, peaks: Mapping[str, Peaks], opset: int) -> Kind | str:
    """Return what the Clip becomes, or why its channels keep scale 1."""
    bound = f"it passes through a Clip at {cap.high if np.isfinite(cap.high) else cap.low:g}, which does not scale"
    if choice is Relu6.RELU:
        return Kind.OPEN
    if choice is Relu6.CAPS:
        return Kind.CAPS if opset >= BROADCASTS else f"{bound}, and Min does not broadcast before opset {BROADCASTS}"
    seen = peaks.get(cap.node.inputs[0].name)
    if choice is Relu6.REFUSE:
        return bound
    if seen is None:
        return f"{bound}: with samples it is seen whether it ever cuts, and relu6=caps gives each channel its own bound"
    cut = (seen.high * MARGIN > cap.high) | ((cap.low != 0) & (seen.low * MARGIN < cap.low))
    if not cut.any():
        return Kind.OPEN
    return f"{bound} and cuts {int(cut.sum())} of {cut.size} channels: relu6=caps gives each channel its own bound"


def change(rewriter: Rewriter, cap: Cap, kind: Kind, logs: Floats) -> None:
    """Rewrite one Clip.

    Args:
        rewriter: of its model.
        cap: the Clip.
        kind: what it becomes.
        logs: log2 of each unit's scale, and a 0 at the end. Shape (units + 1,).
    """
    node, own = cap.node, logs[cap.labels]
    if kind is Kind.OPEN:
        rewriter.set_op(node, "Relu" if cap.low == 0 else "Identity", {})
        rewriter.set_inputs(node, [node.inputs[0]])
        return
    if not own.any():
        return
    source, result = node.inputs[0], node.outputs[0]
    dtype = numpy_dtype(source.dtype) or np.dtype(np.float32)
    steps = [("Max", cap.low), ("Min", cap.high)]
    wanted = [(op, end) for op, end in steps if np.isfinite(end)]
    for index, (op, end) in enumerate(wanted):
        last = index == len(wanted) - 1
        out = result if last else rewriter.variable(f"{result.name}_low", dtype, result.shape)
        if op == "Max" and end == 0:
            rewriter.insert("Relu", [source], [out])
        else:
            caps = rewriter.constant(f"{result.name}_cap", (end * np.exp2(-own)).astype(dtype))
            rewriter.insert(op, [source, caps], [out])
        source = out
    rewriter.remove(node)
