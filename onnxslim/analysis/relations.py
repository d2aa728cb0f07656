"""What rules about operators say of channels: dimensions, which indices belong together, and what is frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxslim.ir import Constant, Node, Tensor, anchor_of, dims_of

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dimension:
    """One axis of one tensor."""

    tensor: Tensor
    axis: int
    size: int

    @property
    def key(self) -> tuple[int, int]:
        """Identity of the dimension."""
        return id(self.tensor), self.axis


@dataclass(frozen=True)
class Layer:
    """A layer whose weight has its filters along ``dimension``."""

    node: Node
    dimension: Dimension
    fan_axis: int | None
    """Axis of the weight that reads input channels; None for depthwise filters."""

    @property
    def anchor(self) -> str:
        """First output of the layer."""
        return anchor_of(self.node)


@dataclass
class Relations:
    """What the rules found out; ``axes`` holds the channel axis of every activation that has one."""

    axes: dict[int, int] = field(default_factory=dict)
    dimensions: dict[tuple[int, int], Dimension] = field(default_factory=dict)
    edges: list[tuple[tuple[int, int], tuple[int, int], Indices, Indices]] = field(default_factory=list)
    frozen: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)
    """Constants that something which is not understood reads, with the reason."""
    producers: list[Layer] = field(default_factory=list)
    grouped: list[tuple[Node, Dimension]] = field(default_factory=list)
    """Depthwise convolutions, whose ``group`` attribute counts the channels of a dimension."""
    targets: list[tuple[Node, int, Dimension]] = field(default_factory=list)
    """Reshapes whose constant target names, at a position, the size of a dimension."""

    def channel(self, tensor: Tensor) -> Dimension | None:
        """Return the channel dimension of an activation, None where it has none or its size is unknown."""
        axis = self.axes.get(id(tensor))
        dims = dims_of(tensor)
        size = None if axis is None or dims is None or axis >= len(dims) else dims[axis]
        return self.dimension(tensor, axis, size) if axis is not None and isinstance(size, int) else None

    def dimension(self, tensor: Tensor, axis: int, size: int) -> Dimension:
        """Return the one object for an axis of a tensor."""
        dimension = Dimension(tensor, axis, size)
        return self.dimensions.setdefault(dimension.key, dimension)

    def weight(self, constant: Constant, axis: int) -> Dimension:
        """Return an axis of a constant."""
        return self.dimension(constant, axis, int(constant.shape[axis]))

    def follow(self, tensor: Tensor, axis: int) -> Dimension | None:
        """Declare that channels of ``tensor`` lie along ``axis``, and return that dimension."""
        self.axes[id(tensor)] = axis
        return self.channel(tensor)

    def relate(
        self, left: Dimension | None, right: Dimension | None, a: Indices | None = None, b: Indices | None = None
    ) -> None:
        """Couple index a[i] of ``left`` with index b[i] of ``right``; equal indices when none are given."""
        if left is None or right is None:
            for known in (left, right):
                if known is not None:
                    self.freeze(known, "a size beside it is unknown")
            return
        if a is None or b is None:
            if left.size != right.size:
                self.freeze(left, "sizes beside it do not correspond")
                self.freeze(right, "sizes beside it do not correspond")
                return
            a = b = np.arange(left.size)
        self.edges.append((left.key, right.key, a, b))

    def freeze(self, dimension: Dimension | None, reason: str) -> None:
        """Declare that ``dimension`` must stay as it is."""
        if dimension is not None:
            self.frozen.setdefault(dimension.key, []).append(reason)

    def freeze_node(self, node: Node, reason: str) -> None:
        """Freeze the channels of everything that ``node`` reads or makes, and follow channels no further."""
        for tensor in (*node.inputs, *node.outputs):
            self.freeze(self.channel(tensor), reason)
            if isinstance(tensor, Constant):
                self.held[id(tensor)] = reason
