"""The model a command was given: loaded, its dimensions fixed as asked, its file's facts at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxslim.analysis import ModelCost
from onnxslim.ir import Model, fix_batch, fix_input
from onnxslim.ir.loading import file_facts
from onnxslim.ir.saving import Placed
from onnxslim.mobile.download import download_bytes
from onnxslim.report.network import ModelSummary
from onnxslim.workflow.summary import summarize

ModelLike = str | Path | bytes | onnx.ModelProto | Model


@dataclass(frozen=True)
class Source:
    """A model as it came, with the size and digest of its file (or of its bytes, when it came in memory)."""

    model: Model
    bytes: int
    sha256: str
    placed: Placed
    """What onnxruntime is given for it: the file itself, unless dimensions were fixed."""

    def summarize(self, cost: ModelCost, reference: Model | None = None) -> ModelSummary:
        """Return the report's summary; ``reference`` is what the model was made of, where that is known."""
        path = self.model.path
        download = download_bytes(self.placed.data if path is None else path)
        return summarize(
            self.model,
            cost,
            path=path,
            size=self.bytes,
            sha256=self.sha256,
            download=download,
            reference=reference,
        )


def open_source(
    source: ModelLike, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None
) -> Source:
    """Load ``source`` and fix the dimensions named in ``shapes``, and the first of every input to ``batch``.

    Raises:
        ModelError: the model cannot be used, or a shape does not fit it.
    """
    model = source if isinstance(source, Model) else Model.load(source)
    if isinstance(source, (str, Path)):
        placed = Placed(Path(source))
        size, digest = file_facts(Path(source))
    else:
        placed = Placed(source) if isinstance(source, bytes) else model.placed()
        size, digest = _facts(placed)
    if shapes or batch:
        model = model.copy()
        fix_shapes(model, shapes or {}, batch)
        placed = model.placed()
    return Source(model, size, digest, placed)


def _facts(placed: Placed) -> tuple[int, str]:
    """Return size and digest of a model that came in memory."""
    if isinstance(placed.data, Path):
        return file_facts(placed.data)
    return len(placed.data), hashlib.sha256(placed.data).hexdigest()


def fix_shapes(model: Model, shapes: Mapping[str, Sequence[int]], batch: int | None) -> None:
    """Fix inputs of ``model`` in place; ``batch`` applies to inputs whose first dimension is dynamic."""
    for name, shape in shapes.items():
        fix_input(model, name, shape)
    if batch is not None:
        fix_batch(model, batch)
