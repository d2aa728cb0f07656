"""Model: one ONNX model over a GraphSurgeon graph, complete and in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from google.protobuf.message import EncodeError
from onnx_graphsurgeon import Constant, Graph, Node
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnxslim.errors import ModelError, OutputError, one_line
from onnxslim.ir import exporting, external, fidelity, importing, loading, noting, saving, skeletons, weights
from onnxslim.ir.garbage import collection_paused
from onnxslim.ir.lookup import Dim, constant_bytes, graph_nodes, numpy_dtype, subgraphs_of
from onnxslim.ir.saving import Placed
from onnxslim.ir.weights import Files

G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # its messages address its developers; ours carry what matters


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and dimensions of a model's input or output; None where the file does not say."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[Dim, ...] | None


class Model:
    """One ONNX model. Passes edit ``graph`` through a Rewriter; everything else is kept as it was read.

    Build it with :meth:`load`. ``path`` is where it was read from, None for bytes and protos.
    """

    def __init__(
        self, graph: Graph, shell: onnx.ModelProto, notes: noting.Notes, path: Path | None, files: Files
    ) -> None:
        self.graph = graph
        self.path = path
        self._files = files
        self.nested = any(subgraphs_of(node) for node in graph.nodes)
        """Whether any node holds a subgraph; looking is slow, so it is remembered."""
        self._shell = shell
        self._notes = notes

    # ---- in ----------------------------------------------------------------------------------------------

    @classmethod
    @collection_paused()
    def load(cls, source: str | Path | bytes | onnx.ModelProto) -> Model:
        """Read a model from a path, serialized bytes or a ModelProto (which is copied).

        Raises:
            ModelError: missing, truncated, not ONNX, invalid, or with missing external data.
        """
        path: Path | None = None
        files: Files = {}
        if isinstance(source, onnx.ModelProto):
            proto = onnx.ModelProto()
            proto.CopyFrom(source)
            where = "the given ModelProto"
        elif isinstance(source, bytes):
            where = "the given bytes"
            proto = loading.parse(source, where)
        else:
            path = Path(source)
            where = str(path)
            loaded = loading.read(path)
            proto, files = loaded.proto, loaded.files
        if path is None:
            loading.refuse_marked(proto, where)
        loading.check(proto, where, files)
        return cls._import(loading.modernized(proto, where, files), where, path, files)

    @classmethod
    def _import(cls, proto: onnx.ModelProto, where: str, path: Path | None, files: Files) -> Model:
        """Import a checked ``proto``, which is taken over: the caller does not use it again."""
        shell = onnx.ModelProto()
        for descriptor, value in proto.ListFields():
            if descriptor.name == "graph":
                continue
            if descriptor.is_repeated:
                getattr(shell, descriptor.name).extend(value)
            else:
                setattr(shell, descriptor.name, value)
        del proto.functions[:]  # kept whole in the shell; to a pass a call is an unknown operator
        notes = noting.take_notes(proto)
        try:
            graph = importing.import_graph(proto)
        except (OnnxGraphSurgeonException, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{where} holds something onnx-graphsurgeon cannot import ({one_line(error)}): simplify that part"
            ) from error
        if files:
            weights.attach((node for _, node in graph_nodes(graph)), files)
        return cls(graph, shell, notes, path, files)

    # ---- out ---------------------------------------------------------------------------------------------

    def proto(self) -> onnx.ModelProto:
        """Return the model as a new ModelProto, all weights included, with everything that was read and not changed."""
        proto = self._export()
        if self._files:
            external.fill_all(proto, self._files)
        return proto

    @collection_paused()
    def _export(self) -> onnx.ModelProto:
        """Return the model as a new ModelProto, in which tensors whose data is in files are marked."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._shell)
        exporting.write_graph(self.graph, proto.graph, self._notes.values)
        shared = fidelity.shared_constants(self.graph) if self.nested else set()
        fidelity.put_back(proto.graph, self._notes, shared, nested=self.nested)
        declared = {entry.domain for entry in proto.opset_import}
        for domain in sorted({node.domain for node in proto.graph.node} - declared - {"ai.onnx"}):
            proto.opset_import.add(domain=domain, version=1)
        return proto

    @collection_paused()
    def skeleton(self, largest: int = 1024) -> onnx.ModelProto:
        """Return the model without its weights, for shape inference.

        Constants above ``largest`` bytes become typed inputs; smaller ones, which may be shapes and axes, stay.
        No intermediate value is declared but those of operators outside the standard, which nothing else knows.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._shell)
        proto.ir_version = max(4, self.ir_version)
        skeletons.fill(proto.graph, self.graph, largest)
        return proto

    def extract(self, nodes: Sequence[Node], outputs: Sequence[str]) -> onnx.ModelProto:
        """Return a model of ``nodes`` alone, which read nothing but constants and each other."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._shell)
        proto.ir_version = max(4, self.ir_version)
        skeletons.fill_nodes(proto.graph, nodes, outputs)
        external.fill_all(proto, self._files)
        return proto

    def to_bytes(self) -> bytes:
        """Serialize: the same model always gives the same bytes.

        Raises:
            ModelError: larger than protobuf's 2 GiB; save such a model to a path.
        """
        return _serialize(self.proto())

    def save(self, path: str | Path) -> None:
        """Write the model to ``path``, whole or not at all; weights go to ``path.data`` above 2 GiB.

        Raises:
            OutputError: the place cannot be written, or is where this model was read from.
        """
        target = Path(path)
        if self.path is not None and target.exists() and self.path.exists() and target.samefile(self.path):
            raise OutputError(f"{target} is the input itself: name another file to write")
        if not self.is_large:
            saving.write_bytes(target, self.to_bytes())
            return
        apart = self._is_split()
        if apart and self.path is not None and target.resolve().parent == self.path.resolve().parent:
            self._refuse_data_collision(target)
        saving.write_large(target, *self._marked(), apart=apart)

    def placed(self, outputs: Sequence[str] = ()) -> Placed:
        """Return the model as onnxruntime can load it: bytes, or if it is large, a temporary file.

        Args:
            outputs: inner tensors that it returns too.
        """
        if self.is_large:
            path, placed = Placed.in_folder("model.onnx")
            proto, files = self._marked()
            saving.add_outputs(proto, outputs)
            saving.write_large(path, proto, files, apart=True)
            return placed
        proto = self.proto()
        saving.add_outputs(proto, outputs)
        return Placed(_serialize(proto))

    def _is_split(self) -> bool:
        """Whether weights go to a file beside the model: protobuf ends at 2 GiB."""
        return self.weight_bytes() > saving.EXTERNAL_ABOVE

    def _marked(self) -> tuple[onnx.ModelProto, Files]:
        """Return a large model with its larger initializers marked, and where their data is."""
        memory = weights.Memory()
        with memory.holding(self._constants()):
            proto = self._export()
        files = {**self._files, memory.LOCATION: memory}
        external.fill_inner(proto, files)
        return proto, files

    def _refuse_data_collision(self, target: Path) -> None:
        assert self.path is not None  # noqa: S101  (the caller's condition)
        beside = target.with_name(f"{target.name}.data")
        if beside.exists() and beside.name in loading.locations(self.path):
            raise OutputError(f"{beside} holds weights of the input: write to another folder")

    # ---- looking -----------------------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        versions = [e.version for e in self._shell.opset_import if e.domain in ("", "ai.onnx")]
        return max(versions, default=1)

    @property
    def ir_version(self) -> int:
        """Version of the ONNX file format."""
        return int(self._shell.ir_version)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model must be fed: inputs without a default value, in order."""
        return tuple(_spec(t) for t in self.graph.inputs if t.name not in self._notes.defaults)

    @property
    def defaults(self) -> dict[str, npt.NDArray[Any]]:
        """The values of inputs that need not be fed."""
        return {name: onnx.numpy_helper.to_array(value) for name, value in self._notes.defaults.items()}

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model returns, in order."""
        return tuple(_spec(t) for t in self.graph.outputs)

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata_props."""
        return {entry.key: entry.value for entry in self._shell.metadata_props}

    def set_metadata(self, key: str, value: str | None) -> None:
        """Set one entry of metadata_props, in place of an entry of the same key; None removes it."""
        kept = [entry for entry in self._shell.metadata_props if entry.key != key]
        del self._shell.metadata_props[:]
        self._shell.metadata_props.extend(kept)
        if value is not None:
            self._shell.metadata_props.add(key=key, value=value)

    def require_opset(self, domain: str, version: int) -> None:
        """Declare that nodes of ``domain`` are used, at ``version``, unless the model declares it already."""
        if domain not in {entry.domain for entry in self._shell.opset_import}:
            self._shell.opset_import.add(domain=domain, version=version)

    def graphs(self) -> Iterator[Graph]:
        """Yield the main graph, then every subgraph at any depth."""
        yield self.graph
        if self.nested:
            yield from self.graph.subgraphs(recursive=True)

    def weight_bytes(self) -> int:
        """Return the bytes of all constants."""
        return sum(constant_bytes(tensor) for tensor in self._constants())

    @property
    def is_large(self) -> bool:
        """Whether its weights are better left in files: see ``weights.LARGE``."""
        return self.weight_bytes() > weights.LARGE

    def _constants(self) -> list[Constant]:
        """Return every constant that a node reads or holds, once."""
        held: dict[int, Constant] = {}
        for _, node in graph_nodes(self.graph):
            for tensor in (*node.inputs, *node.attrs.values()):
                if isinstance(tensor, Constant):
                    held[id(tensor)] = tensor
        return list(held.values())

    def upgraded(self, opset: int) -> Model:
        """Return this model converted to a newer version of the standard operators, by onnx's own converter.

        Raises:
            ModelError: the converter refuses, with its reason.
        """
        try:
            proto = onnx.version_converter.convert_version(self.proto(), opset)
        except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
            raise ModelError(f"the model cannot be converted to opset {opset}: {one_line(error)}") from None
        return Model._import(proto, "the converted model", self.path, {})

    def inlined(self) -> Model:
        """Return this model with local functions opened where they are called, by onnx's own inliner.

        Raises:
            ModelError: the inliner refuses, with its reason.
        """
        try:
            proto = onnx.inliner.inline_local_functions(self.proto())
        except (RuntimeError, ValueError, IndexError) as error:
            raise ModelError(f"its functions cannot be inlined: {one_line(error)}") from None
        return Model._import(proto, "the inlined model", self.path, {})

    @property
    def functions(self) -> tuple[tuple[str, str], ...]:
        """Domain and name of every local function."""
        return tuple((function.domain, function.name) for function in self._shell.functions)

    @collection_paused()
    def copy(self) -> Model:
        """Return an independent copy. Weights are shared: replace constants, never write into them."""
        shell = onnx.ModelProto()
        shell.CopyFrom(self._shell)
        return Model(fidelity.copy_graph(self.graph), shell, self._notes, self.path, self._files)

    def restore(self, snapshot: Model) -> None:
        """Become what ``snapshot``, a copy of this model, is. The snapshot must not be used afterwards."""
        self.graph = snapshot.graph
        self.nested = snapshot.nested
        self._shell = snapshot._shell
        self._notes = snapshot._notes
        self._files = snapshot._files

    def text(self) -> str:
        """Return the graph as ONNX text, for reading and for tests."""
        return onnx.printer.to_text(self.proto())

    def size_and_digest(self) -> tuple[int, str]:
        """Return the bytes that :meth:`save` writes, and the SHA-256 of the model file, without external data."""
        if not self.is_large:
            data = self.to_bytes()
            return len(data), hashlib.sha256(data).hexdigest()
        proto, files = self._marked()
        return saving.size_and_digest(proto, files, apart=self._is_split())


def _serialize(proto: onnx.ModelProto) -> bytes:
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError):
        raise ModelError("the model is larger than protobuf's 2 GiB: save it to a path, with external data") from None


def _spec(tensor: Any) -> TensorSpec:
    shape = None if tensor.shape is None else tuple(tensor.shape)
    return TensorSpec(tensor.name, numpy_dtype(tensor.dtype), shape)
