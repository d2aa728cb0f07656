"""inline-functions: local functions are opened where they are called, so that other passes see what is inside.

Given   y = mine::Block(x),   mine::Block(a) => (b) { t = Conv(a, …)  b = Relu(t) }
Result  t = Conv(x, …)  y = Relu(t)

Functions that call functions, or hold subgraphs, are opened as well; inner names are made unique. Not part of
``exact``: a function is kept whole unless someone asks, because a runtime may know it by name.

Left alone, with the reason: functions for another version of the standard operators than the model's (onnx's inliner
would change what they mean), and models whose weights stay in their files.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.ir import Rewriter
from onnxslim.pipeline import Effect, Pass, PassContext


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Open local functions where they are called, for other passes to work inside."""

    name = "inline-functions"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Open what onnx's inliner opens, and say what stays."""
        functions = rewriter.model.functions
        if not functions:
            return
        if rewriter.model.is_large:
            rewriter.refuse(self.name, functions[0][1], "the model is too large to be opened in memory")
            return
        rewriter.inline()
        for domain, name in rewriter.model.functions:
            rewriter.refuse(self.name, name, f"the function {domain}:{name} is for another opset than the model")
