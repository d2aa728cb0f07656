"""What an execution provider is asked about, one at a time: a node, or a node with the pairs around it.

A group is DequantizeLinear, the operator, perhaps a Relu or Clip whose bounds the pair after it draws anyway, and
QuantizeLinear; the provider takes all of it or nothing. Which groups there are: ``targets/pairs.py``. Redundant
activations: onnxruntime core/optimizer/qdq_transformer/qdq_util.cc, IsClipMadeRedundantByQ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxslim.ir import Constant, Graph, Model, Node, Tensor, array_of, attribute, is_standard, numpy_dtype, producer
from onnxslim.targets.pairs import VERSIONS, Group

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PAIR = (QUANTIZE, DEQUANTIZE)
_BIASED = (Group.LAYER, Group.GEMM)
"""Groups whose third input is a bias in int32."""


@dataclass(frozen=True)
class Unit:
    """A node, with the pairs that are taken together with it."""

    node: Node
    before: tuple[Node, ...] = ()
    """DequantizeLinear of its inputs, in their order."""
    between: Node | None = None
    """An activation that the pair after it makes redundant."""
    after: tuple[Node, ...] = ()
    alone: str | None = None
    """Why pairs beside it are not taken together with it; None where there are none."""
    nested: bool = False
    """Whether it is in a subgraph."""
    shared: frozenset[int] = frozenset()
    """By id, DequantizeLinear that another group has already: onnxruntime copies them."""

    @property
    def is_group(self) -> bool:
        """Whether pairs belong to it."""
        return bool(self.before)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All its nodes, in an order in which they can run."""
        middle = () if self.between is None else (self.between,)
        own = (one for one in self.before if id(one) not in self.shared)
        return (*own, self.node, *middle, *self.after)

    def behind(self, index: int) -> Tensor | None:
        """Return an input of the node, in front of the DequantizeLinear that belongs to it; None where it is absent."""
        if index >= len(self.node.inputs) or self.node.inputs[index].is_empty():
            return None
        tensor = self.node.inputs[index]
        maker = producer(tensor)
        return maker.inputs[0] if maker is not None and any(maker is one for one in self.before) else tensor

    def quantizer(self, index: int) -> Node | None:
        """Return the DequantizeLinear of an input that belongs to it."""
        if index >= len(self.node.inputs):
            return None
        maker = producer(self.node.inputs[index])
        return maker if any(maker is one for one in self.before) else None


def is_stored(tensor: Tensor) -> bool:
    """Whether a tensor is a constant of the model."""
    maker = producer(tensor)
    return isinstance(tensor, Constant) or (maker is not None and is_standard(maker, "Constant"))


def kind_of(tensor: Tensor | None) -> str | None:
    """Return the name of a tensor's element type, None where nobody knows."""
    dtype = None if tensor is None else numpy_dtype(tensor.dtype)
    return None if dtype is None else dtype.name


def version_of(node: Node, opset: int) -> int | None:
    """Return the version of an operator's definition that holds at ``opset``."""
    try:
        return int(onnx.defs.get_schema(node.op, opset, "").since_version)
    except onnx.defs.SchemaError:
        return None


def split_units(model: Model, groups: Mapping[str, Group]) -> list[Unit]:
    """Return every node of ``model`` in exactly one unit: those of the main graph in order, then those of subgraphs."""
    graphs = list(model.graphs())
    return [unit for index, graph in enumerate(graphs) for unit in _of_graph(graph, groups, model.opset, index > 0)]


def _of_graph(graph: Graph, groups: Mapping[str, Group], opset: int, nested: bool) -> Iterator[Unit]:
    outputs = {id(tensor) for tensor in graph.outputs}
    here = {id(node) for node in graph.nodes}
    found: dict[int, Unit] = {}
    taken: set[int] = set()
    for node in graph.nodes:
        unit = _Around(node, outputs, here).unit(groups, opset, nested)
        if unit is not None:
            unit = replace(unit, shared=frozenset(id(one) for one in unit.before if id(one) in taken))
            found[id(node)] = unit
            taken.update(id(one) for one in unit.nodes)
    for node in graph.nodes:
        if id(node) in found:
            yield found[id(node)]
        elif id(node) not in taken:
            yield Unit(node, nested=nested)


class _Around:
    """The pairs around a node."""

    def __init__(self, node: Node, outputs: set[int], here: set[int]) -> None:
        self._node = node
        self._outputs = outputs
        makers = (producer(tensor) for tensor in node.inputs)
        pairs = (maker for maker in makers if maker is not None and is_standard(maker, DEQUANTIZE))
        self._before = list({id(maker): maker for maker in pairs if id(maker) in here}.values())

    def unit(self, groups: Mapping[str, Group], opset: int, nested: bool) -> Unit | None:
        """Return the group around the node, or the node with the reason why there is none; None without pairs."""
        node = self._node
        if node.op in PAIR or not self._before or node.domain not in (None, "", "ai.onnx", "com.microsoft"):
            return None
        group = groups.get(node.op)
        if group is None:
            return Unit(node, alone=f"{node.op} is never taken together with pairs", nested=nested)
        versions = VERSIONS.get(node.op)
        if versions is not None and version_of(node, opset) not in versions:
            return Unit(node, alone=f"this version of {node.op} is not taken together with pairs", nested=nested)
        between = self._redundant()
        readers = self._readers(between or node)
        after = tuple(reader for reader in readers if is_standard(reader, QUANTIZE))
        why = self._refusal(group, between, after)
        if why is not None:
            return Unit(node, alone=why, nested=nested)
        return Unit(node, tuple(self._before), between, after, nested=nested)

    def _readers(self, node: Node) -> list[Node]:
        return [reader for tensor in node.outputs for reader in tensor.outputs]

    def _redundant(self) -> Node | None:
        """Return the Relu or Clip that alone reads the node and is itself read once."""
        readers = self._readers(self._node)
        if len(readers) != 1 or not is_standard(readers[0], "Relu", "Clip"):
            return None
        out = readers[0].outputs[0]
        return readers[0] if len(out.outputs) == 1 and id(out) not in self._outputs else None

    def _refusal(self, group: Group, between: Node | None, after: tuple[Node, ...]) -> str | None:
        """Return why the pairs do not make a group."""
        if between is not None:
            if len(after) != 1:
                return f"{between.op} lies between it and the rest, in float"
            if not _is_redundant(between, after[0]):
                return f"the range of the pair after it is wider than {between.op}"
            if group in (Group.MOVE, Group.INDEX, Group.SPLIT):
                return f"{between.op} lies between it and QuantizeLinear"
        return self._before_it(group) or self._after_it(group, between, after) or self._types(group, after)

    def _before_it(self, group: Group) -> str | None:
        given = [tensor for tensor in self._node.inputs if not tensor.is_empty()]
        count, most = len(self._before), len(given)
        needed = {Group.WHERE: 2, Group.PAD: min(count, 2), Group.ALL: most, Group.LAYER: most, Group.MATMUL: 2,
                  Group.GEMM: most, Group.NORM: most, Group.COMPARE: 2}.get(group, 1)  # fmt: skip
        if self._node.op == "Clip":
            needed = count
        if group is Group.FOLDABLE:
            needed = min(max(count, 3), 5)
        if count == needed:
            return None
        bare = next((t for t in given if not any(t is one.outputs[0] for one in self._before)), None)
        name = "" if bare is None else f": {bare.name!r} has none"
        return f"DequantizeLinear is before {count} of its inputs, not {needed}{name}"

    def _after_it(self, group: Group, between: Node | None, after: tuple[Node, ...]) -> str | None:
        if group in (Group.INDEX, Group.COMPARE, Group.GEMM) and not after:
            return None
        end = between or self._node
        outs = [tensor for tensor in self._node.outputs if tensor.name]
        own = next((tensor for tensor in end.outputs if id(tensor) in self._outputs), None)
        if own is not None:
            return f"its output {own.name!r} is the model's own, in float"
        readers = self._readers(end)
        loose = next((reader for reader in readers if reader not in after), None)
        if loose is not None:
            return f"{loose.op} reads its output in float"
        expected = 1 if self._node.op == "TopK" else len(outs)
        return None if len(after) == expected else f"{len(after)} QuantizeLinear follow, not {expected}"

    def _types(self, group: Group, after: tuple[Node, ...]) -> str | None:
        data = [kind_of(one.inputs[0]) for one in self._before]
        out = [kind_of_quantized(one) for one in after]
        if group in _BIASED and len(data) > 2 and data[2] != "int32":
            return f"its bias is {data[2]} before DequantizeLinear, not int32"
        if group in (Group.LAYER, Group.MATMUL, Group.GEMM) and data[0] == "int8" and data[1] != "int8":
            return f"its data is int8 and its weights are {data[1]}"
        alike = data if group in (Group.ALL, Group.WHERE, Group.COMPARE, Group.PAD) else data[:1]
        if self._node.op == "Clip":
            alike = data[:1]
        kinds = {*alike, *out}
        if len(kinds) > 1:
            return f"the pairs around it differ: {' and '.join(sorted(str(kind) for kind in kinds))}"
        if group is Group.MOVE and not _same_pair(self._before[0], after[0]):
            return "the pairs before and after it differ, so that integers cannot pass as they are"
        return None


def kind_of_quantized(node: Node) -> str | None:
    """Return the element type that a QuantizeLinear makes: its zero point's, ``output_dtype``, or uint8."""
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        return kind_of(node.inputs[2])
    asked = attribute(node, "output_dtype", 0)
    if not asked:
        return "uint8"
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(asked))).name


def _is_redundant(activation: Node, quantize: Node) -> bool:
    """Whether a pair draws an activation's bounds anyway."""
    scale, zero = (array_of(tensor) for tensor in (*quantize.inputs[1:3], None, None)[:2])
    kind = kind_of_quantized(quantize)
    if scale is None or scale.size != 1 or kind is None or not kind.lstrip("u").startswith("int"):
        return False
    limits = np.iinfo(kind)
    if len(quantize.inputs) > 2 and not quantize.inputs[2].is_empty() and (zero is None or zero.size != 1):
        return False
    middle = 0 if zero is None else int(zero.reshape(-1)[0])
    if activation.op == "Relu":
        return middle == limits.min
    low, high = (_bound(activation, index, name) for index, name in ((1, "min"), (2, "max")))
    if low is None or high is None:
        return False
    step = float(scale.reshape(-1)[0])
    return bool(np.rint(low / step) + middle <= limits.min and np.rint(high / step) + middle >= limits.max)


def _bound(clip: Node, index: int, name: str) -> float | None:
    """Return a bound of Clip, None where it is computed."""
    if name in clip.attrs:
        return float(clip.attrs[name])
    if index >= len(clip.inputs) or clip.inputs[index].is_empty():
        return -np.inf if name == "min" else np.inf
    values = array_of(clip.inputs[index])
    return None if values is None else float(values.reshape(-1)[0])


def _same_pair(dequantize: Node, quantize: Node) -> bool:
    """Whether two nodes have the same constant scale and zero point, one of each."""
    first, second = _grid(dequantize), _grid(quantize)
    return first is not None and second is not None and first == second


def _grid(node: Node) -> tuple[float, int] | None:
    values: list[Any] = [array_of(tensor) for tensor in node.inputs[1:3]]
    if not values or values[0] is None or values[0].size != 1:
        return None
    if len(values) > 1 and (values[1] is None or values[1].size != 1):
        return None
    return float(values[0].reshape(-1)[0]), int(values[1].reshape(-1)[0]) if len(values) > 1 else 0
