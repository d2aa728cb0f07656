"""What becomes of a Clip whose upper end scales would move: Clip(s·x, 0, 6) is not s·Clip(x, 0, 6).

Given   y = Clip(x, 0, 6)
Result  y = Relu(x)                         where no sample comes near 6 in any channel, or on request
        y / s = Clip(x / s, 0, 6)           where no sample comes near 6·s in this channel; s = 1 in those that are cut
        y / s = Min(Relu(x / s), 6 / s)     with a bound for each channel: always exact, one operator more
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from onnxslim.analysis.channel_peaks import Peaks
from onnxslim.analysis.equalizable import Cap
from onnxslim.ir import Rewriter, numpy_dtype
from onnxslim.passes._equalize import WIDEST, Floats

MARGIN = 1.5
"""How far below its bounds a Clip must stay on the samples, to be believed to cut nothing elsewhere."""
BROADCASTS = 8
"""The first opset in which Min and Max broadcast."""


class Relu6(enum.Enum):
    """What is done about a Clip between two layers."""

    AUTO = "auto"
    """Try REFUSE, KEEP and RELU on samples, and do what leaves most of the outputs when all is int8."""
    REFUSE = "refuse"
    """Leave channels alone that pass through one."""
    KEEP = "keep"
    """Open it where the samples stay below its bound in all channels; otherwise scale only those that do."""
    CAPS = "caps"
    """Give each channel a bound of its own."""
    RELU = "relu"
    """Open it, whatever the samples show, if it begins at zero."""


class Kind(enum.Enum):
    """What a Clip becomes."""

    OPEN = "open"
    CAPS = "caps"


class ClipChange(BaseModel):
    """One Clip, known by its output, and what it becomes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: str
    kind: Kind


@dataclass(frozen=True)
class Decision:
    """What a Clip becomes, and which scales its channels may have."""

    kind: Kind | None
    """None: it stays as it is."""
    low: Floats
    """log2 of the least scale of each label."""
    high: Floats
    """log2 of the largest scale."""
    reason: str | None = None
    """Why some of its channels, or all, keep scale 1."""


def decided(cap: Cap, choice: Relu6, peaks: Mapping[str, Peaks], opset: int) -> Decision:
    """Return what the Clip becomes, and what that asks of the scales of its channels."""
    least = np.full(cap.labels.shape, -WIDEST)
    anything, held = Decision(None, least, -least), Decision(None, 0 * least, 0 * least)
    bound = f"it passes through a Clip at {cap.high if np.isfinite(cap.high) else cap.low:g}, which does not scale"
    if choice is Relu6.RELU and cap.low == 0:
        return replace(anything, kind=Kind.OPEN)
    if choice is Relu6.CAPS and opset >= BROADCASTS:
        return replace(anything, kind=Kind.CAPS)
    seen = peaks.get(cap.node.inputs[0].name)
    if choice is Relu6.CAPS:
        return replace(held, reason=f"{bound}, and Min does not broadcast before opset {BROADCASTS}")
    if choice is Relu6.REFUSE:
        return replace(held, reason=bound)
    if seen is None:
        hint = "with samples it is seen which channels it cuts, and relu6=caps gives each channel its own bound"
        return replace(held, reason=f"{bound}: {hint}")
    return _seen(cap, seen, bound)


def _seen(cap: Cap, seen: Peaks, bound: str) -> Decision:
    """Decide by what the samples showed."""
    needed = np.full(cap.labels.shape, 2.0**-WIDEST)
    """Of each label: the least scale at which the Clip still cuts nothing, with a margin."""
    if 0 < cap.high < np.inf:
        needed = np.maximum(needed, seen.high * (MARGIN / cap.high))
    if -np.inf < cap.low < 0:
        needed = np.maximum(needed, seen.low * (MARGIN / cap.low))
    cut = needed > 1
    if not cut.any():
        return Decision(Kind.OPEN, np.full(needed.shape, -WIDEST), np.full(needed.shape, WIDEST))
    reason = f"{bound} and cuts {int(cut.sum())} of {cut.size} channels: relu6=caps gives each channel its own bound"
    return Decision(None, np.where(cut, 0.0, np.log2(needed)), np.where(cut, 0.0, WIDEST), reason)


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
