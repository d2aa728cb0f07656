"""The passes, one rewrite a file. Imported as ``onnxslim.passes``; the folder lies at the top of the repository."""

from __future__ import annotations

if __name__ != "onnxslim.passes":
    raise ImportError("import onnxslim.passes, not the folder 'passes' by itself")

from onnxslim.passes._rank_survey import SurveyOptions, survey_ranks
from onnxslim.passes._ranking import PruneCriterion
from onnxslim.passes.block_weights import BlockWeights
from onnxslim.passes.collapse_shapes import CollapseShapes
from onnxslim.passes.dequantize import Dequantize
from onnxslim.passes.equalize import Equalize
from onnxslim.passes.factor_low_rank import FactorLowRank
from onnxslim.passes.float16 import Float16
from onnxslim.passes.fold_affine import FoldAffine
from onnxslim.passes.fold_batchnorm import FoldBatchNorm
from onnxslim.passes.fold_constants import FoldConstants
from onnxslim.passes.fold_pad import FoldPad
from onnxslim.passes.infer_shapes import InferShapes
from onnxslim.passes.inline_functions import InlineFunctions
from onnxslim.passes.insert_qdq import InsertQdq
from onnxslim.passes.join_slices import JoinSlices
from onnxslim.passes.merge_duplicates import MergeDuplicates
from onnxslim.passes.merge_linear import MergeLinear
from onnxslim.passes.palettize import Palettize
from onnxslim.passes.prune_filters import PruneFilters
from onnxslim.passes.remove_dead import RemoveDead
from onnxslim.passes.remove_noops import RemoveNoops
from onnxslim.pipeline import Pass

EXACT_PASSES: tuple[type[Pass], ...] = (
    InferShapes,
    FoldConstants,
    CollapseShapes,
    RemoveNoops,
    JoinSlices,
    FoldPad,
    FoldBatchNorm,
    FoldAffine,
    MergeLinear,
    MergeDuplicates,
    RemoveDead,
)
"""What ``exact`` stands for, in order."""

PASSES: tuple[type[Pass], ...] = (
    *EXACT_PASSES,
    InlineFunctions,
    Dequantize,
    PruneFilters,
    FactorLowRank,
    Equalize,
    InsertQdq,
    BlockWeights,
    Float16,
    Palettize,
)
"""Every pass of this package."""

__all__ = [
    "EXACT_PASSES",
    "PASSES",
    "BlockWeights",
    "Dequantize",
    "Equalize",
    "FactorLowRank",
    "Float16",
    "InsertQdq",
    "Palettize",
    "PruneCriterion",
    "PruneFilters",
    "SurveyOptions",
    "survey_ranks",
]
