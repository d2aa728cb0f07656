"""What the papers did to which network, and what they say came of it.

Li et al. 2017, "Pruning Filters for Efficient ConvNets", Table 1. Layers are counted from 1 in the order of the
network, shortcuts left out; of a residual block only the first convolution is pruned, so its number is even; of n
filters ceil(ratio·n) go. FLOP are multiply-accumulates of convolutions and fully connected layers; parameters are
those layers' weights; BatchNormalization is not counted, and biases, where there are any, make no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from onnxslim.ir import Model
from tools.recipes import networks
from tools.recipes.networks import Shortcut


@dataclass(frozen=True)
class Size:
    """Multiply-accumulates for one image, and parameters, of convolutions and fully connected layers."""

    macs: int
    params: int


@dataclass(frozen=True)
class Network:
    """A network, and what ``source`` says of its size: multiply-accumulates for one image, and parameters."""

    name: str
    build: Callable[[], Model]
    macs: float
    params: float
    source: str

    def agrees(self, size: Size, share: float) -> bool:
        """Whether ``size`` is within ``share`` of what is published, relatively."""
        return abs(size.macs / self.macs - 1) <= share and abs(size.params / self.params - 1) <= share


@dataclass(frozen=True)
class Recipe:
    """A row of a table: ``layers`` is what ``PruneFilters`` takes; reductions are in percent."""

    name: str
    build: Callable[[], Model]
    layers: tuple[str, ...]
    macs: float
    params: float


@dataclass(frozen=True)
class Uniform:
    """The same ratio for every layer: no paper's row, but what each layer must then save is known.

    A layer whose inputs and filters both lose ``ratio`` costs (1 - ratio)² of what it did; the first and the last lose
    one of the two, and what stays beside a layer that mixes channels loses less.
    """

    network: Network
    ratio: float

    def agrees(self, before: Size, after: Size, tolerance: float) -> bool:
        """Whether the savings, in percent, lie between the ratio and what no layer can exceed."""
        saved = [100 * (1 - now / was) for now, was in ((after.macs, before.macs), (after.params, before.params))]
        most = 100 * (1 - (1 - self.ratio) ** 2)
        return all(100 * self.ratio <= value <= most + tolerance for value in saved)


def first_layers(blocks: Sequence[int], ratios: Sequence[float], skip: Collection[int]) -> tuple[str, ...]:
    """Return PATTERN=RATIO for the first convolution of every block but those that are skipped.

    Args:
        blocks: number of blocks of each stage.
        ratios: of each stage; 0 leaves it as it is.
        skip: numbers of layers.

    Raises:
        ValueError: a skipped layer is not the first of a block.
    """
    layers, number = [], 2
    stray = set(skip) - set(range(2, 2 * sum(blocks) + 1, 2))
    if stray:
        raise ValueError(f"layers {sorted(stray)} are not the first of a block: skip even numbers from 2")
    for count, ratio in zip(blocks, ratios, strict=True):
        numbers = range(number, number + 2 * count, 2)
        layers += [f"conv{layer}={ratio:g}" for layer in numbers if ratio and layer not in skip]
        number += 2 * count
    return tuple(layers)


_resnet56 = partial(networks.resnet_cifar, 56)
_resnet110 = partial(networks.resnet_cifar, 110)
_BLOCKS_34 = (3, 4, 6, 3)
_SENSITIVE_34 = (2, 8, 14, 16, 26, 28, 30, 32)
"""The first block of the first stage, the first and last of the next two, and the whole last stage."""

LI2017 = (
    Recipe("VGG-16-A", networks.vgg16_cifar, tuple(f"conv{n}=0.5" for n in (1, 8, 9, 10, 11, 12, 13)), 34.2, 64.0),
    Recipe("ResNet-56-A", _resnet56, first_layers((9,) * 3, (0.1, 0.1, 0.1), (16, 20, 38, 54)), 10.4, 9.4),
    Recipe("ResNet-56-B", _resnet56, first_layers((9,) * 3, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54)), 27.6, 13.7),
    Recipe("ResNet-110-A", _resnet110, first_layers((18,) * 3, (0.5, 0, 0), (36,)), 15.9, 2.3),
    Recipe("ResNet-110-B", _resnet110, first_layers((18,) * 3, (0.5, 0.4, 0.3), (36, 38, 74)), 38.6, 32.4),
    Recipe("ResNet-34-A", networks.resnet34, first_layers(_BLOCKS_34, (0.3, 0.3, 0.3, 0), _SENSITIVE_34), 15.5, 7.6),
    Recipe("ResNet-34-B", networks.resnet34, first_layers(_BLOCKS_34, (0.5, 0.6, 0.4, 0), _SENSITIVE_34), 24.2, 10.8),
    # The second convolutions of the third stage and the shortcuts that they are added to: one group, known by conv17.
    # Its channels go while those of the next stage stay, which zero padding does not allow: hence selections.
    Recipe("ResNet-34-C", partial(networks.resnet34, Shortcut.SELECTED), ("conv17=0.2",), 7.5, 7.2),
)

NETWORKS = (
    Network("VGG-16 (CIFAR)", networks.vgg16_cifar, 3.13e8, 1.5e7, "Li et al. 2017"),
    Network("ResNet-56", _resnet56, 1.25e8, 8.5e5, "Li et al. 2017"),
    Network("ResNet-110", _resnet110, 2.53e8, 1.72e6, "Li et al. 2017"),
    Network("ResNet-34", networks.resnet34, 3.64e9, 2.16e7, "Li et al. 2017"),
    Network("ResNet-152", networks.resnet152, 1.13e10, 6.0e7, "He et al. 2016"),
    Network("GoogLeNet", networks.googlenet, 1.566e9, 6.9e6, "Kim et al. 2016"),
)

UNIFORM = tuple(Uniform(network, 0.3) for network in NETWORKS if network.name in ("ResNet-152", "GoogLeNet"))
