"""The rows of Li et al. 2017, Table 1, and the networks that they are about. All of it: ``python tools/recipes``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.errors import SpecError
from onnxslim.ir import Model
from onnxslim.runtime import Level, Session, SessionConfig
from tools.recipes import networks, tables
from tools.recipes.networks import Shortcut
from tools.recipes.replay import Outcome, prune, replay, replay_uniformly, size_of

POINTS = 0.1
RECIPES = {recipe.name: recipe for recipe in tables.LI2017}
NETWORKS = {network.name: network for network in tables.NETWORKS}
QUICK = ("VGG-16-A", "ResNet-56-B")


def check(outcome: Outcome) -> None:
    assert outcome.macs == pytest.approx(outcome.recipe.macs, abs=POINTS)
    assert outcome.params == pytest.approx(outcome.recipe.params, abs=POINTS)
    assert outcome.agrees(POINTS)


def filters(model: Model) -> dict[str, int]:
    """Return how many filters each convolution has, by name."""
    return {node.name: node.inputs[1].shape[0] for node in model.graph.nodes if node.op == "Conv"}


def logits(model: Model, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    image = np.random.default_rng(0).standard_normal((2, 3, size, size), np.float32)
    (output,) = Session(model.to_bytes(), SessionConfig(level=Level.NONE)).run({"image": image}).values()
    return np.asarray(output)


# ---- the paper's rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_a_row_saves_what_the_paper_says(name: str) -> None:
    check(replay(RECIPES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_row_saves_what_the_paper_says(name: str) -> None:
    check(replay(RECIPES[name]))


def test_only_the_named_layers_of_resnet_56_b_are_narrower() -> None:
    model = networks.resnet_cifar(56)
    before = filters(model)
    prune(model, RECIPES["ResNet-56-B"].layers)
    onnx.checker.check_model(model.proto(), full_check=True)
    after = filters(model)
    narrower = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    sensitive = (16, 18, 20, 34, 38, 54)
    assert set(narrower) == {f"conv{n}" for n in range(2, 56, 2) if n not in sensitive}
    assert set(narrower.values()) == {(16, 6), (32, 22), (64, 57)}
    assert np.isfinite(logits(model, 32)).all()


def test_a_recipe_that_names_what_cannot_be_cut_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 layers are named and 0 groups"):
        prune(networks.resnet_cifar(20), ("fc1=0.5",))
    with pytest.raises(SpecError, match="conv99"):
        prune(networks.resnet_cifar(20), ("conv99=0.5",))


def test_another_ratio_is_noticed() -> None:
    recipe = RECIPES["ResNet-56-B"]
    wrong = tables.Recipe(recipe.name, recipe.build, recipe.layers[1:], recipe.macs, recipe.params)
    assert not replay(wrong).agrees(POINTS)


def test_first_layers_leave_out_what_is_skipped_and_what_stays() -> None:
    assert tables.first_layers((2, 1, 2), (0.5, 0, 0.25), (4, 8)) == ("conv2=0.5", "conv10=0.25")
    with pytest.raises(ValueError, match=r"\[3, 12\] are not the first"):
        tables.first_layers((2, 1, 2), (0.5, 0, 0.25), (3, 12))


# ---- the same ratio everywhere ---------------------------------------------------------------------------------------


def test_uniform_pruning_of_googlenet_saves_what_it_can() -> None:
    recipe = next(recipe for recipe in tables.UNIFORM if recipe.network.name == "GoogLeNet")
    before, after = replay_uniformly(recipe)
    assert recipe.agrees(before, after, POINTS)
    assert not recipe.agrees(before, before, POINTS)
    # Local response normalization keeps the filters of conv1 and conv3; of all others about half the work goes.
    assert after.macs / before.macs == pytest.approx(0.573, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", tables.UNIFORM, ids=lambda recipe: recipe.network.name)
def test_uniform_pruning_saves_what_it_can(recipe: tables.Uniform) -> None:
    assert recipe.agrees(*replay_uniformly(recipe), POINTS)


# ---- the networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VGG-16 (CIFAR)", "ResNet-56", "ResNet-110", "GoogLeNet"])
def test_a_network_has_the_published_size(name: str) -> None:
    assert NETWORKS[name].agrees(size_of(NETWORKS[name].build()), 0.015)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_the_published_size(name: str) -> None:
    assert NETWORKS[name].agrees(size_of(NETWORKS[name].build()), 0.015)


def test_googlenet_has_as_many_parameters_as_caffes() -> None:
    assert size_of(networks.googlenet()).params == 6_998_552


@pytest.mark.slow
def test_resnet152_has_as_many_parameters_as_torchvisions() -> None:
    model = networks.resnet152()
    layers = model_cost(model, concrete_shapes(model)).layers
    trained = sum(layer.params for layer in layers if layer.op == "BatchNormalization") // 2
    assert size_of(model).params + trained == 60_192_808


@pytest.mark.parametrize(
    ("build", "size", "classes"),
    [(networks.vgg16_cifar, 32, 10), (lambda: networks.resnet_cifar(20), 32, 10), (networks.googlenet, 224, 1000)],
)
def test_a_network_is_valid_and_runs(build: Callable[[], Model], size: int, classes: int) -> None:
    model = build()
    onnx.checker.check_model(model.proto(), full_check=True)
    output = logits(model, size)
    assert output.shape == (2, classes)
    assert np.isfinite(output).all()


def test_shortcuts_without_parameters_are_the_same_function_and_cost_the_same() -> None:
    padded, selected = (networks.resnet_cifar(20, shortcut) for shortcut in (Shortcut.PADDED, Shortcut.SELECTED))
    assert size_of(padded) == size_of(selected)
    np.testing.assert_allclose(logits(padded, 32), logits(selected, 32), rtol=0, atol=1e-5)


def test_projections_cost_something() -> None:
    padded, projected = (networks.resnet_cifar(20, shortcut) for shortcut in (Shortcut.PADDED, Shortcut.PROJECTED))
    assert size_of(projected).params - size_of(padded).params == 16 * 32 + 32 * 64


@pytest.mark.parametrize("depth", [2, 18, 57])
def test_a_depth_that_no_resnet_has_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth {depth} is not 6n"):
        networks.resnet_cifar(depth)
