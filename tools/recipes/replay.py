"""One recipe, carried out by the product: a network is built, pruned by ``PruneFilters`` and counted."""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.ir import Model, Rewriter
from onnxslim.passes import PruneFilters
from onnxslim.passes.prune_filters import PrunePlan
from onnxslim.pipeline import Costs, PassContext
from tools.recipes.networks import FREE
from tools.recipes.tables import Recipe, Size, Uniform

_COUNTED = ("Conv", "Gemm")


@dataclass(frozen=True)
class Outcome:
    """A recipe, and the network's size before and after it."""

    recipe: Recipe
    before: Size
    after: Size

    @property
    def macs(self) -> float:
        """The reduction in percent."""
        return 100 * (1 - self.after.macs / self.before.macs)

    @property
    def params(self) -> float:
        """The reduction in percent."""
        return 100 * (1 - self.after.params / self.before.params)

    def agrees(self, tolerance: float) -> bool:
        """Whether both reductions are within ``tolerance`` points of the paper's."""
        differences = (self.macs - self.recipe.macs, self.params - self.recipe.params)
        return all(abs(difference) <= tolerance for difference in differences)


def replay(recipe: Recipe) -> Outcome:
    """Build the recipe's network, prune it and count both."""
    model = recipe.build()
    before = size_of(model)
    prune(model, recipe.layers)
    return Outcome(recipe, before, size_of(model))


def replay_uniformly(recipe: Uniform) -> tuple[Size, Size]:
    """Build the recipe's network and prune the same share of every layer; return its size before and after."""
    model = recipe.network.build()
    before = size_of(model)
    _apply(model, PruneFilters(ratio=recipe.ratio))
    return before, size_of(model)


def prune(model: Model, layers: tuple[str, ...]) -> None:
    """Remove the filters with the smallest L1 norm from ``layers``, PATTERN=RATIO each, in place.

    Raises:
        ValueError: a layer was left alone.
    """
    plan = _apply(model, PruneFilters(layers=layers))
    if len(plan.cuts) != len(layers):
        raise ValueError(f"{len(layers)} layers are named and {len(plan.cuts)} groups would be cut: see {plan.refused}")


def _apply(model: Model, options: PruneFilters) -> PrunePlan:
    cost = model_cost(model, concrete_shapes(model))
    context = PassContext(baseline=Costs(cost.bytes, cost.params, cost.macs))
    rewriter = Rewriter(model)
    plan = options.plan(model, context)
    options.apply(rewriter, plan, context)
    rewriter.finish()
    return plan


def size_of(model: Model) -> Size:
    """Return the size of ``model``: biases of the layers count, BatchNormalization and free shortcuts do not.

    Raises:
        ValueError: the shape of a layer is unknown.
    """
    macs = params = 0
    for layer in model_cost(model, concrete_shapes(model)).layers:
        if layer.op not in _COUNTED or layer.name.startswith(FREE):
            continue
        if layer.macs is None:
            raise ValueError(f"the shapes at {layer.name!r} are unknown, so that it cannot be counted")
        macs, params = macs + layer.macs, params + layer.params
    return Size(macs, params)
