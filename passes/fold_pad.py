"""fold-pad: zeros padded around a convolution's input become the convolution's own padding.

Given   p = Pad(x, pads, 0),  y = Conv(p, W, b, pads = q)
Result  y = Conv(x, W, b, pads = q + pads)

Left alone, with the reason: another mode or value than constant zero; pads that are computed, negative, or on the batch
or channel axis; a convolution that pads by rule (auto_pad SAME); a padded tensor that others read too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.ir import Graph, Node, Rewriter, array_of, is_standard, producer
from onnxslim.pipeline import Rule, RulePass


class FoldZeroPad(Rule):
    """Pad, then Conv."""

    ops = frozenset({"Conv"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Fold the Pad before the convolution at ``node``."""
        pad = producer(node.inputs[0])
        if pad is None or not is_standard(pad, "Pad"):
            return
        weight = node.inputs[1]
        rank = None if weight.shape is None else len(weight.shape)
        if not rewriter.is_private(node.inputs[0]):
            reason: str | None = "the padded tensor is used elsewhere too"
        elif rank is None:
            reason = "the convolution's rank is unknown"
        else:
            reason = _fold(pad, node, rank, rewriter)
        if reason is not None:
            rewriter.refuse(self.name, pad.outputs[0].name, reason)


def _fold(pad: Node, conv: Node, rank: int, rewriter: Rewriter) -> str | None:
    """Fold, or return why not."""
    if conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"the convolution pads by rule {conv.attrs['auto_pad']}"
    pads = zero_pads(pad, rank)
    if isinstance(pads, str):
        return pads
    if any(pads[axis] for axis in (0, 1, rank, rank + 1)):
        return "it pads the batch or channel axis"
    own = list(conv.attrs.get("pads", [0] * (2 * (rank - 2))))
    spatial = [*pads[2:rank], *pads[rank + 2 :]]
    rewriter.set_attr(conv, "pads", [int(a + b) for a, b in zip(own, spatial, strict=True)])
    rewriter.set_attr(conv, "auto_pad", None)
    rewriter.set_input(conv, 0, pad.inputs[0])
    rewriter.remove(pad)
    return None


def zero_pads(pad: Node, rank: int) -> Sequence[int] | str:
    """Return begin and end pads of all ``rank`` axes of a Pad that adds zeros, or why it is not such a Pad."""
    if pad.attrs.get("mode", "constant") != "constant":
        return f"it pads in mode {pad.attrs['mode']}"
    if "pads" in pad.attrs:  # before opset 11
        pads, value = list(pad.attrs["pads"]), float(pad.attrs.get("value", 0.0))
    else:
        given = [array_of(tensor) if tensor.name else np.zeros(1) for tensor in pad.inputs[1:]]
        if any(array is None for array in given):
            return "its pads or value are computed"
        arrays = [array for array in given if array is not None]
        value = float(arrays[1].reshape(-1)[0]) if len(arrays) > 1 else 0.0
        axes = arrays[2].tolist() if len(arrays) > 2 and pad.inputs[3].name else list(range(rank))
        pads = _on_all_axes([int(p) for p in arrays[0]], [int(a) for a in axes], rank)
    if value != 0.0:
        return f"it pads with {value:g}"
    if len(pads) != 2 * rank or min(pads) < 0:
        return "it pads by negative amounts, or another rank than the convolution's"
    return pads


def _on_all_axes(pads: Sequence[int], axes: Sequence[int], rank: int) -> list[int]:
    full = [0] * (2 * rank)
    if len(pads) != 2 * len(axes):
        return []
    for index, axis in enumerate(axes):
        full[axis % rank] = int(pads[index])
        full[axis % rank + rank] = int(pads[index + len(axes)])
    return full


@dataclass(frozen=True)
class FoldPad(RulePass):
    """Fold a Pad with zeros into the Conv after it."""

    name = "fold-pad"
    rules = (FoldZeroPad(),)
