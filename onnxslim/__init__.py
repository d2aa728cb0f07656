"""onnxslim: make any ONNX model ready for mobile, and prove that it still works.

>>> import onnxslim
>>> result = onnxslim.optimize("in.onnx", data="samples/", preprocess="resize=256,crop=224,mean=127,std=128")
>>> result.model.save("out.onnx"); result.report.save("report.html")

The public names are below, imported on first use so that ``onnxslim --help`` starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxslim._neighbour import refuse_other_onnxslim

if TYPE_CHECKING:
    from onnxslim.ir import Mismatch as Mismatch
    from onnxslim.ir import Model as Model
    from onnxslim.ir import Rewriter as Rewriter
    from onnxslim.pipeline import Effect as Effect
    from onnxslim.pipeline import Pass as Pass
    from onnxslim.pipeline import PassContext as PassContext
    from onnxslim.pipeline import PassManager as PassManager
    from onnxslim.pipeline import Rule as Rule
    from onnxslim.pipeline import RulePass as RulePass
    from onnxslim.pipeline import option as option
    from onnxslim.samples import Samples as Samples
    from onnxslim.workflow import bench as bench
    from onnxslim.workflow import gate as gate
    from onnxslim.workflow import inspect as inspect
    from onnxslim.workflow import load as load
    from onnxslim.workflow import optimize as optimize
    from onnxslim.workflow import validate as validate

__version__ = "0.1.0"

refuse_other_onnxslim()

_HOMES = {
    "onnxslim.ir": ("Mismatch", "Model", "Rewriter"),
    "onnxslim.pipeline": ("Effect", "Pass", "PassContext", "PassManager", "Rule", "RulePass", "option"),
    "onnxslim.samples": ("Samples",),
    "onnxslim.workflow": ("bench", "gate", "inspect", "load", "optimize", "validate"),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: PLE0604  (strings, from the table above)
    "__version__",
    *_WHERE,
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'onnxslim' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
