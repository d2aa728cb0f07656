"""The one door to changing a graph: it counts every edit, keeps names unique and records every refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx_graphsurgeon import Constant, Graph, Node, Tensor, Variable

from onnxslim.errors import ModelError, PassError, one_line
from onnxslim.ir.lookup import Dim, graph_nodes, subgraphs_of
from onnxslim.ir.model import Model
from onnxslim.ir.order import sort_nodes


@dataclass(frozen=True)
class Mismatch:
    """A rule that owns an operator left it alone: at which anchor (a tensor name) and why."""

    rule: str
    anchor: str
    reason: str


class Rewriter:
    """Edits one model. Create it, edit, then :meth:`finish`; ``edits`` says whether anything changed."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.edits = 0
        self.skipped: list[Mismatch] = []
        self._look()

    def _look(self) -> None:
        """Take stock of the model as it is."""
        model = self.model
        self._dead: dict[int, Node] = {}
        self._names: set[str] | None = None
        self._homes: dict[int, Graph] | None = None
        self._serial: dict[str, int] = {}
        self._inserted = False
        self._outputs = {id(tensor): graph for graph in model.graphs() for tensor in graph.outputs}
        self._sealed = {id(tensor) for graph in model.graphs() for tensor in graph.inputs}

    # ---- asking ------------------------------------------------------------------------------------------

    def is_output(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is an output of the main graph or of any subgraph."""
        return id(tensor) in self._outputs

    def is_private(self, tensor: Tensor) -> bool:
        """Whether one node of its producer's own graph reads ``tensor``, once, and no other reader exists."""
        if len(tensor.outputs) != 1 or self.is_output(tensor):
            return False
        return not tensor.inputs or self.home(tensor.inputs[0]) is self.home(tensor.outputs[0])

    def home(self, node: Node) -> Graph:
        """Return the graph, main or subgraph, that holds ``node``."""
        if self._homes is None:
            self._homes = {id(node): graph for graph in self.model.graphs() for node in graph.nodes}
        return self._homes[id(node)]

    def alive(self, node: Node) -> bool:
        """Whether ``node`` is still part of the graph."""
        return id(node) not in self._dead

    def refuse(self, rule: str, anchor: str, reason: str) -> None:
        """Record that ``rule`` leaves the layer at ``anchor`` alone, and why."""
        self.skipped.append(Mismatch(rule, anchor, reason))

    # ---- making ------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """Return a name like ``hint`` that nothing in the model has."""
        if self._names is None:
            self._names = {name for graph in self.model.graphs() for name in _names_in(graph)}
        name = hint
        while not name or name in self._names:
            self._serial[hint] = self._serial.get(hint, 0) + 1
            name = f"{hint}_{self._serial[hint]}"
        self._names.add(name)
        return name

    def constant(self, hint: str, values: npt.NDArray[Any]) -> Constant:
        """Return a new constant; it becomes part of the model with its first use."""
        return Constant(self.fresh(hint), np.ascontiguousarray(values).reshape(values.shape))

    def variable(self, hint: str, dtype: Any = None, shape: Sequence[Dim] | None = None) -> Variable:
        """Return a new computed tensor, to be given to :meth:`insert` as an output."""
        return Variable(self.fresh(hint), dtype, None if shape is None else list(shape))

    def insert(
        self,
        op: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        attrs: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        domain: str | None = None,
        graph: Graph | None = None,
    ) -> Node:
        """Add a node to ``graph`` (the main one unless given); its place in the order is found at the end.

        A tensor in ``outputs`` that another node computes is taken over from it.
        """
        for tensor in outputs:
            tensor.inputs.clear()
        node = Node(op, name, dict(attrs or {}), list(inputs), list(outputs), domain)
        self.model.nested = self.model.nested or bool(subgraphs_of(node))
        home = self.model.graph if graph is None else graph
        home.nodes.append(node)
        if self._homes is not None:
            self._homes[id(node)] = home
        self._inserted = True
        self.edits += 1
        return node

    # ---- changing ----------------------------------------------------------------------------------------

    def set_input(self, node: Node, index: int, tensor: Tensor) -> None:
        """Make ``node`` read ``tensor`` as its input ``index``, appending empty optional inputs as needed."""
        while len(node.inputs) <= index:
            node.inputs.append(Variable.empty())
        node.inputs[index] = tensor
        self._inserted = True  # the order may have to change
        self.edits += 1

    def set_inputs(self, node: Node, tensors: Sequence[Tensor]) -> None:
        """Replace all inputs of ``node``."""
        node.inputs.clear()
        node.inputs.extend(list(tensors))
        self._inserted = True
        self.edits += 1

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Set an attribute; None removes it."""
        if value is None:
            node.attrs.pop(name, None)
        else:
            node.attrs[name] = value
        self.edits += 1

    def set_op(self, node: Node, op: str, attrs: Mapping[str, Any]) -> None:
        """Turn ``node`` into another operator with these attributes and the same inputs and outputs."""
        node.op = op
        node.attrs = dict(attrs)
        self.edits += 1

    def set_type(self, tensor: Tensor, *, dtype: Any = None, shape: Sequence[Dim] | None = None) -> None:
        """Declare what is now known of a computed tensor. Knowledge, not an edit."""
        if isinstance(tensor, Variable):
            tensor.dtype = tensor.dtype if dtype is None else dtype
            tensor.shape = tensor.shape if shape is None else list(shape)

    def replace(self, old: Tensor, new: Tensor) -> bool:
        """Make every reader of ``old`` read ``new``; a graph output keeps its name.

        Returns:
            False, with nothing changed, where ``old`` is a graph output and ``new`` cannot take its place:
            a constant, an input, another output, or a tensor of another graph.
        """
        graph = self._outputs.get(id(old))
        if graph is not None:
            return self._rename(old, new, graph)
        for node in list(old.outputs):
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    node.inputs[index] = new
        self._inserted = True
        self.edits += 1
        return True

    def _rename(self, output: Tensor, source: Tensor, graph: Graph) -> bool:
        """Let the producer of ``source`` compute ``output`` instead."""
        if not source.inputs or id(source) in self._outputs or id(source) in self._sealed:
            return False
        maker = source.inputs[0]
        if self.home(maker) is not graph or "sparse_value" in maker.attrs:  # onnxruntime returns no sparse constant
            return False
        output.inputs.clear()
        index = next(i for i, tensor in enumerate(maker.outputs) if tensor is source)
        maker.outputs[index] = output
        for node in list(source.outputs):
            for position, tensor in enumerate(node.inputs):
                if tensor is source:
                    node.inputs[position] = output
        self._inserted = True
        self.edits += 1
        return True

    def fold(self, tensor: Tensor, values: npt.NDArray[Any] | Constant) -> bool:
        """Let every reader of ``tensor`` read a constant of the same name instead.

        Returns:
            False, with nothing changed, where a graph returns ``tensor``.
        """
        if self.is_output(tensor):
            return False
        data = values._values if isinstance(values, Constant) else np.ascontiguousarray(values).reshape(values.shape)
        return self.replace(tensor, Constant(tensor.name, data))

    def upgrade(self, opset: int) -> None:
        """Convert the whole model to a newer opset; nodes and tensors are new objects afterwards, names stay.

        Raises:
            PassError: onnx's converter refuses.
        """
        self._become(lambda: self.model.upgraded(opset))

    def inline(self) -> None:
        """Open local functions where they are called; nodes and tensors are new objects afterwards, names stay.

        Raises:
            PassError: onnx's inliner refuses.
        """
        self._become(self.model.inlined)

    def _become(self, make: Callable[[], Model]) -> None:
        self.finish()
        try:
            self.model.restore(make())
        except ModelError as error:
            raise PassError(one_line(error)) from None
        self._look()
        self.edits += 1

    def remove(self, node: Node) -> None:
        """Remove ``node`` and what it captures. Its outputs must have no readers; :meth:`finish` drops it."""
        for inner in subgraphs_of(node):
            for _, nested in graph_nodes(inner):
                nested.inputs.clear()
        node.inputs.clear()
        node.outputs.clear()
        self._dead[id(node)] = node
        self.edits += 1

    def finish(self) -> None:
        """Drop removed nodes and restore a topological order. Call after the last edit, and before a run."""
        if self._dead:
            for graph in self.model.graphs():
                graph.nodes = [node for node in graph.nodes if id(node) not in self._dead]
            self._dead.clear()
        if self._inserted:
            for graph in self.model.graphs():
                graph.nodes = sort_nodes(graph)
            self._inserted = False


def _names_in(graph: Graph) -> set[str]:
    names = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        names.update(tensor.name for tensor in (*node.inputs, *node.outputs))
    return names
