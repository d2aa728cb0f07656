"""Prunable: which share of a model's filters pruning can reach, and what keeps the rest.

Judged after the exact passes, as in the default pipeline: see ``tools.gallery.survey``. Where it says ``apart``, 30 %
of every layer is pruned, and the result is so far from the original with zeros, relative to the range of the outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from onnxslim.errors import UserError
from onnxslim.ir import Model
from onnxslim.passes import EXACT_PASSES, PruneFilters
from onnxslim.pipeline import exact_fixed_point
from tools.gallery import ARCHITECTURES
from tools.gallery.oracle import judge, prune
from tools.gallery.survey import survey

TOLERANCE = 1e-5
RATIO = 0.3


def run(models: Sequence[Path], names: Sequence[str]) -> int:
    """Print a row for each architecture of the gallery and each model; return 1 if one is off or fails, or none fits.

    Args:
        names: leave out what holds none of these in its name; all when empty.
    """
    header = f"{'model':24}{'filters':>8}{'prunable':>10}{'groups':>8}{'apart':>9}  filters that stay, and why"
    print(header + "\n" + "-" * len(header), flush=True)
    fine = [
        _print_row(name, load)
        for name, load in _candidates(models)
        if not names or any(wanted in name for wanted in names)
    ]
    return int(not fine or not all(fine))


def _candidates(models: Sequence[Path]) -> Iterator[tuple[str, Callable[[], Model]]]:
    for name, build in ARCHITECTURES.items():
        yield name, partial(_load, build)
    for path in models:
        yield path.stem, partial(Model.load, path)


def _load(build: Callable[[], onnx.ModelProto]) -> Model:
    return Model.load(build())


def _print_row(name: str, load: Callable[[], Model]) -> bool:
    try:
        model = load()
        exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
        found, apart = survey(model), _apart(model)
    except (UserError, ValueError) as error:
        print(f"{name:24}failed: {error}", flush=True)
        return False
    reasons = "; ".join(f"{count} {reason}" for reason, count in found.reasons.most_common())
    row = f"{name:24}{found.filters:>8}{found.share:>10.1%}{found.groups:>8}{apart:>9.1g}  {reasons}"
    print(row if apart <= TOLERANCE else f"{row}  OFF", flush=True)
    return apart <= TOLERANCE


def _apart(model: Model) -> float:
    original = model.proto()
    pruned, _ = prune(model, PruneFilters(ratio=RATIO))
    proto = pruned.proto()
    onnx.checker.check_model(proto, full_check=True)
    return judge(original, proto).difference
