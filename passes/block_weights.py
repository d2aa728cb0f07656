"""block-weights: weights of matrix products in 4 bits, with a scale for each block, in kernels that take them so.

Given   y = MatMul(x, W)  or  Gemm(x, W, b),  W constant in float32, of shape (K, N)
Result  y = MatMulNBits(x, q, s, b)  or  MatMul(x, DequantizeLinear(q, s)),   W ≈ Ŵ = s·(q − z),

with a scale s for each ``block`` of consecutive weights of a column (``_block_grid``, with sources), and integers q
that are the nearest, or with samples, those that change the layer's outputs least (``_block_fit``: GPTQ).

Two forms (``_block_graph``). What follows was measured with onnxruntime 1.32: time on x86, instructions on ARM.

- ``matmul-nbits`` is onnxruntime's own operator. Versions since 1.20 have it with 4 bits, since 1.22 with 8, since 1.24
  with 2. With inputs rounded to int8, block by block, it takes 0.4 to 0.8 times what float does on ARM cores with dot
  products (Cortex-A76), however many rows x has; on x86 0.2 to 0.4 times with one row, and 1.0 to 1.6 times with a
  hundred. Older cores (Cortex-A53) have no such kernel, nor are there any for 2 bits on ARM or for 8 bits with inputs
  in float: weights are expanded in every inference there, up to 50 times as slow with one row.
- ``qdq`` is the standard's, from opset 21 on, for others. onnxruntime makes the operator above of it, from its
  extended level on, and rounds inputs to int8 unless ``session.qdq_matmulnbits_accuracy_level`` is 1. It expands
  weights in every inference below that level, where a Relu or Clip follows, and where layers share a weight; so does
  1.24 where there is a bias, or 8 bits, and 1.20 does not load it.

Left alone, with the reason:

1. Conv and ConvTranspose, which have no such kernel;
2. weights that are computed or that a caller may override, not float32, of other ranks, and NaN, Inf or beyond 1e37;
3. weights that something else reads too (layers may share one), or that the model returns;
4. weights that are too small: the call takes longer than what it saves, or no bytes would go;
5. Gemm with a transposed input, a computed bias, or one that is not a number for each channel; constant inputs;
6. subgraphs, layers that the options exclude, and of integer models, what is integer already.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pydantic import ValidationError

from onnxslim.analysis import infer_shapes
from onnxslim.errors import SpecError
from onnxslim.ir import Model, Rewriter
from onnxslim.passes._block_choice import BLOCKS, Form, Stored, Wanted, choose, planned
from onnxslim.passes._block_fit import Fitted, fitted_blocks
from onnxslim.passes._block_graph import BlockWriter
from onnxslim.passes._opset import upgrade
from onnxslim.pipeline import Effect, PassContext, Plan, PlannedPass, option

OPSET = 21
"""The first in which DequantizeLinear has blocks, and integers have 4 bits."""


class Rounding(enum.Enum):
    """How weights become integers."""

    NEAREST = "nearest"
    SECOND_ORDER = "second-order"


class Inputs(enum.Enum):
    """What MatMulNBits computes with."""

    INT8 = "int8"
    FLOAT = "float"


class BlockPlan(Plan):
    """How the weight of each layer is stored, by its anchor, in order."""

    layers: dict[str, Stored]
    rounding: Rounding
    """Fitted integers are found again when the plan is applied, on the same samples."""
    refused: tuple[tuple[str, str], ...] = ()
    """(anchor, reason)."""


@dataclass(frozen=True)
class BlockWeights(PlannedPass[BlockPlan]):
    """Store weights of MatMul and Gemm in 4 bits, a scale for each block: less to load, and quicker where memory is."""

    name = "block-weights"
    effect = Effect.APPROXIMATE
    plan_type = BlockPlan

    bits: int = option(4, "of weights: 4, 8, or of form=matmul-nbits 2, for bytes alone")
    block: int = option(32, f"how many weights share a scale, at most: a power of two, {BLOCKS[-1]} to {BLOCKS[0]}")
    symmetric: bool = option(True, "no zero points: quicker, and 0.1 to 0.5 dB less exact")
    form: Form | None = option(None, "matmul-nbits (onnxruntime's own), or qdq (ONNX's)  [default: the target's]")
    inputs: Inputs = option(Inputs.INT8, "of form=matmul-nbits: int8 (quicker, 50 dB), or float")
    rounding: Rounding | None = option(
        None, "second-order (least error of outputs), or nearest  [default: second-order with samples]"
    )
    samples: int = option(128, "how many calibration samples second-order rounding looks at")
    min_size: int = option(16384, "leave weights with fewer elements")
    only: tuple[str, ...] = option((), "store only layers that match these patterns, e.g. fc*|head")
    exclude: tuple[str, ...] = option((), "leave layers that match these patterns")

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        try:
            self._stored(self.form or Form.NBITS)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise SpecError(f"options of {self.name}: {reason}: give another") from None
        if self.min_size < 0 or self.samples < 1:
            raise SpecError(f"options of {self.name}: give min-size=0 or more, and samples=1 or more")

    def _stored(self, form: Form) -> Stored:
        return Stored(form=form, bits=self.bits, block=self.block, symmetric=self.symmetric)

    def plan(self, model: Model, context: PassContext) -> BlockPlan:
        """Choose layers.

        Raises:
            PassError: onnx's converter refuses to upgrade.
        """
        form = self._form(context)
        if form is Form.QDQ and model.opset < OPSET:  # the converter renames tensors: what it makes is decided about
            model = model.copy()
            upgrade(Rewriter(model), OPSET)
        choice = choose(model, Wanted(self._stored(form), self.min_size, self.only, self.exclude))
        return BlockPlan(layers=choice.stored, rounding=self._rounding(context), refused=tuple(choice.refused))

    def _form(self, context: PassContext) -> Form:
        if self.form is not None:
            return self.form
        standard = not context.target.block_kernels and self.bits in Form.QDQ.bits
        return Form.QDQ if standard else Form.NBITS

    def _rounding(self, context: PassContext) -> Rounding:
        if self.rounding is not None:
            return self.rounding
        return Rounding.NEAREST if context.samples is None else Rounding.SECOND_ORDER

    def apply(self, rewriter: Rewriter, plan: BlockPlan, context: PassContext) -> None:
        """Store each layer's weight as ``plan`` says.

        Raises:
            SpecError: the plan fits integers to samples, and there are none.
            PassError: the plan names a layer that this model has not, or that cannot be stored so.
        """
        for anchor, reason in plan.refused:
            rewriter.refuse(self.name, anchor, reason)
        if any(stored.form is Form.QDQ for stored in plan.layers.values()) and rewriter.model.opset < OPSET:
            upgrade(rewriter, OPSET)
        infer_shapes(rewriter.model)
        nodes = planned(rewriter.model, plan.layers)
        fitted = self._fitted(rewriter.model, plan, context)
        writer = BlockWriter(rewriter, int8_inputs=self.inputs is Inputs.INT8)
        for done, (anchor, node) in enumerate(nodes.items()):
            context.progress(self.name, done, len(nodes))
            writer.write(node, plan.layers[anchor], fitted.get(anchor))

    def _fitted(self, model: Model, plan: BlockPlan, context: PassContext) -> dict[str, Fitted]:
        if plan.rounding is Rounding.NEAREST or not plan.layers:
            return {}
        styles = {anchor: stored.style for anchor, stored in plan.layers.items()}
        return fitted_blocks(model, styles, context.require_samples(self.name).take(self.samples), context)
