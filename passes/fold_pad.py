"""fold-pad: what is padded around the input of a convolution or pooling becomes its own padding.

Given → Result, numbered as in the code:

1. y = Conv(Pad(x, p, 0), W, b, pads q) → y = Conv(x, W, b, pads p + q);
2. y = AveragePool(Pad(x, p, 0), pads q), where q counts as zeros or is 0 → y = AveragePool(x, pads p + q), counting;
3. y = MaxPool(Pad(x, p, v), pads q) → y = MaxPool(x, pads p + q), for v = −∞, or for v = 0 after a Relu: MaxPool pads
   with −∞, and no x below 0 is there to show the difference.

Left alone, with the reason: another mode or value; pads that are computed, negative, or on the batch or channel axis; a
layer that pads by rule (auto_pad SAME), or pools with ceil_mode; pooling pads as large as the kernel, which runtimes
refuse; a padded tensor that others read too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Graph, Node, Rewriter, array_of, dims_of, is_standard, producer
from onnxslim.pipeline import Rule, RulePass


class FoldPadding(Rule):
    """Pad, then Conv, AveragePool or MaxPool."""

    ops = frozenset({"Conv", "AveragePool", "MaxPool"})

    def rewrite(self, node: Node, graph: Graph, rewriter: Rewriter) -> None:
        """Fold the Pad before the layer at ``node``."""
        pad = producer(node.inputs[0])
        if pad is None or not is_standard(pad, "Pad"):
            return
        reason = _why_not(pad, node, rewriter) or _fold(pad, node, rewriter)
        if reason is not None:
            rewriter.refuse(self.name, pad.outputs[0].name, reason)


def _why_not(pad: Node, layer: Node, rewriter: Rewriter) -> str | None:
    """Return what stands against it before the numbers are looked at."""
    if not rewriter.is_private(layer.inputs[0]):
        return "the padded tensor is used elsewhere too"
    if layer.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"the layer pads by rule {layer.attrs['auto_pad']}"
    if layer.op == "Conv":
        return None
    if layer.attrs.get("ceil_mode") or any(tensor.name for tensor in layer.outputs[1:]):
        return "it pools with ceil_mode, or returns indices"
    counted = layer.attrs.get("count_include_pad") or not any(_own_pads(layer, 0))
    return None if layer.op == "MaxPool" or counted else "its own padding does not count and this one would"


def _fold(pad: Node, layer: Node, rewriter: Rewriter) -> str | None:
    """Fold, or return why not."""
    rank = _rank(layer)
    padding = "its rank is unknown" if rank is None else padding_of(pad, rank)
    if rank is None or isinstance(padding, str):
        return str(padding)
    pads, value = padding
    if not _fills(value, layer, pad):
        return f"it pads with {value:g}"
    if any(pads[axis] for axis in (0, 1, rank, rank + 1)):
        return "it pads the batch or channel axis"
    own = _own_pads(layer, rank - 2)
    total = [int(a + b) for a, b in zip(own, [*pads[2:rank], *pads[rank + 2 :]], strict=True)]
    if layer.op != "Conv" and any(p >= k for p, k in zip(total, 2 * layer.attrs["kernel_shape"], strict=True)):
        return "the pads would be as large as the kernel"
    if layer.op == "AveragePool":
        rewriter.set_attr(layer, "count_include_pad", 1)
    rewriter.set_attr(layer, "pads", total)
    rewriter.set_attr(layer, "auto_pad", None)
    rewriter.set_input(layer, 0, pad.inputs[0])
    rewriter.remove(pad)
    return None


def _rank(layer: Node) -> int | None:
    if layer.op != "Conv":
        return len(layer.attrs["kernel_shape"]) + 2
    dims = dims_of(layer.inputs[1])
    return None if dims is None else len(dims)


def _own_pads(layer: Node, spatial: int) -> list[int]:
    rule = layer.attrs.get("auto_pad", "NOTSET")
    return list(layer.attrs.get("pads", [0] * (2 * spatial))) if rule == "NOTSET" else [0] * (2 * spatial)


def _fills(value: float, layer: Node, pad: Node) -> bool:
    """Whether the layer would fill its own padding with what amounts to ``value``."""
    if layer.op != "MaxPool":
        return value == 0
    source = producer(pad.inputs[0])
    return value == -np.inf or (value == 0 and source is not None and is_standard(source, "Relu"))


def padding_of(pad: Node, rank: int) -> tuple[Sequence[int], float] | str:
    """Return begin and end pads of all ``rank`` axes and the value of a constant Pad, or why it is not one."""
    if pad.attrs.get("mode", "constant") != "constant":
        return f"it pads in mode {pad.attrs['mode']}"
    if "pads" in pad.attrs:  # before opset 11
        pads, value = list(pad.attrs["pads"]), float(pad.attrs.get("value", 0.0))
    else:
        amounts, fill, axes = _given(pad, 1, None), _given(pad, 2, np.zeros(1)), _given(pad, 3, np.arange(rank))
        if amounts is None or fill is None or axes is None:
            return "its pads or value are computed"
        value = float(fill.reshape(-1)[0])
        pads = _on_all_axes([int(p) for p in amounts], [int(a) for a in axes], rank)
    if len(pads) != 2 * rank or min(pads) < 0:
        return "it pads by negative amounts, or another rank than the layer's"
    return pads, value


def _given(pad: Node, index: int, default: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    """Return an optional constant input, ``default`` where it is absent, None where it is computed."""
    if len(pad.inputs) <= index or not pad.inputs[index].name:
        return default
    return array_of(pad.inputs[index])


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
    """Fold a Pad into the padding of the Conv, AveragePool or MaxPool after it."""

    name = "fold-pad"
    rules = (FoldPadding(),)
